"""A file of a store or of the Hub, read by ranges."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import BinaryIO, cast

from patchmint.errors import StorageError

LEAST = 4 << 10
"""Bytes that are read at once after a gap, for a reader that skips: some headers and texts of a tar."""

_MOST = 1 << 20
"""And at most, while it goes on without gaps."""

_WORTH = 64 << 10
"""A request takes as long as so many bytes more of another (20 ms, and one connection's share of the line). So a
shorter gap is no gap: tars of thumbnails are read through, those of photographs by their headers."""


def open_ranges(read_range: Callable[[int, int], bytes], size: int, shown: str, *, buffer: int) -> BinaryIO:
    """A file of which ranges can be read.

    Args:
        read_range: from a first byte and a length to exactly that many bytes.
        size: bytes of the file.
        shown: how error messages call it.
        buffer: bytes to read at once; 0 = for a reader that skips most of the file.
    """
    if not buffer:
        return cast(BinaryIO, SkippingFile(read_range, size, shown))
    return io.BufferedReader(RangeFile(read_range, size, shown), buffer)


class RangeFile(io.RawIOBase):
    """Seekable, for reading only. Wrap it in an `io.BufferedReader`, or every few bytes become a request."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, shown: str) -> None:
        """Open an object.

        Args:
            read_range: from a first byte and a length to exactly that many bytes.
            size: bytes of the object.
            shown: how error messages call it.
        """
        self.name = shown
        self._read_range = read_range
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position; beyond the end is fine, there is nothing to read there.

        Raises:
            StorageError: before the beginning.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            message = f"can't read {self.name} before its beginning, at byte {base + offset}; it was cut"
            raise StorageError(message, uri=self.name)
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer as far as the object goes.

        Raises:
            NotFoundError: the object is gone.
            StorageError: it can't be read.
        """
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._position)
        if length <= 0:
            return 0
        view[:length] = self._read_range(self._position, length)
        self._position += length
        return length


class SkippingFile(RangeFile):
    """For readers that leave most of a file out, of whom nobody knows beforehand how much.

    It reads ahead as far as the reader went on between two gaps, from 4 to 64 kB; where none comes, twice as much each
    time, up to 1 MB. Unlike its base it needs no buffer around it, and never reads less than is there.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, shown: str) -> None:
        super().__init__(read_range, size, shown)
        self._there = b""
        self._start = 0  # of what is there
        self._ahead = LEAST // 2
        self._after_gap = LEAST
        self._begun = self._reached = 0  # where the reader went on without a gap: from, to

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """As `RangeFile.readinto`."""
        view = memoryview(buffer).cast("B")
        first = self._position
        length = max(0, min(len(view), self._size - first))
        filled = 0
        while filled < length:
            at = self._position - self._start
            if not 0 <= at < len(self._there):
                self._read_ahead(length - filled)
                continue
            part = self._there[at : at + length - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
        if 0 <= first - self._reached <= LEAST:
            self._reached = max(self._reached, self._position)
        return filled

    def _read_ahead(self, wanted: int) -> None:
        if 0 <= self._position - self._start - len(self._there) <= _WORTH:
            self._ahead = min(2 * self._ahead, _MOST)
        else:
            used = 1 << max(0, self._reached - self._begun - 1).bit_length()
            self._ahead = self._after_gap = min(max(used, self._after_gap // 2, LEAST), _WORTH)
            self._begun = self._reached = self._position
        length = min(max(wanted, self._ahead), self._size - self._position)
        self._there = self._read_range(self._position, length)
        self._start = self._position
