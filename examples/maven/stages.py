"""MaVEn's four stages (arXiv 2408.12321), each a function that names what it trains; all else stays bit for bit.

A stage that was stopped goes on from its last checkpoint, and ends with the same numbers.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from model import WIDTH, Maven, Mode
from torch import Tensor, nn
from torch.nn import functional

from patchmint.demo.documents import ORDINALS
from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.training import (
    StageBatch,
    StageDataset,
    StageLoader,
    StageSample,
    TokenSequence,
    Turn,
    selector_loss,
    train_new_rows,
)
from patchmint.types import PHRASE_SEPARATOR

KEEP = 0.25
DESCRIBE = "Describe the picture."
WHICH = "Which picture has"
QUESTIONS = 4
# Of a conversation about a group: the pictures cost the most, so they are asked about more than once.
EVERYTHING = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
BATCH = 32
# Pictures.
CHECKPOINT = 50
MOST_IMAGES = 4
# Of documents; those with more are left out.
Made = Mapping[str, TokenSequence]
Exchanges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of each stage."""

    words: int = 2400
    selector: int = 400
    codes: int = 150
    projector: int = 200
    everything: int = 1000


@dataclass(frozen=True)
class Task:
    """One kind of batch; a stage's tasks take turns."""

    dataset: StageDataset
    loss: Callable[[StageBatch], Tensor]
    batch: int = BATCH


def question_of(thing: str) -> str:
    """Which picture has it: what the selector is asked."""
    return f"{WHICH} {'an' if thing[:1] in tuple('aeiou') else 'a'} {thing}?"


def name_of(place: int) -> str:
    """What the language model is asked of one picture of several."""
    return f"Name something in the {ORDINALS[place]} picture."


def sought(sample: StageSample) -> tuple[str, int]:
    """A thing that one picture of a group alone has, and which one; or what a document's question is about (-1: none).

    Which picture it is, is drawn first: those that show much aren't the answer more often.
    """
    if sample.parts:
        turns = [part.text.strip() for part in sample.parts if part.text.strip()]
        asked = dict(zip(turns[::2], turns[1::2], strict=True))
        for question, right in asked.items():
            if question.startswith(WHICH):
                places = [place for place, ordinal in enumerate(ORDINALS) if ordinal in right]
                return " ".join(question.rstrip("?").split()[-2:]), places[0] if places else -1
        return "", -1
    lot = random.Random(sample.key)  # noqa: S311 (each epoch has other groups)
    things = [set(one.text.split(PHRASE_SEPARATOR)) for one in sample.group]
    alone = [sorted(own - set().union(*things[:n], *things[n + 1 :])) for n, own in enumerate(things)]
    place = lot.choice([n for n, own in enumerate(alone) if own] or [0])
    return lot.choice(alone[place] or sorted(things[place])), place


def exchanges(sample: StageSample, most: int) -> list[tuple[str, str]]:
    """Questions and answers to learn from: what a picture shows; what a document's turns say; things of a group's."""
    if sample.parts:
        turns = [part.text.strip() for part in sample.parts if part.text.strip()]
        return list(zip(turns[::2], turns[1::2], strict=True))[:most]
    if not sample.group:
        return [(DESCRIBE, sample.text)]
    lot = random.Random(sample.key + "+")  # noqa: S311
    thing, place = sought(sample)
    made = [(name_of(place), thing)]
    while len(made) < most:
        place = lot.randrange(len(sample.group))
        text = sample.group[place].text
        described = len(made) == most - 1
        question = f"Describe the {ORDINALS[place]} picture." if described else name_of(place)
        made.append((question, text if described else lot.choice(text.split(PHRASE_SEPARATOR))))
    return made


def talk(
    world: Maven, mode: Mode, ratio: float, sample: StageSample, told: Exchanges, wanted: str, states: int = 1
) -> Made:
    """The sequences of a conversation about a sample's pictures, which are shown first.

    Args:
        world: whose builder makes them.
        mode: what stands for a picture.
        ratio: of patches that are kept.
        sample: of a picture, several, or a document.
        told: questions and answers; the language model is asked these.
        wanted: what the selector is asked.
        states: the most images that a sample of the data set has: all samples have equally many sequences.

    Returns:
        `talk` with the answers, `prompt` without the last, and the selector's `state0`, `state1` ... for each image.
    """
    images = [] if mode == "words" else [world.image(image, mode, ratio) for image in sample.images]
    shown = ["<image>"] * len(images) or [one.text for one in sample.group or (sample,)]
    if len(shown) > 1:  # counted, so that questions can name them
        shown = [f"The {ordinal} picture: {one}" for ordinal, one in zip(ORDINALS, shown, strict=False)]
    turns = [Turn(role, said) for exchange in told for role, said in zip(("human", "gpt"), exchange, strict=True)]
    turns[0] = Turn("human", "\n".join([*shown, turns[0].content]))
    made = {"talk": world.builder.conversation(turns, images), "prompt": world.builder.prompt(turns, images)}
    if mode in ("continuous", "hybrid"):
        for place in range(states):
            seen = [image.codes for image in sample.images[place : place + 1]]
            made[f"state{place}"] = world.builder.document_state(seen, wanted)
    return made


