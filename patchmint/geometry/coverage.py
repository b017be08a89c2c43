"""How much of each cell a mask covers: exact areas, fractional borders counted.

An axis is cut where cells begin and end among its whole pixels, so that counting pixels is enough. And grids of
coverage pooled by the bins by which features are: 2-D adaptive averages (DeCo, arXiv 2405.20985).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.placement import Floats, Placement
from patchmint.types import Size

LEVELS = 255
"""A fully covered cell, in the stored uint8."""

MAX_SEGMENT = 255
"""Pixels in a segment at most: as many ones as a byte can count."""

_ROUNDING = 1e-9
# Shares are exact to about 1e-12; without this slack a share of exactly k/255 could be rounded up to k + 1.


def coverage_share(
    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],
    placement: Placement,
    extent: tuple[float, float] | None = None,
) -> Floats:
    """Share of each cell's area that a mask covers.

    A cell's area is that of the whole cell in original pixels; what lies outside the image counts as not covered.

    Args:
        mask: (H, W), zero or non-zero. It shows the whole image, at the original size or at any other.
        placement: the grid on that image.
        extent: (height, width) of the part, from the mask's top left corner, that the image fills, where it isn't all
            of it; in mask pixels, fractions allowed.

    Returns:
        float64 `placement.shape`, 0..1; exactly 0 where mask and cell don't overlap, never 0 where they do.

    Raises:
        InputError: the mask has no pixels or isn't 2-D.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise InputError(f"a mask must be (height, width) with at least one pixel, not of shape {mask.shape}")
    ones = mask.view(np.uint8) if mask.dtype == np.bool_ else (mask != 0).view(np.uint8)
    parts = []
    for rows, cols in view_cuts(placement, extent or (mask.shape[0], mask.shape[1])):
        # Masks decoded from COCO RLE are column-major: the same work, turned, stays along memory.
        turned = mask.flags.f_contiguous
        counts = _count_blocks(ones.T, cols, rows).T if turned else _count_blocks(ones, rows, cols)
        parts.append(shares_from_counts(counts, rows, cols))
    return placement.stack(parts)


def coverage_to_uint8(share: Floats) -> npt.NDArray[np.uint8]:
    """Quantise shares to 0..255, rounded up, so that any overlap is at least 1."""
    levels = np.ceil(share * LEVELS - _ROUNDING)
    return np.where(share > 0, np.clip(levels, 1, LEVELS), 0).astype(np.uint8)


def _count_blocks(ones: npt.NDArray[np.uint8], rows: AxisCuts, cols: AxisCuts) -> npt.NDArray[np.int64]:
    """Mask pixels in each block: ones (n, m), 0 or 1 -> (row segments, column segments).

    That is the integral image, taken only where a cell begins or ends.
    """
    if min(len(rows.breaks), len(cols.breaks)) < 2:  # every cell lies beside the image
        return np.zeros((len(rows.breaks) - 1, len(cols.breaks) - 1), dtype=np.int64)
    by_row = np.empty((len(rows.breaks) - 1, ones.shape[1]), dtype=np.uint8)
    # Bytes added to bytes run at the speed of memory, 40 times as fast as numpy's widening sums.
    for total, (start, end) in zip(by_row, pairwise(rows.breaks.tolist()), strict=True):
        np.add.reduce(ones[start:end], axis=0, dtype=np.uint8, out=total)
    return np.add.reduceat(by_row[:, : cols.breaks[-1]], cols.breaks[:-1], axis=1, dtype=np.int64)


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


def adaptive_bins(length: int, bins: int) -> tuple[tuple[int, int], ...]:
    """Cut an axis into bins as `torch.nn.AdaptiveAvgPool2d` does: `[floor(i * n / m), ceil((i + 1) * n / m))`.

    Neighbouring bins overlap where the length isn't a multiple of their number. Where there are more bins than cells,
    cells are in several.

    Args:
        length: cells of the axis, n.
        bins: number of bins, m, at least 1.

    Returns:
        For each bin its cells `[start, end)`.

    Raises:
        InputError: there are no bins, or no cells.
    """
    if min(bins, length) < 1:
        raise InputError(f"an axis of {length} cells can't be pooled to {bins} bins")
    return tuple((index * length // bins, -(-(index + 1) * length // bins)) for index in range(bins))


def pool_coverage(coverage: npt.NDArray[np.uint8], rows: int, pooled: Size) -> npt.NDArray[np.uint8]:
    """Pool stored coverage: the mean of each bin's cells, rounded up, so that any overlap stays at least 1.

    The pooled labels are `selector = pooled coverage > threshold`, with the threshold that the data set's labels have.

    Args:
        coverage: uint8 (T, views * rows, cols), 0..255; views from top to bottom, each pooled by itself.
        rows: rows of one view.
        pooled: (rows, cols) to pool each view to.

    Returns:
        uint8 (T, views * pooled rows, pooled cols).

    Raises:
        InputError: the grid doesn't consist of views of that many rows, or there are no bins.
    """
    if coverage.ndim != 3 or coverage.dtype != np.uint8 or rows < 1 or coverage.shape[1] % rows:
        raise InputError(
            f"coverage to pool must be uint8 (texts, views * {rows}, cols), not {coverage.dtype} of shape "
            f"{coverage.shape}"
        )
    texts, cols = coverage.shape[0], coverage.shape[2]
    top, bottom = np.array(adaptive_bins(rows, pooled[0])).T
    left, right = np.array(adaptive_bins(cols, pooled[1])).T
    views = coverage.reshape(texts, coverage.shape[1] // rows, rows, cols)
    sums = np.zeros((*views.shape[:2], rows + 1, cols + 1), dtype=np.int64)
    sums[..., 1:, 1:] = views.cumsum(axis=2, dtype=np.int64).cumsum(axis=3)
    by_row = sums[..., bottom, :] - sums[..., top, :]
    totals = by_row[..., right] - by_row[..., left]
    cells = (bottom - top)[:, None] * (right - left)
    means: npt.NDArray[np.int64] = -(-totals // cells)
    return means.astype(np.uint8).reshape(texts, views.shape[1] * pooled[0], pooled[1])
