"""Errors planted into a copy of what was found, to see how many of them a score finds. Nothing is written.

What wasn't touched counts as right, so the figures are a little low where labels have errors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.errors import InputError
from patchmint.geometry.rle import decode_mask, encode_masks, fill_boxes
from patchmint.judging.metrics import Flags, Floats, auroc
from patchmint.shards.endings import DOCUMENT, INSTANCES
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import PhraseDocument
from patchmint.types import UNKNOWN_SCORE, Progress, Rle, Size

KINDS = ("shifted", "another text's", "enlarged", "dropped", "absent added")
"""What is done to a text's boxes and masks: moved by their own size; exchanged for those of another text; made twice as
wide and high; left out, where there are several; one that nothing was found for is added, with the score of another."""

_SAME = 0.8
# IoU of the areas before and after, above which nothing counts as planted: the other text may name the same thing.
_LEAST_LEFT = 0.25
# Share of a box that must stay inside the image when it is moved.


@dataclass(frozen=True)
class Label:
    """One thing that was found for a text.

    Attributes:
        phrase: its words, box and score.
        mask: of the image's size; None where none is stored, which stands for the box.
    """

    phrase: PhraseDocument
    mask: Rle | None = None


TextScore = Callable[[StoredImage, int, Sequence[Label]], float]
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

    @classmethod
    def of(cls, scores: Floats, kinds: Sequence[int]) -> Planted:
        """Of texts' scores, and what was planted into each: a number of `KINDS`, -1 for nothing."""
        of = np.array(kinds)
        clean = of < 0
        by_kind = {
            name: (int((of == kind).sum()), _known(auroc(scores[clean | (of == kind)], of[clean | (of == kind)] >= 0)))
            for kind, name in enumerate(KINDS)
        }
        return cls(len(scores), int((~clean).sum()), _known(auroc(scores, ~clean)), by_kind)


def lowest_score(image: StoredImage, text: int, found: Sequence[Label]) -> float:  # noqa: ARG001
    """The detector's own score of the text's weakest box; NaN where it gives none."""
    scores = [each.phrase.score for each in found]
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
    planter = Planter(share, seed)
    scores, kinds = list[float](), list[int]()
    for _, sample in iter_stored(dataset, np.arange(dataset.samples), (DOCUMENT, INSTANCES), progress):
        for image in sample.images:
            for text, found in found_of(image).items():
                if not found:
                    continue
                wrong, kind = planter.corrupt(found, (image.info.height, image.info.width))
                value = score(image, text, wrong)
                if not np.isnan(value):
                    scores.append(value)
                    kinds.append(kind)
    if not scores:
        raise InputError(f"nothing that was found in {dataset.uri} has a score")
    return Planted.of(np.array(scores), kinds)


def found_of(image: StoredImage) -> dict[int, tuple[Label, ...]]:
    """What was found in an image, by the numbers of the texts that label it; raises a ShardError as the image does."""
    stored = image.instances
    masks = [None] * len(image.phrases) if stored is None else [each.mask.rle for each in stored]
    labels = [Label(*pair) for pair in zip(image.phrases, masks, strict=True)]
    return {text: tuple(each for each in labels if each.phrase.text_index == text) for text in image.texts}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


