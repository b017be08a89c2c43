"""Is a data set what its manifest, plan and records say? Whatever is wrong is a value, a `Finding`.

Memory: 16 bytes a sample (to find a key that two shards have), some hundred bytes a file, and one sample a thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from patchmint.errors import NotFoundError, ShardError, StorageError
from patchmint.shards.findings import Finding
from patchmint.shards.manifest import Manifest, read_manifest
from patchmint.shards.paths import MANIFEST_PATH, PLAN_PATH, SHARDS_PATH, record_path
from patchmint.shards.plan import Plan, load_plans
from patchmint.shards.shard_list import ListedUnit, ShardList, read_shard_list
from patchmint.shards.sidecar import mean_share_of
from patchmint.shards.verify_keys import KeyTable
from patchmint.shards.verify_tar import Decode, check_tar
from patchmint.shards.verify_unit import UnitReport, check_unit
from patchmint.storage import Storage
from patchmint.storage.ahead import done_ahead

Progress = Callable[[int, int], None]
"""Called with shards done and shards in all."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 2 * _THREADS + 1


def verify(storage: Storage, *, decode: Decode | None = None, progress: Progress | None = None) -> Iterator[Finding]:
    """Check a whole data set: every byte against its record, every sample against the format, every count.

    Args:
        storage: the data set.
        decode: an image file's bytes -> (height, width); given, every image is decoded. It is called from threads.
        progress: told after each unit.

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
    keys, totals, named = KeyTable(), _Totals(), set[str]()

    def check(unit: int) -> UnitReport:
        return check_unit(storage, unit, planned[unit], digests, sizes, layout=layout, decode=decode)

    for report in _in_threads(check, units, progress):
        yield from report.findings
        keys.add(report.tar, report.keys)
        totals.add(report)
        named |= report.files
    yield from keys.duplicates(storage)
    yield from _strays(sizes, named | {record_path(unit) for unit in units})
    if totals.complete:
        yield from totals.check(plans, manifest)
        if manifest is not None:
            yield from _check_list(storage, len(plans), totals.listed)


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
        message = "there is no dataset.json: the build isn't finished; run its command again, it goes on where it was"
        return None, [Finding(MANIFEST_PATH, "", "manifest-missing", message)]
    except ShardError as error:
        return None, [Finding(MANIFEST_PATH, "", "manifest-form", str(error))]


def _read_plans(storage: Storage) -> tuple[list[Plan], list[Finding]]:
    try:
        plans = load_plans(storage)
    except ShardError as error:
        return [], [Finding(PLAN_PATH, "", "plan-form", str(error))]
    message = "there is no plan, so nobody knows what should be here; copy plan.parquet from where it was built"
    return plans, [] if plans else [Finding(PLAN_PATH, "", "plan-missing", message)]


def _in_threads(
    check: Callable[[_Item], _Result], items: Sequence[_Item], progress: Progress | None
) -> Iterator[_Result]:
    """Results in order; never more than a few are waiting to be taken."""
    done = 0
    for _, result in done_ahead(check, items, threads=_THREADS, ahead=_AHEAD):
        yield result
        done = _tell(progress, done, len(items))


def _tell(progress: Progress | None, done: int, total: int) -> int:
    if progress is not None:
        progress(done + 1, total)
    return done + 1


def _strays(sizes: dict[str, int], named: set[str]) -> Iterator[Finding]:
    attempts = Counter[str]()
    for path in sizes:
        room, _, rest = path.partition("/")
        if room == "attempts":
            attempts[rest.partition("/")[0]] += 1
        elif room in ("shards", "rejects", "commits") and path not in named:
            message = "no record names this file; readers that take all tars of the folder would read it: remove it"
            yield Finding(path, "", "file-stray", message)
    for attempt, files in sorted(attempts.items()):
        message = f"an attempt left {files} files; run the build's command again, which sweeps them when it ends"
        yield Finding(f"attempts/{attempt}", "", "attempt-stray", message)


def _check_list(storage: Storage, plans: int, units: Sequence[ListedUnit]) -> Iterator[Finding]:
    """Whether shards.json says what the records say."""
    try:
        listed = read_shard_list(storage)
    except ShardError as error:
        yield Finding(SHARDS_PATH, "", "list-form", str(error))
        return
    except StorageError as error:
        yield Finding(SHARDS_PATH, "", "file-unreadable", str(error))
        return
    again = "run the build's command again, which writes it anew"
    if listed is None:
        yield Finding(SHARDS_PATH, "", "list-missing", f"there is no list of the shards; {again}")
    elif listed != ShardList(plans, tuple(units)):
        others = [one.unit for one, other in zip(units, listed.units, strict=False) if one != other]
        where = f"unit {others[0]}" if others else f"{len(listed.units)} units, it is {len(units)} of {plans} plans"
        yield Finding(SHARDS_PATH, "", "counts", f"the list doesn't agree with the records ({where}); {again}")


class _Totals:
    """Adds up what the records say."""

    def __init__(self) -> None:
        self.complete = True
        self._written = self._bytes = self._shards = self._units = 0
        self.listed: list[ListedUnit] = []
        self._labels: list[tuple[float | None, int]] = []
        self._rejects = Counter[str]()

    def add(self, report: UnitReport) -> None:
        self.complete &= report.recorded
        if report.listed is not None:
            self.listed.append(report.listed)
        self._units += 1
        self._written += report.written
        self._labels.append((report.label_share, report.texts))
        self._rejects.update(report.rejects)
        self._bytes += report.bytes
        self._shards += bool(report.written)

    def check(self, plans: Sequence[Plan], manifest: Manifest | None) -> Iterator[Finding]:
        retried = sum(plan.total for plan in plans[1:])
        rejected = self._rejects.total() - retried
        if rejected < 0:  # that the units' counts close has been checked, unit by unit
            message = f"retries take up {retried} samples, more than were rejected; the plans are of other builds"
            yield Finding("", "", "counts", message)
        if manifest is None:
            return
        held = {
            "units": self._units,
            "planned": plans[0].total,
            "written": self._written,
            "rejected": rejected,
            "texts": sum(texts for _, texts in self._labels),
            "label_share": mean_share_of(self._labels),
            "shards": self._shards,
            "bytes": self._bytes,
        }
        said = manifest.totals.model_dump()
        said["rejected"] = sum(manifest.totals.rejected.values())
        for name, value in held.items():
            if said[name] != value:
                yield Finding(MANIFEST_PATH, "", "counts", f"the manifest says {name} {said[name]}, it is {value}")
