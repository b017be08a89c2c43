"""Reading a source for its plan: sections side by side, each kept in the output as soon as it is read.

What is kept is named after the section's files as they are listed, so a run that follows one that was killed takes what
is still true, and reads the rest.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain, islice
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol, Self

import pyarrow as pa

from patchmint.errors import BuildError, NotFoundError, StorageError
from patchmint.json_values import canonical_json
from patchmint.pipeline.plan.keys import key_of
from patchmint.pipeline.plan.models import library_versions
from patchmint.samples import NOT_CHOSEN, Absent, Found, PlannedSample, SourceSample
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

_CONTENT = pa.field("content", pa.binary())
"""A column besides those of the plan: what tells samples apart for `dedupe`, empty where nothing does."""

_DUPLICATE = NOT_CHOSEN + "dedupe"
_READERS = 16
_WINDOW = 64

Section = tuple[Entry, ...]
Contents = Callable[[Found], bytes]


class Divided(Protocol):
    """What is used of a chosen source (`sources.Chosen`), and described there."""

    @property
    def at_once(self) -> int: ...  # noqa: D102

    @property
    def take(self) -> int | None: ...  # noqa: D102

    @property
    def content(self) -> Contents | None: ...  # noqa: D102

    def samples(self) -> Iterator[Found]: ...  # noqa: D102

    def sections(self) -> Iterator[Section] | None: ...  # noqa: D102

    def in_section(self, section: Section) -> Iterator[Found]: ...  # noqa: D102


class Reading:
    """The samples of sources while they are read, in batches as `to_batches` makes them. Iterate once.

    Attributes:
        absent: what is no sample, by reason; whole when all batches were taken.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch], absent: Counter[str]) -> None:
        self._batches = batches
        self.absent = absent

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches


def to_batches(
    found: Iterable[Found], absent: Counter[str] | None = None, content: Contents | None = None
) -> Iterator[pa.RecordBatch]:
    """Samples as batches of `plan_parts.SCHEMA`, keys not yet unique, ordinals not yet right.

    Args:
        found: what a source yields.
        absent: where to count what is no sample.
        content: makes a further column, `content`; called by several threads.
    """
    coming = _samples(found, Counter() if absent is None else absent, content)
    while chunk := list(islice(coming, _ROWS)):
        batch = to_batch([PlannedSample(0, each.key or key_of(each.id), each) for each, _ in chunk])
        if content is not None:
            batch = batch.append_column(_CONTENT, pa.array([made for _, made in chunk], _CONTENT.type))
        yield batch


def _samples(
    found: Iterable[Found], absent: Counter[str], content: Contents | None
) -> Iterator[tuple[SourceSample, bytes]]:
    pairs = (
        ((each, b"") for each in found)
        if content is None
        else done_ahead(content, found, threads=_READERS, ahead=_WINDOW)
    )
    for each, made in pairs:
        if isinstance(each, Absent):
            absent[each.reason] += 1
        else:
            yield storable(each), made


@contextmanager
def reading(
    parts: Iterable[tuple[Divided, Mapping[str, Any]]],
    storage: Storage,
    progress: Callable[[int], None],
    tell: Callable[[str], None],
) -> Iterator[Reading]:
    """Read sources one after another, several sections of one at once, for `make_plan`.

    Args:
        parts: what to read, each with the settings that decide its samples.
        storage: the output, where sections are kept until `sweep_unplanned`.
        progress: called often with the number of samples read so far; what it raises ends the reading.
        tell: called with a line for people.

    Yields:
        The samples in the sources' order.

    Raises:
        Whatever a source raises, and StorageError where the output can't be used.
    """
    counted, absent = _Counted(progress, tell), Counter[str]()

    def rows() -> Generator[pa.RecordBatch]:
        with _Seen() as seen:
            for source, settings in parts:
                with closing(_read(source, settings, storage, counted, absent)) as batches:
                    distinct = seen.first(batches, absent) if source.content is not None else batches
                    yield from _begin(distinct, source.take)

    with closing(rows()) as batches:
        yield Reading(batches, absent)


def _begin(batches: Iterator[pa.RecordBatch], take: int | None) -> Iterator[pa.RecordBatch]:
    """The first rows; nothing is read after them."""
    if take is None:
        yield from batches
        return
    for batch in batches:
        yield batch.slice(0, take)
        take -= min(take, batch.num_rows)
        if not take:
            return


