"""Rows of the sidecars, and of tables of rejects, as Arrow tables."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.errors import ShardError
from patchmint.shards.reader import iter_samples
from patchmint.shards.rejects import SCHEMA as REJECTS
from patchmint.shards.sidecar import SCHEMA, Place, sidecar_row
from patchmint.storage import Storage, uri_of
from patchmint.storage.ahead import done_ahead

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

_TYPES = {field.name: field.type for schema in (SCHEMA, REJECTS) for field in schema}
_THREADS = min(8, os.cpu_count() or 1)
_STORE_THREADS = 16
_BLOCK = tarfile.BLOCKSIZE


def read_table(dataset: Dataset, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows, in the tar's order.

    Args:
        dataset: that has the shard.
        shard: one of its shards.
        columns: of `patchmint.shards.sidecar.SCHEMA`; None: all.

    Raises:
        ShardError: the sidecar is damaged, or of another tar; or the tar of a lone one isn't patchmint's.
        StorageError: it can't be read.
    """
    if not shard.samples:
        return SCHEMA.empty_table().select(columns or SCHEMA.names)
    if dataset.scanned is not None:
        return dataset.scanned.select(columns or SCHEMA.names)
    table = read_parquet(dataset.storage, shard.sidecar, columns)
    if table.num_rows != shard.samples:
        raise ShardError(
            f"{shard.sidecar} of {dataset.uri} has {table.num_rows} rows, not {shard.samples}; run `patchmint inspect "
            f"verify {dataset.uri}`",
            uri=uri_of(dataset.storage, shard.sidecar),
        )
    if {"offset", "size"} <= set(table.column_names):
        _check_places(table, shard, dataset.uri)
    return table


def _check_places(table: pa.Table, shard: Shard, uri: str) -> None:
    # to_numpy would import pandas, which takes longer than all the rest of `show`.
    offsets, sizes = (np.from_dlpack(table[name].combine_chunks()) for name in ("offset", "size"))
    # Subtracted: a sum could overflow.
    outside = np.flatnonzero((offsets < 0) | (sizes <= 0) | (offsets > shard.size - sizes))
    if outside.size:
        row = int(outside[0])
        raise ShardError(
            f"{shard.sidecar} of {uri} has sample {row} at byte {offsets[row]} with {sizes[row]} bytes, which isn't "
            f"inside the {shard.size} bytes of {shard.tar}; run `patchmint inspect verify {uri}`",
            uri=uri,
        )


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


def iter_rejects(dataset: Dataset) -> Iterator[pa.Table]:
    """Tables of rejects (`patchmint.shards.rejects.SCHEMA`), units in order.

    What a retry wrote after all is still in the table of the unit that rejected it first.

    Raises:
        ShardError: one is damaged.
        StorageError: it can't be read.
    """
    for path in dataset.reject_tables:
        yield read_parquet(dataset.storage, path, REJECTS.names)


def scan_tar(storage: Storage, tar: str) -> pa.Table:
    """The table that a sidecar would be, from the samples themselves: the tar is read through.

    Raises:
        ShardError: the tar is damaged, or no shard of patchmint.
        StorageError: it can't be read.
    """
    rows = []
    for ordinal, sample in enumerate(iter_samples(storage, tar)):
        if sample.size != sum(_BLOCK + len(data) + -len(data) % _BLOCK for data in sample.members.values()):
            raise ShardError(
                f"{tar} was packed again with extended (PAX or GNU) headers, which shards don't have; pack it with "
                "`tar --format=ustar`, or get the shard as it was built"
            )
        try:
            place = Place(ordinal, sample.offset, sample.size)
            rows.append(sidecar_row(sample.document, place, sample.selector, sample.codes))
        except ShardError as error:
            raise ShardError(
                f"{tar} is no shard of patchmint ({error}); of a tar that others wrote only `ls` and `verify` can tell"
            ) from error
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read_parquet(storage: Storage, path: str, columns: Sequence[str] | None) -> pa.Table:
    """A whole Parquet file of a data set: a sidecar or a table of rejects.

    Args:
        storage: the data set's.
        path: of the file.
        columns: those wanted; None: all that a sidecar has.

    Raises:
        ShardError: it is damaged, or a column is absent, of another type, or has nulls.
        StorageError: it can't be read.
    """
    names = list(columns) if columns is not None else SCHEMA.names
    with storage.open(path) as file:
        try:
            # Opening twice as fast as pq.read_table, which makes a dataset of the file first.
            table = pq.ParquetFile(file).read(columns=names, use_threads=False)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _no_table(storage, path, str(error)) from error
    for name in names:
        if table.column_names.count(name) != 1 or table[name].type != _TYPES[name] or table[name].null_count:
            raise _no_table(storage, path, f"its column {name!r} isn't what the format says")
    return table


def _no_table(storage: Storage, path: str, why: str) -> ShardError:
    message = f"{path} of {storage.uri} is no table of patchmint: {why}; run `patchmint inspect verify`"
    return ShardError(message, uri=uri_of(storage, path))
