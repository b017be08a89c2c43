"""Errors planted into a copy of what was found, to see how many of them a score finds. Nothing is written.

What wasn't touched counts as right, so the figures are a little low where labels have errors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.judging.metrics import Floats, auroc
from patchmint.shards.endings import DOCUMENT
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import PhraseDocument
from patchmint.types import UNKNOWN_SCORE, Progress

KINDS = ("shifted", "another text's", "enlarged", "dropped", "absent added")
"""What is done to a text's boxes: moved by their own size; exchanged for those of another text; made twice as wide and
high; left out, where there are several; one that nothing was found for is added, with a score of some other box."""

TextScore = Callable[[StoredImage, int, Sequence[PhraseDocument]], float]
"""How far a text's labels can be trusted: of an image, the number of the text, and what was found for it."""


@dataclass(frozen=True)
class Planted:
    """What a score finds of planted errors.

    Attributes:
        texts: with labels and a score.
        planted: of them how many got an error.
        auroc: how likely a text with an error has a lower score than one without; None where there are none of both.
        by_kind: the same of each kind of error, with how many there are.
    """

    texts: int
    planted: int
    auroc: float | None
    by_kind: dict[str, tuple[int, float | None]]


def lowest_score(image: StoredImage, text: int, found: Sequence[PhraseDocument]) -> float:  # noqa: ARG001
    """The detector's own score of the text's weakest box; NaN where it gives none."""
    scores = [phrase.score for phrase in found]
    return min(scores) if scores and UNKNOWN_SCORE not in scores else float("nan")


def plant(
    dataset: Dataset,
    share: float,
    score: TextScore = lowest_score,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Planted:
    """Corrupt the labels of some texts, and ask a score about all.

    Args:
        dataset: with labels.
        share: of the texts that something was found for, 0..1.
        score: asked with what was found after the errors were planted.
        seed: of the errors.
        progress: told after each sample.

    Raises:
        InputError: nothing has a score.
        ShardError, StorageError: a sample can't be read.
    """
    rng = np.random.default_rng(seed)
    before: tuple[PhraseDocument, ...] = ()
    scores, kinds = list[float](), list[int]()
    for _, sample in iter_stored(dataset, np.arange(dataset.samples), (DOCUMENT,), progress):
        for image in sample.images:
            for text in image.texts:
                found = tuple(phrase for phrase in image.phrases if phrase.text_index == text)
                if not found:
                    continue
                kind = int(rng.integers(len(KINDS))) if rng.random() < share else -1
                wrong = _corrupted(KINDS[kind], found, before, rng) if kind >= 0 else found
                kind, before = (kind if wrong != found else -1), found
                value = score(image, text, wrong)
                if not np.isnan(value):
                    scores.append(value)
                    kinds.append(kind)
    if not scores:
        raise InputError(f"nothing that was found in {dataset.uri} has a score")
    values, of = np.array(scores), np.array(kinds)
    clean = of < 0
    by_kind = {
        name: (int((of == kind).sum()), _known(auroc(values[clean | (of == kind)], of[clean | (of == kind)] >= 0)))
        for kind, name in enumerate(KINDS)
    }
    return Planted(len(values), int((~clean).sum()), _known(auroc(values, ~clean)), by_kind)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _corrupted(
    kind: str, found: tuple[PhraseDocument, ...], other: tuple[PhraseDocument, ...], rng: np.random.Generator
) -> tuple[PhraseDocument, ...]:
    """The text's boxes with an error; as they were where that kind can't be planted."""
    boxes = np.array([phrase.box for phrase in found])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    match kind:
        case "shifted":
            return _moved(found, boxes + sides * np.tile(rng.choice((-1, 1), 2), 2))
        case "enlarged":
            return _moved(found, boxes + sides * (-0.5, -0.5, 0.5, 0.5))
        case "another text's" if other:
            chosen = rng.integers(len(other), size=len(found))
            return _moved(found, np.array([other[index].box for index in chosen]))
        case "dropped" if len(found) > 1:
            left_out = int(rng.integers(len(found)))
            return found[:left_out] + found[left_out + 1 :]
        case "absent added" if other:
            like = other[int(rng.integers(len(other)))]
            return (*found, found[0].model_copy(update={"box": like.box, "score": like.score}))
    return found


def _moved(found: Sequence[PhraseDocument], boxes: Floats) -> tuple[PhraseDocument, ...]:
    return tuple(
        phrase.model_copy(update={"box": tuple(box)}) for phrase, box in zip(found, boxes.tolist(), strict=True)
    )
