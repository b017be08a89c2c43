"""Scenes with known truth: which pixel belongs to which thing, and what each text talks about.

A scene depends on its seed and its number only. Nothing in it is left to a model: texts are made from the objects, so
every phrase knows the objects that it names (none where it names something that isn't there).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patchmint.demo.shapes import COLOURS, FILLS, RADIUS_SHARES, SHAPES, SIZES, SceneObject, Sprite, draw
from patchmint.demo.texts import SceneText, write_texts
from patchmint.types import RgbImage, Size

MAX_OBJECTS = 6

_SHORT_SIDES = (160, 288)
_ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9, 2.0, 5 / 2)
# Half of those that aren't square are turned on their side.
_QUALITIES = (60, 75, 85, 95)

_OVERLAPPING = 0.5
# Share of scenes in which things may cover each other.
_LEAST_VISIBLE = 0.6
_TRIES = 30

NOTHING = -1
"""Stands in `Scene.ids` where there is only background."""

_BACKGROUNDS = ("plain", "slope", "clouds", "bands", "noise")

Harder = Literal["clutter", "tiny", "long", "textures"]
"""Scenes beyond those of training: 8 to 14 things that cover each other; things half as large as "small" ones; images
of 4:1; bright stripes, dots and lines behind the things, in their colours."""

_CLUTTER = (8, 14)
_TINY = (0.04, 0.07)
_LONG = 4
_TEXTURES = (2, 4)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, what is in it, and what is said about it.

    Attributes:
        jpeg: the image as a file.
        image: its pixels, decoded from `jpeg`.
        objects: what stands in it, from back to front.
        ids: int8 (height, width), index of the object that is seen at each pixel, or `NOTHING`.
        texts: what is said, each with its truth.
    """

    jpeg: bytes
    image: RgbImage
    objects: tuple[SceneObject, ...]
    ids: npt.NDArray[np.int8]
    texts: tuple[SceneText, ...]

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return (self.image.shape[0], self.image.shape[1])

    def mask(self, objects: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Pixels (height, width) at which any of the objects is seen."""
        return np.isin(self.ids, objects)

    def boxes(self) -> npt.NDArray[np.float32]:
        """What is seen of each object: float32 (N, 4), XYXY in pixels, right and bottom exclusive."""
        boxes = np.zeros((len(self.objects), 4), dtype=np.float32)
        for index in range(len(self.objects)):
            y, x = np.nonzero(self.ids == index)
            boxes[index] = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        return boxes


def make_scene(
    seed: int, number: int, *, size: Size | None = None, texts: int = 2, harder: Harder | None = None
) -> Scene:
    """Make a scene.

    Args:
        seed: of the data set. `patchmint.demo` says which are for what.
        number: which scene of it.
        size: (height, width) in pixels; None = by chance.
        texts: how many texts.
        harder: in which way it is harder than those of training; None = it isn't.
    """
    rng = np.random.default_rng((seed, number))
    size = size or draw_size(rng)
    if harder == "long":
        size = (min(size), _LONG * min(size)) if number % 2 else (_LONG * min(size), min(size))
    pixels = _paint_background(size, rng)
    if harder == "textures":
        _paint_textures(pixels, rng)
    objects, ids = _place(size, pixels, rng, harder)
    jpeg, image = _to_jpeg(pixels, rng)
    return Scene(jpeg, image, objects, ids, write_texts(objects, texts, rng))


def draw_scene(size: Size, objects: Sequence[SceneObject], seed: Sequence[int]) -> Scene:
    """Draw a scene of given objects, without texts.

    Equal seeds give equal backgrounds, and equal objects in them look alike, whatever else is there.

    Args:
        size: (height, width) in pixels.
        objects: from back to front, each within the scene.
        seed: numbers, not negative.
    """
    rng = np.random.default_rng((*seed, 0))
    pixels = _paint_background(size, rng)
    ids = np.full(size, NOTHING, dtype=np.int8)
    for number, thing in enumerate(objects):
        own = np.random.default_rng((*seed, *(round(1000 * value) for value in thing.centre)))
        _paint(draw(thing, own), number, pixels, ids)
    jpeg, image = _to_jpeg(pixels, rng)
    return Scene(jpeg, image, tuple(objects), ids, ())


def draw_size(rng: np.random.Generator) -> Size:
    """(height, width) of a scene by chance."""
    short = int(rng.integers(_SHORT_SIDES[0], _SHORT_SIDES[1] + 1))
    long = round(short * _ASPECTS[rng.integers(len(_ASPECTS))])
    return (short, long) if rng.random() < 0.5 else (long, short)


def _place(
    size: Size, pixels: npt.NDArray[np.float32], rng: np.random.Generator, harder: Harder | None
) -> tuple[tuple[SceneObject, ...], npt.NDArray[np.int8]]:
    """Draw objects onto `pixels`, as many of a drawn number as find room."""
    ids = np.full(size, NOTHING, dtype=np.int8)
    overlapping = rng.random() < _OVERLAPPING or harder == "clutter"
    least, most = _CLUTTER if harder == "clutter" else (1, MAX_OBJECTS)
    wanted = int(rng.integers(least, most + 1))
    objects: list[SceneObject] = []
    areas: list[int] = []
    while len(objects) < wanted:
        for _ in range(_TRIES):
            thing = _draw_lot(size, objects, rng)
            if harder == "tiny":
                thing = replace(thing, size="small", radius=rng.uniform(*_TINY) * min(size))
            sprite = draw(thing, rng)
            covered = ids[sprite.window][sprite.alpha > (0.5 if overlapping else 0)]
            if _leaves_enough(ids, covered, areas, overlapping):
                break
        else:
            break
        areas.append(_paint(sprite, len(objects), pixels, ids))
        objects.append(thing)
    return tuple(objects), ids


def _paint(sprite: Sprite, number: int, pixels: npt.NDArray[np.float32], ids: npt.NDArray[np.int8]) -> int:
    """Paint an object onto `pixels` and `ids`; how many pixels it covers."""
    seen, alpha = pixels[sprite.window], sprite.alpha[..., None]
    seen += (sprite.rgb - seen) * alpha
    solid = sprite.alpha >= 0.5
    ids[sprite.window][solid] = number
    return int(solid.sum())


def _draw_lot(size: Size, others: list[SceneObject], rng: np.random.Generator) -> SceneObject:
    """An object inside the scene. It often shares words with others, so that a text must be read to the end."""
    words = {}
    for name, choices in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("fill", FILLS), ("size", SIZES)):
        shared = others and rng.random() < 0.3
        words[name] = (
            getattr(others[rng.integers(len(others))], name) if shared else choices[rng.integers(len(choices))]
        )
    radius = rng.uniform(*RADIUS_SHARES[words["size"]]) * min(size)
    margin = math.ceil(radius) + 2
    x = rng.uniform(margin, size[1] - margin)
    y = rng.uniform(margin, size[0] - margin)
    return SceneObject(**words, centre=(x, y), radius=radius, angle=rng.uniform(-0.2, 0.2))


def _leaves_enough(
    ids: npt.NDArray[np.int8], covered: npt.NDArray[np.int8], areas: list[int], overlapping: bool
) -> bool:
    hidden = np.bincount(covered[covered >= 0], minlength=len(areas))
    if not overlapping:
        return not hidden.any()
    seen = np.bincount(ids[ids >= 0], minlength=len(areas)) - hidden
    return all(left >= _LEAST_VISIBLE * area for left, area in zip(seen, areas, strict=True))


def _to_jpeg(pixels: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[bytes, RgbImage]:
    """The file, and its pixels as it has them."""
    file = io.BytesIO()
    image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=_QUALITIES[rng.integers(len(_QUALITIES))])
    with Image.open(file) as opened:
        return file.getvalue(), np.asarray(opened.convert("RGB"))


def _paint_background(size: Size, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Paint one of `_BACKGROUNDS`, dull so that every object stands out: float32 (height, width, 3), 0..255."""
    height, width = size
    kind = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    field = _field(kind, size, rng)[..., None]
    first, second = _dull(rng), _dull(rng)
    if kind == "plain":
        second = first
    painted = first + (second - first) * field
    if kind == "noise":
        noise = rng.integers(-22, 23, (height, width, 1)) + rng.integers(-6, 7, (height, width, 3))
        painted = painted + noise
    return np.asarray(painted, dtype=np.float32)


def _paint_textures(pixels: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
    """Paint bands of stripes, nets of lines and swarms of dots across `pixels`: none of them is one of the things."""
    height, width = pixels.shape[:2]
    canvas = Image.fromarray(pixels.astype(np.uint8))
    brush, step = ImageDraw.Draw(canvas), min(height, width) / 16
    colours = list(COLOURS.values())
    for _ in range(int(rng.integers(_TEXTURES[0], _TEXTURES[1] + 1))):
        colour, other = (colours[rng.integers(len(colours))] for _ in range(2))
        kind, (x, y) = rng.integers(3), rng.uniform(0, (width, height))
        if kind == 0:  # stripes, from edge to edge
            for line in range(4):
                at = y + line * step / 2
                brush.line((0, at, width, at + step), colour if line % 2 else other, round(step / 4))
        elif kind == 1:  # a net
            for line in range(-4, 5):
                brush.line((x + line * step, 0, x + line * step + height, height), colour, 1)
                brush.line((x + line * step, 0, x + line * step - height, height), other, 1)
        else:
            for centre in rng.normal((x, y), 3 * step, (60, 2)):
                brush.ellipse((*(centre - step / 6), *(centre + step / 6)), colour)
    pixels[:] = np.asarray(canvas)


def _dull(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A grey with a little colour, neither dark nor bright."""
    return np.float32(rng.uniform(95, 180)) + rng.uniform(-16, 16, 3).astype(np.float32)


def _field(kind: str, size: Size, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """How the two colours mix: float32 (height, width), 0..1."""
    height, width = size
    angle = rng.uniform(0, math.tau)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x * math.cos(angle) + y * math.sin(angle)) / max(size)
    match kind:
        case "clouds":
            cells = int(rng.integers(4, 10))
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
            smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
            field = np.asarray(smooth, dtype=np.float32) / 255
        case "bands":
            waves = np.sin(along * np.float32(math.tau * rng.uniform(2, 7)))
            field = waves * np.float32(0.35) + np.float32(0.5)
        case _:
            field = (along - along.min()) / max(float(along.max() - along.min()), 1e-6)
    return np.asarray(field, dtype=np.float32)
