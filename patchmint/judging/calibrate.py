"""Scores that mean what they say: how often boxes of a score are right, learnt from a judged data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchmint.config import PresenceConfig
from patchmint.datasets.dataset import Dataset
from patchmint.errors import InputError
from patchmint.judging.judge import Judge, judge_images
from patchmint.judging.metrics import Flags, Floats, calibration_error, reliability
from patchmint.judging.trust import TrustModel
from patchmint.judging.truth import Truth
from patchmint.types import Progress

FOLDS = 10
"""Parts of the images, each measured with what the others taught."""

_DRAWS = 20
# How often outcomes are drawn, to see what error is chance.


class Calibration(BaseModel):
    """From a detector's score to the share of boxes that are right: straight lines between points.

    Attributes:
        scores: of the points, rising.
        shares: of the points, never falling.
        boxes: that it was learnt from.
        presence: a second look with the thresholds learnt for it, for `labels.presence.calibration`; None: none was.
        ece_before, ece_after: expected calibration error of scores as they are; and calibrated, where each tenth of the
            images is measured with what the others taught.
        ece_chance: what `ece_after` would be by chance, with so many boxes, if calibrated scores were exactly right.
        trust: what `patchmint trust` may take to be known of labels; None where it wasn't learnt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scores: tuple[float, ...]
    shares: tuple[float, ...]
    boxes: int = 0
    presence: PresenceConfig | None = Field(default=None, exclude_if=lambda presence: presence is None)
    ece_before: float = 0.0
    ece_after: float = 0.0
    ece_chance: float = 0.0
    trust: TrustModel | None = Field(default=None, exclude_if=lambda trust: trust is None)

    def __call__(self, scores: Sequence[float] | Floats) -> Floats:
        """Shares of scores: float64 (N,)."""
        return np.interp(scores, self.scores, self.shares)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `patchmint calibrate` wrote.

        Raises:
            InputError: it can't be read, or isn't of that form.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} can't be read as what `patchmint calibrate` writes: {error}") from error


def fit(scores: Floats, right: Flags) -> Calibration:
    """Isotonic regression: the rising shares that are nearest to what was right (pool adjacent violators).

    Args:
        scores: float64 (N,), N > 0.
        right: (N,).
    """
    values, places = np.unique(scores, return_inverse=True)
    pools: list[tuple[float, float, float, float]] = []  # first and last score, how many, how many right
    for value, count, hits in zip(values, np.bincount(places), np.bincount(places, right), strict=True):
        pool = (value, value, count, hits)
        while pools and pools[-1][3] * pool[2] >= pool[3] * pools[-1][2]:
            first, _, more, more_hits = pools.pop()
            pool = (first, pool[1], pool[2] + more, pool[3] + more_hits)
        pools.append(pool)
    ends = np.array([[first, last] for first, last, _, _ in pools]).ravel()
    shares = np.repeat([hits / count for _, _, count, hits in pools], 2)
    return Calibration(scores=tuple(ends.tolist()), shares=tuple(shares.tolist()), boxes=len(scores))


def calibrate(dataset: Dataset, truth: Truth, progress: Progress | None = None) -> Calibration:
    """Learn from a judged data set how often scores are right.

    Raises:
        InputError: there are fewer than two images with scores; or as `patchmint.judging.judge.judge`.
        ShardError, StorageError: it can't be read.
    """
    judging = Judge()
    judge_images(judging, dataset, truth, progress=progress)
    images, scores, right = judging.outcomes()
    if len(np.unique(images)) < 2:
        raise InputError(f"too little of {dataset.uri} has scores and a known truth to calibrate by")
    parts = np.unique(images, return_inverse=True)[1] % FOLDS
    apart = np.zeros(len(scores))
    for part in range(parts.max() + 1):
        own = parts == part
        apart[own] = fit(scores[~own], right[~own])(scores[own])
    chances = [_error(apart, draws < apart) for draws in np.random.default_rng(0).random((_DRAWS, len(apart)))]
    update = {
        "ece_before": _error(scores, right),
        "ece_after": _error(apart, right),
        "ece_chance": float(np.mean(chances)),
    }
    return fit(scores, right).model_copy(update=update)


def _error(scores: Floats, right: Flags) -> float:
    return float(calibration_error(reliability(scores.tolist(), right.tolist())))
