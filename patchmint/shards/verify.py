"""Is a data set what its manifest, plan and records say? Whatever is wrong is a value, a `Finding`.

Memory: 16 bytes a sample (to find a key that two shards have), some hundred bytes a file, and one sample a thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from patchmint.errors import NotFoundError, ShardError, StorageError
from patchmint.shards.checks import MAX_PER_SHARD, Finding
from patchmint.shards.manifest import Manifest, Totals, read_manifest
from patchmint.shards.paths import (
    COMMITS,
    MANIFEST_PATH,
    PLAN_PATH,
    REJECTS,
    SHARDS,
    SHARDS_PATH,
    SIDECARS,
    record_path,
)
from patchmint.shards.plan import Plan, load_plans
from patchmint.shards.reader import iter_members
from patchmint.shards.records import CommitRecord
from patchmint.shards.shard_list import ListedUnit, ShardList, read_shard_list
from patchmint.shards.verify_tar import Base, Decode, check_tar, key_hash
from patchmint.shards.verify_unit import UnitReport, check_unit
from patchmint.storage import Storage
from patchmint.storage.ahead import done_ahead
from patchmint.types import Progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 2 * _THREADS + 1

_TAKEN_UP = {SHARDS: (".tar", ".parquet"), SIDECARS: ("",), REJECTS: ("",), COMMITS: ("",)}
"""Endings of what readers would take for a part of the data set. Other programs write indexes beside the tars."""


def verify(
    storage: Storage, *, decode: Decode | None = None, progress: Progress | None = None, base: Base | None = None
) -> Iterator[Finding]:
    """Check a whole data set: every byte against its record, every sample against the format, every count.

    Its columns aren't looked at: `patchmint.datasets.verify` does that.

    Args:
        storage: the data set.
        decode: an image file's bytes -> (height, width); given, every image is decoded. It is called from threads.
        progress: told after each unit.
        base: of a column.

    Raises:
        StorageError: the storage can't be listed. What can't be read of a listed file is a finding.
    """
    sizes = {entry.path: entry.size for entry in storage.list()}
    manifest, findings = _read_manifest(storage)
    yield from findings
    plans, findings = _read_plans(storage)
    yield from findings
    if not plans:
        return
    digests = [plan.digest for plan in plans]
    if manifest is not None and manifest.plan_digest != digests[0]:
        yield Finding(MANIFEST_PATH, "", "plan-digest", "the manifest is of another plan than plan.parquet")
    layout = manifest.layout if manifest is not None else None
    planned = {unit.id: unit.samples for plan in plans for unit in plan.units}
    units = sorted(planned)
    keys, records = KeyTable(), list[CommitRecord]()

    def check(unit: int) -> UnitReport:
        return check_unit(storage, unit, planned[unit], digests, sizes, layout=layout, decode=decode, base=base)

    for report in _in_threads(check, units, progress):
        yield from report.findings
        keys.add(report.tar, report.keys)
        records += [report.record] if report.record is not None else []
    yield from keys.duplicates(storage)
    named = {path for record in records for path in record.files}
    yield from _strays(sizes, named | {record_path(unit) for unit in units})
    if records and len(records) == len(units):
        yield from _check_totals(records, plans, manifest)
        if manifest is not None:
            yield from _check_list(storage, len(plans), [record.listed() for record in records], records[0].prefix)


def verify_tars(
    storage: Storage, paths: Sequence[str], *, decode: Decode | None = None, progress: Progress | None = None
) -> Iterator[Finding]:
    """Check tars that have no manifest, somebody else's too: what readers stumble over.

    Args:
        storage: where they are.
        paths: the tars; a key that two of them have is a finding.
        decode: as for `verify`.
        progress: told after each tar.
    """
    keys = KeyTable()
    reports = _in_threads(lambda path: (path, check_tar(storage, path, decode=decode)), paths, progress)
    for path, report in reports:
        yield from report.findings
        keys.add(path, report.keys)
    yield from keys.duplicates(storage)


def _read_manifest(storage: Storage) -> tuple[Manifest | None, list[Finding]]:
    try:
        return read_manifest(storage), []
    except NotFoundError:
        message = "there is no dataset.json: the build isn't finished; run its command again to resume"
        return None, [Finding(MANIFEST_PATH, "", "manifest-missing", message)]
    except ShardError as error:
        return None, [Finding(MANIFEST_PATH, "", "manifest-form", str(error))]


def _read_plans(storage: Storage) -> tuple[list[Plan], list[Finding]]:
    try:
        plans = load_plans(storage)
    except ShardError as error:
        return [], [Finding(PLAN_PATH, "", "plan-form", str(error))]
    message = "there is no plan, so what should be here isn't known; copy plan.parquet from where it was built"
    return plans, [] if plans else [Finding(PLAN_PATH, "", "plan-missing", message)]


def _in_threads(
    check: Callable[[_Item], _Result], items: Sequence[_Item], progress: Progress | None
) -> Iterator[_Result]:
    """Results in order; never more than a few are waiting to be taken."""
    for done, (_, result) in enumerate(done_ahead(check, items, threads=_THREADS, ahead=_AHEAD), start=1):
        yield result
        if progress is not None:
            progress(done, len(items))


def _strays(sizes: dict[str, int], named: set[str]) -> Iterator[Finding]:
    attempts = Counter[str]()
    for path in sizes:
        room, _, rest = path.partition("/")
        if room == "attempts":
            attempts[rest.partition("/")[0]] += 1
        elif room in _TAKEN_UP and path not in named and path.endswith(_TAKEN_UP[room]):
            message = "no record names this file; readers that take all tars of the folder would read it: remove it"
            yield Finding(path, "", "file-stray", message)
    for attempt, files in sorted(attempts.items()):
        message = f"an attempt left {files} files; run the build's command again, which sweeps them when it ends"
        yield Finding(f"attempts/{attempt}", "", "attempt-stray", message)


def _check_list(storage: Storage, plans: int, units: Sequence[ListedUnit], prefix: str) -> Iterator[Finding]:
    """Whether shards.json says what the records say."""
    try:
        listed = read_shard_list(storage)
    except ShardError as error:
        yield Finding(SHARDS_PATH, "", "list-form", str(error))
        return
    except StorageError as error:
        yield Finding(SHARDS_PATH, "", "file-unreadable", str(error))
        return
    again = "run the build's command again, which writes it again"
    if listed is None:
        yield Finding(SHARDS_PATH, "", "list-missing", f"there is no list of the shards; {again}")
    elif listed != ShardList(plans, tuple(units), prefix):
        others = [one.unit for one, other in zip(units, listed.units, strict=False) if one != other]
        where = f"unit {others[0]}" if others else f"{len(listed.units)} units, it is {len(units)} of {plans} plans"
        yield Finding(SHARDS_PATH, "", "counts", f"the list doesn't agree with the records ({where}); {again}")


def _check_totals(
    records: Sequence[CommitRecord], plans: Sequence[Plan], manifest: Manifest | None
) -> Iterator[Finding]:
    retried = sum(plan.total for plan in plans[1:])
    rejected = sum(sum(record.rejects.values()) for record in records) - retried
    if rejected < 0:  # that the units' counts close has been checked, unit by unit
        message = f"retries cover {retried} samples, more than were rejected; the plans are of other builds"
        yield Finding("", "", "counts", message)
    if manifest is None:
        return
    said = manifest.totals.model_dump() | {"rejected": sum(manifest.totals.rejected.values())}
    plan = plans[0]
    held = Totals.of(records, plan.total, {}, plan.absent, plan.images).model_dump() | {"rejected": rejected}
    for name, value in held.items():
        if said.get(name) != value:
            yield Finding(MANIFEST_PATH, "", "counts", f"the manifest says {name} {said.get(name)}, it is {value}")


class KeyTable:
    """Collects the hashes of all keys, shard by shard."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._hashes: list[npt.NDArray[np.uint64]] = []

    def add(self, shard: str, hashes: Sequence[int]) -> None:
        """Add a shard's keys, each once."""
        self._shards.append(shard)
        self._hashes.append(np.array(hashes, dtype=np.uint64))

    def duplicates(self, storage: Storage) -> Iterator[Finding]:
        """A finding for each key of a shard that an earlier shard has too; the hundred first, if there are more."""
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        shards = np.repeat(np.arange(len(self._shards)), [len(part) for part in self._hashes])
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        names: dict[int, dict[int, str]] = {}
        for place in again[:MAX_PER_SHARD].tolist():
            first, second = int(shards[order[place - 1]]), int(shards[order[place]])
            if second not in names:
                names[second] = _names(storage, self._shards[second])
            key = names[second].get(int(hashes[order[place]]), "")
            message = f"{self._shards[first]} has a sample of the same key"
            yield Finding(self._shards[second], key[:120], "key-duplicate", message)
        if len(again) > MAX_PER_SHARD:
            yield Finding("", "", "more", f"{len(again) - MAX_PER_SHARD} more keys that two shards have")


def _names(storage: Storage, shard: str) -> dict[int, str]:
    names: dict[int, str] = {}
    try:
        with storage.open(shard) as file:
            for member in iter_members(file, shard):
                names[key_hash(member.key)] = member.key
    except (ShardError, StorageError):  # a finding of the shard itself
        pass
    return names