class _Seen:
    """Which contents came before. 16 bytes each, on a disk where they are many."""

    def __init__(self) -> None:
        # in a temporary file without a name, once they don't fit into SQLite's cache
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("CREATE TABLE seen (content BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def first(self, batches: Iterable[pa.RecordBatch], absent: Counter[str]) -> Iterator[pa.RecordBatch]:
        """The rows whose content comes for the first time, or is empty, without the column."""
        for batch in batches:
            contents = batch[_CONTENT.name].to_pylist()
            is_new = [not content or self._is_new(content) for content in contents]
            absent[_DUPLICATE] += is_new.count(False)
            yield batch.select(SCHEMA.names).filter(pa.array(is_new))

    def _is_new(self, content: bytes) -> bool:
        return self._base.execute("INSERT OR IGNORE INTO seen VALUES (?)", (content,)).rowcount == 1


def _read(
    source: Divided, settings: Mapping[str, Any], storage: Storage, counted: _Counted, absent: Counter[str]
) -> Generator[pa.RecordBatch]:
    """The samples of one source, with their contents where these are needed; what is absent is counted."""
    content, over = source.content, threading.Event()
    sections = source.sections()
    if sections is None:
        yield from to_batches(counted.each(source.samples(), over, report=True), absent, content)
        return
    first = tuple(islice(sections, 2))
    kept = _Kept(storage, settings) if len(first) == 2 else None  # a single one is whole when the plan is
    if kept and kept.there:
        counted.goes_on(len(kept.there))

    waiting: set[IO[bytes]] = set()

    def read(section: Section) -> IO[bytes]:
        for rest in _RESTS:
            try:
                return read_once(section)
            except StorageError as error:
                passing = isinstance(error.__cause__, Exception) and is_passing(error.__cause__)
                if not passing or over.is_set():
                    raise
                counted.note(f"reading a part of the source again in {rest} s, from {section[0].path} on: {error}")
            over.wait(rest)
        return read_once(section)

    def read_once(section: Section) -> IO[bytes]:
        file = SpooledTemporaryFile(_IN_MEMORY, prefix="patchmint-plan-")  # noqa: SIM115 (closed in the end)
        waiting.add(file)
        if kept and (found := kept.load(section)):
            counted.add(sum(batch.num_rows for batch in pa.ipc.open_stream(found)))
            file.write(found)
        else:
            uncounted = Counter[str]()
            schema = SCHEMA if content is None else SCHEMA.append(_CONTENT)
            with pa.ipc.new_stream(file, schema, options=_OPTIONS) as stream:
                for batch in to_batches(counted.each(source.in_section(section), over), uncounted, content):
                    stream.write_batch(batch)
            file.write(canonical_json(uncounted).encode())
            if kept:
                file.seek(0)
                kept.save(section, file.read())
        file.seek(0)
        return file

    done = done_ahead(
        read,
        chain(first, sections),
        threads=source.at_once,
        ahead=2 * source.at_once if source.take is None else source.at_once,
        meanwhile=counted.report,
        over=over,
    )
    try:
        with closing(done):
            for _, file in done:
                counted.report()
                with pa.ipc.open_stream(file) as stream:
                    yield from stream
                absent.update(json.loads(file.read()))
                file.close()
                waiting.discard(file)
    finally:
        for file in waiting:
            file.close()


class _Counted:
    """Counts samples that pass in any thread; the main thread reports."""

    def __init__(self, progress: Callable[[int], None], tell: Callable[[str], None]) -> None:
        self._progress = progress
        self._tell = tell
        self._notes: deque[str] = deque()
        self._count = 0
        self._went_on = False
        self._lock = threading.Lock()

    def add(self, samples: int) -> None:
        with self._lock:
            self._count += samples

    def note(self, line: str) -> None:
        self._notes.append(line)

    def goes_on(self, sections: int) -> None:
        if not self._went_on:
            self._tell(f"planning goes on: {sections} sections of the source were read before")
        self._went_on = True

    def report(self) -> None:
        while self._notes:
            self._tell(self._notes.popleft())
        self._progress(self._count)

    def each(self, found: Iterator[Found], over: threading.Event, *, report: bool = False) -> Iterator[Found]:
        number = 0
        try:
            for each in found:
                if over.is_set():
                    raise BuildError("planning was stopped")
                if isinstance(each, SourceSample):
                    number += 1
                    self.add(1)
                yield each
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
