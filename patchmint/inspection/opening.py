"""Opens what is looked into: a finished build, an unfinished one, or one tar. From listings, not from a scan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from patchmint.errors import InputError, NotFoundError, ShardError
from patchmint.inspection.dataset import Dataset, Shard
from patchmint.shards.names import COMMITS, MANIFEST_PATH, canonical_paths, record_path, unit_of_record
from patchmint.shards.planned import PLAN_PATH, read_planned_units
from patchmint.storage import Storage, open_storage

_STORE_THREADS = 16


def open_dataset(uri: str | os.PathLike[str]) -> Dataset:
    """Open a data set, or one tar.

    Args:
        uri: a build's output, finished or not, or a tar; a path or a URI such as s3://BUCKET/PREFIX.

    Raises:
        InputError: there is neither a data set nor a tar.
        ShardError: the plan or a record is damaged, or shards are absent.
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
        manifest = storage.read(MANIFEST_PATH)
    except NotFoundError:
        manifest = None
    sizes = {entry.path: entry.size for folder in ("rejects", "shards") for entry in storage.list(folder)}
    # A finished build has a record of every unit: nothing to list.
    done = sorted(planned) if manifest is not None else _done(storage, planned)
    shards = tuple(_shards(storage, done, planned, sizes))
    dataset = Dataset(text, storage, manifest, shards, unbuilt=len(planned) - len(done))
    if manifest is not None and dataset.samples != (written := _written_by_manifest(dataset, manifest)):
        raise ShardError(
            f"the files of {text} make {dataset.samples} samples, its {MANIFEST_PATH} says {written}: the copy isn't "
            f"complete; run `patchmint inspect verify {text}`"
        )
    return dataset


def open_tar(uri: str) -> tuple[Storage, str]:
    """The storage that a tar lies in, and its path there.

    Raises:
        InputError: there is no such tar.
        StorageError: it can't be looked for.
    """
    folder, slash, name = uri.rpartition("/")
    storage = open_storage(folder + slash if slash else ".")
    if not storage.exists(name):
        raise InputError(f"there is no tar {uri!r}; check the path")
    return storage, name


def sidecar_of(tar: str) -> str:
    """Where the table of a tar is, if it has one."""
    return f"{tar.removesuffix('.tar')}.parquet"


def _written_by_manifest(dataset: Dataset, data: bytes) -> int:
    """`totals.written`; without the models that check the whole file, since they take longer to import."""
    try:
        return int(json.loads(data)["totals"]["written"])
    except (ValueError, LookupError, TypeError):
        manifest = dataset.manifest  # says what is wrong
        return manifest.totals.written if manifest is not None else -1


def _done(storage: Storage, planned: Mapping[int, int]) -> list[int]:
    units = (unit_of_record(entry.path) for entry in storage.list(COMMITS))
    return sorted(unit for unit in units if unit is not None and unit in planned)


def _shards(
    storage: Storage, units: Sequence[int], planned: Mapping[int, int], sizes: Mapping[str, int]
) -> Iterator[Shard]:
    """Units without rejects wrote what was planned, so that only the others' records are read."""
    names = {unit: canonical_paths(unit) for unit in units}
    unclear = [unit for unit, (rejects, _, tar) in names.items() if rejects in sizes or tar not in sizes]
    recorded = dict(zip(unclear, _written(storage, unclear), strict=True))
    for unit, (_, sidecar, tar) in names.items():
        count = planned[unit]
        written = recorded.get(unit, count)
        if written and (tar not in sizes or sidecar not in sizes):
            raise ShardError(
                f"{storage.uri} lacks {tar} or {sidecar}, although {record_path(unit)} says that they are written; "
                f"run the build's command again, or `patchmint inspect verify {storage.uri}`"
            )
        yield Shard(unit, tar, sidecar, written, count - written, sizes.get(tar, 0))


def _written(storage: Storage, units: Sequence[int]) -> list[int]:
    read = partial(_written_by_record, storage)
    if storage.is_local:
        return [read(unit) for unit in units]
    with ThreadPoolExecutor(_STORE_THREADS) as pool:
        return list(pool.map(read, units))


def _written_by_record(storage: Storage, unit: int) -> int:
    """Samples written; as above, the whole record is checked only where something is wrong with it."""
    path = record_path(unit)
    data = storage.read(path)
    try:
        record = json.loads(data)
        if record["unit"] == unit and isinstance(record["written"], int):
            return record["written"]
    except (ValueError, LookupError, TypeError):
        pass
    from patchmint.shards.records import CommitRecord

    return CommitRecord.parse(data, unit, f"{path} of {storage.uri}").written


def _open_tar(uri: str) -> Dataset:
    """A tar by itself: its rows are those of the sidecar beside it, or made by reading it through."""
    from patchmint.inspection.rows import read_parquet, scan_tar

    storage, name = open_tar(uri)
    sidecar, size = sidecar_of(name), storage.size(name)
    if storage.exists(sidecar):
        rows = read_parquet(storage, sidecar, ["key"]).num_rows
        return Dataset(uri, storage, None, (Shard(0, name, sidecar, rows, 0, size),))
    table = scan_tar(storage, name)
    return Dataset(uri, storage, None, (Shard(0, name, "", table.num_rows, 0, size),), scanned=table)
