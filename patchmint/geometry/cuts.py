"""Cell borders among whole pixels: where an axis must be cut so that counting pixels is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from patchmint.geometry.placement import Floats, Placement

MAX_SEGMENT = 255
"""Pixels in a segment at most: as many ones as a byte can count."""


@dataclass(frozen=True)
class AxisCuts:
    """One axis of a view, cut into segments at the integers next to the cell borders.

    Each segment lies wholly inside a cell or is the one pixel that a border cuts.

    Attributes:
        breaks: int64 (s + 1,), rising; s = 0 where all cells lie on one side of the image.
        weights: float64 (cells, s), the share of each segment that lies in each cell, 0..1.
        sizes: float64 (cells,), lengths of the cells in pixels.
    """

    breaks: npt.NDArray[np.int64]
    weights: Floats
    sizes: Floats


ViewCuts = tuple[AxisCuts, AxisCuts]
"""Rows and columns."""


@lru_cache(maxsize=32)
def view_cuts(placement: Placement, frame: tuple[float, float]) -> tuple[ViewCuts, ...]:
    """Cuts of each view for masks that show the image at the size `frame`. Kept: an image mostly has several masks."""
    edges = [placement.edges(view, frame) for view in placement.views]
    return tuple((_cut(y_edges, frame[0]), _cut(x_edges, frame[1])) for y_edges, x_edges in edges)


def shares_from_counts(counts: npt.NDArray[np.int64], rows: AxisCuts, cols: AxisCuts) -> Floats:
    """Share of each cell's area, from the number of mask pixels in each block of a row and a column segment.

    Counts are integers and weights aren't negative: nothing cancels, so "no overlap" is exactly 0.
    """
    covered = rows.weights @ counts @ cols.weights.T
    return np.asarray(np.minimum(covered / np.outer(rows.sizes, cols.sizes), 1.0), dtype=np.float64)


def _cut(edges: Floats, length: float) -> AxisCuts:
    clipped = np.clip(edges, 0, length)
    first, last = math.floor(clipped[0]), math.ceil(clipped[-1])
    positions = (np.floor(clipped), np.ceil(clipped), np.arange(first, last, MAX_SEGMENT))
    breaks = np.unique(np.concatenate(positions)).astype(np.int64)
    starts, ends = breaks[:-1], breaks[1:]
    within = np.minimum(clipped[1:, None], ends) - np.maximum(clipped[:-1, None], starts)
    return AxisCuts(breaks, np.maximum(within, 0) / (ends - starts), np.diff(edges))
