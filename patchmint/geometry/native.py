"""Grids of encoders that take images of any shape: the image is resized to whole cells, without padding or tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from patchmint.errors import ConfigError, InputError
from patchmint.geometry.placement import AxisMap, Placement, View, cell_borders, require_pixels
from patchmint.types import Size

_MOST_OBLONG = 200
# Times as long as wide; Qwen's and GLM's processors refuse longer images.


class Resize(StrEnum):
    """To which size an image is resized; sides are multiples of `multiple_px`."""

    SMART = "smart"
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, VideoLLaMA 3, ERNIE 4.5 VL: nearest multiples, `least` to `most` pixels."""
    FRAMES = "frames"
    """GLM-4.1V, GLM-4.6V: as smart, for an image as two frames, whose pixels count together."""
    GROWN = "grown"
    """PaddleOCR-VL: as smart, after a side shorter than a cell is scaled up to one."""
    EDGE = "edge"
    """Pixtral, Mistral 3: never enlarged; the longer side has at most `most` pixels, then sides are rounded up."""
    PATCHES = "patches"
    """SigLIP 2 NaFlex: as large as `most` multiples allow, small images enlarged."""

    @property
    def by_area(self) -> bool:
        """Whether the input is kept between two numbers of pixels."""
        return self in (Resize.SMART, Resize.FRAMES, Resize.GROWN)


@dataclass(frozen=True)
class NativeGrid:
    """A grid of as many cells as an image's size makes.

    Attributes:
        patch_px: side of the encoder's patch in input pixels.
        merge: a cell is `merge` x `merge` patches: what becomes one token. 1: a cell is a patch.
        multiple_px: the input's sides are multiples of it.
        resize: how the input's size is chosen.
        least: fewest pixels of the input; 0 for `edge` and `patches`.
        most: most pixels of the input; for `edge` of its longer side; for `patches` the most multiples in it.

    Raises:
        ConfigError: a number is out of range, or a cell doesn't divide `multiple_px`.
    """

    patch_px: int
    merge: int
    multiple_px: int
    resize: Resize
    least: int
    most: int

    fit: ClassVar = "native"

    def __post_init__(self) -> None:
        object.__setattr__(self, "resize", Resize(self.resize))  # a plain string, from settings, becomes the enum
        if min(self.patch_px, self.merge) < 1 or self.multiple_px % (self.patch_px * self.merge):
            raise ConfigError(
                f"sides that are multiples of {self.multiple_px} px have no whole cells of {self.merge} x {self.merge} "
                f"patches of {self.patch_px} px"
            )
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ConfigError(f"least and most pixels of {self.least} and {self.most} allow no input at all")

    def place(self, image_size: Size) -> Placement:
        """Lay the grid on an image.

        Args:
            image_size: (height, width) of the original image in pixels.

        Raises:
            ConfigError: the image has no pixels.
            InputError: it is so long and narrow that the consumer refuses it.
        """
        require_pixels(image_size)
        y, x = (
            (AxisMap(length, new, 0), cell_borders(new // self.patch_px, self.patch_px, self.merge))
            for length, new in zip(image_size, self.input_size(image_size), strict=True)
        )
        # Where the model merges blocks of patches, the encoder's patches come block by block.
        by_blocks = self.merge == 1 and self.resize in (Resize.SMART, Resize.FRAMES)
        block = self.multiple_px // self.patch_px if by_blocks else 1
        view = View(y[0], x[0], y[1], x[1], block=block)
        return Placement.in_order(image_size, [view])

    def limited(self, least: int | None = None, most: int | None = None) -> NativeGrid:
        """The grid with other limits of the input's pixels."""
        return replace(self, least=self.least if least is None else least, most=self.most if most is None else most)

    def input_size(self, image_size: Size) -> Size:
        """(height, width) that an image is resized to.

        Raises:
            InputError: it is so long and narrow that the consumer refuses it.
        """
        size = _RESIZES[self.resize](*image_size, self.multiple_px, self.least, self.most)
        if min(size) < 1:
            raise _too_oblong(image_size)
        return size


def native_name(grid: NativeGrid) -> str:
    """A short name of how images are resized for a grid of unmerged patches, such as "smart-8-262144-1048576-bicubic".

    `native_of` reads it.
    """
    return f"{grid.resize}-{grid.patch_px}-{grid.least}-{grid.most}-bicubic"


def native_of(name: str) -> NativeGrid | None:
    """The grid that `native_name` named; None for other names."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    patch, least, most = map(int, match.groups()[1:])
    try:
        return NativeGrid(patch, 1, patch, Resize(match[1]), least, most)
    except (ConfigError, ValueError):
        return None


_NAME = re.compile(r"([a-z]+)-([0-9]{1,5})-([0-9]{1,9})-([0-9]{1,9})-[a-z0-9]+", re.ASCII)

# The arithmetic of transformers 5.23, step by step, because the last bit of a float can decide about a row of cells.


def _smart(height: int, width: int, factor: int, least: int, most: int, frames: int = 1) -> Size:
    """`smart_resize` of `image_processing_qwen2_vl.py`, and of `image_processing_glm46v.py` with two frames."""
    if max(height, width) / min(height, width) > _MOST_OBLONG:
        raise _too_oblong((height, width))
    rounded = round(height / factor) * factor, round(width / factor) * factor
    pixels = frames * rounded[0] * rounded[1]
    if pixels > most:
        beta = math.sqrt((frames * height * width) / most)
        return (
            max(factor, math.floor(height / beta / factor) * factor),
            max(factor, math.floor(width / beta / factor) * factor),
        )
    if pixels < least:
        beta = math.sqrt(least / (frames * height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rounded


def _frames(height: int, width: int, factor: int, least: int, most: int) -> Size:
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    return _smart(height, width, factor, least, most, frames=2)


def _grown(height: int, width: int, factor: int, least: int, most: int) -> Size:
    """`smart_resize` of `image_processing_paddleocr_vl.py`."""
    if height < factor:
        height, width = factor, round((width * factor) / height)
    if width < factor:
        height, width = round((height * factor) / width), factor
    return _smart(height, width, factor, least, most)


def _edge(height: int, width: int, factor: int, _least: int, most: int) -> Size:
    """`get_resize_output_image_size` of `image_processing_pixtral.py`."""
    ratio = max(height / most, width / most)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return ((height - 1) // factor + 1) * factor, ((width - 1) // factor + 1) * factor


def _patches(height: int, width: int, factor: int, _least: int, most: int) -> Size:
    """`get_image_size_for_max_num_patches` of `image_processing_siglip2.py`: bisection for the scale."""

    def scaled(scale: float) -> Size:
        rows, cols = (max(math.ceil(side * scale / factor), 1) for side in (height, width))
        return rows * factor, cols * factor

    eps = 1e-5
    low, high = eps / 10, 100.0
    while high - low >= eps:
        middle = (low + high) / 2
        rows, cols = scaled(middle)
        if rows * cols <= most * factor**2:
            low = middle
        else:
            high = middle
    return scaled(low)


_RESIZES: dict[Resize, Callable[[int, int, int, int, int], Size]] = {
    Resize.SMART: _smart,
    Resize.FRAMES: _frames,
    Resize.GROWN: _grown,
    Resize.EDGE: _edge,
    Resize.PATCHES: _patches,
}


def _too_oblong(image_size: Size) -> InputError:
    return InputError(
        f"an image of {image_size[1]} x {image_size[0]} px is too long and narrow: the consumer of this grid refuses it"
    )
