"""The commit protocol: the record decides, publishing follows.

An attempt writes a unit's files under names of its own. The commit point is the creation of `commits/UNIT.json`, which
succeeds once, whoever tries. Then the files that the record names are moved to their canonical names; whoever finds a
record whose files aren't published finishes that. So the bytes under canonical names come from the one attempt that the
record names, wherever processes are killed, stopped or raced, and whatever replies are lost.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

from patchmint.errors import NotFoundError, ShardError, StorageError, about
from patchmint.shards.paths import COMMITS, canonical_paths, record_path, unit_of_record
from patchmint.shards.records import ATTEMPTS, CommitRecord, FileRecord, ImageCounts, attempt_path, run_and_unit
from patchmint.shards.saved import SavedUnit, saved_path
from patchmint.storage import NewFile, Storage, uri_of

_READERS = 16


class Attempt:
    """One try at one unit.

    Attributes:
        id: unique to this try.
        unit: its number.
        paths: under which its files are to be published, as `canonical_paths`.
    """

    def __init__(self, storage: Storage, unit: int, run_id: str, prefix: str = "") -> None:
        """Begin; nothing is written yet.

        Args:
            storage: the data set's.
            unit: its number.
            run_id: of the run that tries: a-z, 0-9 and "-".
            prefix: what the shard's name begins with.

        Raises:
            ValueError: the run's id has other characters in it.
        """
        self.id = f"{run_id}-{unit:06d}-{secrets.token_hex(8)}"
        self.unit = unit
        self.paths = canonical_paths(unit, prefix)
        self._prefix = prefix
        if run_and_unit(self.id) is None:
            raise ValueError(f"{run_id!r} isn't a run id; use a-z, 0-9 and '-'")
        self._storage = storage
        self._files: dict[str, FileRecord] = {}
        self._begun = time.monotonic()
        # Whether a record that names this attempt may exist, or come to exist.
        self._offered = False
        self._over = False

    @contextmanager
    def new_file(self, canonical: str) -> Iterator[NewFile]:
        """Write one of the unit's files; it becomes part of the attempt if the block ends without an exception.

        Args:
            canonical: the name under which it is to be published, such as `shards/000003.tar`.

        Raises:
            ValueError: a unit has no file of that name.
            StorageError: it can't be written.
        """
        if canonical not in self.paths:
            raise ValueError(f"{canonical!r} isn't a file of unit {self.unit}")
        path = attempt_path(self.id, canonical)
        with self._storage.new_file(path) as file:
            yield file
        self._files[canonical] = FileRecord(path=path, size=file.size, sha256=file.sha256)

    def commit(
        self,
        planned: int,
        written: int,
        rejects: Mapping[str, int],
        plan_digest: str,
        *,
        texts: int = 0,
        label_share: float | None = None,
        images: ImageCounts | None = None,
        rules: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Make this attempt the unit's, unless another is; then publish whichever it is.

        Args:
            planned: samples of the unit.
            written: samples in the shard.
            rejects: samples that weren't written, by reason.
            plan_digest: of the plan.
            texts: of the written samples.
            label_share: mean over those texts; None where there are no labels.
            images: of documents; None where samples are pictures.
            rules: as of `CommitRecord`.

        Returns:
            Whether the unit's record names this attempt. If it names another one, that one is published, and this one's
            files are deleted.

        Raises:
            ValueError: planned isn't written plus rejects.
            NotFoundError: the files were swept, and nobody has committed the unit: it is to be tried again.
            StorageError: the storage failed. What the record says holds, whichever it is.
            ShardError: the unit's record is damaged or its files are gone.
        """
        own = CommitRecord(
            unit=self.unit,
            attempt=self.id,
            plan_digest=plan_digest,
            planned=planned,
            written=written,
            texts=texts,
            label_share=label_share,
            rejects=dict(sorted(rejects.items())),
            images=images,
            prefix=self._prefix,
            rules=dict(rules),
            files={name: self._files[name] for name in self.paths if name in self._files},
            seconds=round(time.monotonic() - self._begun, 3),
            host=socket.gethostname(),
        )
        record = self._decide(own)
        publish(self._storage, record)
        self._delete_files()
        self._over = True
        return record.attempt == self.id

    def save(self, plan_digest: str, samples: Sequence[int], rejects: Sequence[int], looked: int) -> None:
        """Leave this attempt's tar and rejects to the run that resumes the build, instead of committing them.

        Args:
            plan_digest: of the plan.
            samples: as in `SavedUnit`.
            rejects: as in `SavedUnit`.
            looked: as in `SavedUnit`.

        Raises:
            StorageError: the storage failed.
        """
        saved: dict[str, FileRecord] = {}
        table, _, tar = self.paths
        for ending, canonical in (("parquet", table), ("tar", tar)):
            if canonical in self._files:
                path = saved_path(self.unit, ending)
                self._storage.move(self._files[canonical].path, path)
                saved[ending] = self._files[canonical].model_copy(update={"path": path})
        record = SavedUnit(
            unit=self.unit,
            plan_digest=plan_digest,
            samples=list(samples),
            rejects=list(rejects),
            looked=looked,
            files=saved,
        )
        self._storage.write(saved_path(self.unit, "json"), record.model_dump_json().encode())
        self._delete_files()
        self._over = True

    def drop(self) -> None:
        """Delete this attempt's files, unless its record exists or may yet come to exist. Harmless after `commit`.

        Raises:
            StorageError: the storage failed.
        """
        if self._over:
            return
        if self._offered:
            record = find_record(self._storage, self.unit)
            # None: a lost request may still arrive and create the record. Then these files are the unit's.
            if record is None or record.attempt == self.id:
                return
        self._delete_files()

    def _decide(self, own: CommitRecord) -> CommitRecord:
        """The unit's record: this attempt's, or that of who came first."""
        if not self._files_are_there():
            # Whoever sweeps a unit's attempts has seen its record. Otherwise there is nothing to commit any more.
            if (record := find_record(self._storage, self.unit)) is not None:
                return record
            raise NotFoundError(
                f"the files of attempt {self.id} were deleted while it was at work, so unit {self.unit} can't be "
                "committed; run the build again"
            )
        self._offered = True
        try:
            if self._storage.create(record_path(self.unit), own.to_json()):
                return own
        except StorageError:
            # The request may have arrived although no reply came.
            if (record := find_record(self._storage, self.unit)) is not None:
                return record
            raise
        return read_record(self._storage, self.unit)

    def _files_are_there(self) -> bool:
        try:
            return all(self._storage.size(file.path) == file.size for file in self._files.values())
        except NotFoundError:
            return False

    def _delete_files(self) -> None:
        self._storage.delete([entry.path for entry in self._storage.list(f"{ATTEMPTS}/{self.id}")])


