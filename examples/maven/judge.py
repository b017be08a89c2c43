"""What the model has learnt, on scenes that nothing was trained on: descriptions, answers, the selector's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from model import KEEP, Maven, Way
from stages import MOST_IMAGES, NAME, exchanges, selector_questions, sought, talk
from torch import Tensor
from torch.nn import functional

from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.training import StageDataset, StageLoader, StageSample, auc, collate, recall_at_keep

BATCH = 25
PAIRINGS = 4


@dataclass(frozen=True)
class HeldOut:
    """Samples to be judged by: pictures, pairs of them, and documents with a question for one of their pictures."""

    pictures: Sequence[StageSample]
    pairs: Sequence[StageSample]
    documents: Sequence[StageSample]

    @classmethod
    def read(cls, pictures: Path, documents: Path) -> HeldOut:
        """Each picture comes in several pairs."""
        include = ("codes", "features")
        pairs = StageDataset(pictures, include=include, text="first", group=2)
        asked_for = StageDataset(documents, include=include, max_images=MOST_IMAGES)
        return cls(
            list(StageDataset(pictures, include=include, text="first")),
            [sample for _ in range(PAIRINGS) for sample in pairs],
            [sample for sample in asked_for if sought(sample)[1] >= 0],
        )

    def exchanged(self) -> HeldOut:
        """Samples with the pictures of the next of as many: whoever looks at pictures does as well as chance."""

        def moved(samples: Sequence[StageSample]) -> list[StageSample]:
            counts = dict.fromkeys(len(sample.images) for sample in samples)
            alike = [[sample for sample in samples if len(sample.images) == count] for count in counts]
            pairs = (pair for each in alike for pair in zip(each, each[1:] + each[:1], strict=True))
            return [replace(sample, images=other.images) for sample, other in pairs]

        return HeldOut(moved(self.pictures), moved(self.pairs), moved(self.documents))


def judge(world: Maven, held_out: HeldOut, way: Way) -> tuple[dict[str, float], dict[str, float]]:
    """F1 of the colours and shapes in descriptions, and the share of questions whose right answer is the likeliest.

    Returns:
        The figures; and the same by chance: of what it says and all pictures but the one that is shown, and of guesses.
    """
    world.eval()
    said = describe(world, held_out.pictures, way)
    right = [sample.text for sample in held_out.pictures]
    figures = f1s(zip(said, right, strict=True))
    chance = f1s((one, other) for n, one in enumerate(said) for m, other in enumerate(right) if n != m)
    for name, samples in (("which", held_out.pairs), ("documents", held_out.documents)):
        if samples:
            figures[name] = answer(world, samples, way)
            chance[name] = sum(1 / len(one.images) for one in samples) / len(samples)
    return figures, chance


@torch.no_grad()
def describe(world: Maven, pictures: Sequence[StageSample], way: Way) -> list[str]:
    """What it says of each picture."""
    said = []
    for start in range(0, len(pictures), BATCH):
        made = [talk(world, way, one, exchanges(one)) for one in pictures[start : start + BATCH]]
        batch = collate(made, pad_left=True)
        said += world.llm.generate(
            inputs_embeds=world.embeddings(batch, "prompt", way),
            attention_mask=batch.sequences["prompt"].attention_mask,
            max_new_tokens=24,
            do_sample=False,
        )
    return world.tokenizer.batch_decode(said, skip_special_tokens=True)


@torch.no_grad()
def answer(world: Maven, samples: Sequence[StageSample], way: Way) -> float:
    """How often the right picture is that of which what is sought is the likeliest answer to "name something"."""
    torch.manual_seed(0)  # patches are kept by chance
    right = 0
    for start in range(0, len(samples), BATCH):
        each = samples[start : start + BATCH]
        scores = torch.full((len(each), MOST_IMAGES), -torch.inf)
        for place in range(max(len(sample.images) for sample in each)):
            rows = [n for n, sample in enumerate(each) if place < len(sample.images)]
            batch = collate([talk(world, way, each[n], [(NAME[place], sought(each[n])[0])]) for n in rows])
            talked, embeddings = batch.sequences["talk"], world.embeddings(batch, "talk", way)
            logits = world.llm(inputs_embeds=embeddings, attention_mask=talked.attention_mask).logits[:, :-1]
            losses = functional.cross_entropy(logits.transpose(1, 2), talked.labels[:, 1:], reduction="none")
            scores[rows, place] = -losses.sum(1)
        right += sum(best == sought(sample)[1] for best, sample in zip(scores.argmax(1).tolist(), each, strict=True))
    return right / len(samples)


def f1s(told: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Means over pictures of the F1 of what is said against what is right, as sets of words."""
    told, figures = list(told), {}
    for name, kinds in (("colour_f1", COLOURS.keys()), ("shape_f1", set(SHAPES))):
        pairs = [[kinds & set(text.split()) for text in texts] for texts in told]
        figures[name] = sum(2 * len(one & two) / max(len(one) + len(two), 1) for one, two in pairs) / len(pairs)
    return figures


@torch.no_grad()
def judge_selector(world: Maven, pictures: Path, truth: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Between the patches of a thing and those of other things: AUC; and how many of the thing's are kept."""
    areas, recalls = [], []
    loader = StageLoader(selector_questions(world, pictures), BATCH)
    while loader.epoch < 2:  # a sample's other text comes in the next epoch
        for batch in loader:
            scores = world.selector(world.patches(batch), world.states(batch))
            for key, text, one, index in zip(batch.keys, batch.texts, scores, batch.text_indices, strict=True):
                if index:
                    things = truth[int(key)]
                    areas.append(auc(one[None], things[text][None], torch.stack([*things.values()]).any(0)[None]))
                    recalls.append(recall_at_keep(one[None], things[text][None], KEEP))
    figures = {"auc_between_things": areas, "recall_at_keep": recalls}
    return {name: float(torch.cat(values).nanmean()) for name, values in figures.items()}
