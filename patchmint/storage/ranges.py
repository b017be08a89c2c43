"""A file of a store or of the Hub, read by ranges."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from patchmint.errors import StorageError


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
