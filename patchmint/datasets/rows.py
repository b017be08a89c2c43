"""Rows of a data set's sidecars, as Arrow tables or as dicts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchmint.datasets.dataset import Column, Dataset, Shard
from patchmint.datasets.extents import Extent, assemble, stored_endings
from patchmint.errors import ShardError
from patchmint.shards.endings import DOCUMENT, SELECTOR
from patchmint.shards.sidecar import OF_CODES, PLACE, code_columns, stored_row
from patchmint.shards.sidecar import read_table as read_sidecar
from patchmint.storage import uri_of
from patchmint.storage.ahead import done_ahead
from patchmint.types import Integers, Progress, Size

_THREADS = min(8, os.cpu_count() or 1)
_STORE_THREADS = 16
_OF_GRID = ("rows", "cols", "views", "label_shares")


def read_table(dataset: Dataset, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows, in the tar's order; what the data set's columns say takes the place of its own.

    Args:
        dataset: that has the shard.
        shard: one of its shards.
        columns: of `dataset.schema`; None: all. Sidecars tell of the first grid: on a further one, those that depend
            on the grid are made of the labels, which are read for it. Those of
            codes are of `Dataset.with_codes`.

    Raises:
        ShardError: the sidecar is damaged, or of another tar, or a sample is.
        StorageError: it can't be read.
    """
    names = list(columns or dataset.schema.names)
    if not shard.samples + shard.lacking:
        return dataset.schema.empty_table().select(names)
    if dataset.scanned is not None:
        return dataset.scanned.select(names)
    of_grid = [name for name in names if name in _OF_GRID] if dataset.further_grid else []
    extra = ["key", "offset", "size"] if of_grid else ["key"] if dataset.columns else []
    extra += ["wrong"] if dataset.without_wrong else []
    extra += trusted_columns(dataset) if dataset.min_trust else []
    asked = list(dict.fromkeys((*names, *extra)))
    suffix = f"_{dataset.further_codes}" if dataset.further_codes else ""
    stored = [name + suffix if name in OF_CODES else name for name in asked]
    table = read_sidecar(dataset.storage, shard.sidecar, dataset.stored_schema, stored, dataset.absent)
    if table.num_rows != shard.samples + shard.lacking:
        raise ShardError(
            f"{shard.sidecar} of {dataset.uri} has {table.num_rows} rows, not {shard.samples + shard.lacking}; run "
            f"`patchmint inspect verify {dataset.uri}`",
            uri=uri_of(dataset.storage, shard.sidecar),
        )
    if {"offset", "size"} <= set(table.column_names):
        _check_extents(table, shard, dataset.uri)
    table = _with_columns(dataset, shard, table).rename_columns(asked)
    return (_on_grid(dataset, shard, table, of_grid) if of_grid else table).select(names)


def _with_columns(dataset: Dataset, shard: Shard, table: pa.Table) -> pa.Table:
    """The rows of a shard that all columns have, with what they say."""
    kept = []
    for column in dataset.columns:
        own_names = _names_in(column, dataset)
        told = [name for name in table.column_names if name in own_names]
        if not told and (column.sparse or not shard.lacking):
            continue
        rows = column_rows(column, shard, table["key"], [own_names[name] for name in told])
        there = pc.is_valid(rows["tar"])
        for name in told:
            own = rows[own_names[name]]
            own = pc.if_else(there, own, table[name]) if column.sparse else own
            table = table.set_column(table.column_names.index(name), name, own)
        if not column.sparse:
            kept.append(there)
    if dataset.without_wrong:
        kept.append(pc.invert(table["wrong"]))
    if dataset.min_trust:
        kept.append(pa.chunked_array([pa.array(trusted(table, dataset.min_trust), pa.bool_())]))
    return table.filter(reduce(pc.and_, kept)) if shard.lacking and kept else table


def trusted_columns(dataset: Dataset) -> list[str]:
    """Columns that `trusted` needs."""
    return ["trusts", *(["share_texts"] if dataset.has_documents else [])]


def trusted(table: pa.Table, least: float) -> list[bool]:
    """Whether each row's sample has a text whose labels, on all images, have so much trust."""
    columns = [table[name].to_pylist() for name in ("trusts", "share_texts") if name in table.column_names]
    limit = float(np.float32(least))
    return [max(text_trusts(*row).values(), default=1.0) >= limit for row in zip(*columns, strict=True)]


def text_trusts(trusts: Sequence[float], texts: Sequence[int] | None = None) -> dict[int, float]:
    """The trust of each text, that on its worst image.

    Args:
        trusts: as KEY.json and sidecars have them.
        texts: of a document the number of the text of each.
    """
    least: dict[int, float] = {}
    for text, trust in zip(range(len(trusts)) if texts is None else texts, trusts, strict=True):
        least[text] = min(trust, least.get(text, 1.0))
    return least


