"""Shards -> samples, without webdataset: members are listed and read, never extracted and never unpickled."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import BinaryIO

from patchmint.errors import ConfigError, ShardError, about
from patchmint.geometry import Fit, PatchGrid, Placement
from patchmint.samples import Part
from patchmint.shards.codec import Array, decode_array
from patchmint.shards.endings import (
    CAPTION,
    COVERAGE,
    DOCUMENT,
    FEATURES,
    IMAGE,
    INSTANCES,
    SELECTOR,
    numbered,
    on_grid,
    unnumbered,
)
from patchmint.shards.schema import (
    EntryDocument,
    FoundDocument,
    GridDocument,
    InstancesDocument,
    KeyJson,
    PhraseDocument,
    SampleDocument,
    SequenceDocument,
    SourceDocument,
    read_key_json,
)
from patchmint.storage import Storage, uri_of

MAX_MEMBER_BYTES = 1 << 30
"""Larger members aren't read."""

_BUFFER = 1 << 20


@dataclass(frozen=True)
class Member:
    """A member of a tar.

    Attributes:
        name: as in the tar.
        offset: first byte of its header.
        end: first byte after its data and padding.
        data: None for what isn't read: links, folders, devices, and files over `MAX_MEMBER_BYTES`.
        kind: "file", or what it is instead.
    """

    name: str
    offset: int
    end: int
    data: bytes | None = field(repr=False)
    kind: str = "file"

    @property
    def key(self) -> str:
        """The name up to the first dot of its last part: what readers group members by."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def ending(self) -> str:
        """What follows the key and its dot."""
        return self.name[len(self.key) + 1 :]


def iter_members(file: BinaryIO, name: str, *, headers_only: bool = False) -> Iterator[Member]:
    """Read the members of an uncompressed tar, front to back.

    tarfile stops without a word at a damaged or cut header: `check_tar_end` finds that.

    Args:
        file: read from where it stands; needs no seeking.
        name: what errors call it.
        headers_only: pass over the data, by seeking.

    Raises:
        ShardError: it is no tar, or it is cut or damaged.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:" if headers_only else "r|", bufsize=_BUFFER) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                data = None
                if _kind(info) == "file" and not headers_only:
                    stream = tar.extractfile(info)
                    data = stream.read() if stream is not None else None
                yield Member(info.name, info.offset, tar.offset, data, _kind(info))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise ShardError(f"{name} isn't a complete tar: {error}; get it again, or build its unit again") from error