def publish(storage: Storage, record: CommitRecord) -> None:
    """Move the files of a record to their canonical names.

    May be called at any time, any number of times, by any number of processes at once.

    Raises:
        ShardError: a file is gone, or another one has its name.
        StorageError: the storage failed; call again.
    """
    for canonical in record.paths:
        if canonical not in record.files:
            continue
        file = record.files[canonical]
        try:
            storage.move(file.path, canonical)
        except NotFoundError:
            _check_published(storage, canonical, file, record)
    # Left over where somebody deleted a damaged record and had the unit done again.
    storage.delete([canonical for canonical in record.paths if canonical not in record.files])


def _check_published(storage: Storage, canonical: str, file: FileRecord, record: CommitRecord) -> None:
    try:
        size = storage.size(canonical)
    except NotFoundError:
        size = -1
    if size != file.size:
        found = "isn't there" if size < 0 else f"has {size} bytes instead of {file.size}"
        raise ShardError(
            f"{canonical} of {storage.uri} {found}, although unit {record.unit} is committed; "
            f"delete {record_path(record.unit)} and build again: the unit is then redone",
            uri=uri_of(storage, canonical),
        )


def committed_units(storage: Storage) -> set[int]:
    """The units that have a commit record, from one listing.

    Raises:
        StorageError: the storage failed.
    """
    units = (unit_of_record(entry.path) for entry in storage.list(COMMITS))
    return {unit for unit in units if unit is not None}


def read_record(storage: Storage, unit: int) -> CommitRecord:
    """A unit's commit record.

    Raises:
        NotFoundError: the unit isn't committed.
        ShardError: the record is damaged.
        StorageError: the storage failed.
    """
    path = record_path(unit)
    with about(uri_of(storage, path)):
        return CommitRecord.parse(storage.read(path), unit, f"{path} of {storage.uri}")


def find_record(storage: Storage, unit: int) -> CommitRecord | None:
    """A unit's commit record; None if it isn't committed. Raises as `read_record` does otherwise."""
    try:
        return read_record(storage, unit)
    except NotFoundError:
        return None


def read_records(storage: Storage, units: Sequence[int]) -> list[CommitRecord]:
    """The commit records of many units, in their order. Raises as `read_record` does."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(partial(read_record, storage), units))


def sweep(storage: Storage, run_id: str | None) -> None:
    """Delete what attempts have left. What a record names is published, never deleted.

    Args:
        storage: the data set's.
        run_id: every attempt of this run goes, so all its workers must have ended. None: of every run, the attempts at
            units that are committed by now; an attempt at any other unit may be live, and stays.

    Raises:
        StorageError, ShardError: as for `publish`.
    """
    attempts: defaultdict[str, list[str]] = defaultdict(list)
    for entry in storage.list(ATTEMPTS):
        attempts[entry.path.split("/")[1]].append(entry.path)
    for attempt, paths in attempts.items():
        if (parsed := run_and_unit(attempt)) is None:
            continue
        run, unit = parsed
        if run_id not in (None, run):
            continue
        record = find_record(storage, unit)
        if record is not None and record.attempt == attempt:
            publish(storage, record)
        if record is not None or run == run_id:
            storage.delete(paths)
    storage.delete_temporary()
    storage.delete_empty_folders(ATTEMPTS)
