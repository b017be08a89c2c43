"""How much of each cell a mask covers: exact areas, fractional borders counted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.cuts import AxisCuts, shares_from_counts, view_cuts
from patchmint.geometry.placement import Floats, Placement

LEVELS = 255
"""A fully covered cell, in the stored uint8."""

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
    return np.concatenate(parts)


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
