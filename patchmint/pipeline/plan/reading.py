"""Reading a source for its plan: sections side by side, each kept in the output as soon as it is read.

What is kept is named after the section's files as they are listed, so a run that follows one that was killed takes what
is still true, and reads the rest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain, islice
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol

import pyarrow as pa

from patchmint.errors import BuildError, NotFoundError, StorageError
from patchmint.json_values import canonical_json
from patchmint.pipeline.plan.keys import key_of
from patchmint.pipeline.plan.models import library_versions
from patchmint.samples import Found, PlannedSample, SourceSample
from patchmint.shards.plan_parts import SCHEMA, storable, to_batch
from patchmint.storage import Entry, Storage
from patchmint.storage.ahead import done_ahead
from patchmint.storage.failures import is_passing

KEPT = "planning"
"""Folder of sections that were read, until the plan is made."""

_ROWS = 500
_RESTS = (2, 4, 8, 16)
"""Seconds before a section is read again, after the store has failed for longer than a request is repeated."""

_IN_MEMORY = 1 << 20
"""Bytes of a section that waits for its turn; larger ones wait in temporary files without names."""
_DIGEST = hashlib.sha256().digest_size
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")

Section = tuple[Entry, ...]


class Divided(Protocol):
    """What is used of a `Source`, and described there."""

    @property
    def at_once(self) -> int: ...  # noqa: D102

    def samples(self) -> Iterator[Found]: ...  # noqa: D102

    def sections(self) -> Iterator[Section] | None: ...  # noqa: D102

    def in_section(self, section: Section) -> Iterator[Found]: ...  # noqa: D102


def to_batches(samples: Iterable[Found]) -> Iterator[pa.RecordBatch]:
    """Samples as batches of `plan_parts.SCHEMA`, keys not yet unique, ordinals not yet right."""
    coming = (storable(each) for each in samples if isinstance(each, SourceSample))
    while chunk := [PlannedSample(0, each.key or key_of(each.id), each) for each in islice(coming, _ROWS)]:
        yield to_batch(chunk)


@contextmanager
def reading(
    source: Divided,
    settings: Mapping[str, Any],
    storage: Storage,
    progress: Callable[[int], None],
    tell: Callable[[str], None],
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Read a source, several sections at once, for `make_plan`.

    Args:
        source: what to read.
        settings: those of the source that decide its samples.
        storage: the output, where sections are kept until `sweep_unplanned`.
        progress: called often with the number of samples read so far; what it raises ends the reading.
        tell: called with a line for people.

    Yields:
        The samples in the source's order, as `to_batches` makes them.

    Raises:
        Whatever the source raises, and StorageError where the output can't be used.
    """
    counted = _Counted(progress, tell)
    sections = source.sections()
    if sections is None:
        yield to_batches(counted.each(source.samples(), report=True))
        return
    first = tuple(islice(sections, 2))
    kept = _Kept(storage, settings) if len(first) == 2 else None  # a single one is whole when the plan is
    if kept and kept.there:
        tell(f"planning goes on: {len(kept.there)} sections of the source were read before")

    waiting: set[IO[bytes]] = set()

    def read(section: Section) -> IO[bytes]:
        for rest in _RESTS:
            try:
                return read_once(section)
            except StorageError as error:
                passing = isinstance(error.__cause__, Exception) and is_passing(error.__cause__)
                if not passing or counted.over.is_set():
                    raise
                counted.note(f"reading a part of the source again in {rest} s, from {section[0].path} on: {error}")
            counted.over.wait(rest)
        return read_once(section)

    def read_once(section: Section) -> IO[bytes]:
        file = SpooledTemporaryFile(_IN_MEMORY, prefix="patchmint-plan-")  # noqa: SIM115 (closed in the end)
        waiting.add(file)
        if kept and (found := kept.load(section)):
            counted.add(sum(batch.num_rows for batch in pa.ipc.open_stream(found)))
            file.write(found)
        else:
            with pa.ipc.new_stream(file, SCHEMA, options=_OPTIONS) as stream:
                for batch in to_batches(counted.each(source.in_section(section))):
                    stream.write_batch(batch)
            if kept:
                file.seek(0)
                kept.save(section, file.read())
        file.seek(0)
        return file

    done = done_ahead(
        read,
        chain(first, sections),
        threads=source.at_once,
        ahead=2 * source.at_once,
        meanwhile=counted.report,
        over=counted.over,
    )

    def rows() -> Iterator[pa.RecordBatch]:
        for _, file in done:
            counted.report()
            yield from pa.ipc.open_stream(file)
            file.close()
            waiting.discard(file)

    try:
        with closing(done):
            yield rows()
    finally:
        for file in waiting:
            file.close()


class _Counted:
    """Counts samples that pass in any thread, until it is over; the main thread reports."""

    def __init__(self, progress: Callable[[int], None], tell: Callable[[str], None]) -> None:
        self.over = threading.Event()
        self._progress = progress
        self._tell = tell
        self._notes: deque[str] = deque()
        self._count = 0
        self._lock = threading.Lock()

    def add(self, samples: int) -> None:
        with self._lock:
            self._count += samples

    def note(self, line: str) -> None:
        self._notes.append(line)

    def report(self) -> None:
        while self._notes:
            self._tell(self._notes.popleft())
        self._progress(self._count)

    def each(self, samples: Iterator[Found], *, report: bool = False) -> Iterator[Found]:
        number = 0
        try:
            for number, sample in enumerate(samples, 1):
                if self.over.is_set():
                    raise BuildError("planning was stopped")
                self.add(1)
                yield sample
                if report and number % _ROWS == 0:
                    self.report()
        except StorageError:  # they are read, and counted, again
            self.add(-number)
            raise
        if report:
            self.report()


class _Kept:
    """Sections that were read, in the output."""

    def __init__(self, storage: Storage, settings: Mapping[str, Any]) -> None:
        self._storage = storage
        self._of = [SCHEMA.metadata[b"patchmint.schema"].decode(), settings, library_versions()]
        self.there = {entry.path for entry in storage.list(KEPT)}

    def load(self, section: Section) -> bytes | None:
        path = self._path(section)
        if path not in self.there:
            return None
        try:
            found = self._storage.read(path)
        except NotFoundError:  # another driver's plan is made
            return None
        data = found[_DIGEST:]
        return data if hashlib.sha256(data).digest() == found[:_DIGEST] else None

    def save(self, section: Section, data: bytes) -> None:
        if all(file.state for file in section):
            self._storage.write(self._path(section), hashlib.sha256(data).digest() + data)

    def _path(self, section: Section) -> str:
        content = [*self._of, [[file.path, file.size, file.state] for file in section]]
        return f"{KEPT}/{hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]}.arrow"
