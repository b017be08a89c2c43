"""A contact sheet: small pictures in rows, with the cells that they are about outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patchmint.errors import InputError
from patchmint.pictures.labels import PALETTE, Rectangle
from patchmint.pictures.overlay import outline
from patchmint.pictures.text import Colour, Lettering
from patchmint.types import RgbImage

TILE_PX = 176
"""Side of a picture on the sheet."""

_COLUMNS = 6
_GAP = 14
_DIM = 0.42
_BACKGROUND: Colour = (24, 26, 31)
_EMPTY: Colour = (44, 47, 54)
_TEXT: Colour = (236, 238, 240)
_MUTED: Colour = (168, 174, 184)
_NOTICE: Colour = (255, 200, 0)
_BLACK: Colour = (0, 0, 0)
_HEADING_LINES, _NOTICE_LINES = 2, 3


@dataclass(frozen=True)
class Tile:
    """A small picture with two lines below it.

    Attributes:
        picture: (TILE_PX, TILE_PX, 3), of `draw_tile`; None where there is none, and an empty field is drawn.
        label: the first line.
        note: the second line.
    """

    picture: RgbImage | None = field(repr=False)
    label: str
    note: str


@dataclass(frozen=True)
class TileGroup:
    """Tiles that belong together, below a heading; an empty one isn't drawn."""

    heading: str
    tiles: Sequence[Tile]


def draw_tile(image: RgbImage, boxes: Sequence[Rectangle]) -> RgbImage:
    """A thumbnail on a square, as bright as it is where the boxes are, dimmed elsewhere, and an outline around them.

    The image lies on the square as on the square of fit `pad`: a box beside it, in the margin that an encoder sees, is
    drawn too.

    Args:
        image: HWC uint8 RGB.
        boxes: XYXY in pixels of the image; none = nothing is dimmed.

    Returns:
        uint8 (TILE_PX, TILE_PX, 3).

    Raises:
        InputError: it is no image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"a tile needs a uint8 image (H, W, 3), not {image.dtype} of shape {image.shape}")
    height, width = image.shape[:2]
    side = max(height, width)
    scale = TILE_PX / side
    left, top = (side - width) // 2, (side - height) // 2
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    resample = Image.Resampling.NEAREST if side <= TILE_PX // 3 else Image.Resampling.LANCZOS
    tile = Image.new("RGB", (TILE_PX, TILE_PX), _EMPTY)
    tile.paste(Image.fromarray(image).resize(size, resample), (round(left * scale), round(top * scale)))
    pixels = np.array(tile)
    if boxes:
        area = _area(boxes, left, top, scale)
        pixels[area == 0] = (pixels[area == 0] * _DIM).astype(np.uint8)
        pixels[outline(area, TILE_PX, TILE_PX)] = PALETTE[0]
    return pixels


def _area(boxes: Sequence[Rectangle], left: int, top: int, scale: float) -> npt.NDArray[np.uint8]:
    """Pixels of the tile that a box covers, each at least one."""
    area = np.zeros((TILE_PX, TILE_PX), np.uint8)
    for x0, y0, x1, y1 in boxes:
        columns, rows = _pixels(x0 + left, x1 + left, scale), _pixels(y0 + top, y1 + top, scale)
        area[rows, columns] = 1
    return area


def _pixels(start: float, end: float, scale: float) -> slice:
    first = min(max(round(start * scale), 0), TILE_PX - 1)
    return slice(first, max(min(round(end * scale), TILE_PX), first + 1))


def draw_contact_sheet(groups: Sequence[TileGroup], *, title: str, notice: str = "") -> RgbImage:
    """Draw tiles in rows of six. The same input gives the same bytes.

    Args:
        groups: each begins a new row, below its heading.
        title: above all.
        notice: a warning that can't be missed.

    Returns:
        HWC uint8 RGB.
    """
    small, large = Lettering(13), Lettering(18)
    width = _COLUMNS * (TILE_PX + _GAP) + _GAP
    strips = [
        *_text(notice, width, small, _NOTICE_LINES, _BLACK, _NOTICE),
        *_text(title, width, large, _HEADING_LINES, _TEXT, _BACKGROUND),
    ]
    for group in groups:
        strips += _text(group.heading, width, Lettering(15), _HEADING_LINES, _TEXT, _BACKGROUND)
        for start in range(0, len(group.tiles), _COLUMNS):
            strips.append(_row(group.tiles[start : start + _COLUMNS], width, small))
    if small.note:
        strips += _text(small.note, width, Lettering(13), 1, _MUTED, _BACKGROUND)
    return np.concatenate(strips) if strips else np.full((_GAP, width, 3), _BACKGROUND, np.uint8)


def _text(
    text: str, width: int, lettering: Lettering, lines: int, colour: Colour, background: Colour
) -> list[RgbImage]:
    if not text.strip():
        return []
    wrapped = lettering.wrap(text, width - 2 * _GAP, lines)
    strip = Image.new("RGB", (width, len(wrapped) * lettering.line_height + _GAP), background)
    canvas = ImageDraw.Draw(strip)
    for index, line in enumerate(wrapped):
        lettering.draw(canvas, _GAP, _GAP // 2 + index * lettering.line_height, line, colour)
    return [np.asarray(strip)]


def _row(tiles: Sequence[Tile], width: int, lettering: Lettering) -> RgbImage:
    strip = Image.new("RGB", (width, TILE_PX + 2 * lettering.line_height + _GAP), _BACKGROUND)
    canvas = ImageDraw.Draw(strip)
    for column, tile in enumerate(tiles):
        left = _GAP + column * (TILE_PX + _GAP)
        if tile.picture is None:
            canvas.rectangle((left, 0, left + TILE_PX - 1, TILE_PX - 1), fill=_EMPTY)
        else:
            strip.paste(Image.fromarray(tile.picture), (left, 0))
        for line, (words, colour) in enumerate(((tile.label, _TEXT), (tile.note, _MUTED))):
            letters = lettering.shorten(words, TILE_PX)
            lettering.text(canvas, left, TILE_PX + 3 + line * lettering.line_height, letters, colour)
    return np.asarray(strip)
