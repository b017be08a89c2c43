"""What scenes are painted on: dull colours, so that every object stands out, with slopes, textures and noise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchmint.types import Size

BACKGROUNDS = ("plain", "slope", "clouds", "bands", "noise")


def paint_background(size: Size, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Paint one of `BACKGROUNDS`: float32 (height, width, 3), 0..255."""
    height, width = size
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    field = _field(kind, size, rng)[..., None]
    first, second = _dull(rng), _dull(rng)
    if kind == "plain":
        second = first
    painted = first + (second - first) * field
    if kind == "noise":
        noise = rng.integers(-22, 23, (height, width, 1)) + rng.integers(-6, 7, (height, width, 3))
        painted = painted + noise
    return np.asarray(painted, dtype=np.float32)


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
