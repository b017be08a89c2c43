"""What a source is, and how sources find, recognise and read their files: images, and all others."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, Protocol, TypeVar

from patchmint.errors import (
    ConfigError,
    ImageMissingError,
    ImageUnreadableError,
    NotFoundError,
    StorageError,
    did_you_mean,
)
from patchmint.images.pages import page_of
from patchmint.pipeline.sources.records import inner_path
from patchmint.samples import NO_NUMBER, WHOLE_FILE, Fault, Found, ImageRef
from patchmint.storage import Entry, Storage
from patchmint.storage.ahead import done_ahead
from patchmint.storage.failures import is_passing
from patchmint.storage.local import LocalStorage

_Item = TypeVar("_Item")

_RESTS = (0.1, 1.0)
"""Seconds before a file that can't be read is tried again."""

_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO)

MAX_TEXT_BYTES = 16 << 20
"""A caption file longer than this isn't read: it is no caption."""

_HEAD = 512
_LISTED = 1000
"""Most file names to look through for one that was meant."""
_READERS = 16
_WINDOW = 128

_MAGICS = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it first"),
    (b"(\xb5/\xfd", "compressed with zstd; unpack it first"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
    (b"PAR1", "a Parquet file"),
    (b"\x80", "a Python pickle, which could run anything and is never opened"),
)


Section = tuple[Entry, ...]
"""Files of a source, as they are listed: its samples follow from them alone."""


class Source(Protocol):
    """A data set to take samples from.

    Making one is cheap: annotation files are read by `samples` only, so a worker, which only reads images, never parses
    them.
    """

    chooses_files: bool
    """Whether it reads the files that `files` and `split` choose only; else its images' files are looked at."""

    def check(self) -> None:
        """Check that what the settings name is there and begins as it should; no more than beginnings is read.

        Raises:
            ConfigError: a file, a column or a split that the settings name isn't there, or isn't what it should be.
            StorageError: looking failed.
        """
        ...

    def samples(self) -> Iterator[Found]:
        """Every sample, in an order that depends on the data set's files only.

        What is wrong with a single record becomes a sample with a fault; what isn't there without a fault, `Absent`.

        Raises:
            ConfigError: a file that the settings name isn't there, or isn't what it should be.
            StorageError: reading failed.
        """
        ...

    @property
    def at_once(self) -> int:
        """How many sections to read at once."""
        ...

    def sections(self) -> Iterator[Section] | None:
        """The source in pieces that can be read by themselves, in order; None if it can't be divided.

        Raises:
            ConfigError, StorageError: as for `samples`.
        """
        ...

    def in_section(self, section: Section) -> Iterator[Found]:
        """The samples of a section; those of all sections are `samples`. Several threads may call this at once.

        Raises:
            ConfigError, StorageError: as for `samples`.
        """
        ...

    def read_image(self, ref: ImageRef) -> bytes:
        """The bytes of an image file, as stored. Several threads may call this at once.

        Raises:
            ImageMissingError: the image isn't there; the sample can't be written.
            ImageDecodeError: its page can't be told from others.
            ImageUnreadableError: it is there, and can't be read, also a second later.
            StorageError: reading failed; another try may do.
        """
        ...


_SECTION_BYTES = 32 << 20
"""Smaller files are read, and kept once they are read, together."""


def in_sections(files: Iterable[Entry]) -> Iterator[Section]:
    """Files, each of which has samples of its own, as sections of a size that is worth keeping."""
    section: list[Entry] = []
    size = 0
    for file in files:
        section.append(file)
        size += file.size
        if size >= _SECTION_BYTES:
            yield tuple(section)
            section, size = [], 0
    if section:
        yield tuple(section)


class StoredImages:
    """Images that are files of their own, or ranges of bytes in bigger ones. Base of the sources."""

    at_once = 1
    chooses_files = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`: it can't be divided."""
        return None

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        raise NotImplementedError(f"this source has no sections: {section}")

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`. A page is made a file of its own."""
        try:
            data = self._read_bytes(ref)
        except StorageError as error:
            if _may_be_of_this_file(error):
                raise ImageUnreadableError(
                    f"{error}; fix its permissions, or leave the sample among the rejects", path=ref.path
                ) from error
            # a container that has gone since the plan was made is trouble with the storage, not with one image
            if ref.start != WHOLE_FILE:
                raise
            # a folder of that name, or a file where a folder should be, is as good as nothing
            if not isinstance(error, NotFoundError) and self._storage.exists(ref.path):
                raise
            if missing := missing_root(self._storage):  # not mounted: lest each image be taken for a missing one
                raise StorageError(missing, uri=self._storage.uri) from error
            raise ImageMissingError(
                f"there is no image {ref.path!a} in {self._storage.uri}, although the data set names it; add the file, "
                "or leave the sample among the rejects",
                path=ref.path,
            ) from error
        page = data if ref.number == NO_NUMBER else page_of(data, ref.number)
        if page is None:
            raise ImageMissingError(f"{ref.path} in {self._storage.uri} has no page {ref.number}", path=ref.path)
        return page

    def _read_bytes(self, ref: ImageRef) -> bytes:
        def read() -> bytes:
            if ref.start != WHOLE_FILE:
                return self._storage.read_range(ref.path, ref.start, ref.length)
            return self._storage.read(ref.path)

        for rest in _RESTS:
            try:
                return read()
            except StorageError as error:
                if not _may_be_of_this_file(error):
                    raise
            time.sleep(rest)
        return read()


def _may_be_of_this_file(error: StorageError) -> bool:
    """Whether it may be one file that can't be read, and not the storage; a mount that hiccups says the same, once."""
    cause = error.__cause__
    return isinstance(cause, OSError) and (
        cause.errno in _UNREADABLE or (cause.errno is not None and is_passing(cause))
    )


