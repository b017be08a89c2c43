"""A picture that a person understands: which patches are kept, and what was found where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patchmint.errors import ConfigError, InputError
from patchmint.geometry import Placement
from patchmint.geometry.rle import bounding_box, decode_mask
from patchmint.pictures.labels import PALETTE, BoxLabel, Rectangle, draw_boxes, draw_dashes, score_words
from patchmint.pictures.text import Colour, Lettering
from patchmint.types import Phrase, RgbImage, Rle

_SMALL_SIDE = 768
# Photos with a shorter long side are scaled up to it.
_MIN_WIDTH = 560
# The text needs that much, however narrow the photo.
_PIXEL_ART_SIDE = 64
# Up to this long side single pixels are shown as such.
_MARGIN = 14
_TAPE_PX = 8
_MAX_NOTICE_LINES, _MAX_TITLE_LINES, _MAX_CAPTION_LINES = 3, 2, 6

_BACKGROUND: Colour = (24, 26, 31)
_TEXT: Colour = (236, 238, 240)
_MUTED: Colour = (168, 174, 184)
_NOTICE: Colour = (255, 200, 0)
_NOTICE_TEXT: Colour = (0, 0, 0)

KEPT_TINT = (64, 255, 180)
"""Mint."""

TRUTH: Colour = (255, 255, 255)
"""Of what is really there: no phrase has it."""

_KEPT, _NOT_KEPT, _UNSEEN = "kept, greener = more covered", "not kept", "not seen by the encoder"
_FOUND = "found, in the colours of the text"
_TRUE = "truth, a box a thing"
_DRAWN = "dashed: an annotator's box"
_GAP_PX = 6
_MIN_CELL_PX = 5
# Grid lines closer than this would hide the photo.

_HATCH_PX = 9
_DIM = 0.36
_LEAST_TINT, _MORE_TINT = 0.04, 0.2
_UNSEEN_DIM = 0.2
_LINE_WEIGHT = 0.22


def draw_overlay(
    image: RgbImage,
    *,
    placement: Placement,
    selector: npt.NDArray[np.uint8],
    coverage: npt.NDArray[np.uint8] | None = None,
    phrases: Sequence[Phrase] = (),
    masks: Sequence[Rle] = (),
    caption: str = "",
    title: str = "",
    notice: str = "",
    fit: str = "",
    truths: Sequence[Rle] = (),
    beside: bool = False,
    max_side: int = 1280,
) -> RgbImage:
    """Draw which patches are kept, and what was found where. The same input gives the same bytes.

    From top to bottom: the notice, the title, the photo, a legend, the caption with its phrases in the colours of their
    boxes, which are dashed where annotators drew them. Kept patches are bright, and the greener the more of them is
    covered; the others are dimmed; what the encoder doesn't see is hatched. Of several views the one that shows the
    whole image is drawn. Texts may be anything: they are cut to a few lines, and the cut is marked.

    Args:
        image: HWC uint8 RGB.
        placement: the grid on this image.
        selector: (rows, cols) of all views, not zero = kept.
        coverage: uint8 (rows, cols) of all views; None = kept patches are tinted alike.
        phrases: what was found for the caption. Those of the same words share a colour; labels with high scores get the
            better places.
        masks: outlines to draw, one a phrase, or none at all.
        caption: the text that the spans of the phrases count in.
        title: a line above the photo.
        notice: a warning that can't be missed.
        fit: the grid's fit, named in the legend.
        truths: what is really there, a mask a thing; each is outlined and boxed in white, and the legend says so.
        beside: also draw the photo as it is: to the left, or above a photo wider than high.
        max_side: longest side of the photo in the picture; its frame of text can add to that.

    Returns:
        HWC uint8 RGB, at least 560 wide.

    Raises:
        InputError: shapes or counts contradict each other, or a box isn't finite.
        ConfigError: `max_side` is below 64.
    """
    _check(image, placement, selector, coverage, phrases, masks, max_side)
    photo = _scaled(image, max_side)
    height, width = photo.shape[:2]
    letter_px = min(max(max(width, _MIN_WIDTH) // 48, 14), 22)
    lettering = Lettering(letter_px)
    colours = _colours(phrases)

    drawn = placement.cells_of(placement.overview)
    kept = selector[drawn] != 0
    strength = np.full(kept.shape, 0.6) if coverage is None else coverage[drawn] / 255
    shaded = shade_patches(photo, placement, kept, strength.astype(np.float32))
    for phrase, rle in zip(phrases, masks, strict=False):
        shaded[outline(decode_mask(rle), height, width)] = colours[phrase.text]

    for rle in truths:
        shaded[outline(decode_mask(rle), height, width)] = TRUTH
    picture = Image.fromarray(shaded)
    canvas = ImageDraw.Draw(picture)
    for rle in truths:
        x0, y0, x1, y1 = _pixels(bounding_box(rle).tolist(), image, width, height)
        canvas.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_BACKGROUND, width=4)
        canvas.rectangle((x0, y0, x1, y1), outline=TRUTH, width=2)
    order = sorted(phrases, key=lambda phrase: -phrase.score)
    labels = [_box_label(phrase, colours[phrase.text], image, width, height) for phrase in order]
    unlabelled = draw_boxes(canvas, labels, lettering, (0, 0, width, height))

    if beside:
        picture = _beside(Image.fromarray(photo), picture)
    board = max(picture.width, _MIN_WIDTH)
    highlights = _highlights(caption, order, colours)
    strips = [
        *_banner(notice, board, Lettering(letter_px * 5 // 4)),
        _text_strip(title, board, lettering, _MAX_TITLE_LINES, _TEXT, _BACKGROUND),
        _centred(picture, board),
        _text_strip(caption, board, lettering, _MAX_CAPTION_LINES, _TEXT, _BACKGROUND, highlights),
    ]
    facts = legend_facts(placement, selector, fit)
    if unlabelled:
        facts.append(f"{unlabelled} labels left out for want of space")
    keys = [_KEPT, _NOT_KEPT]
    keys += [_UNSEEN] if unseen_share(placement) > 0.001 else []
    keys += [_FOUND] if truths and phrases else []
    keys += [_TRUE] if truths else []
    keys += [_DRAWN] if any(phrase.origin != "model" for phrase in phrases) else []
    strips.insert(-1, _legend(facts, keys, board, lettering))
    strips.append(_text_strip(lettering.note, board, lettering, _MAX_NOTICE_LINES, _MUTED, _BACKGROUND))
    return np.concatenate([np.asarray(strip) for strip in strips if strip is not None])


def _check(
    image: RgbImage,
    placement: Placement,
    selector: npt.NDArray[np.uint8],
    coverage: npt.NDArray[np.uint8] | None,
    phrases: Sequence[Phrase],
    masks: Sequence[Rle],
    max_side: int,
) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"an overlay needs a uint8 image (H, W, 3), not {image.dtype} of shape {image.shape}")
    if image.shape[:2] != placement.image_size:
        raise InputError(f"the grid was placed on an image of {placement.image_size}, not on one of {image.shape[:2]}")
    for name, array in (("selector", selector), ("coverage", coverage)):
        if array is not None and array.shape != placement.shape:
            raise InputError(f"the {name} has shape {array.shape}, but the grid has {placement.shape} (rows, cols)")
    if len(masks) not in (0, len(phrases)):
        raise InputError(f"{len(masks)} masks for {len(phrases)} phrases; pass one a phrase, or none")
    if not np.isfinite([phrase.box for phrase in phrases]).all():
        raise InputError("a phrase's box isn't finite")
    if max_side < _PIXEL_ART_SIDE:
        raise ConfigError(f"max_side of {max_side} leaves nothing to see; use at least {_PIXEL_ART_SIDE}")


def _scaled(image: RgbImage, max_side: int) -> RgbImage:
    height, width = image.shape[:2]
    longest = max(height, width)
    target = min(max(longest, _SMALL_SIDE), max_side)
    size = (max(round(width * target / longest), 1), max(round(height * target / longest), 1))
    resample = Image.Resampling.NEAREST if longest <= _PIXEL_ART_SIDE else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, resample))


def _colours(phrases: Sequence[Phrase]) -> dict[str, Colour]:
    distinct = dict.fromkeys(phrase.text for phrase in phrases)
    return {text: PALETTE[index % len(PALETTE)] for index, text in enumerate(distinct)}


def _pixels(box: Sequence[float], image: RgbImage, width: int, height: int) -> Rectangle:
    """A box of the image on a photo of this size, cut at its border."""
    scale_x, scale_y = width / image.shape[1], height / image.shape[0]
    xs = [min(max(round(x * scale_x), 0), width - 1) for x in (box[0], box[2])]
    ys = [min(max(round(y * scale_y), 0), height - 1) for y in (box[1], box[3])]
    return min(xs), min(ys), max(xs), max(ys)


def _box_label(phrase: Phrase, colour: Colour, image: RgbImage, width: int, height: int) -> BoxLabel:
    score = f" {score_words(phrase.score, phrase.origin)}".rstrip()
    drawn = phrase.origin != "model"
    return BoxLabel(_pixels(phrase.box, image, width, height), phrase.text, score, colour, drawn)


def _highlights(caption: str, phrases: Sequence[Phrase], colours: dict[str, Colour]) -> list[Colour | None]:
    """Background of each character; where spans overlap, that of the first phrase."""
    highlights: list[Colour | None] = [None] * len(caption)
    for phrase in reversed(phrases):
        start, end = (min(max(position, 0), len(caption)) for position in phrase.span)
        highlights[start:end] = [colours[phrase.text]] * max(end - start, 0)
    return highlights


def legend_facts(placement: Placement, selector: npt.NDArray[np.uint8], fit: str) -> list[str]:
    """What the legend says about the patches: how many are kept of how many, and which view the picture shows."""
    sizes = [(view.rows, view.cols) for view in placement.views]
    cells = sum(rows * cols for rows, cols in sizes)
    kept = f"kept patches {np.count_nonzero(selector)} of {cells}"
    rows, cols = sizes[0]
    grid = f"{rows}x{cols} {fit}".strip() if len(set(sizes)) == 1 else f"up to {max(sizes)[0]}x{max(sizes)[1]} {fit}"
    if len(sizes) == 1:
        return [f"{kept} · {grid}"]
    drawn = selector[placement.cells_of(placement.overview)]
    place = {0: "first", len(sizes) - 1: "last"}.get(placement.overview, "largest")
    return [
        f"{kept} · {len(sizes)} views of {grid}",
        f"drawn: the {place} view, the whole image, {np.count_nonzero(drawn)} of its {drawn.size} kept",
    ]


def _text_strip(
    text: str,
    width: int,
    lettering: Lettering,
    max_lines: int,
    colour: Colour,
    background: Colour,
    highlights: Sequence[Colour | None] = (),
) -> Image.Image | None:
    if not text.strip():
        return None
    lines = lettering.wrap(text, width - 2 * _MARGIN, max_lines, highlights)
    strip = Image.new("RGB", (width, len(lines) * lettering.line_height + _MARGIN), background)
    canvas = ImageDraw.Draw(strip)
    for index, line in enumerate(lines):
        lettering.draw(canvas, _MARGIN, _MARGIN // 2 + index * lettering.line_height, line, colour)
    return strip


def _banner(notice: str, width: int, lettering: Lettering) -> list[Image.Image | None]:
    """The notice between two stripes like those of barrier tape."""
    if not notice.strip():
        return []
    dark = np.add.outer(np.arange(_TAPE_PX), np.arange(width)) % (4 * _TAPE_PX) < 2 * _TAPE_PX
    tape = Image.fromarray(np.where(dark[..., None], _NOTICE_TEXT, _NOTICE).astype(np.uint8))
    return [tape, _text_strip(notice, width, lettering, _MAX_NOTICE_LINES, _NOTICE_TEXT, _NOTICE), tape]


def _legend(facts: Sequence[str], keys: Sequence[str], width: int, lettering: Lettering) -> Image.Image:
    """Facts and a key of the shadings and boxes, as many to a line as fit."""
    swatch, gap = lettering.line_height - 6, 22
    strip = Image.new("RGB", (width, (len(facts) + len(keys)) * lettering.line_height + _MARGIN), _BACKGROUND)
    canvas = ImageDraw.Draw(strip)
    x, y = _MARGIN, _MARGIN // 2
    for index, words in enumerate([*facts, *keys]):
        key = index - len(facts)
        indent = swatch + 6 if key >= 0 else 0
        letters = lettering.shorten(words, width - 2 * _MARGIN - indent)
        room = indent + round(lettering.width(letters))
        if x > _MARGIN and x + room > width - _MARGIN:
            x, y = _MARGIN, y + lettering.line_height
        if key >= 0:
            strip.paste(_swatch(words, swatch), (x, y + 2))
        lettering.text(canvas, x + indent, y, letters, _TEXT if index == 0 else _MUTED)
        x += room + gap
    return strip.crop((0, 0, width, y + lettering.line_height + _MARGIN // 2))


def _swatch(key: str, side: int) -> Image.Image:
    swatch = Image.new("RGB", (side, side), (62, 62, 62))
    canvas = ImageDraw.Draw(swatch)
    if key == _KEPT:
        canvas.rectangle((0, 0, side - 1, side - 1), fill=(150, 205, 182), outline=KEPT_TINT, width=2)
    elif key == _UNSEEN:
        diagonal = np.add.outer(np.arange(side), np.arange(side)) % 6 < 2
        return Image.fromarray(np.where(diagonal, 90, 35).astype(np.uint8)).convert("RGB")
    elif key == _TRUE:
        canvas.rectangle((0, 0, side - 1, side - 1), outline=TRUTH, width=2)
    elif key == _DRAWN:
        draw_dashes(canvas, (1, 1, side - 2, side - 2), PALETTE[0], 1)
    elif key == _FOUND:
        for part, colour in enumerate(PALETTE[:3]):
            canvas.rectangle((part * side // 3, 0, (part + 1) * side // 3 - 1, side - 1), fill=colour)
        canvas.rectangle((3, 3, side - 4, side - 4), fill=(62, 62, 62))
    return swatch


def _beside(photo: Image.Image, picture: Image.Image) -> Image.Image:
    """Both, with a narrow gap between them."""
    across = photo.width <= photo.height
    step = (photo.width + _GAP_PX, 0) if across else (0, photo.height + _GAP_PX)
    board = Image.new("RGB", (photo.width + step[0], photo.height + step[1]), _BACKGROUND)
    board.paste(photo, (0, 0))
    board.paste(picture, step)
    return board


def _centred(picture: Image.Image, width: int) -> Image.Image:
    if picture.width == width:
        return picture
    board = Image.new("RGB", (width, picture.height), _BACKGROUND)
    board.paste(picture, ((width - picture.width) // 2, 0))
    return board


def shade_patches(
    photo: RgbImage, placement: Placement, kept: npt.NDArray[np.bool_], strength: npt.NDArray[np.float32]
) -> RgbImage:
    """Draw on a photo the patches of the view that shows the whole image.

    Args:
        photo: HWC uint8 RGB, the whole image at any scale.
        placement: the grid on the original image.
        kept: (rows, cols) of one view.
        strength: float32 (rows, cols), 0..1, how strongly a kept patch is tinted.

    Returns:
        HWC uint8 RGB of the photo's size.
    """
    height, width = photo.shape[:2]
    y_edges, x_edges = placement.edges(placement.views[placement.overview], (height, width))
    row, row_seen = _cell_of_pixels(y_edges, height)
    col, col_seen = _cell_of_pixels(x_edges, width)
    seen = row_seen[:, None] & col_seen[None]
    bright = kept[np.ix_(row, col)] & seen

    colours = photo.astype(np.float32)
    grey = (colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    shaded = _DIM * (0.8 * grey + 0.2 * colours)
    share = (_LEAST_TINT + _MORE_TINT * strength[np.ix_(row, col)])[bright][:, None]
    kept_colours = colours[bright]
    shaded[bright] = kept_colours + share * (np.array(KEPT_TINT, dtype=np.float32) - kept_colours)
    if not seen.all():
        hatch = np.add.outer(np.arange(height), np.arange(width))[~seen] % _HATCH_PX < 2
        shaded[~seen] = _UNSEEN_DIM * grey[~seen] + np.where(hatch, np.float32(70), np.float32(22))[:, None]

    lines = seen & (_line_places(y_edges, height)[:, None] | _line_places(x_edges, width)[None])
    # Dark on bright patches, light on dim ones.
    shaded[lines] += _LINE_WEIGHT * (np.where(bright[lines], 0, 255)[:, None] - shaded[lines])
    shaded[_border(bright)] = KEPT_TINT
    return np.clip(shaded + 0.5, 0, 255).astype(np.uint8)


def outline(mask: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Border of a mask, two pixels wide, on a picture of this size: bool (height, width)."""
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    cols = (np.arange(width) + 0.5) * mask.shape[1] / width
    return _border(mask[np.ix_(rows.astype(np.int64), cols.astype(np.int64))] != 0)


def unseen_share(placement: Placement) -> float:
    """Share of the image that lies outside the view that is drawn, 0..1."""
    return 1 - placement.share_seen(placement.views[placement.overview])


def _cell_of_pixels(edges: npt.NDArray[np.float64], length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each pixel the cell that its middle lies in, and whether there is one."""
    cells = np.searchsorted(edges, np.arange(length) + 0.5, side="right") - 1
    last = len(edges) - 2
    return np.clip(cells, 0, last), (cells >= 0) & (cells <= last)


def _line_places(edges: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.bool_]:
    """Pixels along an axis that a thin line between cells is drawn on."""
    lines = np.zeros(length, dtype=np.bool_)
    if (edges[-1] - edges[0]) / (len(edges) - 1) >= _MIN_CELL_PX:
        places = np.round(edges).astype(np.int64)
        lines[places[(places > 0) & (places < length)]] = True
    return lines


def _border(area: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels on either side of an area's border."""
    border = np.zeros_like(area)
    down, right = area[1:] != area[:-1], area[:, 1:] != area[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border
