"""Coverage straight from SAM's low-resolution logits: the numbers of the full-resolution mask without making it.

SAM scales its decoder's logits to the model's square input, cuts the image's part out, and scales that to the image,
bilinearly both times; what is over 0 is the mask (segment_anything `sam.py`, `postprocess_masks`). Each mask pixel is a
weighted mean of at most 3 x 3 logits. Pixels that see the same nine form a block; where all nine have one sign, so
has every pixel of the block. Only the other blocks, along outlines, are worked out pixel by pixel. Of several masks
the union is taken, block by block and then pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.geometry.coverage import AxisCuts, shares_from_counts, view_cuts
from patchmint.geometry.placement import Floats, Placement
from patchmint.types import Size

_PIXELS_AT_ONCE = 2**20
# Pixels worked out together: 4 MiB of float32, so that memory stays level however frayed a mask is.

_THREE = np.arange(3)

_SOME, _ALL = 1, 2
# Votes of nine logits: how many of "any is positive" and "all are positive" hold.

Float32s = npt.NDArray[np.float32]


def coverage_from_logits(logits: Float32s, placement: Placement, *, input_side: int, used: Size) -> Floats:
    """Share of each cell's area under the union of the masks that these logits become at the image's size.

    Args:
        logits: float32 (masks, n, n), over the whole square input, padding included; positive = mask.
        placement: the grid on the image.
        input_side: side of the square input in pixels, at least n.
        used: (height, width) that the image takes up in the top left corner of the input.

    Returns:
        float64 `placement.shape`, 0..1: what `coverage_share` gives for the mask that upstream makes. Only a pixel
        whose scaled logit is 0 to within the rounding of float32 may fall on the other side.

    Raises:
        InputError: logits aren't square or not finite, or the sizes don't fit each other.
    """
    if logits.ndim != 3 or logits.shape[1] != logits.shape[2] or not 1 <= logits.shape[1] <= input_side:
        raise InputError(f"logits must be (masks, n, n) with n of 1 to {input_side}, not of shape {logits.shape}")
    if not (1 <= used[0] <= input_side and 1 <= used[1] <= input_side):
        raise InputError(f"an image can't take up {used} of an input of {input_side} x {input_side} pixels")
    if not np.isfinite(logits).all():
        raise InputError("logits hold NaN or infinity; the model's numbers overflowed, try float32")
    # So that each 3 x 3 exists; what is added has weight 0.
    padded = np.pad(logits.astype(np.float32), ((0, 0), (0, 2), (0, 2)), mode="edge")
    positive = padded > 0
    votes = _three_by_three(positive, np.logical_and).view(np.uint8) + _three_by_three(positive, np.logical_or)
    union = votes.max(axis=0)
    parts = []
    for rows, cols, y, x in _plan(placement, logits.shape[1], input_side, used):
        if min(len(y.sizes), len(x.sizes)) == 0:
            parts.append(np.zeros((len(rows.sizes), len(cols.sizes))))
            continue
        seen = union[y.taps].take(x.taps, axis=1)
        counts = (seen == _ALL) * np.outer(y.sizes, x.sizes)
        mixed = np.divmod(np.flatnonzero(seen == _SOME), len(x.taps))
        counts[mixed] = _count_positive(padded, votes, y, x, *mixed)
        by_row = np.add.reduceat(counts, y.segment_starts, axis=0)
        parts.append(shares_from_counts(np.add.reduceat(by_row, x.segment_starts, axis=1), rows, cols))
    return placement.stack(parts)


@dataclass(frozen=True)
class _Bands:
    """One axis of the image in runs of pixels that see the same three logits and lie in one segment.

    Attributes:
        taps: int64 (b,), the first of the three logits.
        sizes: int64 (b,), pixels in each band.
        weights: float32 (b, longest band, 3), of the three logits for each pixel; 0 past the band's end.
        segment_starts: int64 (s,), the first band of each segment of `AxisCuts`.
    """

    taps: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    weights: Float32s
    segment_starts: npt.NDArray[np.int64]


@lru_cache(maxsize=8)
def _plan(placement: Placement, low: int, side: int, used: Size) -> list[tuple[AxisCuts, AxisCuts, _Bands, _Bands]]:
    """All that doesn't depend on the logits; kept, because an image mostly has several masks."""
    (height, width), (used_height, used_width) = placement.image_size, used
    y, x = _weights(low, side, used_height, height), _weights(low, side, used_width, width)
    return [
        (rows, cols, _bands(*y, rows), _bands(*x, cols)) for rows, cols in view_cuts(placement, placement.image_size)
    ]


