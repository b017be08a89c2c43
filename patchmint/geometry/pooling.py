"""Label grids pooled by the bins by which features are: 2-D adaptive averages (DeCo, arXiv 2405.20985)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError
from patchmint.types import Size


def adaptive_bins(length: int, bins: int) -> tuple[tuple[int, int], ...]:
    """Cut an axis into bins as `torch.nn.AdaptiveAvgPool2d` does: `[floor(i * n / m), ceil((i + 1) * n / m))`.

    Neighbouring bins overlap where the length isn't a multiple of their number.

    Args:
        length: cells of the axis, n.
        bins: number of bins, m, 1 to n.

    Returns:
        For each bin its cells `[start, end)`.

    Raises:
        InputError: there are more bins than cells, or none.
    """
    if not 1 <= bins <= length:
        raise InputError(f"an axis of {length} cells can be pooled to 1 to {length} bins, not to {bins}")
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
        InputError: the grid doesn't consist of views of that many rows, or has fewer cells than bins.
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
