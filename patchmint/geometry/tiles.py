"""Grids of consumers that cut an image into square tiles, and mostly show the encoder the whole as well.

How many tiles, and which part of the image each shows, is a rule with its parameters; the rest is the same for all. The
arithmetic is that of transformers 5.23, step by step: the last bit of a float can decide about a row of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from patchmint.errors import ConfigError
from patchmint.geometry.placement import AxisMap, Placement, View, cell_borders, require_pixels
from patchmint.types import Size


@dataclass(frozen=True)
class Tiling:
    """Tiles of one image, row by row.

    Attributes:
        rows: for each row of tiles the map of its y axis.
        cols: for each column of tiles the map of its x axis.
    """

    rows: tuple[AxisMap, ...]
    cols: tuple[AxisMap, ...]


class TileRule(Protocol):
    """How an image is cut into tiles."""

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The tiles of an image (height, width); a single one is the encoder's only input."""
        ...


@dataclass(frozen=True)
class TileGrid:
    """A grid on each of an image's tiles, and on the whole.

    Attributes:
        tile_px: side of the encoder's input.
        patch_px: side of its patches in input pixels; what they don't fill, the encoder doesn't look at.
        merge: a cell is `merge` x `merge` patches: what becomes one token (pixel shuffle, pooling). Where that doesn't
            divide, cells at the right and the bottom have fewer.
        rule: how an image is cut.
        overview: whether the whole image, squashed to a tile, comes before the tiles or after them; with a single tile
            there is none.

    Raises:
        ConfigError: there is no room for a patch.
    """

    tile_px: int
    patch_px: int
    merge: int
    rule: TileRule
    overview: Literal["first", "last"]

    fit: ClassVar = "tiles"

    def __post_init__(self) -> None:
        if min(self.patch_px, self.merge) < 1 or self.tile_px < self.patch_px:
            raise ConfigError(f"tiles of {self.tile_px} px have no patches of {self.patch_px} px")

    def place(self, image_size: Size) -> Placement:
        """Lay the grid on an image.

        Args:
            image_size: (height, width) of the original image in pixels.

        Raises:
            ConfigError: the image has no pixels.
        """
        require_pixels(image_size)
        borders = cell_borders(self.tile_px // self.patch_px, self.patch_px, self.merge)
        tiling = self.rule(image_size, self.tile_px)
        views = [View(y, x, borders, borders) for y in tiling.rows for x in tiling.cols]
        if len(views) > 1:
            y, x = (AxisMap(length, self.tile_px, 0) for length in image_size)
            views.insert(0 if self.overview == "first" else len(views), View(y, x, borders, borders))
        return Placement.in_order(image_size, views)


@dataclass(frozen=True)
class NearestAspect:
    """InternVL: as many tiles as come nearest to the image's aspect ratio (`image_processing_got_ocr2.py`)."""

    least: int
    most: int

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The canvas of the nearest aspect ratio; of one ratio that with more tiles, up to twice the pixels."""
        height, width = image_size
        aspect, area = width / height, width * height
        best, smallest = (1, 1), math.inf
        for cols, rows in _tile_counts(self.least, self.most):
            off = abs(aspect - cols / rows)
            if off < smallest or (off == smallest and area > 0.5 * tile_px * tile_px * cols * rows):
                best, smallest = (rows, cols), off
        return _squashed(image_size, best, tile_px)


@dataclass(frozen=True)
class MostCovered:
    """Ovis 2: the fewest tiles that keep 90 % of the image's pixels (`image_processing_ovis2.py`).

    transformers counts them as rows and columns and takes them as columns and rows, so that a wide image gets tiles one
    above the other; the model's own code doesn't.
    """

    most: int

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The fewest tiles that keep enough."""
        candidates = [(counts, self._covered(image_size, counts, tile_px)) for counts in _tile_counts(1, self.most)]
        enough = [candidate for candidate in candidates if candidate[1] > 0.9]
        if enough:
            (cols, rows), _ = min(enough, key=lambda found: (found[0][0] * found[0][1], -found[1]))
        else:
            (cols, rows), _ = min(candidates, key=lambda found: (-found[1], found[0][0] * found[0][1]))
        return _squashed(image_size, (rows, cols), tile_px)

    @staticmethod
    def _covered(image_size: Size, counts: Size, tile_px: int) -> float:
        """Share of the pixels that are left if each part, of as many rows and columns, is scaled down to a tile."""
        (height, width), (rows, cols) = image_size, counts
        total = 0.0
        for row in range(rows):
            for col in range(cols):
                part_height = height - row * (height // rows) if row == rows - 1 else height // rows
                part_width = width - col * (width // cols) if col == cols - 1 else width // cols
                long, short = max(part_width, part_height), min(part_width, part_height)
                total += tile_px * (short / long * tile_px) if long > tile_px else long * short
        return total / (height * width)


@dataclass(frozen=True)
class LeastScaling:
    """Command A Vision: the canvas that enlarges least, else shrinks least (`image_processing_cohere2_vision.py`)."""

    most: int

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The canvas of the least scaling, to which the image is squashed."""
        counts = np.array([(rows, cols) for cols, rows in _tile_counts(1, self.most)])
        best = _least_scaled(counts * tile_px / np.array(image_size))
        return _squashed(image_size, (int(counts[best][0]), int(counts[best][1])), tile_px)


@dataclass(frozen=True)
class LongestEdge:
    """Idefics3, SmolVLM: the longer side is scaled to `edge_px`, then both sides up to whole tiles.

    `image_processing_idefics3.py`: `resize`, `resize_for_vision_encoder`, `split_images`.
    """

    edge_px: int

    _MOST_PX = 4096

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The tiles that the scaled image, rounded up, fills."""
        height, width = self._scaled(*image_size)
        aspect = width / height
        if width >= height:
            width = math.ceil(width / tile_px) * tile_px
            height = math.ceil(int(width / aspect) / tile_px) * tile_px
        else:
            height = math.ceil(height / tile_px) * tile_px
            width = math.ceil(int(height * aspect) / tile_px) * tile_px
        return _squashed(image_size, (height // tile_px, width // tile_px), tile_px)

    def _scaled(self, height: int, width: int) -> Size:
        aspect = width / height
        if width >= height:
            width = self.edge_px
            height = int(width / aspect)
            height += height % 2
        else:
            height = self.edge_px
            width = int(height * aspect)
            width += width % 2
        height, width = max(height, 1), max(width, 1)
        aspect = width / height
        if width >= height and width > self._MOST_PX:
            width, height = self._MOST_PX, int(self._MOST_PX / aspect)
        elif height > width and height > self._MOST_PX:
            height, width = self._MOST_PX, int(self._MOST_PX * aspect)
        return max(height, 1), max(width, 1)


@dataclass(frozen=True)
class BestFit:
    """Llama 4: the canvas that enlarges least, else shrinks least; the image keeps its shape, at the top left.

    `image_processing_llama4.py`. Its float32 is kept: float64 would now and then resize by a pixel more or less.
    """

    most: int
    enlarge: bool = False

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """The canvas of the least scaling, on which the image keeps its shape."""
        canvases = _factor_pairs(self.most) * tile_px
        sides = np.array(image_size)
        scales = (canvases.astype(np.float32) / sides.astype(np.float32)).min(axis=1)
        larger = scales[scales >= 1]
        scale = larger.min() if len(larger) and not self.enlarge else scales.max()
        fitting = canvases[scales == scale]
        canvas = fitting[fitting.prod(axis=1).argmin()]
        # What comes from the list of canvases is float32 there, what comes from the image a Python number.
        room = [
            max(length, tile_px) if max(length, tile_px) <= side and not self.enlarge else np.float32(side)
            for length, side in zip(image_size, canvas, strict=True)
        ]
        by_height, by_width = room[0] / image_size[0], room[1] / image_size[1]
        if by_width < by_height:
            resized = min(math.floor(image_size[0] * by_width), int(room[0])), int(room[1])
        else:
            resized = int(room[0]), min(math.floor(image_size[1] * by_height), int(room[1]))
        return Tiling(
            *(
                tuple(AxisMap(length, max(new, 1), -start * length) for start in range(0, int(side), tile_px))
                for length, new, side in zip(image_size, resized, canvas, strict=True)
            )
        )


@dataclass(frozen=True)
class PanAndScan:
    """Gemma 3: crops along the longer side of an image that is oblong enough (`image_processing_gemma3.py`)."""

    least_px: int
    most: int
    least_ratio: float

    def __call__(self, image_size: Size, tile_px: int) -> Tiling:
        """Crops of equal length, the last one possibly shorter; the whole image where it is not cut."""
        height, width = image_size
        long, short = max(image_size), min(image_size)
        if long / short < self.least_ratio:
            return _squashed(image_size, (1, 1), tile_px)
        crops = min(math.floor(long / self.least_px), math.floor(long / short + 0.5))
        crops = min(self.most, max(2, crops))
        crop_px = math.ceil(long / crops)
        if min(crop_px, short) < self.least_px:
            return _squashed(image_size, (1, 1), tile_px)
        along = tuple(
            AxisMap(min(crop_px, long - start), tile_px, -start * tile_px)
            for start in range(0, crops * crop_px, crop_px)
        )
        across = (AxisMap(short, tile_px, 0),)
        return Tiling(across, along) if width >= height else Tiling(along, across)


@dataclass(frozen=True)
class OverlapGrid:
    """Molmo 2: crops that overlap by margins, whose cells make one seamless grid; before it that of the whole image.

    `image_processing_molmo2.py`. Each patch of the canvas is taken from one crop, so crops leave no trace in the grid.

    Attributes:
        tile_px: side of the encoder's input.
        patch_px: side of its patches.
        merge: a cell is `merge` x `merge` patches; those at the right and the bottom may have fewer.
        most: most crops.
        margin: patches on both sides of a crop, taken together, that it shares with its neighbours.
    """

    tile_px: int
    patch_px: int
    merge: int
    most: int
    margin: int

    fit: ClassVar = "tiles"

    def place(self, image_size: Size) -> Placement:
        """Lay the grid on an image.

        Args:
            image_size: (height, width) of the original image in pixels.

        Raises:
            ConfigError: the image has no pixels.
        """
        require_pixels(image_size)
        margin = self.margin * self.patch_px
        window = self.tile_px // self.patch_px * self.patch_px - margin
        counts = np.array(sorted(_tile_counts(1, self.most), key=lambda count: (count[0] * count[1], count[0])))
        with np.errstate(divide="ignore"):  # an image as large as the margins
            scales = (counts * window).astype(np.float32) / (np.array(image_size, dtype=np.float32) - margin)
        tiling = counts[_least_scaled(scales)]
        views = []
        for sides in ((self.tile_px, self.tile_px), tuple(int(count) * window + margin for count in tiling)):
            y, x = (AxisMap(length, side, 0) for length, side in zip(image_size, sides, strict=True))
            rows, cols = (cell_borders(side // self.patch_px, self.patch_px, self.merge) for side in sides)
            views.append(View(y, x, rows, cols))
        return Placement.in_order(image_size, views)


def _squashed(image_size: Size, counts: Size, tile_px: int) -> Tiling:
    """The image squashed to rows and columns of tiles."""
    return Tiling(
        *(
            tuple(AxisMap(length, count * tile_px, -index * tile_px * length) for index in range(count))
            for length, count in zip(image_size, counts, strict=True)
        )
    )


@cache
def _tile_counts(least: int, most: int) -> Sequence[Size]:
    """(columns, rows) of canvases: fewer tiles first, then fewer columns."""
    sides = range(1, most + 1)
    counts = [(cols, rows) for cols in sides for rows in sides if least <= cols * rows <= most]
    return sorted(counts, key=lambda count: count[0] * count[1])


@cache
def _factor_pairs(most: int) -> npt.NDArray[np.int64]:
    """(rows, columns) of all canvases in Llama 4's order: by shape, shapes as they first occur from the most tiles."""
    shapes: dict[float, list[Size]] = {}
    for tiles in range(most, 0, -1):
        for rows in range(1, tiles + 1):
            if tiles % rows == 0:
                shapes.setdefault(rows / (tiles // rows), []).append((rows, tiles // rows))
    return np.array([counts for same in shapes.values() for counts in same])


def _least_scaled(scales: npt.NDArray[np.floating]) -> int:
    """Index of the canvas, of scales (n, 2), that enlarges an image least; if all shrink it, that shrinks it least."""
    smaller = scales.min(axis=1)
    if (smaller < 1).all():
        return int(smaller.argmax())
    return int(np.where(smaller < 1, np.inf, smaller).argmin())
