"""MaVEn's four stages (arXiv 2408.12321), each a function that names what it trains; all else stays bit for bit.

A stage that was stopped goes on from its last checkpoint, and ends with the same numbers.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from statistics import fmean

import torch
from model import WIDTH, Maven, Mode, Way
from torch import Tensor
from torch.nn import functional

from patchmint.demo.documents import ORDINALS
from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.training import StageBatch, StageDataset, StageLoader, StageSample, Turn, selector_loss, train_new_rows
from patchmint.types import PHRASE_SEPARATOR

DESCRIBE = "Describe the picture."
NAME = tuple(f"Name something in the {ordinal} picture." for ordinal in ORDINALS)
# What the language model is asked of one picture of several.
WHICH = "Which picture has"
THINGS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
QUESTIONS = 4
# Of a conversation: the pictures cost the most, so they are asked about more than once.
MOST_IMAGES = 4
# Of documents; those with more are left out.
BATCH = 32
# Pictures.
CHECKPOINT = 50

Exchanges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """One kind of batch; a stage's tasks take turns."""

    dataset: StageDataset
    loss: Callable[[StageBatch], Tensor]
    batch: int = BATCH


def question_of(thing: str) -> str:
    """Which picture has it: what the selector is asked."""
    return f"{WHICH} {'an' if thing[:1] in tuple('aeiou') else 'a'} {thing}?"


def texts(documents: Path) -> list[str]:
    """Texts with all the words that may be said."""
    turns = [part.text for sample in StageDataset(documents, include=()) for part in sample.parts]
    return [DESCRIBE, *NAME, PHRASE_SEPARATOR, ":", *map(question_of, THINGS), *turns]


def said(sample: StageSample) -> Exchanges:
    """Questions and answers of a document; none of a picture."""
    turns = [text for part in sample.parts if (text := part.text.strip())]
    return list(zip(turns[::2], turns[1::2], strict=True))


def sought(sample: StageSample) -> tuple[str, int]:
    """A thing that one picture of a group alone has, and which one; or what a document's question is about (-1: none).

    Which picture it is, is drawn first: those that show much aren't the answer more often.
    """
    if not sample.group:
        question, right = next((each for each in said(sample) if each[0].startswith(WHICH)), ("", ""))
        places = (place for place, ordinal in enumerate(ORDINALS) if ordinal in right)
        return " ".join(question.rstrip("?").split()[-2:]), next(places, -1)
    lot = random.Random(sample.key)  # noqa: S311 (each epoch has other groups)
    things = [set(one.text.split(PHRASE_SEPARATOR)) for one in sample.group]
    alone = [sorted(own - set().union(*things[:n], *things[n + 1 :])) for n, own in enumerate(things)]
    place = lot.choice([n for n, own in enumerate(alone) if own] or [0])
    return lot.choice(alone[place] or sorted(things[place])), place


def exchanges(sample: StageSample) -> Exchanges:
    """Questions and answers to learn from: what a picture shows; what a document's turns say; things of a group's."""
    if not sample.group:
        return said(sample)[:QUESTIONS] or [(DESCRIBE, sample.text)]
    lot = random.Random(sample.key + "+")  # noqa: S311
    thing, place = sought(sample)
    made = [(NAME[place], thing)]
    while len(made) < QUESTIONS:
        place = lot.randrange(len(sample.group))
        text = sample.group[place].text
        described = len(made) == QUESTIONS - 1
        question = f"Describe the {ORDINALS[place]} picture." if described else NAME[place]
        made.append((question, text if described else lot.choice(text.split(PHRASE_SEPARATOR))))
    return made


def talk(world: Maven, way: Way, sample: StageSample, told: Exchanges) -> StageSample:
    """The sample with the sequences of a conversation about its pictures, which are shown first.

    `talk` has the answers that are told, `prompt` all but the last of them. The selector has `state0`, `state1` ... for
    each image; it is asked for the thing that a single question seeks. Several share the pictures: then all is wanted.
    """
    images = [] if way.mode == "words" else [world.image(image, way) for image in sample.images]
    shown = ["<image>"] * len(images) or [one.text for one in sample.group or (sample,)]
    if len(shown) > 1:  # counted, so that questions can name them
        shown = [f"The {ordinal} picture: {one}" for ordinal, one in zip(ORDINALS, shown, strict=False)]
    turns = [Turn(role, text) for exchange in told for role, text in zip(("human", "gpt"), exchange, strict=True)]
    turns[0] = Turn("human", "\n".join([*shown, turns[0].content]))
    made = {"talk": world.builder.conversation(turns, images), "prompt": world.builder.prompt(turns, images)}
    if way.has_patches:
        (question, thing), *more = told
        wanted = DESCRIBE if more or question == DESCRIBE else question_of(thing)
        # A batch's samples have equally many sequences, its documents not equally many images.
        for place in range(MOST_IMAGES if sample.parts else len(sample.images)):
            seen = [image.codes for image in sample.images[place : place + 1]]
            made[f"state{place}"] = world.builder.document_state(seen, wanted)
    return replace(sample, sequences=made)


