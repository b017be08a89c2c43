"""Chunks of the sidecars for the page's filters: numbers of many samples in a few bytes each, texts by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchmint.inspection.dataset import Dataset, Integers
from patchmint.inspection.gallery.scripts import packed
from patchmint.inspection.rows import read_table

INDEX_CHUNK = 10_000
"""Samples of one file of numbers."""

TEXTS_CHUNK = 2_000
"""Samples of one file of texts: some MB at most, since a page must hold one of them while it searches."""

SCALE = 10_000
"""Shares and scores are sent as whole numbers of this fraction: scores are stored to four decimals, too."""

NONE = 65_535
"""Stands for a sample that has no label or no score."""


def index_document(dataset: Dataset, indices: Integers) -> dict[str, str]:
    """Label share (mean over the texts) and best score of samples at ascending positions, packed as uint16."""
    tables = list(_rows(dataset, indices, ["label_shares", "scores"]))
    shares = np.concatenate([_means(table["label_shares"]) for table in tables])
    scores = np.concatenate([_maxima(table["scores"]) for table in tables])
    return {"share": packed(_scaled(shares)), "score": packed(_scaled(scores))}


def texts_document(dataset: Dataset, indices: Integers) -> dict[str, list[Any]]:
    """Keys and texts of samples at ascending positions."""
    tables = list(_rows(dataset, indices, ["key", "texts"]))
    return {
        "keys": [key for table in tables for key in table["key"].to_pylist()],
        "texts": [texts for table in tables for texts in table["texts"].to_pylist()],
    }


def _rows(dataset: Dataset, indices: Integers, columns: Sequence[str]) -> Iterator[pa.Table]:
    numbers = np.searchsorted(dataset.starts, indices, side="right") - 1
    for number in np.unique(numbers).tolist():
        rows = indices[numbers == number] - dataset.starts[number]
        yield read_table(dataset, dataset.shards[number], columns).take(rows)


def _means(lists: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Mean of each list; NaN for an empty one."""
    parents, values, counts = _flat(lists)
    sums = np.bincount(parents, weights=values, minlength=len(counts))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _maxima(lists: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Largest number of each list; NaN where there is none, or only "not known" (-1)."""
    parents, values, counts = _flat(lists)
    best = np.full(len(counts), -1.0)
    np.maximum.at(best, parents, values)
    return np.where(best < 0, np.nan, best)


def _flat(lists: pa.ChunkedArray) -> tuple[Integers, npt.NDArray[np.float64], Integers]:
    whole = lists.combine_chunks()
    return (
        np.asarray(pc.list_parent_indices(whole), np.int64),
        np.asarray(pc.list_flatten(whole), np.float64),
        np.asarray(pc.list_value_length(whole), np.int64),
    )


def _scaled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    return np.where(np.isnan(values), NONE, np.rint(np.clip(np.nan_to_num(values), 0, 1) * SCALE)).astype(np.uint16)
