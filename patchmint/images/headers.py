"""What an image file's header says, read without Pillow: sizes before it allocates, orientation before it warns."""

from __future__ import annotations

import os
import re
import struct
from typing import IO, Any

from PIL import ExifTags

from patchmint.types import Size

ORIENTATIONS = range(1, 9)
"""EXIF orientations; 1 = as stored."""

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value of a TIFF, by its type (TIFF 6.0, section 2)."""
INTEGERS = {3: "H", 4: "L"}
"""How `struct` has those that are whole numbers without a sign."""

_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"mif1", b"msf1", b"miaf")


def webp_size(head: bytes) -> Size:
    """Canvas size from the first chunk's header (WebP container specification, RFC 9649, sections 2.4 to 2.7).

    Pillow allocates the canvas as soon as it opens a WebP file.
    """
    chunk = head[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<L", head, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return height & 0x3FFF, width & 0x3FFF


def gif_size(file: IO[bytes]) -> Size:
    """Size of the screen, or of the first frame where that is larger (GIF89a specification, sections 18 to 20).

    Pillow allocates a frame's background as soon as it opens a GIF file.
    """
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", file.read(7))
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)
    while (introducer := file.read(1)) != b",":
        if introducer == b"!":
            file.seek(1, os.SEEK_CUR)
            while length := file.read(1)[0]:
                file.seek(length, os.SEEK_CUR)
        elif introducer in (b"", b";"):
            raise ValueError("no picture in it")
    x, y, frame_width, frame_height = struct.unpack("<HHHH", file.read(8))
    return max(height, y + frame_height), max(width, x + frame_width)


def is_avif(head: bytes) -> bool:
    """Whether the first 64 bytes are those of an AVIF file: its own brand comes first, or a general one and then it."""
    size = int.from_bytes(head[:4])
    brands = [head[at : at + 4] for at in (8, *range(16, min(size, len(head)) - 3, 4))]
    return head[4:8] == b"ftyp" and (brands[0] in _AVIF_BRANDS or (brands[0] in _HEIF_BRANDS and b"avif" in brands))


def png_significant_bits(file: IO[bytes]) -> int:
    """Bits in use of a 16-bit sample, by the chunk sBIT (PNG specification, section 11.3.2.4); 16 where there is none.

    Writers are to scale such samples to 16 bits, and many don't: only the values tell.
    """
    at = file.tell()
    file.seek(8)
    bits = 16
    while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
        length = int.from_bytes(header[:4])
        if header[4:] == b"sBIT":
            bits = max(file.read(min(length, 4)), default=16)
            break
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(at)
    return bits


def exif_orientation(info: dict[Any, Any]) -> int:
    """Orientation from EXIF or, as in Pillow, else from XMP.

    Pillow's own reader isn't used: it goes through all of the block and warns about every damage.
    """
    exif = info.get("exif")
    if exif is None and "Raw profile type exif" in info:  # how ImageMagick stores EXIF in PNG: name, length, hex
        lines = str(info["Raw profile type exif"]).split("\n")[3:]
        exif = bytes.fromhex("".join(lines)) if re.fullmatch(r"([0-9a-fA-F]{2})*", "".join(lines)) else None
    value = _tiff_orientation(exif) if isinstance(exif, bytes) else None
    if value is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp.encode() if isinstance(xmp, str) else xmp)
        value = int(found[1]) if found else 1
    return value if value in ORIENTATIONS else 1


def _tiff_orientation(exif: bytes) -> int | None:
    """Value of tag 0x0112 in the first directory (TIFF 6.0, section 2); None where there is none that can be read.

    Labels must be made on the image that trainers see. So this stops where Pillow stops: at a value that reaches past
    the end of the block, unless it alone or with others before it is larger than the block.
    """
    block = re.sub(b"^(Exif\0\0){1,2}", b"", exif)
    order = {b"II*\0": "<", b"II\0*": "<", b"MM\0*": ">", b"MM*\0": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, start)
        outside = 0
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, offset = struct.unpack_from(f"{order}HHLL", block, entry)
            length = count * TYPE_BYTES.get(kind, 0)
            if length > 4:
                outside += length
                if outside <= len(block) < offset + length:
                    return None
            elif tag == ExifTags.Base.Orientation and kind in INTEGERS and length > 0:
                return int(struct.unpack_from(order + INTEGERS[kind], block, entry + 8)[0])
    except struct.error:  # the block is cut short
        return None
    return None
