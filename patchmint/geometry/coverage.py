"""How much of each cell a mask covers: exact areas, fractional borders counted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.placement import Floats, Placement

LEVELS = 255
"""A fully covered cell, in the stored uint8."""

_ROUNDING = 1e-9
# Shares are exact to about 1e-12; without this slack a share of exactly k/255 could be rounded up to k + 1.


def coverage_share(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], placement: Placement) -> Floats:
    """Share of each cell's area that a mask covers.

    A cell's area is that of the whole cell in original pixels; what lies outside the image counts as not covered.

    Args:
        mask: (H, W), zero or non-zero. It shows the whole image, at the original size or at any other.
        placement: the grid on that image.

    Returns:
        float64 `placement.shape`, 0..1; exactly 0 where mask and cell don't overlap, never 0 where they do.

    Raises:
        InputError: the mask has no pixels or isn't 2-D.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise InputError(f"a mask must be (height, width) with at least one pixel, not of shape {mask.shape}")
    ones = mask.view(np.uint8) if mask.dtype == np.bool_ else (mask != 0).view(np.uint8)
    parts = []
    for view in placement.views:
        y_edges, x_edges = placement.edges(view, (mask.shape[0], mask.shape[1]))
        by_row = _sum_bins(ones, y_edges)
        by_cell = _sum_bins(np.ascontiguousarray(by_row.T), x_edges).T
        parts.append(by_cell / np.outer(np.diff(y_edges), np.diff(x_edges)))
    return np.minimum(np.concatenate(parts), 1.0)


def coverage_to_uint8(share: Floats) -> npt.NDArray[np.uint8]:
    """Quantise shares to 0..255, rounded up, so that any overlap is at least 1."""
    levels = np.ceil(share * LEVELS - _ROUNDING)
    return np.where(share > 0, np.clip(levels, 1, LEVELS), 0).astype(np.uint8)


def _sum_bins(values: npt.NDArray[np.uint8] | Floats, edges: Floats) -> Floats:
    """Integrate rows of `values` (n, m) between rising edges -> float64 (len(edges) - 1, m).

    The rows are first added up between the integer positions next to the edges (the integral image, sampled only where
    a bin begins or ends); each such segment lies wholly inside a bin or is the single row that a border cuts. Only sums
    and products of non-negative numbers: no cancellation, so "no overlap" stays exactly 0.
    """
    length = values.shape[0]
    clipped = np.clip(edges, 0, length)
    breaks = np.unique(np.concatenate([np.floor(clipped), np.ceil(clipped)]).astype(np.int64))
    if len(breaks) == 1:  # every cell lies on one side of the image
        return np.zeros((len(edges) - 1, values.shape[1]))
    starts, ends = breaks[:-1], breaks[1:]
    dtype = np.int64 if values.dtype == np.uint8 else np.float64
    segments = np.add.reduceat(values[: breaks[-1]], starts, axis=0, dtype=dtype)
    low = np.maximum(clipped[:-1, None], starts[None])
    high = np.minimum(clipped[1:, None], ends[None])
    weights = np.maximum(high - low, 0) / (ends - starts)[None]
    return np.asarray(weights @ segments, dtype=np.float64)
