"""Boxes and labels: inside the picture, in colours that most people can tell apart, no label on top of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

from patchmint.pictures.text import Colour, Lettering, ink_on
from patchmint.types import Origin

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
)
"""Okabe and Ito's colour-blind-safe set ("Color Universal Design", 2008), without black, which vanishes on dimmed
patches, and without green, which is too near the tint of kept ones."""

_EDGE = (16, 18, 22)
_MAX_LABELS = 60
_MIN_LABEL_PX, _MAX_LABEL_PX = 24, 420

Rectangle = tuple[float, float, float, float]
"""XYXY in pixels of the picture."""


_DASH = 4
"""Length of a dash in widths of the stroke."""

_ORIGINS: dict[Origin, str] = {
    "model": "",
    "annotator": "annotator",
    "mixed": "annotator's box",
    "corrected": "corrected",
}


def score_words(score: float, origin: Origin = "model") -> str:
    """A score as overlays, the gallery and the terminal write it; where there is none (below 0), whose the thing is."""
    return f"{score:.2f}" if score >= 0 else _ORIGINS[origin]


@dataclass(frozen=True)
class BoxLabel:
    """A box on the picture with what is written next to it; dashed where annotators drew it."""

    box: Rectangle
    words: str
    score: str
    colour: Colour
    dashed: bool = False


def draw_boxes(canvas: ImageDraw.ImageDraw, labels: Sequence[BoxLabel], lettering: Lettering, size: Rectangle) -> int:
    """Draw boxes and, in order, as many of their labels as find a free place.

    Args:
        canvas: to draw on.
        labels: the most important first.
        lettering: the font.
        size: the part of the canvas that labels stay in.

    Returns:
        How many labels found no place.
    """
    stroke = max(2, round(lettering.line_height / 7))
    for label in reversed(labels):
        x0, y0, x1, y1 = label.box
        canvas.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_EDGE)
        canvas.rectangle(label.box, outline=_EDGE if label.dashed else label.colour, width=stroke)
        if label.dashed:
            draw_dashes(canvas, label.box, label.colour, stroke)
        if min(x1 - x0, y1 - y0) > 4 * stroke:
            canvas.rectangle((x0 + stroke, y0 + stroke, x1 - stroke, y1 - stroke), outline=_EDGE)
    taken: list[Rectangle] = []
    unlabelled = max(len(labels) - _MAX_LABELS, 0)
    for label in labels[:_MAX_LABELS]:
        letters = lettering.shorten(label.words, min(size[2] - size[0], _MAX_LABEL_PX) - 8, label.score)
        if not letters:
            continue
        width = lettering.width(letters) + 8
        place = _free_place(label.box, width, lettering.line_height, size, taken)
        if place is None:
            unlabelled += 1
            continue
        taken.append(place)
        canvas.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=label.colour, outline=_EDGE)
        lettering.text(canvas, place[0] + 4, place[1] + 1, letters, ink_on(label.colour))
    return unlabelled


def draw_dashes(canvas: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, stroke: int) -> None:
    """Draw a rectangle in dashes of a colour, `stroke` pixels wide."""
    x0, y0, x1, y1 = map(round, box)
    for x in range(x0, x1 + 1, 2 * _DASH * stroke):
        for y in (y0, max(y1 - stroke + 1, y0)):
            canvas.rectangle((x, y, min(x + _DASH * stroke - 1, x1), min(y + stroke - 1, y1)), fill=colour)
    for y in range(y0, y1 + 1, 2 * _DASH * stroke):
        for x in (x0, max(x1 - stroke + 1, x0)):
            canvas.rectangle((x, y, min(x + stroke - 1, x1), min(y + _DASH * stroke - 1, y1)), fill=colour)


def _free_place(
    box: Rectangle, width: float, height: float, size: Rectangle, taken: Sequence[Rectangle]
) -> Rectangle | None:
    if width > size[2] - size[0] or size[2] - size[0] < _MIN_LABEL_PX:
        return None
    for x, y in _places(box, width, height):
        left = min(max(x, size[0]), size[2] - width)
        place = (left, y, left + width, y + height)
        if size[1] <= y and y + height <= size[3] and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _places(box: Rectangle, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Corners for a label, the best first: on the box, in its corners, below it, then anywhere down its sides."""
    x0, y0, x1, y1 = box
    for y in (y0 - height, y0, y1 - height, y1):
        yield x0, y
        yield x1 - width, y
    for step in range(1, min(int((y1 - y0) // height), 20)):
        yield x0, y0 + step * height
        yield x1 - width, y0 + step * height


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
