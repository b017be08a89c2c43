"""One page of a TIFF of several, as a file of its own. Nothing is decoded."""

from __future__ import annotations

import struct

from patchmint.errors import ImageDecodeError
from patchmint.images.headers import INTEGERS, TYPE_BYTES

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_PIXELS = {273: 279, 324: 325}
"""Tags that say where strips or tiles are, and those that say how long they are (TIFF 6.0, sections 3 and 15)."""
_ELSEWHERE = (330, 34665, 34853)
"""Tags of further directories: smaller copies of the picture, EXIF, GPS."""
_LONG = 4


def page_of(data: bytes, number: int) -> bytes | None:
    """A page of a TIFF as a TIFF of this page alone, its pixels as they are stored.

    Args:
        data: the file.
        number: of the page, from 0.

    Returns:
        The bytes of the new file; None where there is no such page.

    Raises:
        ImageDecodeError: it is no TIFF, or is damaged.
    """
    try:
        return _page_of(data, number)
    except (struct.error, KeyError, ValueError) as error:
        raise ImageDecodeError(f"page {number} of it can't be read: it is no sound TIFF ({error!r})") from error


def _page_of(data: bytes, number: int) -> bytes | None:
    order = _ORDERS[data[:4]]
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    for left in range(number, -1, -1):
        if not start:
            return None
        (count,) = struct.unpack_from(f"{order}H", data, start)
        if left:
            (start,) = struct.unpack_from(f"{order}L", data, start + 2 + 12 * count)
    entries = {
        tag: rest for tag, *rest in struct.iter_unpack(f"{order}HHL4s", data[start + 2 : start + 2 + 12 * count])
    }
    made = bytearray(data[:4] + bytes(4))

    def put(block: bytes) -> int:
        """Where a block is put, at an even place."""
        made.extend(bytes(len(made) % 2) + block)
        if len(made) > 2 * len(data):
            raise ValueError("its parts lie over each other")
        return len(made) - len(block)

    def value(tag: int) -> bytes:
        kind, many, inline = entries[tag]
        length = many * TYPE_BYTES[kind]
        at = 0 if length <= _LONG else struct.unpack(f"{order}L", inline)[0]
        found = (inline if length <= _LONG else data)[at : at + length]
        if len(found) < length:
            raise ValueError("it is cut short")
        return found

    def numbers(tag: int) -> tuple[int, ...]:
        kind, many, _ = entries[tag]
        return struct.unpack(f"{order}{many}{INTEGERS[kind]}", value(tag))

    directory = []
    for tag, (kind, many, _) in entries.items():
        content = value(tag)
        if tag in _ELSEWHERE:
            continue
        if tag in _PIXELS:
            lengths = numbers(_PIXELS[tag])
            parts = [data[at : at + size] for at, size in zip(numbers(tag), lengths, strict=True)]
            kind, content = _LONG, struct.pack(f"{order}{many}L", *map(put, parts))
        at = content.ljust(4, b"\0") if len(content) <= _LONG else struct.pack(f"{order}L", put(content))
        directory.append(struct.pack(f"{order}HHL4s", tag, kind, many, at))
    where = put(struct.pack(f"{order}H", len(directory)) + b"".join(directory) + bytes(4))
    made[4:8] = struct.pack(f"{order}L", where)
    return bytes(made)
