"""Agreement in numbers: sets of patches, boxes and masks with true ones, what is there, and scores with outcomes.

Functions that end in a figure take sums whose leading axes may be anything (replicates of a bootstrap), and give NaN
where there was nothing to judge.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from patchmint.types import Box, Rle

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds, which SA-Co takes, too."""

BINS = 10
"""Of scores in a reliability table, equally wide."""

_RECALLS = np.linspace(0, 1, 101)
_MOST_FOUND = 100
# COCO's `maxDets`: best-scored boxes of an image that count.
_ALMOST_ONE = 1 - 1e-10


def f1_and_iou(labelled: Flags, true: Flags) -> tuple[float, float]:
    """F1 and IoU of two sets of patches, or pixels, of one shape; 1 where both are empty."""
    both, either = int((labelled & true).sum()), int((labelled | true).sum())
    if not either:
        return 1.0, 1.0
    return 2 * both / (either + both), both / either


def overlaps(
    found: Sequence[Box] | Sequence[Rle], true: Sequence[Box] | Sequence[Rle], crowd: Sequence[bool]
) -> Floats:
    """IoU of each of N boxes, or masks, with each of M true ones; with a crowd the share that lies in it, as in COCO.

    Args:
        found: XYXY, or RLEs of one size.
        true: the same.
        crowd: of each true one whether it stands for any number of things.

    Returns:
        float64 (N, M).
    """
    if not found or not true:
        return np.zeros((len(found), len(true)))
    return np.asarray(coco_mask.iou(_as_coco(found), _as_coco(true), list(map(int, crowd))), np.float64)


