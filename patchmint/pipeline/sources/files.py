"""Files of a data set that aren't images: found, recognised, and read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import BinaryIO, TypeVar

from patchmint.errors import ConfigError, did_you_mean
from patchmint.pipeline.sources.records import inner_path
from patchmint.samples import Fault
from patchmint.storage import Storage

_Item = TypeVar("_Item")

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
    waiting: deque[tuple[_Item, Future[bytes] | None]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-ahead") as readers:

        def start(count: int) -> None:
            for item, path in islice(remaining, count):
                waiting.append((item, None if path is None else readers.submit(storage.read, path)))

        try:
            start(_WINDOW)
            while waiting:
                item, future = waiting.popleft()
                data = None if future is None else future.result()
                start(1)
                yield item, data
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()