def missing_root(storage: Storage) -> str:
    """What to say if a local source's folder isn't there, or is empty, as where nothing is mounted; else empty."""
    if not isinstance(storage, LocalStorage):
        return ""
    root = storage.root
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return ""
        what = f"the folder {root} on {socket.gethostname()} is empty, and the source is to be read from it"
    except (FileNotFoundError, NotADirectoryError):
        what = f"there is no folder {root} on {socket.gethostname()} to read the source from"
    except OSError:
        return ""  # whoever reads says why
    return f"{what}; check source.uri, and that each machine mounts it at the same path"


def strange(head: bytes) -> str:
    """Tell from a file's first bytes what it is in the place of what was expected; "" if nothing strange is seen."""
    if not head:
        return "empty (0 bytes); get it again"
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<!--")):
        return "a web page: the link it came from served a page in its place; get the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
    return ""


def check_head(file: BinaryIO, shown: str, expected: str) -> None:
    """Make sure that a file's first bytes look right, and go back to them.

    Raises:
        ConfigError: it is empty, a web page, an archive, a Git LFS pointer, ...
    """
    what = strange(file.read(_HEAD))
    if what:
        raise ConfigError(f"{shown} should be {expected}, but it is {what}")
    file.seek(0)


def open_checked(storage: Storage, path: str, expected: str) -> BinaryIO:
    """Open a file for reading, once its first bytes look right.

    Args:
        storage: the source's root.
        path: the file.
        expected: what it should be, for the message.

    Raises:
        ConfigError: as for `check_head`.
        NotFoundError: there is no such file.
    """
    file = storage.open(path)
    try:
        check_head(file, f"{path} in {storage.uri}", expected)
    except BaseException:
        file.close()
        raise
    return file


def inner_setting(value: str, setting: str) -> str:
    """A path from the settings, normalised; "" stands for the source's top.

    Raises:
        ConfigError: it leads out of the source.
    """
    path = inner_path(value) if value.strip("/.") else ""
    if isinstance(path, Fault):
        raise ConfigError(f"{setting}: {path.message}")
    return path


def require(storage: Storage, path: str, setting: str, layout: str) -> str:
    """The path itself, if there is such a file.

    Args:
        storage: the source's root.
        path: the file that is needed, as in the settings.
        setting: which setting names it.
        layout: what the folder should look like, for the message.

    Raises:
        ConfigError: there is no such file.
    """
    if not storage.exists(path):
        folder = path.rpartition("/")[0]
        beside = (entry.path for entry in islice(storage.list(folder), _LISTED))
        raise ConfigError(
            f"there is no {path!r} in {storage.uri}{did_you_mean(path, beside)}; expected {layout}. Unpack downloaded "
            f"archives first, or name the file in {setting}"
        )
    return path


def require_images(storage: Storage, folder: str, setting: str) -> None:
    """Check that there is something in the folder that images are to be read from.

    Raises:
        ConfigError: there isn't.
    """
    if next(storage.list(folder), None) is None:
        raise ConfigError(
            f"there is nothing in the folder {folder!r} of {storage.uri}, which the images are to be read from; put "
            f"them there, or name their folder in {setting}"
        )


def read_ahead(storage: Storage, items: Iterable[tuple[_Item, str | None]]) -> Iterator[tuple[_Item, bytes | None]]:
    """Each item with the contents of its file, in order; files are read ahead, since a store takes its time for each.

    Args:
        storage: the source's root.
        items: anything, with the path of its file if it has one.

    Raises:
        StorageError: reading one failed.
    """

    def read(pair: tuple[_Item, str | None]) -> bytes | None:
        return None if pair[1] is None else storage.read(pair[1])

    for (item, _), data in done_ahead(read, items, threads=_READERS, ahead=_WINDOW):
        yield item, data
