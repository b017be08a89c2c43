"""One tar, front to back: its members, its samples, ours or somebody else's, and its sidecar."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

from patchmint.errors import PatchmintError, ShardError, StorageError
from patchmint.images import IMAGE_ENDINGS
from patchmint.shards.checks import (
    Array,
    Finding,
    Findings,
    Problem,
    check_arrays,
    check_document,
    check_instances,
    check_key,
)
from patchmint.shards.codec import decode_array
from patchmint.shards.endings import (
    CAPTION,
    COVERAGE,
    DOCUMENT,
    FEATURES,
    IMAGE,
    INSTANCES,
    MAX_KEY_LENGTH,
    SELECTOR,
    numbered,
    on_grid,
    sample_endings,
)
from patchmint.shards.layout import Layout
from patchmint.shards.reader import Member, StoredSample, is_own, iter_members
from patchmint.shards.schema import KeyJson, SequenceDocument, dump_features
from patchmint.shards.sidecar import stored_row
from patchmint.storage import Storage

Decode = Callable[[bytes], tuple[int, int]]
"""Decodes an image to (height, width); raises a PatchmintError where it can't."""

_CHUNK = 1 << 20
_TAIL = 1 << 16
_END = 1024
_FOLDER = "folder"  # as the reader calls it
_PICKLES = re.compile(r"\.(pkl|pickle|pyd|pt|pth|joblib)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Base:
    """What a column's samples were added to.

    Attributes:
        layout: of whole samples.
        whole: makes one of a unit's id and what the column has; raises a ShardError where there is none.
    """

    layout: Layout
    whole: Callable[[int, StoredSample], StoredSample]


@dataclass(frozen=True)
class TarReport:
    """What was found in one tar.

    Attributes:
        findings: in order.
        sha256: of the file, in hex.
        size: of the file in bytes.
        samples: in it.
        keys: of its samples, as 64-bit hashes.
    """

    findings: list[Finding]
    sha256: str
    size: int
    samples: int
    keys: list[int]


def check_tar(
    storage: Storage,
    path: str,
    *,
    layout: Layout | None = None,
    rows: Iterator[dict[str, Any]] | None = None,
    decode: Decode | None = None,
    base: Base | None = None,
    unit: int = 0,
) -> TarReport:
    """Read a tar once, hash it, and check all that it holds.

    Args:
        storage: where it is.
        path: the tar.
        layout: of its data set; None for a lone tar, which may be somebody else's.
        rows: of its sidecar, in order; None where there is none to compare with.
        decode: decodes each image; None: images aren't looked into.
        base: of a column.
        unit: whose tar it is.
    """
    findings = Findings(path)
    state = _State(findings, layout, rows, decode, base, unit)
    reader = _HashingFile()
    try:
        with storage.open(path) as file:
            reader.file = file
            state.read(reader, path)
            reader.drain()
    except StorageError as error:
        findings.add("file-unreadable", str(error))
    except ShardError as error:
        findings.add("rows-unreadable", str(error))
    keys = [key_hash(key) for key in state.seen]
    return TarReport(findings.to_list(), reader.sha256, reader.size, state.samples, keys)


def key_hash(key: str) -> int:
    """64 bits that stand for a key where all keys of a data set are compared."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest())


class _State:
    """What is known while a tar is read."""

    def __init__(
        self,
        findings: Findings,
        layout: Layout | None,
        rows: Iterator[dict[str, Any]] | None,
        decode: Decode | None,
        base: Base | None,
        unit: int,
    ) -> None:
        self.findings = findings
        self.base = base
        self.unit = unit
        self.layout = layout
        self.rows = rows
        self.decode = decode
        self.seen: dict[str, frozenset[str]] = {}
        self.end = 0
        self.last = ""
        self.samples = 0

    def read(self, reader: _HashingFile, path: str) -> None:
        whole = True
        try:
            for key, members in groupby(self._members(reader, path), key=lambda member: member.key):
                self._sample(key, list(members))
        except ShardError as error:
            whole = False
            self.findings.add("tar-damaged", f"{error}{self._last_read()}")
        reader.drain()
        if whole:
            self.findings.extend(
                (code, f"{message}{self._last_read()}") for code, message in _check_tar_end(reader, self.end)
            )
        if self.rows is not None and next(self.rows, None) is not None:
            self.findings.add("sidecar-rows", "the sidecar has more rows than the tar has samples")

    def _members(self, reader: _HashingFile, path: str) -> Iterator[Member]:
        for member in iter_members(reader, path):  # type: ignore[arg-type]  # only read() is called
            self.end, self.last = member.end, member.name
            yield member

    def _last_read(self) -> str:
        return f"; the last member that can be read is {self.last[:120]!r}" if self.last else ""

    def _sample(self, key: str, members: list[Member]) -> None:
        shown = key[:120]
        if self.layout is None and self.rows is None and all(member.kind == _FOLDER for member in members):
            # `tar` puts them into everybody's archives, and readers pass over them
            self.findings.extend(_check_names(members), shown)
            return
        self.samples += 1
        trouble = self.findings.extend(_check_members(members), shown)
        endings = frozenset(member.ending for member in members)
        if key in self.seen:
            if self.seen[key] & endings:
                self.findings.add("key-duplicate", "another sample of this shard has the same key", shown)
            else:
                self.findings.add("sample-split", "the sample's members don't stand together", shown)
            trouble = True
        self.seen[key] = self.seen.get(key, frozenset()) | endings
        held = {member.ending: member.data for member in members if member.data is not None and not _pickle(member)}
        sample = StoredSample(key, members[0].offset, members[-1].end - members[0].offset, held)
        if self.base is not None:
            sample, problems = self._of_column(sample, self.base)
            trouble |= self.findings.extend(problems, shown)
        elif self.layout is not None or is_own(sample):
            trouble |= self.findings.extend(check_own(sample, self.layout, deep=self.decode is not None), shown)
        else:
            trouble |= self.findings.extend(check_foreign(sample), shown)
        if self.rows is not None:
            self._compare_row(sample, trouble)
        if self.base is not None:
            return
        if self.decode is not None:
            self.findings.extend(check_image(sample, self.decode), shown)
        else:
            empty = [ending for ending, data in held.items() if not data and ending.rpartition(".")[2] == IMAGE]
            self.findings.extend((("image-damaged", f"{ending} is an empty file") for ending in empty), shown)

    def _of_column(self, sample: StoredSample, base: Base) -> tuple[StoredSample, list[Problem]]:
        """The whole sample, at its place in the column's tar, and what is wrong with it."""
        try:
            found = base.whole(self.unit, sample)
            expected = self.layout.members_of(len(found.key_json.images)) if self.layout is not None else None
        except ShardError as error:
            return sample, [("column-base", str(error))]
        whole = StoredSample(sample.key, sample.offset, sample.size, found.members)
        deep = self.decode is not None
        return whole, [*_check_endings(sample, expected), *check_own(whole, base.layout, deep=deep)]

    def _compare_row(self, sample: StoredSample, trouble: bool) -> None:
        row = next(self.rows, None) if self.rows is not None else None
        if row is None:
            self.findings.add("sidecar-rows", "the sidecar has no row for this sample", sample.key[:120])
            return
        expected: dict[str, Any] = {"key": sample.key, "offset": sample.offset, "size": sample.size}
        if not trouble:
            expected = stored_row(sample, row["ordinal"])
        # A sidecar of version 1 has fewer columns.
        wrong = [name for name, value in expected.items() if name in row and row[name] != value]
        if wrong:
            message = f"the sidecar says otherwise than the tar about {', '.join(wrong)}"
            self.findings.add("sidecar-row", message, sample.key[:120])


def _check_names(members: list[Member]) -> Iterator[tuple[str, str]]:
    for member in members:
        parts = member.name.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or "\\" in member.name or not member.name.isprintable():
            yield "member-path", f"{member.name[:120]!r} leads outside or hides something; names are KEY.ENDING"


def _check_members(members: list[Member]) -> Iterator[tuple[str, str]]:
    yield from _check_names(members)
    endings: set[str] = set()
    for member in members:
        shown = repr(member.name[:120])
        if member.kind != "file":
            yield "member-kind", f"{shown} is a {member.kind}; shards hold regular files only"
        if _pickle(member):
            yield "member-pickle", f"{shown} would be unpickled by some readers, which runs code; it wasn't read"
        if member.ending in endings:
            yield "member-duplicate", f"{shown} is there twice"
        endings.add(member.ending)


def _pickle(member: Member) -> bool:
    return _PICKLES.search(member.name) is not None


def _check_tar_end(reader: _HashingFile, end: int) -> Iterator[tuple[str, str]]:
    """Tarfile takes a damaged or cut header for the end, and never looks at what follows."""
    left = reader.size - end
    if left < _END:
        yield "tar-cut", f"the tar ends after {reader.size} bytes without the blocks that close it: it was cut"
    elif left > len(reader.tail) or any(reader.tail[-left:]):
        yield "tar-damaged", f"{left} bytes follow the last member that can be read, at byte {end}; they aren't empty"


class _HashingFile:
    """Hashes all that is read through it, and keeps the last bytes."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None
        self.size = 0
        self.tail = b""
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size) if self.file is not None else b""
        self._hash.update(data)
        self.size += len(data)
        self.tail = data[-_TAIL:] if len(data) >= _TAIL else (self.tail + data)[-_TAIL:]
        return data

    def drain(self) -> None:
        while self.read(_CHUNK):
            pass

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def check_own(sample: StoredSample, layout: Layout | None, *, deep: bool = False) -> Iterator[Problem]:
    """A sample of our format: members, document, arrays, instances, caption.

    Args:
        sample: as read.
        layout: of its data set; None: only what the sample says of itself is held against it.
        deep: whether labels are made again of the instances.
    """
    yield from check_key(sample.key, layout.longest_key if layout is not None else MAX_KEY_LENGTH)
    document: KeyJson | None = None
    if DOCUMENT in sample.members:
        try:
            document = sample.key_json
        except ShardError as error:
            yield "document-form", str(error)
    yield from _check_endings(sample, _expected(sample, document, layout))
    arrays: dict[str, Array] = {}
    yield from _read_arrays(sample, arrays)
    if document is None:
        return
    problems = [*check_document(document, sample.key, layout), *check_arrays(document, arrays, layout)]
    yield from problems
    if not problems:
        for image in sample.images:
            yield from check_instances(image, deep=deep)
    yield from _check_caption(sample, document)


def check_foreign(sample: StoredSample) -> Iterator[Problem]:
    """A sample of somebody else's tar: what every reader needs."""
    if sample.members and all("." in ending for ending in sample.members):
        dotted = next(iter(sample.members))
        yield (
            "key-dotted",
            f"every member has a dotted ending, such as {dotted[:80]!r}: readers cut names at the first dot, so "
            "samples with dots in their keys run together",
        )
    if DOCUMENT in sample.members:
        try:
            json.loads(sample.members[DOCUMENT])
        except (ValueError, RecursionError) as error:
            yield "document-form", f"the JSON can't be read: {error}"
    yield from _read_arrays(sample, {})


def check_image(sample: StoredSample, decode: Callable[[bytes], tuple[int, int]]) -> Iterator[Problem]:
    """Decode the sample's images, and hold their size against the document.

    Args:
        sample: as read.
        decode: an image file's bytes -> (height, width); raises a PatchmintError where it can't.
    """
    try:
        told = sample.key_json
        documents = isinstance(told, SequenceDocument)
        sizes = {numbered(n, IMAGE) if documents else IMAGE: image for n, image in enumerate(told.images)}
    except ShardError:  # said already, or not ours
        sizes = {}
    for ending in sample.members:
        number, _, kind = ending.rpartition(".")
        if kind not in IMAGE_ENDINGS or (number and not number.isdecimal()):
            continue
        try:
            height, width = decode(sample.members[ending])
        except PatchmintError as error:
            yield "image-damaged", f"{ending} can't be decoded: {error}"
            continue
        image = sizes.get(ending)
        if image is not None and (image.height, image.width) != (height, width):
            yield (
                "image-size",
                f"{ending} has {width} x {height} pixels, KEY.json says {image.width} x {image.height}",
            )


def _expected(sample: StoredSample, told: KeyJson | None, layout: Layout | None) -> tuple[str, ...] | None:
    if told is None:
        return None if layout is None or layout.documents else layout.members
    images = len(told.images)
    if layout is not None:
        return layout.members_of(images)
    documents = isinstance(told, SequenceDocument)
    first = numbered(0, "") if documents else ""
    labels = (SELECTOR, COVERAGE) if {first + SELECTOR, first + COVERAGE} & sample.members.keys() else ()
    grids = told.images[0].further_grids
    further = tuple(on_grid(ending, grid.name) for grid in grids for ending in (SELECTOR, COVERAGE))
    instances = (INSTANCES,) if first + INSTANCES in sample.members else ()
    tokens = (f"{tokens.member}.npy" for tokens in told.all_tokens)
    features = (FEATURES,) if told.features_json != dump_features(None) else ()
    return sample_endings((*labels, *further, *instances, *tokens, *features), images, documents=documents)


def _check_endings(sample: StoredSample, expected: tuple[str, ...] | None) -> Iterator[Problem]:
    held = tuple(sample.members)
    if expected is None or held == expected:
        return
    missing = [ending for ending in expected if ending not in held]
    unknown = [ending[:80] for ending in held if ending not in expected]
    if missing:
        yield "members-missing", f"there is no {', '.join(missing)}"
    if unknown:
        yield (
            "members-unknown",
            f"{', '.join(map(repr, unknown))} doesn't belong to the format; a key with a dot looks like this too",
        )
    if not missing and not unknown:
        yield "members-order", f"members stand in the order {', '.join(held)}; it must be {', '.join(expected)}"


def _read_arrays(sample: StoredSample, arrays: dict[str, Array]) -> Iterator[Problem]:
    for ending, data in sample.members.items():
        if ending.endswith(".npy") or ending == "npy":
            try:
                arrays[ending] = decode_array(data, ending)
            except ShardError as error:
                yield "array-form", str(error)


def _check_caption(sample: StoredSample, document: KeyJson) -> Iterator[Problem]:
    if CAPTION not in sample.members:
        return
    try:
        if sample.caption != document.texts[0]:
            yield "caption", "KEY.txt isn't the first text of KEY.json"
    except ShardError as error:
        yield "caption", str(error)
