"""Members of a sample, to bytes and back: arrays as .npy that never hold pickles."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError

Array = npt.NDArray[Any]

_MODE = 0o644
_MAX_HEADER = 4096


def encode_array(array: Array) -> bytes:
    """A .npy file: format 1.0, C order, the array's own dtype."""
    return _npy_header(array.shape, array.dtype.str) + array.tobytes()


def decode_array(data: bytes, name: str) -> Array:
    """Read a .npy file; read-only, shares memory with `data`.

    Only plain numbers are read, and only as many as there are bytes for: numpy's own reader would allocate what a
    hostile header asks for.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        ShardError: it is no .npy file, it holds Python objects, or it is cut or too long.
    """
    try:
        # The header's length stands after six bytes of magic and two of version, in two bytes or, from 2.0 on, four.
        width = 2 if data[6:7] == b"\x01" else 4
        start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
        shape, column_major, dtype = _parse_header(data[: min(start, _MAX_HEADER)])
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ShardError(f"{name} is no .npy file that can be read safely; write it with numpy.save") from error
    if dtype.kind not in "biuf":
        raise ShardError(f"{name} holds {dtype}, not plain numbers; nothing else is read (objects would be unpickled)")
    held, wanted = len(data) - start, math.prod(shape) * dtype.itemsize
    if held != wanted:
        raise ShardError(f"{name} holds {held} bytes of numbers, its header says {wanted}: it is cut or damaged")
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if column_major else "C")


def tar_member(name: str, data: bytes) -> bytes:
    """A regular member as it stands in a tar: header (mtime 0, no owner), data, padding to whole blocks.

    Raises:
        ShardError: the name doesn't fit a USTAR header.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = _MODE
    try:
        header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeError) as error:
        raise ShardError(f"{name!r} can't be a member's name in a USTAR archive: {error}; shorten the key") from error
    return b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))


def tar_end(size: int) -> bytes:
    """What closes a tar of `size` bytes: two empty blocks, filled up to a whole record as tar itself does."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


def tar_sample(key: str, members: Iterable[tuple[str, bytes]]) -> bytes:
    """All members of a sample, one after another.

    Raises:
        ShardError: a name doesn't fit a USTAR header.
    """
    return b"".join(tar_member(f"{key}.{ending}", data) for ending, data in members)


_TRIES = 9


@lru_cache(maxsize=256)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; a data set has few different headers, and numpy takes 0.1 ms to parse one."""
    file = io.BytesIO(header)
    version, start = np.lib.format.read_magic(file), file.tell()
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    tries = 0
    while True:
        try:
            shape, column_major, dtype = read(file, max_header_size=_MAX_HEADER)
            return shape, column_major, dtype
        except SystemError:  # Python 3.11's own parser fails now and then while other threads use it, too (gh-106905)
            tries += 1
            if tries == _TRIES:
                raise
            file.seek(start)


@lru_cache(maxsize=256)
def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()
