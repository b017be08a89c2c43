"""A patch grid as a value: how an encoder of a fixed input cuts an image into patches, whatever the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from patchmint.errors import ConfigError, InputError
from patchmint.geometry.placement import AxisMap, Borders, Placement, View, cell_borders, require_pixels
from patchmint.types import Size


class Fit(StrEnum):
    """How an image of any shape becomes the encoder's fixed input."""

    PAD = "pad"
    """Pad to a square, then resize (LLaVA 1.5 fine-tuning: `expand2square` in its `mm_utils.py`)."""
    CROP = "crop"
    """Resize the short edge, then centre crop (CLIP's processor; LLaVA 1.5 pre-training)."""
    SQUASH = "squash"
    """Resize to the input size, aspect ratio lost (SigLIP, SEED)."""
    ANYRES = "anyres"
    """The whole image squashed, then tiles of the image resized and centred on the best-fitting canvas (LLaVA-NeXT)."""


_MOST_TOO_MANY = 1.1
# Times `max_tiles`: LLaVA-OneVision lets a few more tokens pass (`pack_image_features`).


@dataclass(frozen=True)
class PatchGrid:
    """How an encoder of a fixed input cuts an image into patches.

    Attributes:
        rows: patch rows in one input of the encoder.
        cols: patch columns in one input of the encoder.
        patch_px: side of a patch in input pixels.
        fit: how an image becomes the encoder's input.
        input_size: (height, width) of the encoder's input in pixels; `(rows, cols) * patch_px` where not given. It may
            be larger: SigLIP SO400M reads 384 px in 27 patches of 14 px and never looks at the last 6.
        canvases: (height, width) choices of `anyres`, multiples of `input_size`, in order of preference on ties.
        short_edge: what `crop` resizes the short edge to before it crops; the input's side where not given (DINOv2
            resizes to 256 and crops 224).
        max_tiles: of `anyres`, the tiles' worth of tokens beyond which they are interpolated to fewer (LLaVA-OneVision:
            9); 0 = never.
        reading: whose code drops the padding's tokens of `anyres`: Hugging Face's rounds before it cuts to an integer.

    Raises:
        ConfigError: a number is out of range, the fit is unknown, `crop` has an input that isn't square, or settings
            and fit contradict each other.
    """

    rows: int
    cols: int
    patch_px: int
    fit: Fit
    input_size: Size = (0, 0)
    canvases: tuple[Size, ...] = ()
    short_edge: int = 0
    max_tiles: int = 0
    reading: Literal["original", "hf"] = "original"

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.patch_px) < 1:
            raise ConfigError(
                f"a patch grid needs rows, cols and patch_px of at least 1, "
                f"not {self.rows}, {self.cols} and {self.patch_px}"
            )
        if self.fit not in set(Fit):
            raise ConfigError(f"no fit {self.fit!r}; choose one of {', '.join(Fit)}")
        object.__setattr__(self, "fit", Fit(self.fit))  # a plain string, from a config, becomes the enum
        covered = (self.rows * self.patch_px, self.cols * self.patch_px)
        if self.input_size == (0, 0):
            object.__setattr__(self, "input_size", covered)
        if self.input_size[0] < covered[0] or self.input_size[1] < covered[1]:
            raise ConfigError(f"an input of {self.input_size} pixels is smaller than its {covered} pixels of patches")
        if self.fit is Fit.CROP and self.input_size[0] != self.input_size[1]:
            raise ConfigError(f"fit crop needs a square input (CLIP defines no other), not {self.input_size}")
        if self.short_edge and (self.fit is not Fit.CROP or self.short_edge < self.input_size[0]):
            raise ConfigError(
                f"short_edge is for fit crop, and at least the input's side of {self.input_size[0]} px, not "
                f"{self.short_edge} px with fit {self.fit}"
            )
        if (self.fit is Fit.ANYRES) != bool(self.canvases):
            raise ConfigError("fit anyres needs a list of canvases, and no other fit takes one")
        for height, width in self.canvases:
            if height < 1 or width < 1 or height % self.input_size[0] or width % self.input_size[1]:
                raise ConfigError(f"canvas ({height}, {width}) isn't a multiple of the input size {self.input_size}")

    def place(self, image_size: Size) -> Placement:
        """Lay the grid on an image.

        Args:
            image_size: (height, width) of the original image in pixels.

        Raises:
            ConfigError: the image has no pixels.
            InputError: it is so oblong that the consumer refuses it.
        """
        require_pixels(image_size)
        match self.fit:
            case Fit.PAD:
                view = self._view(*self._padded(image_size))
            case Fit.CROP:
                view = self._view(*self._cropped(image_size))
            case Fit.SQUASH:
                view = self._squashed(image_size)
            case Fit.ANYRES:
                return self._anyres(image_size)
        return Placement.in_order(image_size, [view])

    def _view(self, y: AxisMap, x: AxisMap) -> View:
        return View(y, x, cell_borders(self.rows, self.patch_px), cell_borders(self.cols, self.patch_px))

    def _padded(self, image_size: Size) -> Iterator[AxisMap]:
        side = max(image_size)
        # A pixel p of the input lies at p * side / input in the padded square, which starts `before` pixels early.
        for length, target in zip(image_size, self.input_size, strict=True):
            yield AxisMap(side, target, (side - length) // 2 * target)

    def _cropped(self, image_size: Size) -> Iterator[AxisMap]:
        for length, new, target in zip(image_size, self.crop_resize(image_size), self.input_size, strict=True):
            yield AxisMap(length, new, -((new - target) // 2) * length)

    def _squashed(self, image_size: Size) -> View:
        return self._view(*(AxisMap(length, new, 0) for length, new in zip(image_size, self.input_size, strict=True)))

    def _anyres(self, image_size: Size) -> Placement:
        """The whole image, then tiles, whose patches have their tokens row by row of the canvas.

        Each row ends with a newline token, and rows or columns that show the canvas's padding have none (LLaVA
        `llava_arch.py`, `spatial_unpad`; transformers `pack_image_features`).
        """
        canvas, resized = self.anyres_canvas(image_size)
        sides = tuple(zip(image_size, resized, canvas, self.input_size, (self.rows, self.cols), strict=True))
        whole = self._squashed(image_size)
        (top, bottom), (left, right) = self._unpadded(
            image_size, tuple(side // tile * patches for _, _, side, tile, patches in sides)
        )
        first, stride = self.rows * self.cols, right - left + 1
        ratio = math.sqrt((bottom - top) * (right - left) / (self.max_tiles * self.rows**2)) if self.max_tiles else 0
        if ratio > _MOST_TOO_MANY:
            (y, y_borders), (x, x_borders) = (
                self._interpolated(*of_axis, kept, int((kept[1] - kept[0]) // ratio))
                for of_axis, kept in zip(sides, ((top, bottom), (left, right)), strict=True)
            )
            if min(len(y_borders), len(x_borders)) < 2:
                raise InputError(f"an image of {image_size} px is so oblong that this grid's consumer leaves no tokens")
            mosaic = View(y, x, y_borders, x_borders, token=first, stride=len(x_borders))
            return Placement(image_size, (whole, mosaic), first + mosaic.rows * mosaic.stride)
        views = [whole]
        for row in range(canvas[0] // self.input_size[0]):
            for col in range(canvas[1] // self.input_size[1]):
                above, before = row * self.rows, col * self.cols
                y, x = (
                    AxisMap(length, new, ((side - new) // 2 - index * tile) * length)
                    for (length, new, side, tile, _), index in zip(sides, (row, col), strict=True)
                )
                seen = (*_part(top, bottom, above, self.rows), *_part(left, right, before, self.cols))
                token = first + (above - top) * stride + before - left
                views.append(replace(self._view(y, x), token=token, stride=stride, seen=seen))
        return Placement(image_size, tuple(views), first + (bottom - top) * stride)

    def _unpadded(self, image_size: Size, patches: tuple[int, ...]) -> tuple[Size, Size]:
        """Rows and columns [start, end) of a canvas's patches that are left when padding is dropped."""
        (height, width), (rows, cols) = image_size, patches
        if width / height > cols / rows:
            cut = (rows - self._whole(height * (cols / width))) // 2
            return (cut, rows - cut), (0, cols)
        cut = (cols - self._whole(width * (rows / height))) // 2
        return (0, rows), (cut, cols - cut)

    def _whole(self, length: float) -> int:
        return int(round(length, 7) if self.reading == "hf" else length)

    def _interpolated(
        self, length: int, new: int, side: int, tile: int, patches: int, kept: Size, cells: int
    ) -> tuple[AxisMap, Borders]:
        """An axis of the canvas whose patches `kept` become fewer cells; its unit is 1 / cells of an input pixel.

        A cell reaches from where its first patch begins to where its last one ends. What no patch at a tile's border
        looks at belongs to the cell around it.
        """
        whole, count = patches * cells, kept[1] - kept[0]
        places = [kept[0] * cells + index * count for index in range(cells)]
        last = kept[1] * cells - 1
        borders = [place // whole * tile * cells + place % whole * self.patch_px for place in places]
        borders.append(last // whole * tile * cells + (last % whole + 1) * self.patch_px)
        return AxisMap(length, new * cells, (side - new) // 2 * length * cells), tuple(borders)

    def crop_resize(self, image_size: Size) -> Size:
        """Size that `crop` resizes an image to before it crops.

        The short edge becomes `short_edge`, the long edge is cut to an integer (transformers, `image_transforms.py`,
        `get_resize_output_image_size`).
        """
        edge = self.short_edge or self.input_size[0]
        short, long = min(image_size), max(image_size)
        new_long = int(edge * long / short)
        return (edge, new_long) if image_size[0] <= image_size[1] else (new_long, edge)

    def anyres_canvas(self, image_size: Size) -> tuple[Size, Size]:
        """Choose the canvas of `anyres` and the size of the image on it.

        Most effective pixels first, then fewest wasted (LLaVA `mm_utils.py`: `select_best_resolution`,
        `resize_and_pad_image`).

        Returns:
            (height, width) of the canvas and of the resized image, which is centred on it.
        """
        height, width = image_size
        best: tuple[int, int] | None = None
        chosen = self.canvases[0]
        for canvas in self.canvases:
            scale = min(canvas[1] / width, canvas[0] / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            rank = (effective, -(canvas[0] * canvas[1] - effective))
            if best is None or rank > best:
                best, chosen = rank, canvas
        scale_w, scale_h = chosen[1] / width, chosen[0] / height
        if scale_w < scale_h:
            return chosen, (min(_ceil(height * scale_w), chosen[0]), chosen[1])
        return chosen, (chosen[0], min(_ceil(width * scale_h), chosen[1]))


def _ceil(value: float) -> int:
    return -int(-value // 1)


def _part(start: int, end: int, first: int, count: int) -> Size:
    """What of `[start, end)` lies in `[first, first + count)`, counted from there."""
    low = min(max(start - first, 0), count)
    return low, max(min(end - first, count), low)