class Planter:
    """Plants errors into texts, one after another: what it saw last serves as another text's.

    Args:
        share: of the texts, 0..1.
        seed: of the errors.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        self._share, self._rng = share, np.random.default_rng(seed)
        self._other: tuple[Label, ...] = ()

    def corrupt(self, found: tuple[Label, ...], size: Size) -> tuple[tuple[Label, ...], int]:
        """What was found for a text, perhaps with an error.

        Args:
            found: for the text; not empty.
            size: (height, width) of the image.

        Returns:
            It, and the error's number in `KINDS`, one by chance of those that can be planted; as it was, and -1, where
            none can, or none is to be.
        """
        chosen = self._rng.permutation(len(KINDS)).tolist() if self._rng.random() < self._share else []
        for kind in chosen:
            wrong = self._corrupted(KINDS[kind], found, size)
            if wrong is not found and not _alike(found, wrong, size):
                break
        else:
            wrong, kind = found, -1
        self._other = found
        return wrong, kind

    def _corrupted(self, kind: str, found: tuple[Label, ...], size: Size) -> tuple[Label, ...]:
        rng, other = self._rng, self._other
        boxes = np.array([each.phrase.box for each in found])
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        match kind:
            case "shifted":
                steps = [np.array([*step, *step]) for step in rng.permutation([(1, 0), (-1, 0), (0, 1), (0, -1)])]
                # To any side where enough of it stays in the image.
                for step in steps:
                    moved = [_moved(*pair, size) for pair in zip(found, boxes + sides * step, strict=True)]
                    if all(moved):
                        return tuple(each for each in moved if each)
            case "enlarged":
                wide = boxes + sides * (-0.5, -0.5, 0.5, 0.5)
                return tuple(_moved(*pair, size) or pair[0] for pair in zip(found, wide, strict=True))
            case "another text's" if other:
                chosen = [other[index] for index in rng.integers(len(other), size=len(found))]
                taken = [
                    _moved(replace(like, phrase=each.phrase), np.array(like.phrase.box), size, like.phrase.box)
                    for each, like in zip(found, chosen, strict=True)
                ]
                if all(taken):
                    return tuple(each for each in taken if each)
            case "dropped" if len(found) > 1:
                left_out = int(rng.integers(len(found)))
                return found[:left_out] + found[left_out + 1 :]
            case "absent added" if other:
                like = other[int(rng.integers(len(other)))]
                named = found[0].phrase.model_copy(update={"score": like.phrase.score})
                added = _moved(replace(like, phrase=named), np.array(like.phrase.box), size, like.phrase.box)
                return (*found, added) if added else found
        return found


def _moved(label: Label, box: Floats, size: Size, own: Sequence[float] | None = None) -> Label | None:
    """The label with its mask stretched from its own box to another, what is inside the image of both.

    None if too little is inside. `own`: the mask's box, where the phrase's is another.
    """
    edges = np.array([size[1], size[0]] * 2)
    inside = np.clip(box, 0, edges)
    area = np.prod(inside[2:] - inside[:2])
    if area < _LEAST_LEFT * np.prod(box[2:] - box[:2]) or min(inside[2:] - inside[:2]) < 1:
        return None
    mask = None
    if label.mask is not None:
        drawn = decode_mask(label.mask)
        y, x = (
            _source(np.arange(float(length)), box[axis::2], (own or label.phrase.box)[axis::2], drawn.shape[1 - axis])
            for axis, length in ((1, size[0]), (0, size[1]))
        )
        grown = np.pad(drawn, ((0, 1), (0, 1)))[np.ix_(y, x)]
        if not grown.any():
            return None
        mask = encode_masks(grown[None] > 0)[0]
    phrase = label.phrase.model_copy(update={"box": tuple(np.round(inside, 2).tolist())})
    return Label(phrase, mask)


def _source(pixels: Floats, to: Floats, own: Sequence[float], length: int) -> Floats:
    """Which pixel of a mask each pixel of the image shows, when the mask's box is stretched; `length`: none."""
    scale = (own[1] - own[0]) / max(to[1] - to[0], 1e-6)
    found = np.floor(own[0] + (pixels + 0.5 - to[0]) * scale).astype(np.int64)
    return np.where((found < 0) | (found >= length), length, found)


def _alike(one: Sequence[Label], other: Sequence[Label], size: Size) -> bool:
    first, second = area_of(one, size), area_of(other, size)
    return bool((first & second).sum() > _SAME * (first | second).sum())


def area_of(found: Sequence[Label], size: Size) -> Flags:
    """The pixels of all that was found: bool `size`."""
    area = np.zeros(size, np.bool_)
    for each in found:
        area |= (decode_mask(each.mask) if each.mask is not None else fill_boxes([each.phrase.box], size)) > 0
    return area
