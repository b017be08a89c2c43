"""Distributions of any number of values in little memory: counted on a fixed step, and quantiles are exact on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_MAX_LEVELS = 1 << 20
# Values over this many steps count as this many; minimum, maximum and mean stay those of the values.

_BINS = 20
_TAIL = 0.005
# Bins of values without an upper end reach to the quantile 1 - _TAIL; what is above is in the last one.

Numbers = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: `low <= value < high`; the last one has everything from `low` on."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Distribution:
    """How values are distributed.

    Attributes:
        count: number of values.
        mean: their mean.
        minimum: the least.
        maximum: the greatest.
        quantiles: "0.05" -> the least value, rounded to `step`, that at least 5% of the values don't exceed.
        step: what quantiles are rounded to, and bins are made of: half of it is the error.
        bins: a histogram, bins of equal width.
    """

    count: int
    mean: float
    minimum: float
    maximum: float
    quantiles: dict[str, float]
    step: float
    bins: tuple[Bin, ...]


class Counts:
    """Takes values in and counts them, rounded to a step.

    Args:
        per_unit: values are rounded to one of so many steps a unit; 1 for integers.
        full: bins reach from 0 to here; None: from the least value to about the greatest.
    """

    def __init__(self, per_unit: int = 1, full: int | None = None) -> None:
        self._per_unit = per_unit
        self._full = full
        self._levels = np.zeros(0, np.int64)
        self._sum = 0.0
        self._range = (math.inf, -math.inf)

    def add(self, values: Numbers) -> None:
        """Count values: finite, none negative, of any shape."""
        if not values.size:
            return
        numbers = values.ravel().astype(np.float64)
        self._sum += float(numbers.sum())
        self._range = (min(self._range[0], float(numbers.min())), max(self._range[1], float(numbers.max())))
        levels = np.minimum(np.rint(numbers * self._per_unit), _MAX_LEVELS).astype(np.int64)
        counted = np.bincount(levels, minlength=len(self._levels))
        counted[: len(self._levels)] += self._levels
        self._levels = counted

    def distribution(self) -> Distribution | None:
        """What was counted; None where nothing was."""
        count = int(self._levels.sum())
        if not count:
            return None
        return Distribution(
            count=count,
            mean=self._sum / count,
            minimum=self._range[0],
            maximum=self._range[1],
            quantiles={str(share): self._at(share) / self._per_unit for share in QUANTILES},
            step=1 / self._per_unit,
            bins=self._bins(),
        )

    def _at(self, share: float) -> int:
        """The level that at least this share of the values doesn't exceed."""
        upto = np.cumsum(self._levels)
        return int(np.searchsorted(upto, max(math.ceil(share * int(upto[-1])), 1)))

    def _bins(self) -> tuple[Bin, ...]:
        if self._full is None:
            first, last = int(np.flatnonzero(self._levels)[0]), self._at(1 - _TAIL)
            width = -(-(last - first + 1) // _BINS)
        else:
            first, last = 0, self._full * self._per_unit - 1
            width = -(-(last + 1) // _BINS)
        edges = range(first, last + 1, width)
        counts = [int(self._levels[low : low + width].sum()) for low in edges]
        counts[-1] += int(self._levels[edges[-1] + width :].sum())
        return tuple(
            Bin(low / self._per_unit, (low + width) / self._per_unit, count)
            for low, count in zip(edges, counts, strict=True)
        )
