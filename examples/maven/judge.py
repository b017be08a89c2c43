"""What the model has learnt, on scenes that nothing was trained on: descriptions, answers, the selector's scores."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from data import Truth
from model import Maven, Mode
from stages import DESCRIBE, KEEP, MOST_IMAGES, name_of, question_of, selector_state, sought, talk
from torch.nn import functional

from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.training import (
    StageDataset,
    StageLoader,
    StageSample,
    auc,
    collate,
    recall_at_keep,
)

BATCH = 25
PAIRINGS = 4


@dataclass(frozen=True)
class HeldOut:
    """Samples to be judged by: pictures, pairs of them, and documents with a question for one of their pictures."""

    pictures: Sequence[StageSample]
    pairs: Sequence[StageSample]
    documents: Sequence[StageSample]

    @classmethod
    def read(cls, pictures: Path, documents: Path | None) -> HeldOut:
        """Each picture comes in several pairs."""
        include = ("codes", "features")
        pairs = StageDataset(pictures, include=include, text="first", group=2)
        asked_for = StageDataset(documents, include=include, max_images=MOST_IMAGES) if documents else ()
        return cls(
            list(StageDataset(pictures, include=include, text="first")),
            [sample for _ in range(PAIRINGS) for sample in pairs],
            [sample for sample in asked_for if sought(sample)[1] >= 0],
        )

    def exchanged(self) -> HeldOut:
        """Each sample with the pictures of the next one: whoever looks at pictures now does as well as chance."""
        return HeldOut(*(_exchanged(samples) for samples in (self.pictures, self.pairs, self.documents)))


def _exchanged(samples: Sequence[StageSample]) -> list[StageSample]:
    by_images: dict[int, list[StageSample]] = {}
    for sample in samples:
        by_images.setdefault(len(sample.images), []).append(sample)
    return [
        replace(sample, images=alike[(place + 1) % len(alike)].images)
        for alike in by_images.values()
        for place, sample in enumerate(alike)
    ]


@torch.no_grad()
def judge(
    world: Maven, held_out: HeldOut, mode: Mode, ratio: float = KEEP, *, by_chance: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """F1 of the colours and shapes in descriptions, and the share of questions whose right answer is the likeliest.

    Args:
        world: trained in this mode.
        held_out: what is asked.
        mode: what stands for an image.
        ratio: of patches that are kept.
        by_chance: keep patches at random.

    Returns:
        The figures; and the same by chance: of what it says and all pictures but the one that is shown, and of guesses.
    """
    world.eval()
    torch.manual_seed(0)
    told = []
    for samples in _batches(held_out.pictures):
        made = [
            replace(one, sequences=talk(world, mode, ratio, one, [(DESCRIBE, one.text)], DESCRIBE)) for one in samples
        ]
        batch = collate(made, pad_left=True)
        prompt = batch.sequences["prompt"]
        said = world.llm.generate(
            inputs_embeds=world.embeddings(prompt, world.continuous(batch, "prompt", ratio, by_chance=by_chance)),
            attention_mask=prompt.attention_mask,
            max_new_tokens=24,
            do_sample=False,
        )
        told += zip(world.tokenizer.batch_decode(said, skip_special_tokens=True), batch.texts, strict=True)
    figures: dict[str, float] = {}
    chance: dict[str, float] = {}
    if told:
        said, right = zip(*told, strict=True)
        figures = _f1s(told)
        chance = _f1s((one, other) for n, one in enumerate(said) for m, other in enumerate(right) if n != m)
    for name, samples in (("which", held_out.pairs), ("documents", held_out.documents)):
        if samples:
            found = _found(world, samples, mode, ratio, by_chance=by_chance)
            right = [sought(sample)[1] for sample in samples]
            figures[name] = sum(map(operator.eq, found, right)) / len(samples)
            chance[name] = sum(1 / len(one.images) for one in samples) / len(samples)
    return figures, chance


def _found(world: Maven, samples: Sequence[StageSample], mode: Mode, ratio: float, *, by_chance: bool) -> list[int]:
    """In which picture of each sample the thing that is sought is the likeliest answer to "name something"."""
    best: list[int] = []
    for each in _batches(samples):
        most = max(len(sample.images) for sample in each)
        scores = torch.full((len(each), most), -torch.inf)
        for place in range(most):
            rows = [n for n, one in enumerate(each) if place < len(one.images)]
            made = []
            for one in (each[n] for n in rows):
                thing, _ = sought(one)
                told = [(name_of(place), thing)]
                made.append(replace(one, sequences=talk(world, mode, ratio, one, told, question_of(thing), most)))
            batch = collate(made)
            talked = batch.sequences["talk"]
            embeddings = world.embeddings(talked, world.continuous(batch, "talk", ratio, by_chance=by_chance))
            logits = world.llm(inputs_embeds=embeddings, attention_mask=talked.attention_mask).logits[:, :-1]
            losses = functional.cross_entropy(logits.transpose(1, 2), talked.labels[:, 1:], reduction="none")
            scores[rows, place] = -losses.sum(1)
        best += scores.argmax(1).tolist()
    return best


def _batches(samples: Sequence[StageSample]) -> Iterator[Sequence[StageSample]]:
    for start in range(0, len(samples), BATCH):
        yield samples[start : start + BATCH]


def _f1s(told: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Means over pictures of the F1 of what is said against what is right, as sets of words."""
    told = list(told)
    figures = {}
    for name, kinds in (("colour_f1", tuple(COLOURS)), ("shape_f1", SHAPES)):
        pairs = [[{word for word in text.split() if word in kinds} for text in texts] for texts in told]
        figures[name] = sum(2 * len(one & two) / max(len(one) + len(two), 1) for one, two in pairs) / len(pairs)
    return figures


@torch.no_grad()
def judge_selector(world: Maven, pictures: Path, truth: Sequence[Truth]) -> dict[str, float]:
    """Between the patches of a thing and those of other things: AUC; and how many of the thing's are kept."""
    areas, recalls = [], []
    include = ("labels", "codes", "features")
    dataset = StageDataset(pictures, include=include, sequences=lambda sample: selector_state(world, sample))
    loader = StageLoader(dataset, BATCH)
    while loader.epoch < 2:  # a sample's other text comes in the next epoch
        for batch in loader:
            scores = world.selector(world.patches(batch), world.states(batch))
            for key, text, one, index in zip(batch.keys, batch.texts, scores, batch.text_indices, strict=True):
                if index:
                    named, others = truth[int(key)].apart(text)
                    areas.append(auc(one[None], named[None], (named | others)[None]))
                    recalls.append(recall_at_keep(one[None], named[None], KEEP))
    return {
        "auc_between_things": float(torch.cat(areas).nanmean()),
        "recall_at_keep": float(torch.cat(recalls).nanmean()),
    }
