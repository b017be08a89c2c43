"""Opens what is looked into: a finished build, an unfinished one, or one tar. From listings, not from a scan."""

from __future__ import annotations

import os
from collections.abc import Mapping

from patchmint.errors import InputError, NotFoundError, ShardError
from patchmint.inspection.dataset import Dataset, Shard
from patchmint.inspection.rows import read_parquet, scan_tar
from patchmint.shards.commit import read_records
from patchmint.shards.manifest import read_manifest
from patchmint.shards.planned import PLAN_PATH, read_planned_units
from patchmint.shards.records import COMMITS, canonical_paths, record_path, unit_of_record
from patchmint.storage import Storage, open_storage


def open_dataset(uri: str | os.PathLike[str]) -> Dataset:
    """Open a data set, or one tar.

    Args:
        uri: a build's output, finished or not, or a tar; a path or a URI such as s3://BUCKET/PREFIX.

    Raises:
        InputError: there is neither a data set nor a tar.
        ShardError: dataset.json, the plan or a record is damaged.
        StorageError: it can't be read.
    """
    text = os.fspath(uri)
    if text.endswith(".tar"):
        return _open_tar(text)
    storage = open_storage(text)
    try:
        planned = read_planned_units(storage).samples
    except NotFoundError as error:
        raise InputError(
            f"{text} holds no data set (no {PLAN_PATH}); give the output folder of `patchmint build`, or a tar"
        ) from error
    try:
        manifest = read_manifest(storage)
    except NotFoundError:
        manifest = None
    sizes = {entry.path: entry.size for folder in ("rejects", "shards") for entry in storage.list(folder)}
    # A finished build has a record of every unit: nothing to list.
    done = sorted(planned) if manifest is not None else _done(storage, planned)
    shards = tuple(_shards(storage, done, planned, sizes))
    if manifest is not None and sum(shard.samples for shard in shards) != manifest.totals.written:
        raise ShardError(
            f"the files of {text} make {sum(shard.samples for shard in shards)} samples, its dataset.json says "
            f"{manifest.totals.written}: the copy isn't complete; run `patchmint inspect verify {text}`"
        )
    return Dataset(text, storage, manifest, shards, unbuilt=len(planned) - len(done))


def _done(storage: Storage, planned: Mapping[int, int]) -> list[int]:
    units = (unit_of_record(entry.path) for entry in storage.list(COMMITS))
    return sorted(unit for unit in units if unit is not None and unit in planned)


def _shards(storage: Storage, units: list[int], planned: Mapping[int, int], sizes: Mapping[str, int]) -> list[Shard]:
    """Units without rejects wrote what was planned, so that only the others' records are read."""
    unclear = [unit for unit in units if canonical_paths(unit)[0] in sizes or canonical_paths(unit)[2] not in sizes]
    records = {record.unit: record for record in read_records(storage, unclear)} if unclear else {}
    shards = []
    for unit in units:
        _, sidecar, tar = canonical_paths(unit)
        written = records[unit].written if unit in records else planned[unit]
        if written and (tar not in sizes or sidecar not in sizes):
            raise ShardError(
                f"{storage.uri} lacks {tar} or {sidecar}, although {record_path(unit)} says that they are written; "
                f"run the build's command again, or `patchmint inspect verify {storage.uri}`"
            )
        shards.append(Shard(unit, tar, sidecar, written, planned[unit] - written, sizes.get(tar, 0)))
    return shards


def _open_tar(uri: str) -> Dataset:
    """A tar by itself: its rows are those of the sidecar beside it, or made by reading it through."""
    folder, slash, name = uri.rpartition("/")
    storage = open_storage(folder + slash if slash else ".")
    if not storage.exists(name):
        raise InputError(f"there is no tar {uri!r}; check the path")
    sidecar = f"{name.removesuffix('.tar')}.parquet"
    size = storage.size(name)
    if storage.exists(sidecar):
        rows = read_parquet(storage, sidecar, ["key"]).num_rows
        return Dataset(uri, storage, None, (Shard(0, name, sidecar, rows, 0, size),))
    table = scan_tar(storage, name)
    return Dataset(uri, storage, None, (Shard(0, name, "", table.num_rows, 0, size),), scanned=table)