@dataclass(frozen=True)
class StoredImage:
    """An image of a stored sample, and what was made of it. It is parsed, and fails, as a sample is.

    Attributes:
        number: among the sample's images.
        key: the sample's.
        key_json: the sample's KEY.json.
        members: the sample's.
    """

    number: int
    key: str
    key_json: KeyJson = field(repr=False)
    members: Mapping[str, bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """What people call it: KEY; of a document KEY.NUMBER, as the names of its members begin."""
        return f"{self.key}.{self.number}" if isinstance(self.key_json, SequenceDocument) else self.key

    @property
    def data(self) -> bytes:
        """The image file, as its source had it; `info.format` says what it is."""
        return _member(self.members, self.key, self.ending_of(IMAGE))

    @property
    def info(self) -> EntryDocument:
        """What the image is, with its placement."""
        return self.key_json.images[self.number]

    @property
    def grid(self) -> GridDocument:
        """The grid on it."""
        return self.key_json.grid if isinstance(self.key_json, SampleDocument) else self.info.grid

    @property
    def placement(self) -> Placement:
        """Where on it the cells of its labels lie, by KEY.json alone: of `anyres` in format 1 the first view only."""
        if self.info.placement is not None:
            return self.info.placement
        grid = self.grid
        try:
            fit = Fit.SQUASH if grid.fit == Fit.ANYRES else Fit(grid.fit)
            return PatchGrid(grid.rows, grid.cols, grid.patch_px, fit).place((self.info.height, self.info.width))
        except (ConfigError, ValueError) as error:
            raise ShardError(f"sample {self.name!r} has a grid that can't be used: {error}; run verify") from error

    @property
    def source(self) -> SourceDocument:
        """Where it comes from."""
        return self.info.source

    @property
    def texts(self) -> tuple[int, ...]:
        """Numbers of the texts that label it, ascending: `selector` and `coverage` have one entry for each."""
        return self.key_json.image_texts[self.number]

    @property
    def phrases(self) -> tuple[PhraseDocument, ...]:
        """What was found in it, texts in order, best first."""
        return tuple(phrase for phrase in self.key_json.phrases if phrase.image == self.number)

    @cached_property
    def selector(self) -> Array | None:
        """Patch labels: uint8 (texts, rows * views, cols), 0 or 1; None where the data set has no labels."""
        return self.array(SELECTOR)

    @cached_property
    def coverage(self) -> Array | None:
        """Covered share: uint8 (texts, rows * views, cols), 0..255; None where the data set has no labels."""
        return self.array(COVERAGE)

    @cached_property
    def codes(self) -> Array | None:
        """Codes before any vocabulary offset: uint16 or uint32 (*grid[, codebooks]); None where there are none.

        Of several tokenizers those of the first, or of `StoredSample.with_codes`.
        """
        member = self.key_json.tokens.member
        return self.array(f"{member}.npy") if member else None

    @cached_property
    def features(self) -> Array | None:
        """Features: float16 (views * tokens, channels); None where the data set has none."""
        return self.array(FEATURES)

    @cached_property
    def instances(self) -> tuple[FoundDocument, ...] | None:
        """What was found in it, with masks, in the order of `phrases`; None where the data set has no instances."""
        data = self.members.get(self.ending_of(INSTANCES))
        return None if data is None else InstancesDocument.read(data)

    def array(self, ending: str) -> Array | None:
        """One of its arrays, read-only, by the ending that a picture's has; None where there is no such member."""
        return _array(self.members, self.key, self.ending_of(ending))

    def ending_of(self, ending: str) -> str:
        """What a picture's ending is for this image."""
        return numbered(self.number, ending) if isinstance(self.key_json, SequenceDocument) else ending


@dataclass(frozen=True)
class StoredSample:
    """A sample as it lies in a shard. What it holds is parsed when it is asked for.

    Every property and method raises a ShardError where its member can't be read safely, or is of another form; image,
    document and caption also where there is none. A picture and a document are both read by `images`, `parts` and
    `key_json`; what is of the only image is a picture's alone.

    Attributes:
        key: its name.
        offset: first byte of its first member's header.
        size: bytes of all its members, headers and padding included.
        members: bytes by ending ("jpg", "json", "selector.npy", ...), in the shard's order.
        grid: name of the further grid on which it is read (`on_grid`); empty: as it was written.
        tokenizer: name of the tokenizer with whose codes alone it is read (`with_codes`); empty: as it was written.
    """

    key: str
    offset: int
    size: int
    members: dict[str, bytes] = field(repr=False)
    grid: str = ""
    tokenizer: str = ""

    def with_codes(self, name: str) -> StoredSample:
        """The sample as if the codes of one of several tokenizers were the only ones.

        `key_json` raises a ShardError where it has no such codes.
        """
        return replace(self, tokenizer=name)

    def on_grid(self, name: str) -> StoredSample:
        """The sample as if its labels were on one of its further grids alone, without features.

        `key_json` raises a ShardError where it has no such grid.
        """
        endings = {on_grid(ending, name): ending for ending in (SELECTOR, COVERAGE)}
        members = {}
        for ending, data in self.members.items():
            own = unnumbered(ending)
            if own in endings:
                members[ending.removesuffix(own) + endings[own]] = data
            elif own != FEATURES and own.partition(".")[0] not in ("selector", "coverage"):
                members[ending] = data
        return replace(self, members=members, grid=name)

    @cached_property
    def key_json(self) -> KeyJson:
        """KEY.json."""
        told = read_key_json(_member(self.members, self.key, DOCUMENT))
        told = told.on_grid(self.grid) if self.grid else told
        return told.with_codes(self.tokenizer) if self.tokenizer else told

    @cached_property
    def images(self) -> tuple[StoredImage, ...]:
        """The images, by number; a picture has one."""
        told = self.key_json
        count = 1 if isinstance(told, SampleDocument) else len(told.images)
        return tuple(StoredImage(number, self.key, told, self.members) for number in range(count))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Texts and images of a document in their order; empty: it is a picture."""
        return self.key_json.parts

    @property
    def phrases(self) -> tuple[PhraseDocument, ...]:
        """What was found in all images: images in order, texts in order, best first."""
        return self.key_json.phrases

    @property
    def caption(self) -> str:
        """The first text."""
        try:
            return _member(self.members, self.key, CAPTION).decode()
        except UnicodeDecodeError as error:
            raise ShardError(f"{self.key}.{CAPTION} isn't UTF-8: {error}") from error

    @property
    def image(self) -> bytes:
        """The image file, as its source had it; `document.image.format` says what it is."""
        return _member(self.members, self.key, IMAGE)

    @property
    def document(self) -> SampleDocument:
        """KEY.json of a picture."""
        if isinstance(self.key_json, SampleDocument):
            return self.key_json
        raise ShardError(f"sample {self.key!r} is a document of images and texts, not a picture; read its `images`")

    @property
    def selector(self) -> Array | None:
        """Patch labels: uint8 (T, rows * views, cols), 0 or 1; None where the data set has no labels."""
        return self._of_picture(SELECTOR)

    @property
    def coverage(self) -> Array | None:
        """Covered share: uint8 (T, rows * views, cols), 0..255; None where the data set has no labels."""
        return self._of_picture(COVERAGE)

    @property
    def codes(self) -> Array | None:
        """Codes before any vocabulary offset: uint16 or uint32 (*grid[, codebooks]); None where there are none."""
        member = self.document.tokens.member
        return self.array(f"{member}.npy") if member else None

    @property
    def features(self) -> Array | None:
        """Features: float16 (views * tokens, channels); None where the data set has none."""
        return self._of_picture(FEATURES)

    def array(self, ending: str) -> Array | None:
        """One of the arrays, read-only; None where there is no such member."""
        return _array(self.members, self.key, ending)

    def arrays(self, ending: str) -> list[Array]:
        """That array of each image, by number, whether or not KEY.json was read; of a picture one, or none."""
        found = {
            int(name.removesuffix(ending).rstrip(".") or 0): decode_array(data, f"{self.key}.{name}")
            for name, data in self.members.items()
            if unnumbered(name) == ending
        }
        return [found[number] for number in sorted(found)]

    def _of_picture(self, ending: str) -> Array | None:
        if DOCUMENT in self.members:  # it may have been read without
            _ = self.document
        return self.array(ending)


def _array(members: Mapping[str, bytes], key: str, ending: str) -> Array | None:
    data = members.get(ending)
    return None if data is None else decode_array(data, f"{key}.{ending}")


def _member(members: Mapping[str, bytes], key: str, ending: str) -> bytes:
    if ending not in members:
        raise ShardError(f"sample {key!r} has no member {ending!r}; run `patchmint inspect verify` on it")
    return members[ending]


def is_own(sample: StoredSample) -> bool:
    """Whether the sample says that it is of our format."""
    try:
        document = json.loads(sample.members.get(DOCUMENT, b""))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and str(document.get("schema", "")).startswith("patchmint.sample/")


def iter_samples(storage: Storage, path: str) -> Iterator[StoredSample]:
    """Read a shard's samples in order; only one is in memory at a time.

    Args:
        storage: the data set's.
        path: of the tar, relative to it.

    Raises:
        NotFoundError, StorageError: the tar can't be read.
        ShardError: it isn't a complete tar, or holds what isn't a regular file, or a name twice.
    """
    with storage.open(path) as file, about(uri_of(storage, path)):
        yield from group_members(iter_members(file, path), path)


def read_sample(storage: Storage, path: str, offset: int, size: int) -> StoredSample:
    """Read one sample at the place that the sidecar gives.

    Args:
        storage: the data set's.
        path: of the tar, relative to it.
        offset: the sidecar's `offset`.
        size: the sidecar's `size`.

    Raises:
        NotFoundError, StorageError: the bytes can't be read.
        ShardError: there isn't exactly one sample at that place.
    """
    with about(uri_of(storage, path)):
        return parse_sample(storage.read_range(path, offset, size), path, offset)


def parse_sample(data: bytes, path: str, offset: int, endings: Collection[str] | None = None) -> StoredSample:
    """Take one sample's bytes apart, faster than a tar reader can.

    Args:
        data: headers, members and padding, from a sidecar's `offset` to its `size`.
        path: of the tar, for errors.
        offset: where in it they begin.
        endings: of the members to keep, of a document without the images' numbers; None: all.

    Raises:
        ShardError: they aren't exactly one sample of regular members.
    """

    def read(start: int, size: int) -> bytes:
        return data[start - offset : start - offset + size]

    return walk_sample(read, path, offset, len(data), endings)


def walk_sample(
    read: Callable[[int, int], bytes], path: str, offset: int, size: int, endings: Collection[str] | None = None
) -> StoredSample:
    """As `parse_sample`, of a sample whose bytes are read bit by bit: its headers, and the members to keep.

    Args:
        read: gives so many bytes from a position in the tar on.
        path: of the tar, for errors.
        offset: the sidecar's `offset`.
        size: the sidecar's `size`.
        endings: of the members to keep, of a document without the images' numbers; None: all.

    Raises:
        ShardError: there isn't exactly one sample of regular members.
        Whatever `read` raises.
    """
    samples = list(group_members(_walk(read, path, offset, offset + size, endings), path))
    if len(samples) != 1:
        raise ShardError(f"{path} has no sample at byte {offset}; the sidecar belongs to another tar: run verify")
    if endings is None:
        return samples[0]
    kept = {ending: data for ending, data in samples[0].members.items() if unnumbered(ending) in endings}
    return StoredSample(samples[0].key, offset, size, kept)


def _walk(
    read: Callable[[int, int], bytes], path: str, start: int, stop: int, endings: Collection[str] | None
) -> Iterator[Member]:
    """Members of what `ShardWriter` writes: a header of one block each, then the data and its padding."""
    block = tarfile.BLOCKSIZE
    while start < stop:
        name, size, kind = _read_header(read(start, block), path)
        end = start + block + size + -size % block
        if size < 0 or end > stop:
            raise ShardError(f"{path} has a member that ends outside its sample; run `patchmint inspect verify` on it")
        data = None
        if kind == "file":
            wanted = endings is None or unnumbered(name.rpartition("/")[2].partition(".")[2]) in endings
            data = read(start + block, size) if wanted else b""
        yield Member(name, start, end, data, kind)
        start = end


def _read_header(header: bytes, path: str) -> tuple[str, int, str]:
    """Name of a member, bytes of its data, and "file" or what it is instead; from its 512 bytes of header."""
    # tarfile judges what isn't quite as we write it; it takes five times as long.
    sums, size = header[148:154], header[124:135]
    plain = header[156:157] == tarfile.REGTYPE and header[345:346] == tarfile.NUL and header.isascii()
    with suppress(ValueError):
        if plain and int(sums, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ") and size.isdigit():
            return header[:100].partition(tarfile.NUL)[0].decode(), int(size, 8), "file"
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ShardError(
            f"{path} holds no member where its sidecar has one: {error}; run `patchmint inspect verify` on it"
        ) from error
    return info.name, info.size, "special file" if info.type == tarfile.GNUTYPE_SPARSE else _kind(info)


def group_members(members: Iterable[Member], path: str) -> Iterator[StoredSample]:
    """Samples: members that stand together and share a key.

    Raises:
        ShardError: one isn't a regular file, or is there twice.
    """
    key, offset, end = "", 0, 0
    data: dict[str, bytes] = {}
    for member in members:
        if member.data is None:
            raise ShardError(f"{path} holds {member.name[:200]!r}, a {member.kind}; shards hold regular files only")
        own = member.key
        if data and own != key:
            yield StoredSample(key, offset, end - offset, data)
            data = {}
        if not data:
            key, offset = own, member.offset
        ending = member.name[len(own) + 1 :]
        if ending in data:
            raise ShardError(f"{path} holds {member.name[:200]!r} twice; run `patchmint inspect verify` on it")
        data[ending] = member.data
        end = member.end
    if data:
        yield StoredSample(key, offset, end - offset, data)


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {
        tarfile.SYMTYPE: "symbolic link",
        tarfile.LNKTYPE: "hard link",
        tarfile.DIRTYPE: "folder",
        tarfile.CHRTYPE: "device",
        tarfile.BLKTYPE: "device",
        tarfile.FIFOTYPE: "pipe",
    }
    if info.isreg() and not info.issparse():
        return "file" if info.size <= MAX_MEMBER_BYTES else f"file of {info.size} bytes"
    return kinds.get(info.type, "special file")
