"""What is counted of labels, as arrays of sums that add up, and the figures that any of them gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.judging.metrics import BINS, THRESHOLDS, Floats, calibration_error, mcc, micro_f1, share

_WIDTHS = {
    "texts": 1,
    "f1": 1,
    "iou": 1,
    "silent": 1,
    "silent_labelled": 1,
    "there_found": 1,
    "there_missed": 1,
    "absent_found": 1,
    "absent_left": 1,
    "found": 1,
    "unnamed": 1,
    "masks": 1,
    "mask_iou": 1,
    "box_true": 1,
    "box_found": 1,
    "box_right": len(THRESHOLDS),
    "mask_true": 1,
    "mask_found": 1,
    "mask_right": len(THRESHOLDS),
    "scores": 3 * BINS,
}
_STARTS = dict(zip(_WIDTHS, np.cumsum([0, *_WIDTHS.values()]).tolist(), strict=False))
SIZE = sum(_WIDTHS.values())
"""Length of an array of sums."""

FIGURES = {
    "patch_f1": "patches of texts that name something present, F1",
    "patch_iou": "the same, IoU",
    "silent_rate": "texts that name nothing present, and have labels",
    "presence_mcc": "things named: found or not, against there or not (Matthews' coefficient)",
    "missed_rate": "present things that nothing was found for",
    "absent_rate": "absent things that anything was found for",
    "unnamed_rate": "of what was found: answers to words that name nothing",
    "mask_iou": "all masks of a present thing together, IoU",
    "box_f1": "boxes of present things, mean F1 at IoU 0.50 to 0.95",
    "mask_f1": "the same of masks",
    "cgf1_boxes": "SA-Co's cgF1, / 100: box_f1 times presence_mcc",
    "cgf1_masks": "the same of masks",
    "box_ap": "COCO's AP of boxes, all phrases together",
    "box_ap_by_phrase": "the same, mean over phrases",
    "mask_ap": "COCO's AP of masks, all phrases together",
    "mask_ap_by_phrase": "the same, mean over phrases",
    "ece": "scores: expected calibration error, right at IoU 0.50",
}
"""What the figures mean, in the order of the table."""


@dataclass(frozen=True)
class Bin:
    """A row of a reliability table.

    Attributes:
        low, high: the scores.
        found: how many have such a score.
        right: share of them that is right.
        score: their mean score.
    """

    low: float
    high: float
    found: int
    right: float
    score: float


@dataclass(frozen=True)
class Group:
    """A part of what was judged.

    Attributes:
        name: the part's.
        texts: with judged patches that name something present.
        phrases: judged.
        figures: by the names of `FIGURES`, those that there are.
        intervals: of 95 %.
    """

    name: str
    texts: int
    phrases: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]


class Sums:
    """What is counted, in one array."""

    def __init__(self) -> None:
        self.values = np.zeros(SIZE)

    def add(self, **counts: float | npt.NDArray[Any]) -> None:
        """Add to what is counted under some names."""
        for name, count in counts.items():
            self.values[_STARTS[name] : _STARTS[name] + _WIDTHS[name]] += count


def part(sums: Floats, name: str) -> Floats:
    """What is counted under a name, of sums (..., SIZE): (...), or (..., width)."""
    found = sums[..., _STARTS[name] : _STARTS[name] + _WIDTHS[name]]
    return found[..., 0] if _WIDTHS[name] == 1 else found


def figures_of(sums: Floats) -> dict[str, Floats]:
    """All figures but AP, of sums (..., SIZE)."""
    of = {name: part(sums, name) for name in _WIDTHS}
    presence = mcc(of["there_found"], of["absent_found"], of["there_missed"], of["absent_left"])
    found = {
        "patch_f1": share(of["f1"], of["texts"]),
        "patch_iou": share(of["iou"], of["texts"]),
        "silent_rate": share(of["silent_labelled"], of["silent"]),
        "presence_mcc": presence,
        "missed_rate": share(of["there_missed"], of["there_found"] + of["there_missed"]),
        "absent_rate": share(of["absent_found"], of["absent_found"] + of["absent_left"]),
        "unnamed_rate": share(of["unnamed"], of["found"]),
        "mask_iou": share(of["mask_iou"], of["masks"]),
        "ece": calibration_error(of["scores"].reshape(*of["scores"].shape[:-1], 3, BINS)),
    }
    for kind, name in (("box", "boxes"), ("mask", "masks")):
        found[f"{kind}_f1"] = micro_f1(of[f"{kind}_right"], of[f"{kind}_found"], of[f"{kind}_true"])
        found[f"cgf1_{name}"] = found[f"{kind}_f1"] * presence
    return found


def group_of(name: str, sums: Floats, resampled: Floats | None) -> Group:
    """The group of sums (SIZE,), and of those of its replicates (replicates, SIZE)."""
    figures = {kind: float(value) for kind, value in figures_of(sums).items() if not np.isnan(value)}
    replicates = figures_of(resampled) if resampled is not None else {}
    intervals = {kind: interval for kind, values in replicates.items() if (interval := interval_of(values)) is not None}
    judged = ("there_found", "there_missed", "absent_found", "absent_left")
    return Group(name, int(part(sums, "texts")), int(sum(part(sums, each) for each in judged)), figures, intervals)


def interval_of(values: Floats) -> tuple[float, float] | None:
    """The middle 95 % of replicates; None where none has a figure."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975)).tolist()
    return low, high


def reliability_table(sums: Floats) -> list[Bin]:
    """Scores in tenths that have any."""
    counts, right, scores = part(sums, "scores").reshape(3, BINS).tolist()
    return [
        Bin(number / BINS, (number + 1) / BINS, int(n), hits / n, total / n)
        for number, (n, hits, total) in enumerate(zip(counts, right, scores, strict=True))
        if n
    ]