def _weights(low: int, side: int, used: int, length: int) -> tuple[npt.NDArray[np.int64], Float32s]:
    """First logit (length,) and weights (length, 3) of each pixel of an axis, both scalings in one."""
    near, far, share = _scale(used, length)
    low_near, low_far, low_share = _scale(low, side)
    taps = low_near[near]
    weights = np.zeros((length, 3), dtype=np.float32)
    for index, outer in ((near, 1 - share), (far, share)):
        for place, inner in ((low_near, 1 - low_share), (low_far, low_share)):
            weights += (outer * inner[index])[:, None] * ((place[index] - taps)[:, None] == _THREE)
    return taps, weights


def _scale(length: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float32s]:
    """Bilinear scaling of an axis as torch does it (`align_corners=False`): two neighbours, and the second's share."""
    step = np.float32(length) / np.float32(target)
    position = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5), 0)
    near = np.minimum(position.astype(np.int64), length - 1)
    return near, np.minimum(near + 1, length - 1), np.asarray(position - near, dtype=np.float32)


def _bands(taps: npt.NDArray[np.int64], weights: Float32s, cuts: AxisCuts) -> _Bands:
    first, last = cuts.breaks[0], cuts.breaks[-1]
    changes = np.flatnonzero(np.diff(taps)) + 1
    # The first and the last band are half as long again as any other, and all blocks are padded to the longest.
    longest = np.diff(changes).max(initial=1)
    changes = np.concatenate((changes, changes[:1] - longest, changes[-1:] + longest))
    breaks = np.union1d(changes[(changes > first) & (changes < last)], cuts.breaks)
    starts, ends = breaks[:-1], breaks[1:]
    sizes = ends - starts
    pixels = starts[:, None] + np.arange(sizes.max(initial=0))
    inside = pixels < ends[:, None]
    band_weights = np.where(inside[..., None], weights[np.minimum(pixels, len(taps) - 1)], 0)
    return _Bands(taps[starts], sizes, band_weights, np.searchsorted(starts, cuts.breaks[:-1]))


def _three_by_three(values: npt.NDArray[np.bool_], combine: np.ufunc) -> npt.NDArray[np.bool_]:
    """Combine each 3 x 3: (masks, n + 2, n + 2) -> (masks, n, n)."""
    rows = combine(combine(values[:, :-2], values[:, 1:-1]), values[:, 2:])
    return np.asarray(combine(combine(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:]))


def _count_positive(
    padded: Float32s,
    votes: npt.NDArray[np.uint8],
    y: _Bands,
    x: _Bands,
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Pixels over 0 in any mask, in each block (rows[k], cols[k]) -> (k,)."""
    counts = np.zeros(len(rows), dtype=np.int64)
    across = np.ascontiguousarray(x.weights.swapaxes(1, 2))
    height, width = y.weights.shape[1], x.weights.shape[1]
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(rows), step):
        row, col = rows[start : start + step], cols[start : start + step]
        positive = np.zeros((len(row), height, width), dtype=np.bool_)
        for mask, its_votes in zip(padded, votes, strict=True):
            blocks = np.flatnonzero(its_votes[y.taps[row], x.taps[col]])
            nines = np.lib.stride_tricks.sliding_window_view(mask, (3, 3))
            near = nines[y.taps[row[blocks]], x.taps[col[blocks]]]
            positive[blocks] |= y.weights[row[blocks]] @ (near @ across[col[blocks]]) > 0
        counts[start : start + step] = np.count_nonzero(positive, axis=(1, 2))
    return counts