def lesson(world: Maven, mode: Mode, ratio: float, most: int, states: int, sample: StageSample) -> Made:
    """A conversation to learn from. Several questions share the pictures, so all of these is wanted."""
    told = exchanges(sample, most)
    wanted = question_of(told[0][1]) if sample.group and most == 1 else DESCRIBE
    return talk(world, mode, ratio, sample, told, wanted, states)


def selector_state(world: Maven, sample: StageSample) -> Made:
    """What the selector is asked in stage 1: about all things (a sample's first text), or about one (its second)."""
    question = question_of(sample.text) if sample.text_index else DESCRIBE
    return {"state0": world.builder.state(sample.codes, question)}


def learn_words(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """Before stage 1, for MaVEn's Vicuna: the language model learns to talk about pictures that are told in words."""
    told = [_told(world, data, "words", 1, group) for group in (2, 1, 2, 4)]
    asked = _remembered(world, data)
    tasks = [*told[:2], asked, *told[2:], asked]
    with only(world, "llm"):
        fit(out / "words.pt", world, tasks, world.llm.parameters(), steps, 3e-3)


def _remembered(world: Maven, data: Sequence[Path]) -> Task:
    """At `<EOS>`, where the selector's state is taken, to name the thing that a question before the codes asks for.

    A pretrained language model's state has it; that of one which has learnt nothing at `<EOS>` hasn't. Rows of codes
    are drawn anew for each batch, as `resize_embeddings` will draw them, so the question is read past whatever they
    are. Pictures have few of them here, past which it is learnt sooner.
    """

    def sequences(sample: StageSample) -> Made:
        lot = random.Random(sample.key)  # noqa: S311
        codes = sample.codes.flatten()[: lot.choice((1, 4, 9, 16))]
        return {"state0": world.builder.state(codes, question_of(lot.choice(EVERYTHING)))}

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


def stage1(world: Maven, data: Path, out: Path, steps: int) -> None:
    """The selector, on the shards' labels; the language model gives its state and is frozen.

    Things are few among an image's patches, and most images of a batch could be told by things alone. So a thing's
    patches are learnt with another sample's question, too: they aren't what that asks for.
    """

    def loss(batch: StageBatch) -> Tensor:
        patches, states, labels = world.patches(batch), world.states(batch), batch.feature_selector.flatten(1)
        found = selector_loss(world.selector(patches, states), labels, batch.feature_mask.flatten(1))
        single = [place for place, text in enumerate(batch.text_indices) if text]
        pairs = [
            (own, other) for own, other in pairwise([*single, *single[:1]]) if batch.texts[own] != batch.texts[other]
        ]
        own, other = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        if not (shown := labels[own] > 0).any():
            return found
        return found + selector_loss(world.selector(patches[own], states[other]), torch.zeros_like(labels[own]), shown)

    include = ("labels", "codes", "features")
    dataset = StageDataset(data, include=include, sequences=partial(selector_state, world))
    with only(world, "selector"):
        fit(out / "stage1.pt", world, [Task(dataset, loss, 48)], world.selector.parameters(), steps, 2e-3)


def stage2(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """The rows of codes and marks, on pictures' texts: from codes to words, and from words to codes."""

    def drawn(sample: StageSample) -> Made:
        return {"talk": world.builder.text_to_image(sample.text, sample.codes)}

    dataset = StageDataset(data, include=["codes"], text="first", sequences=drawn)
    tasks = [_told(world, data, "discrete", KEEP), Task(dataset, partial(world.loss, ratio=KEEP))]
    words = world.llm.get_input_embeddings().weight[: world.vocabulary.text_size].clone()
    with only(world, "llm.model.embed_tokens", "llm.lm_head"), train_new_rows(world.llm, world.vocabulary) as rows:
        fit(out / "stage2.pt", world, tasks, rows, steps, 1e-2)
    assert torch.equal(words, world.llm.get_input_embeddings().weight[: world.vocabulary.text_size])


def stage3(world: Maven, data: Sequence[Path], out: Path, steps: int) -> None:
    """The projector, on pictures' texts and kept patches, without codes."""
    with only(world, "projector"):
        tasks = [_told(world, data, "continuous", KEEP)]
        fit(out / "stage3.pt", world, tasks, world.projector.parameters(), steps, 3e-3)


def stage4(world: Maven, data: Sequence[Path], documents: Path | None, out: Path, steps: int, mode: Mode) -> None:
    """Everything but selector and vision encoder: pictures, pairs and documents, with few patches and with many."""
    trained = ("llm",) if mode == "discrete" else ("llm", "projector")
    tasks = [
        _told(world, data, mode, KEEP, group=2),
        _told(world, data, mode, KEEP),
        _told(world, data, mode, KEEP, group=2, most=1),
        _told(world, data, mode, 1.0, group=2),
        _told(world, data, mode, KEEP, group=2),
        _told(world, data, mode, 0.1, group=2, most=1),
    ]
    if documents is not None:
        tasks.append(_told(world, [documents], mode, KEEP, images=MOST_IMAGES))
    with only(world, *trained):
        parameters = [value for name in trained for value in world.get_submodule(name).parameters()]
        fit(out / f"stage4-{mode}.pt", world, tasks, parameters, steps, 2e-3)


def _told(
    world: Maven,
    data: Sequence[Path],
    mode: Mode,
    ratio: float,
    group: int = 1,
    most: int = QUESTIONS,
    images: int | None = None,
) -> Task:
    """Conversations about pictures, each by itself or in groups; or about documents of at most so many images."""
    include = {"words": (), "discrete": ("codes",)}.get(mode, ("codes", "features"))
    sequences = partial(lesson, world, mode, ratio, most, images or group)
    dataset = StageDataset(data, include=include, text="first", group=group, max_images=images, sequences=sequences)
    return Task(dataset, partial(world.loss, ratio=ratio), BATCH // max(group, (images or 1) // 2))


@contextmanager
def only(world: Maven, *trained: str) -> Iterator[None]:
    """Check that nothing changes but what is trained, and that this does.

    Raises:
        AssertionError: anything else isn't bit for bit what it was.
    """
    before = {name: value.clone() for name, value in world.state_dict().items()}
    yield
    changed = {name for name, value in world.state_dict().items() if not torch.equal(value, before[name])}
    assert changed, f"{trained} learnt nothing"
    wrong = sorted(name for name in changed if not name.startswith(trained))
    assert not wrong, f"only {trained} is trained, but these changed: {wrong}"


def fit(
    path: Path,
    world: Maven,
    tasks: Sequence[Task],
    parameters: Iterable[nn.Parameter],
    steps: int,
    rate: float,
    *,
    until: int | None = None,
) -> None:
    """Train, or go on where a checkpoint is.

    Args:
        path: of the checkpoint.
        world: saved whole.
        tasks: in turn.
        parameters: what is trained.
        steps: in all.
        rate: the highest; a tenth of the steps leads up to it, the rest down to nothing.
        until: stop after this one of the steps; a later call goes on.
    """
    loaders = [StageLoader(task.dataset, min(task.batch, len(task.dataset)), drop_last=True) for task in tasks]
    optimizer = torch.optim.AdamW(list(parameters), rate, betas=(0.9, 0.98), weight_decay=0)
    losses: list[float] = []
    if path.exists():
        saved = torch.load(path, weights_only=True)
        world.load_state_dict(saved["world"])
        optimizer.load_state_dict(saved["optimizer"])
        for loader, state in zip(loaders, saved["loaders"], strict=True):
            loader.load_state_dict(state)
        losses = saved["losses"]
    batches = [_endless(loader) for loader in loaders]
    started = time.process_time()
    last = until or steps
    for step in range(len(losses), last):
        turn = step % len(tasks)
        optimizer.param_groups[0]["lr"] = rate * min(10 * (step + 1) / steps, (steps - step) / (0.9 * steps), 1)
        loss = tasks[turn].loss(next(batches[turn]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % CHECKPOINT == 0 or len(losses) == last:
            _save(path, world, optimizer, loaders, losses)
            recent = sum(losses[-CHECKPOINT:]) / len(losses[-CHECKPOINT:])
            seconds = time.process_time() - started
            print(f"{path.stem}: {len(losses)} of {steps}, loss {recent:.3f}, {seconds:.0f} CPU s", file=sys.stderr)


def _save(
    path: Path, world: Maven, optimizer: torch.optim.Optimizer, loaders: Sequence[StageLoader], losses: list[float]
) -> None:
    states = {"world": world.state_dict(), "optimizer": optimizer.state_dict()}
    partial_path = path.with_suffix(".partial")
    torch.save({**states, "loaders": [loader.state_dict() for loader in loaders], "losses": losses}, partial_path)
    partial_path.replace(path)


def _endless(loader: StageLoader) -> Iterator[StageBatch]:
    while True:
        yield from loader
