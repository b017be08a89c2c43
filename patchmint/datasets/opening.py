"""Opens what is looked into: a finished build, an unfinished one, or one tar. From listings, not from a scan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.listed import read_matching_list
from patchmint.datasets.totals import NO_DOCUMENT, is_count, read_totals
from patchmint.errors import InputError, NotFoundError, ShardError
from patchmint.shards.names import COMMITS, MANIFEST_PATH, PLAN_PATH, canonical_paths, record_path, unit_of_record
from patchmint.shards.planned import read_planned_units
from patchmint.storage import Storage, open_storage, uri_of

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
    covered, written = (0, 0) if manifest is None else read_totals(manifest)
    finished = manifest is not None and covered >= len(planned)
    # A finished build has a record of every unit: nothing to list.
    done = sorted(planned) if finished else _done(storage, planned)
    listed = None
    with suppress(ShardError):  # it only saves reading records here; `verify` says what is wrong with it
        listed = read_matching_list(storage, manifest) if manifest is not None else None
    known = {unit.unit: unit.samples for unit in listed.units} if listed is not None else {}
    shards = tuple(_shards(storage, done, planned, sizes, known))
    before_retries = set(sorted(planned)[:covered])
    found = sum(shard.samples for shard in shards if shard.unit in before_retries)
    if found != written:
        raise ShardError(
            f"the files of {text} make {found} samples, its {MANIFEST_PATH} says {written}: the copy isn't "
            f"complete; run `patchmint inspect verify {text}`",
            uri=text,
        )
    return Dataset(
        text,
        storage,
        manifest,
        shards,
        unbuilt=len(planned) - len(done),
        finished=finished,
        list_digest=listed.digest if listed is not None else "",
    )


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


def _done(storage: Storage, planned: Mapping[int, int]) -> list[int]:
    units = (unit_of_record(entry.path) for entry in storage.list(COMMITS))
    return sorted(unit for unit in units if unit is not None and unit in planned)


def _shards(
    storage: Storage,
    units: Sequence[int],
    planned: Mapping[int, int],
    sizes: Mapping[str, int],
    known: Mapping[int, int],
) -> Iterator[Shard]:
    """Units without rejects wrote what was planned: only the others' records are read, if the list hasn't got them."""
    names = {unit: canonical_paths(unit) for unit in units}
    unclear = [unit for unit, (rejects, _, tar) in names.items() if rejects in sizes or tar not in sizes]
    unclear = [unit for unit in unclear if unit not in known]
    recorded = {**known, **dict(zip(unclear, _written(storage, unclear), strict=True))}
    for unit, (rejects, sidecar, tar) in names.items():
        count = planned[unit]
        written = recorded.get(unit, count)
        if written > count:
            raise ShardError(
                f"{record_path(unit)} of {storage.uri} says that {written} samples are written, planned were {count}; "
                "it is of another build, or damaged; delete it and run the build's command again",
                uri=uri_of(storage, record_path(unit)),
            )
        wanted = ((sidecar, tar) if written else ()) + ((rejects,) if written < count else ())
        if missing := [path for path in wanted if path not in sizes]:
            raise ShardError(
                f"{storage.uri} lacks {missing[0]}, although {record_path(unit)} says that it is written: the copy "
                f"isn't complete, or a build must publish it; run the build's command again, or `patchmint inspect "
                f"verify {storage.uri}`",
                uri=uri_of(storage, missing[0]),
            )
        yield Shard(unit, tar, sidecar, written, count - written, sizes.get(tar, 0), sizes.get(sidecar, 0))


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
        if record["unit"] == unit and is_count(written := record["written"]):
            return int(written)
    except NO_DOCUMENT:
        pass
    from patchmint.shards.records import CommitRecord

    return CommitRecord.parse(data, unit, f"{path} of {storage.uri}").written


def _open_tar(uri: str) -> Dataset:
    """A tar by itself: its rows are those of the sidecar beside it, or made by reading it through."""
    from patchmint.datasets.rows import read_parquet, scan_tar

    storage, name = open_tar(uri)
    sidecar, size = sidecar_of(name), storage.size(name)
    if storage.exists(sidecar):
        rows = read_parquet(storage, sidecar, ["key"]).num_rows
        return Dataset(uri, storage, None, (Shard(0, name, sidecar, rows, 0, size, storage.size(sidecar)),))
    table = scan_tar(storage, name)
    return Dataset(uri, storage, None, (Shard(0, name, "", table.num_rows, 0, size),), scanned=table)