def _as_coco(shapes: Sequence[Box] | Sequence[Rle]) -> Floats | list[Rle]:
    if isinstance(shapes[0], dict):
        return list(shapes)  # type: ignore[arg-type]
    boxes = np.array(shapes, np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def assigned(ious: Floats) -> npt.NDArray[np.int64]:
    """How many true ones are found at each IoU threshold, each by one, so that the sum of all IoUs is greatest: (10,).

    That is SA-Co's matching.

    Args:
        ious: (N, M).
    """
    matched = ious[linear_sum_assignment(ious, maximize=True)]
    counts: npt.NDArray[np.int64] = (matched >= THRESHOLDS[:, None]).sum(1)
    return counts


def coco_matches(ious: Floats, crowd: Sequence[bool]) -> tuple[Flags, Flags]:
    """Which found ones are right, best first, and which don't count: COCO's greedy matching, areas of all sizes.

    Args:
        ious: (N, M), rows by descending score.
        crowd: (M,).

    Returns:
        bool (10, N) each, a row an IoU threshold. What doesn't count was matched with a crowd.
    """
    right, ignored = np.zeros((2, len(THRESHOLDS), len(ious)), np.bool_)
    order = sorted(range(len(crowd)), key=lambda true: crowd[true])
    for row, threshold in enumerate(THRESHOLDS):
        free = set(order)
        for found, of_found in enumerate(ious):
            least, match = min(float(threshold), _ALMOST_ONE), None
            for true in order:
                if true not in free:
                    continue
                if match is not None and crowd[true] and not crowd[match]:
                    break
                if of_found[true] >= least:
                    least, match = of_found[true], true
            if match is not None:
                right[row, found], ignored[row, found] = True, crowd[match]
                if not crowd[match]:
                    free.remove(match)
    return right, ignored


class AveragePrecision:
    """COCO's AP, gathered image by image: 18 bytes for each box or mask found, 16 for each image and category."""

    def __init__(self) -> None:
        self._scores, self._right, self._ignored = array("d"), array("H"), array("H")
        self._of_found = array("q"), array("q")
        self._true = array("q"), array("q"), array("q")

    def add(self, image: int, category: int, scores: Sequence[float], ious: Floats, crowd: Sequence[bool]) -> None:
        """Take what was found of a category in an image.

        Args:
            image: its number, ascending from call to call.
            category: its number.
            scores: (N,) of what was found, 0..1.
            ious: (N, M) with the true ones.
            crowd: (M,).
        """
        order = np.argsort(-np.array(scores, np.float64), kind="stable")[:_MOST_FOUND]
        right, ignored = coco_matches(ious[order], crowd)
        bits = 1 << np.arange(len(THRESHOLDS))
        self._scores.extend(np.array(scores, np.float64)[order].tolist())
        self._right.extend((bits @ right).tolist())
        self._ignored.extend((bits @ ignored).tolist())
        for values, value in zip(self._of_found, (image, category), strict=True):
            values.extend([value] * len(order))
        for values, value in zip(self._true, (image, category, len(crowd) - sum(crowd)), strict=True):
            values.append(value)

    def __len__(self) -> int:
        return len(self._scores)

    def outcomes(self) -> tuple[npt.NDArray[np.int64], Floats, Flags]:
        """Of what was found number of the image, score, and whether it is right at IoU 0.50; crowds left out."""
        images, scores = np.frombuffer(self._of_found[0], np.int64), np.frombuffer(self._scores)
        right, ignored = (np.frombuffer(bits, np.uint16) & 1 == 1 for bits in (self._right, self._ignored))
        return images[~ignored], scores[~ignored], right[~ignored]

    def mean(self, weights: npt.NDArray[np.uint8] | None = None, *, pooled: bool = False) -> float:
        """The mean over thresholds, recalls and categories; NaN where nothing is true.

        Args:
            weights: how often each image counts, by its number; None: once.
            pooled: as if all were of one category.
        """
        images, categories = (np.frombuffer(values, np.int64) for values in self._of_found)
        true_images, true_categories, counts = (np.frombuffer(values, np.int64) for values in self._true)
        if pooled:
            categories, true_categories = np.zeros_like(categories), np.zeros_like(true_categories)
        if weights is not None:
            counts = counts * weights[true_images]
        order = np.lexsort((-np.frombuffer(self._scores), categories))
        times = (np.ones(len(order)) if weights is None else weights[images].astype(float))[order]
        right, ignored = (np.frombuffer(bits, np.uint16)[order] for bits in (self._right, self._ignored))
        ends = np.searchsorted(categories[order], np.arange(true_categories.max(initial=-1) + 2))
        totals = np.bincount(true_categories, counts, minlength=1)
        precisions = [
            _precision(right[start:end], ignored[start:end], times[start:end], total)
            for start, end, total in zip(ends[:-1], ends[1:], totals, strict=False)
            if total
        ]
        return float(np.mean(precisions)) if precisions else float("nan")


def _precision(right: npt.NDArray[np.uint16], ignored: npt.NDArray[np.uint16], times: Floats, total: float) -> float:
    """AP of one category, its found ones by descending score."""
    means = []
    for threshold in range(len(THRESHOLDS)):
        is_right, counts = right >> threshold & 1, times * (1 - (ignored >> threshold & 1))
        hits, misses = np.cumsum(counts * is_right), np.cumsum(counts * (1 - is_right))
        precision = hits / (hits + misses + np.spacing(1))
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        means.append(envelope[np.searchsorted(hits / total, _RECALLS)].mean())
    return float(np.mean(means))


def mcc(right_there: Floats, wrong_there: Floats, missed: Floats, right_absent: Floats) -> Floats:
    """Matthews' correlation coefficient of what is said to be there with what is.

    0 where everything is said to be there, or nothing; NaN where the truth never varies.
    """
    sides = (right_there + wrong_there, right_there + missed, right_absent + wrong_there, right_absent + missed)
    product = np.prod(np.sqrt(np.stack(sides)), axis=0)
    value = (right_there * right_absent - wrong_there * missed) / np.maximum(product, np.finfo(float).tiny)
    return np.asarray(np.where(sides[1] * sides[2] > 0, value, np.nan))


def micro_f1(right: Floats, found: Floats, true: Floats) -> Floats:
    """Mean over IoU thresholds of the F1 of all together.

    Args:
        right: (..., 10) at each threshold.
        found: (...).
        true: (...).
    """
    return np.asarray(share(2 * right, (found + true)[..., None]).mean(-1))


def share(part: Floats, whole: Floats) -> Floats:
    """One by the other; NaN where the other is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan))


def reliability(scores: Sequence[float], right: Sequence[bool]) -> Floats:
    """Sums of a reliability table, float64 (3, BINS): in each bin how many scores (0..1), how many right, their sum."""
    table = np.zeros((3, BINS))
    for score, is_right in zip(scores, right, strict=True):  # mostly one or two: faster than bincount
        table[:, min(int(score * BINS), BINS - 1)] += (1, is_right, score)
    return table


def calibration_error(table: Floats) -> Floats:
    """Expected calibration error of sums (..., 3, BINS): the mean difference of score and share that is right."""
    counts, right, sums = np.moveaxis(table, -2, 0)
    return share(np.abs(right - sums).sum(-1), counts.sum(-1))


def auroc(scores: Floats, wrong: Flags) -> float:
    """How likely a wrong one has a lower score than a right one, ties by half; NaN where there is none of either."""
    ranks = np.unique(scores, return_inverse=True)[1]
    low = np.bincount(ranks, wrong, minlength=1)
    high = np.bincount(ranks, ~wrong, minlength=1)
    pairs = low.sum() * high.sum()
    return float((low * (high.sum() - np.cumsum(high) + high / 2)).sum() / pairs) if pairs else float("nan")
