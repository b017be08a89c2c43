"""Where in the grid labels lie, on average: photographs have their subjects in the middle, and so have labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.rows import Progress
from patchmint.datasets.samples import iter_stored, sample_at
from patchmint.errors import ShardError
from patchmint.shards.keys import COVERAGE, SELECTOR


@dataclass(frozen=True)
class Positions:
    """Mean labels by position. Of `anyres` grids the first view only: the whole image.

    Attributes:
        samples: that were read, evenly spread over the data set.
        texts: of these.
        selector: (rows, cols), share of the texts that keep the patch, 0..1.
        coverage: (rows, cols), mean covered share of the patch, 0..1.
        centre_bias: mean of `selector` over the middle (half the rows and half the columns), over that of the rest;
            None where the rest is never kept.
    """

    samples: int
    texts: int
    selector: tuple[tuple[float, ...], ...]
    coverage: tuple[tuple[float, ...], ...]
    centre_bias: float | None


def label_positions(dataset: Dataset, samples: int, progress: Progress | None = None) -> Positions:
    """Average labels by position.

    Args:
        dataset: that has labels.
        samples: how many to read, evenly spread; 0 = all.
        progress: told after each sample.

    Raises:
        ShardError: a sample is damaged, or its labels aren't of the data set's grid.
        StorageError: one can't be read.
    """
    grid = dataset.manifest.layout.grid if dataset.manifest is not None else sample_at(dataset, 0).document.grid
    # Grows with the first sample: a grid may be said to be of any size.
    sums = np.zeros((2, 1, 1), np.int64)
    texts = 0
    chosen = spread(dataset.samples, samples)
    for _, sample in iter_stored(dataset, chosen, (SELECTOR, COVERAGE), progress):
        selector, coverage = sample.selector, sample.coverage
        if (
            selector is None
            or coverage is None
            or selector.ndim != 3
            or selector.shape != coverage.shape
            or selector.shape[1] % grid.rows
            or selector.shape[2] != grid.cols
        ):
            raise ShardError(
                f"sample {sample.key!r} of {dataset.uri} has no labels of {grid.rows} x {grid.cols} patches; run "
                f"`patchmint inspect verify {dataset.uri}`",
                uri=dataset.uri,
            )
        texts += len(selector)
        kept, covered = selector[:, : grid.rows] != 0, coverage[:, : grid.rows]
        sums = sums + np.stack([kept.sum(0, np.int64), covered.sum(0, np.int64)])
    means = sums / max(texts, 1) / np.array([1, 255])[:, None, None]
    selectors, coverages = (tuple(tuple(row) for row in mean.tolist()) for mean in means)
    return Positions(len(chosen), texts, selectors, coverages, _centre_bias(means[0]))


def _centre_bias(kept: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float | None:
    rows, cols = kept.shape
    middle = np.zeros(kept.shape, np.bool_)
    middle[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4] = True
    around = float(kept[~middle].mean()) if not middle.all() else 0.0
    return float(kept[middle].mean()) / around if around else None
