"""Rows of a data set's sidecars, as Arrow tables or as dicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.errors import ShardError
from patchmint.shards.endings import DOCUMENT, SELECTOR, on_grid
from patchmint.shards.reader import walk_sample
from patchmint.shards.sidecar import OF_CODES, stored_row
from patchmint.shards.sidecar import read_table as read_sidecar
from patchmint.storage import uri_of
from patchmint.storage.ahead import done_ahead
from patchmint.types import Integers, Progress, Size

_THREADS = min(8, os.cpu_count() or 1)
_STORE_THREADS = 16
_OF_GRID = ("rows", "cols", "views", "label_shares")


def read_table(dataset: Dataset, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows, in the tar's order.

    Args:
        dataset: that has the shard.
        shard: one of its shards.
        columns: of `dataset.columns`; None: all. Sidecars tell of the first grid: on a further one, those that depend
            on the grid are made of the labels, which are read for it. Those of codes are of `Dataset.with_codes`.

    Raises:
        ShardError: the sidecar is damaged, or of another tar, or a sample is.
        StorageError: it can't be read.
    """
    if not shard.samples:
        return dataset.columns.empty_table().select(columns or dataset.columns.names)
    if dataset.scanned is not None:
        return dataset.scanned.select(columns or dataset.columns.names)
    names = list(columns or dataset.columns.names)
    of_grid = [name for name in names if name in _OF_GRID] if dataset.further_grid else []
    asked = list(dict.fromkeys((*names, "offset", "size"))) if of_grid else names
    suffix = f"_{dataset.further_codes}" if dataset.further_codes else ""
    stored = [name + suffix if name in OF_CODES else name for name in asked]
    table = read_sidecar(dataset.storage, shard.sidecar, dataset.stored_columns, stored).rename_columns(asked)
    if table.num_rows != shard.samples:
        raise ShardError(
            f"{shard.sidecar} of {dataset.uri} has {table.num_rows} rows, not {shard.samples}; run `patchmint inspect "
            f"verify {dataset.uri}`",
            uri=uri_of(dataset.storage, shard.sidecar),
        )
    if {"offset", "size"} <= set(table.column_names):
        _check_extents(table, shard, dataset.uri)
    return _on_grid(dataset, shard, table, of_grid).select(names) if of_grid else table


def _on_grid(dataset: Dataset, shard: Shard, table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows with columns of the grid on which the data set is read."""
    endings, read = {DOCUMENT, on_grid(SELECTOR, dataset.further_grid)}, partial(dataset.storage.read_range, shard.tar)
    rows = []
    for offset, size in zip(*_extents(table), strict=True):
        sample = walk_sample(read, shard.tar, int(offset), int(size), endings)
        rows.append(stored_row(sample.on_grid(dataset.further_grid), 0))
    for name in names:
        made = pa.array([row[name] for row in rows], dataset.columns.field(name).type)
        table = table.set_column(table.column_names.index(name), name, made)
    return table


def iter_tables(
    dataset: Dataset, columns: Sequence[str], progress: Progress | None = None
) -> Iterator[tuple[Shard, pa.Table]]:
    """Every shard that has samples, in order, with its rows; some are read ahead.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    shards = [shard for shard in dataset.shards if shard.samples]
    threads = _THREADS if dataset.storage.is_local else _STORE_THREADS
    tables = done_ahead(lambda shard: read_table(dataset, shard, columns), shards, threads=threads, ahead=2 * threads)
    for done, (shard, table) in enumerate(tables, start=1):
        yield shard, table
        if progress is not None:
            progress(done, len(shards))


def rows_at(
    dataset: Dataset, positions: Integers, columns: Sequence[str], progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of some samples; only the shards that these are in are read.

    Args:
        dataset: whose.
        positions: in the data set, ascending, each once.
        columns: of the sidecar.
        progress: told after each shard.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    numbers = np.searchsorted(dataset.starts, positions, side="right") - 1
    needed = np.unique(numbers).tolist()
    part = replace(dataset, shards=tuple(dataset.shards[number] for number in needed))
    for number, (_, table) in zip(needed, iter_tables(part, columns, progress), strict=True):
        chosen = positions[numbers == number]
        rows = table.take(chosen - dataset.starts[number]).to_pylist()
        yield from zip(chosen.tolist(), rows, strict=True)


def size_columns(dataset: Dataset) -> list[str]:
    """Columns of images' heights and widths, for `image_sizes`."""
    return ["heights", "widths"] if dataset.has_documents else ["height", "width"]


def image_sizes(rows: pa.RecordBatch | pa.Table) -> list[list[Size]]:
    """(height, width) of each sample's images, from rows with `size_columns`; of a picture one."""
    if "heights" in rows.schema.names:
        sides = (rows.column(name).to_pylist() for name in ("heights", "widths"))
        return [list(zip(*of_one, strict=True)) for of_one in zip(*sides, strict=True)]
    return [[size] for size in zip(*(rows.column(name).to_pylist() for name in ("height", "width")), strict=True)]


def with_extents(dataset: Dataset) -> Dataset:
    """The data set with the place of every sample in memory, 16 bytes each, for access in any order.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    parts = [_extents(table) for _, table in iter_tables(dataset, ["offset", "size"])]
    offsets, sizes = (np.concatenate([np.zeros(0, np.int64), *part]) for part in zip(*parts, strict=True))
    return replace(dataset, extents=(offsets, sizes))


def _extents(table: pa.Table) -> tuple[Integers, Integers]:
    # to_numpy would import pandas, which takes longer than all the rest of `show`.
    offsets, sizes = (np.from_dlpack(table[name].combine_chunks()) for name in ("offset", "size"))
    return np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)


def _check_extents(table: pa.Table, shard: Shard, uri: str) -> None:
    offsets, sizes = _extents(table)
    # Subtracted: a sum could overflow.
    outside = np.flatnonzero((offsets < 0) | (sizes <= 0) | (offsets > shard.size - sizes))
    if outside.size:
        row = int(outside[0])
        raise ShardError(
            f"{shard.sidecar} of {uri} has sample {row} at byte {offsets[row]} with {sizes[row]} bytes, which isn't "
            f"inside the {shard.size} bytes of {shard.tar}; run `patchmint inspect verify {uri}`",
            uri=uri,
        )
