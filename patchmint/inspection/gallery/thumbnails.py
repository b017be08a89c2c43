"""Pictures for the page: photos made small, masks as coloured glass, decoded codes in the photo's frame."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchmint.geometry import PatchGrid
from patchmint.geometry.native import NativeGrid
from patchmint.geometry.rle import decode_mask
from patchmint.pictures.labels import PALETTE
from patchmint.pictures.overlay import outline
from patchmint.types import RgbImage, Rle, Size

_QUALITY = 85
_GLASS = 120
# Opacity of a mask, 0..255; its border is opaque.


def small(size: Size, longest: int) -> Size:
    """(height, width) of a picture brought to a longest side; it never grows."""
    factor = min(1.0, longest / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def jpeg(pixels: RgbImage, size: Size) -> bytes:
    """A picture of a size as JPEG."""
    image = Image.fromarray(pixels)
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def masks_png(masks: Sequence[Rle], colours: Sequence[int], size: Size) -> bytes:
    """Masks on a transparent ground, each filled and framed in its colour of the palette; the first ones on top."""
    board = np.zeros(size, np.uint8)
    rows, cols = (np.arange(length) + 0.5 for length in size)
    for rle, colour in reversed(list(zip(masks, colours, strict=True))):
        mask = decode_mask(rle)
        y = (rows * mask.shape[0] / size[0]).astype(np.int64)
        x = (cols * mask.shape[1] / size[1]).astype(np.int64)
        board[mask[np.ix_(y, x)] != 0] = 1 + colour
        board[outline(mask, *size)] = 1 + len(PALETTE) + colour
    image = Image.fromarray(board, "P")
    image.putpalette([0, 0, 0, *(channel for colour in PALETTE * 2 for channel in colour)])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([0, *[_GLASS] * len(PALETTE), *[255] * len(PALETTE)]), optimize=True)
    return file.getvalue()


def framed(decoded: RgbImage, cells: PatchGrid | NativeGrid | None, size: Size) -> RgbImage:
    """What of a decoded square shows the image, in the image's proportions.

    Args:
        decoded: the tokenizer's picture.
        cells: how its grid lies on images; None where codes have no place: then all of it, as it is.
        size: (height, width) of the original.
    """
    if cells is None:
        return decoded
    view = cells.place(size).views[0]
    height, width = cells.input_size if isinstance(cells, PatchGrid) else cells.input_size(size)
    top, bottom = _seen(view.y.to_input(0), view.y.to_input(size[0]), height, decoded.shape[0])
    left, right = _seen(view.x.to_input(0), view.x.to_input(size[1]), width, decoded.shape[1])
    shown = decoded[top:bottom, left:right]
    up = view.y.to_original(bottom * height / decoded.shape[0]) - view.y.to_original(top * height / decoded.shape[0])
    along = view.x.to_original(right * width / decoded.shape[1]) - view.x.to_original(left * width / decoded.shape[1])
    longest = max(shown.shape[:2])
    target = (max(round(longest * min(up / along, 1)), 1), max(round(longest * min(along / up, 1)), 1))
    return np.asarray(Image.fromarray(shown).resize((target[1], target[0]), Image.Resampling.BICUBIC))


def _seen(start: float, end: float, length: int, pixels: int) -> tuple[int, int]:
    """First and last pixel of the picture between two positions of the input, at least one."""
    first = min(max(round(start * pixels / length), 0), pixels - 1)
    return first, max(min(round(end * pixels / length), pixels), first + 1)