def conversations(
    world: Maven, data: Sequence[Path], way: Way, group: int = 1, most: int = QUESTIONS, **read: object
) -> Task:
    """Conversations about pictures, each by itself or in groups, or about documents; `read` is for `StageDataset`."""
    dataset = StageDataset(
        data,
        include={"words": (), "discrete": ("codes",)}.get(way.mode, ("codes", "features")),
        text="first",
        group=group,
        max_images=MOST_IMAGES,
        sequences=lambda sample: talk(world, way, sample, exchanges(sample)[:most]).sequences,
        **read,
    )
    return Task(dataset, partial(world.loss, way=way), BATCH // group)


def learn_words(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """Before stage 1, for MaVEn's Vicuna: the language model learns to talk about pictures that are told in words."""
    pairs, single, again, fours = (conversations(world, data, Way("words"), group) for group in (2, 1, 2, 4))
    asked = remembered(world, data)
    fit(world, out / "words.pt", ("llm",), [pairs, single, asked, again, fours, asked], steps, 3e-3)


def remembered(world: Maven, data: Sequence[Path]) -> Task:
    """At `<EOS>`, where the selector's state is taken, to name the thing that a question before the codes asks for.

    A pretrained language model's state has it; that of one which has learnt nothing at `<EOS>` hasn't. Rows of codes
    are drawn anew for each batch, as `resize_embeddings` will draw them, so the question is read past whatever they
    are. Pictures have few of them here, past which it is learnt sooner.
    """

    def sequences(sample: StageSample) -> dict[str, object]:
        lot = random.Random(sample.key)  # noqa: S311
        codes = sample.codes.flatten()[: lot.choice((1, 4, 9, 16))]
        return {"state0": world.builder.state(codes, question_of(lot.choice(THINGS)))}

    words = world.tokenizer.convert_tokens_to_ids([*COLOURS, *SHAPES])

    def loss(batch: StageBatch) -> Tensor:
        asked = batch.sequences["state0"]
        old = world.llm.get_input_embeddings().weight
        by_batch = torch.Generator().manual_seed(random.Random("".join(batch.keys)).getrandbits(32))  # noqa: S311
        new = torch.randn(world.vocabulary.size - len(old), WIDTH, generator=by_batch)
        rows = torch.cat([old, old.mean(0) + old.std(0) * new])
        embeddings = functional.embedding(asked.input_ids, rows)
        states = world.llm.model(inputs_embeds=embeddings, attention_mask=asked.attention_mask).last_hidden_state
        logits = world.llm.lm_head(states[torch.arange(len(states)), asked.state_positions])[:, words]
        named = (asked.input_ids[..., None] == torch.tensor(words)).any(1).float()
        return functional.cross_entropy(logits, named / named.sum(1, keepdim=True))

    return Task(StageDataset(data, include=("codes",), text="first", sequences=sequences), loss)


def selector_questions(world: Maven, data: Path) -> StageDataset:
    """What the selector is asked in stage 1: about all things (a sample's first text), or about one (its second)."""

    def sequences(sample: StageSample) -> dict[str, object]:
        question = question_of(sample.text) if sample.text_index else DESCRIBE
        return {"state0": world.builder.state(sample.codes, question)}

    return StageDataset(data, include=("labels", "codes", "features"), sequences=sequences)


def stage1(world: Maven, data: Path, out: Path, steps: int) -> None:
    """The selector, on the shards' labels; the language model gives its state and is frozen.

    Things are few among an image's patches, and most images of a batch could be told by things alone. So a thing's
    patches are learnt with another sample's question, too: they aren't what that asks for.
    """

    def loss(batch: StageBatch) -> Tensor:
        patches, states, labels = world.patches(batch), world.states(batch), batch.feature_selector.flatten(1)
        found = selector_loss(world.selector(patches, states), labels, batch.feature_mask.flatten(1))
        single = [place for place, number in enumerate(batch.text_indices) if number]
        pairs = [(a, b) for a, b in pairwise([*single, *single[:1]]) if batch.texts[a] != batch.texts[b]]
        own, other = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        if not (shown := labels[own] > 0).any():
            return found
        return found + selector_loss(world.selector(patches[own], states[other]), torch.zeros_like(labels[own]), shown)

    fit(world, out / "stage1.pt", ("selector",), [Task(selector_questions(world, data), loss, 48)], steps, 2e-3)


def stage2(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """The rows of codes and marks, on pictures' texts: from codes to words, and from words to codes."""

    def drawn(sample: StageSample) -> dict[str, object]:
        return {"talk": world.builder.text_to_image(sample.text, sample.codes)}

    dataset = StageDataset(data, include=("codes",), text="first", sequences=drawn)
    tasks = [conversations(world, data, Way("discrete")), Task(dataset, partial(world.loss, way=Way("discrete")))]
    words = world.llm.get_input_embeddings().weight[: world.vocabulary.text_size].clone()
    with train_new_rows(world.llm, world.vocabulary):
        fit(world, out / "stage2.pt", ("llm.model.embed_tokens", "llm.lm_head"), tasks, steps, 1e-2)
    assert torch.equal(words, world.llm.get_input_embeddings().weight[: world.vocabulary.text_size])


def stage3(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """The projector, on pictures' texts and kept patches, without codes."""
    fit(world, out / "stage3.pt", ("projector",), [conversations(world, data, Way("continuous"))], steps, 3e-3)


def stage4(world: Maven, data: Sequence[Path], documents: Path, out: Path, steps: int, mode: Mode) -> None:
    """Everything but selector and vision encoder: pictures, pairs and documents, with few patches and with many."""
    way, pairs = Way(mode), partial(conversations, world, data, group=2)
    tasks = [pairs(way), conversations(world, data, way), pairs(way, most=1)]
    tasks += [pairs(Way(mode, 1.0)), pairs(way), pairs(Way(mode, 0.1), most=1)]
    tasks.append(replace(conversations(world, [documents], way), batch=BATCH // 2))
    trained = ("llm", "projector") if way.has_patches else ("llm",)
    fit(world, out / f"stage4-{mode}.pt", trained, tasks, steps, 2e-3)


def fit(
    world: Maven, path: Path, trained: tuple[str, ...], tasks: Sequence[Task], steps: int, rate: float, until: int = 0
) -> None:
    """Train modules on tasks in turn, or go on where a checkpoint is.

    A tenth of the steps leads up to the rate, the rest down to nothing. A call that ends after the step `until` is gone
    on with by a later one.

    Raises:
        AssertionError: what is trained learnt nothing, or anything else isn't bit for bit what it was.
    """
    before = {name: value.clone() for name, value in world.state_dict().items()}
    loaders = [StageLoader(task.dataset, min(task.batch, len(task.dataset)), drop_last=True) for task in tasks]
    batches = [chain.from_iterable(repeat(loader)) for loader in loaders]
    parameters = list(dict.fromkeys(value for name in trained for value in world.get_submodule(name).parameters()))
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0)
    losses: list[float] = []
    if path.exists():
        saved = torch.load(path, weights_only=True)
        states = (saved["world"], saved["optimizer"], *saved["loaders"])
        for one, state in zip((world, optimizer, *loaders), states, strict=True):
            one.load_state_dict(state)
        losses = saved["losses"]
    started, last = time.process_time(), until or steps
    for step in range(len(losses), last):
        turn = step % len(tasks)
        optimizer.param_groups[0]["lr"] = rate * min(10 * (step + 1) / steps, (steps - step) / (0.9 * steps), 1)
        optimizer.zero_grad()
        loss = tasks[turn].loss(next(batches[turn]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % CHECKPOINT == 0 or len(losses) == last:
            states = {"world": world.state_dict(), "optimizer": optimizer.state_dict()}
            states |= {"loaders": [loader.state_dict() for loader in loaders], "losses": losses}
            torch.save(states, unfinished := path.with_suffix(".partial"))
            unfinished.replace(path)
            mean, seconds = fmean(losses[-CHECKPOINT:]), time.process_time() - started
            print(f"{path.stem}: {len(losses)} of {steps}, loss {mean:.3f}, {seconds:.0f} CPU s", file=sys.stderr)
    changed = {name for name, value in world.state_dict().items() if not torch.equal(value, before[name])}
    assert changed, f"{trained} learnt nothing"
    wrong = sorted(name for name in changed if not name.startswith(trained))
    assert not wrong, f"only {trained} is trained, but these changed: {wrong}"
