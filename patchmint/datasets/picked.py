"""Rows of the sidecars for some samples: only the shards that these are in are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from patchmint.datasets.arrays import Integers
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.rows import Progress, iter_tables


def rows_at(
    dataset: Dataset, positions: Integers, columns: Sequence[str], progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of samples.

    Args:
        dataset: whose.
        positions: in the data set, ascending, each once.
        columns: of the sidecar.
        progress: told after each shard.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    numbers = np.searchsorted(dataset.starts, positions, side="right") - 1
    needed = np.unique(numbers).tolist()
    part = replace(dataset, shards=tuple(dataset.shards[number] for number in needed))
    for number, (_, table) in zip(needed, iter_tables(part, columns, progress), strict=True):
        chosen = positions[numbers == number]
        rows = table.take(chosen - dataset.starts[number]).to_pylist()
        yield from zip(chosen.tolist(), rows, strict=True)
