"""The things that stand in scenes: six shapes in eight colours, three fills and two sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
FILLS = ("solid", "striped", "dotted")
SIZES = ("small", "large")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (240, 220, 40),
    "green": (30, 140, 55),
    "blue": (35, 70, 205),
    "purple": (130, 40, 150),
    "white": (245, 245, 245),
    "black": (18, 18, 20),
}
"""RGB; each object strays from it by a few steps."""

RADIUS_SHARES: dict[str, tuple[float, float]] = {"small": (0.085, 0.12), "large": (0.17, 0.24)}
"""Radius of the circle around an object, as a share of the scene's short side; the gap keeps the words true."""

_FINE = 4
# Shapes are drawn this many times too large and shrunk, for smooth edges.

_COLOUR_STRAY = 10


@dataclass(frozen=True)
class SceneObject:
    """A thing in a scene.

    Attributes:
        shape, colour, fill, size: words of `SHAPES`, `COLOURS`, `FILLS`, `SIZES`.
        centre: (x, y) in pixels.
        radius: of the circle around it, in pixels.
        angle: how far it is turned, in radians.
    """

    shape: str
    colour: str
    fill: str
    size: str
    centre: tuple[float, float]
    radius: float
    angle: float

    def has(self, *words: str) -> bool:
        """Whether all words are true of it."""
        return set(words) <= {self.shape, self.colour, self.fill, self.size}


@dataclass(frozen=True)
class Sprite:
    """An object as drawn, before anything covers it.

    Attributes:
        left, top: where its array begins in the scene, in pixels.
        alpha: float32 (h, w), 0..1, share of each pixel that it covers.
        rgb: float32 (h, w, 3), 0..255.
    """

    left: int
    top: int
    alpha: npt.NDArray[np.float32]
    rgb: npt.NDArray[np.float32]

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the scene that it covers."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw(thing: SceneObject, rng: np.random.Generator) -> Sprite:
    """Draw an object, smooth-edged; it may reach out of its scene if its centre is near the border."""
    reach = math.ceil(thing.radius) + 1
    left, top = round(thing.centre[0]) - reach, round(thing.centre[1]) - reach
    side = 2 * reach + 1
    canvas = Image.new("L", (side * _FINE, side * _FINE))
    middle = ((thing.centre[0] - left) * _FINE, (thing.centre[1] - top) * _FINE)
    ImageDraw.Draw(canvas).polygon(_outline(thing, middle), fill=255)
    alpha = np.asarray(np.asarray(canvas.reduce(_FINE)) / np.float32(255), dtype=np.float32)
    stray = rng.integers(-_COLOUR_STRAY, _COLOUR_STRAY + 1, 3)
    main = np.clip(np.array(COLOURS[thing.colour]) + stray, 0, 255).astype(np.float32)
    share = _pattern(thing, side, rng)[..., None]
    rgb = main * (1 - share) + _second_tone(thing.colour, main) * share
    return Sprite(left, top, alpha, np.asarray(rgb, dtype=np.float32))


def _outline(thing: SceneObject, middle: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners in fine pixels."""
    radius = thing.radius * _FINE
    match thing.shape:
        case "circle":
            ring = [(math.tau * k / 48, 1.0) for k in range(48)]
        case "square":
            ring = [(math.tau * (k + 0.5) / 4, 1.0) for k in range(4)]
        case "triangle":
            ring = [(math.tau * (k / 3 - 0.25), 1.0) for k in range(3)]
        case "star":
            ring = [(math.tau * (k / 10 - 0.25), 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        case "diamond":
            ring = [(math.tau * k / 4, 1.0 if k % 2 else 0.58) for k in range(4)]
        case _:
            arm = 0.34
            corners = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
            corners += [(-x, -y) for x, y in corners]
            longest = math.hypot(1, arm)
            ring = [(math.atan2(y, x), math.hypot(x, y) / longest) for x, y in corners]
    return [
        (
            middle[0] + radius * share * math.cos(angle + thing.angle),
            middle[1] + radius * share * math.sin(angle + thing.angle),
        )
        for angle, share in ring
    ]


def _pattern(thing: SceneObject, side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Where the second tone goes, 0..1: float32 (side, side). The pattern grows with the object."""
    if thing.fill == "solid":
        return np.zeros((side, side), dtype=np.float32)
    period = thing.radius * (0.62 if thing.size == "small" else 0.42)
    turn = thing.angle + (rng.integers(4) * math.pi / 4 if thing.fill == "striped" else 0)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    u = (x * math.cos(turn) + y * math.sin(turn)) * (math.tau / period)
    v = (y * math.cos(turn) - x * math.sin(turn)) * (math.tau / period)
    # A sharp edge, softened over about a pixel.
    wave = np.sin(u) if thing.fill == "striped" else np.sin(u) * np.sin(v) - 0.25
    pattern: npt.NDArray[np.float32] = np.clip(wave * (period / 6) + 0.5, 0, 1).astype(np.float32)
    return pattern


def _second_tone(colour: str, main: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    match colour:
        case "white":
            return main * np.float32(0.55)
        case "black":
            return main + np.float32(120)
        case _:
            return main * np.float32(0.35) + np.float32(255 * 0.65)