def _names_in(column: Column, dataset: Dataset) -> dict[str, str]:
    """Columns of a data set's sidecars of which its column has its own: what they are called there.

    Those of codes have a tokenizer's name, unless it is the first; in the column that may be another.
    """
    assert dataset.stored_manifest is not None
    assert column.dataset.manifest is not None
    here, there = (code_columns(manifest.layout) for manifest in (dataset.stored_manifest, column.dataset.manifest))
    of_codes = {name for names in there.values() for name in names}
    same = {name: name for name in column.dataset.schema.names if name not in (*PLACE, *of_codes)}
    return same | {pair[0]: pair[1] for slot, names in there.items() for pair in zip(here[slot], names, strict=False)}


def column_rows(column: Column, shard: Shard, keys: pa.ChunkedArray, names: Sequence[str]) -> pa.Table:
    """What a column has of samples of a shard: a row for each of the keys, of nulls where it hasn't the sample.

    Args:
        column: of the data set.
        shard: of the data set.
        keys: some of the shard's, in any order.
        names: columns of the column's sidecars; `tar`, the number of the sample's shard in the column, is added.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    own = column.dataset
    tables = []
    for number in column.shards_of(shard.unit):
        part = read_table(own, own.shards[number], ["key", *names])
        tables.append(part.append_column("tar", pa.repeat(number, part.num_rows)))
    if not tables:
        nothing = own.schema.empty_table().select(["key", *names])
        tables = [nothing.append_column("tar", pa.nulls(0, pa.int64()))]
    table = pa.concat_tables(tables)
    return table if table["key"].equals(keys) else table.take(pc.index_in(keys, table["key"]))


def _on_grid(dataset: Dataset, shard: Shard, table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows with columns of the grid on which the data set is read."""
    endings = stored_endings(dataset, (DOCUMENT, SELECTOR))
    rows = [
        stored_row(assemble(dataset, extent, endings, lambda _, own, tar: partial(own.storage.read_range, tar)), 0)
        for extent in extents_of(dataset, shard, table)
    ]
    for name in names:
        made = pa.array([row[name] for row in rows], dataset.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, made)
    return table


def extents_of(dataset: Dataset, shard: Shard, table: pa.Table | None = None) -> list[Extent]:
    """Where the samples of a shard lie.

    Args:
        dataset: that has the shard.
        shard: one of its shards.
        table: its rows, if they were read, with key, offset and size.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    table = read_table(dataset, shard, ["key", "offset", "size"]) if table is None else table
    keys = table["key"].to_pylist()
    parts: list[list[Extent | None]] = []
    for column in dataset.columns:
        rows = column_rows(column, shard, table["key"], ["offset", "size"])
        places = zip(*(rows[name].to_pylist() for name in ("tar", "offset", "size")), keys, strict=True)
        shards = column.dataset.shards
        parts.append([Extent(shards[tar].tar, *place) if tar is not None else None for tar, *place in places])
    own = zip(table["offset"].to_pylist(), table["size"].to_pylist(), keys, strict=True)
    return [
        Extent(shard.tar, *place, parts=of_one)
        for place, of_one in zip(own, zip(*parts, strict=True) if parts else repeat(()), strict=False)
    ]


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


def positions_of(dataset: Dataset, keys: Collection[str]) -> dict[str, int]:
    """Where samples are in the data set, by key; those that aren't there are left out.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    found: dict[str, int] = {}
    start = 0
    for shard, table in iter_tables(dataset, ["key"]):
        rows = enumerate(table["key"].to_pylist(), start)
        found |= {key: index for index, key in rows if key in keys}
        start += shard.samples
    return found


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
    """The data set with the place of every sample in memory, for access in any order.

    That takes 16 bytes a sample, and 24 for each column.

    Raises:
        ShardError, StorageError: as for `read_table`.
    """
    names = ["offset", "size", *(["key"] if dataset.columns else [])]
    own: list[tuple[Integers, ...]] = [(np.zeros(0, np.int64),) * 2]
    of_columns: list[list[tuple[Integers, ...]]] = [[(np.zeros(0, np.int64),) * 3] for _ in dataset.columns]
    for shard, table in iter_tables(dataset, names):
        own.append(_extents(table))
        for found, column in zip(of_columns, dataset.columns, strict=True):
            rows = column_rows(column, shard, table["key"], ["offset", "size"])
            found.append(tuple(_numbers(pc.fill_null(rows[name], -1)) for name in ("tar", "offset", "size")))
    columns = (
        replace(column, extents=_concatenated(found)) for column, found in zip(dataset.columns, of_columns, strict=True)
    )
    return replace(dataset, extents=_concatenated(own), columns=tuple(columns))


def _concatenated(parts: Sequence[tuple[Integers, ...]]) -> tuple[Integers, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _extents(table: pa.Table) -> tuple[Integers, Integers]:
    return _numbers(table["offset"]), _numbers(table["size"])


def _numbers(column: pa.ChunkedArray) -> Integers:
    # to_numpy would import pandas, which takes longer than all the rest of `show`.
    return np.asarray(np.from_dlpack(column.combine_chunks()), np.int64)


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
