"""A patch grid laid on one image: exact maps between original pixels, input pixels and cells.

Coordinates are continuous: pixel `x` covers `[x, x+1)`, in the original as in the input. Resizing `n` pixels to `m`
maps `x` to `x * m / n`, as Pillow and torchvision define it. All maps are kept as integers until one final division,
so that a cell border that falls on a pixel border is exactly there: a sliver made by rounding would turn a label from
0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchmint.types import Size

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisMap:
    """One axis of a view: `original = (input * numerator - shift) / denominator`, all integers."""

    numerator: int
    denominator: int
    shift: int

    def to_original(self, position: float) -> float:
        """Map an input position to the original image."""
        return (position * self.numerator - self.shift) / self.denominator

    def to_input(self, position: float) -> float:
        """Map an original position to the input."""
        return (position * self.denominator + self.shift) / self.numerator

    def edges(self, cells: int, patch_px: int, length: int, frame: float) -> Floats:
        """Cell borders along this axis.

        Args:
            cells: number of cells.
            patch_px: side of a cell in input pixels.
            length: the image's length along this axis.
            frame: the length of the frame to give the borders in; `length` for original pixels, less for a mask that
                shows the whole image at lower resolution.

        Returns:
            float64 (cells + 1,), rising; positions outside `[0, frame]` lie outside the image.
        """
        positions = [(k * patch_px * self.numerator - self.shift) * frame for k in range(cells + 1)]
        return np.array([position / (self.denominator * length) for position in positions])


@dataclass(frozen=True)
class View:
    """One input of the encoder: where its pixels lie in the original image."""

    y: AxisMap
    x: AxisMap


@dataclass(frozen=True)
class Placement:
    """A patch grid on one image.

    Cells are counted row-major. Where an image becomes several inputs (`anyres`) their grids are stacked from top to
    bottom in the order of the inputs, so cell (row, col) belongs to view `row // rows`.

    Attributes:
        image_size: (height, width) of the original image.
        rows: patch rows of one view.
        cols: patch columns.
        patch_px: side of a patch in input pixels.
        views: the encoder's inputs.
    """

    image_size: Size
    rows: int
    cols: int
    patch_px: int
    views: tuple[View, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of all views together."""
        return self.rows * len(self.views), self.cols

    def edges(self, view: View, frame: tuple[float, float] | None = None) -> tuple[Floats, Floats]:
        """Cell borders of a view: y (rows + 1,) and x (cols + 1,), in pixels of the frame (default: the original)."""
        height, width = self.image_size
        frame_height, frame_width = frame or self.image_size
        return (
            view.y.edges(self.rows, self.patch_px, height, frame_height),
            view.x.edges(self.cols, self.patch_px, width, frame_width),
        )

    def cell_box(self, row: int, col: int) -> tuple[float, float, float, float]:
        """XYXY of a cell in original pixels; it may reach out of the image.

        Raises:
            IndexError: there is no such cell.
        """
        if not (0 <= row < self.shape[0] and 0 <= col < self.cols):
            raise IndexError(f"no cell ({row}, {col}) in a grid of {self.shape}")
        view = self.views[row // self.rows]
        top = (row % self.rows) * self.patch_px
        left = col * self.patch_px
        return (
            view.x.to_original(left),
            view.y.to_original(top),
            view.x.to_original(left + self.patch_px),
            view.y.to_original(top + self.patch_px),
        )

    @cached_property
    def inside(self) -> Floats:
        """Share of each cell that lies inside the image: float64 (rows, cols), 0..1."""
        parts = []
        for view in self.views:
            shares = []
            for edges, length in zip(self.edges(view), self.image_size, strict=True):
                clipped = np.clip(edges, 0, length)
                shares.append(np.diff(clipped) / np.diff(edges))
            parts.append(np.outer(shares[0], shares[1]))
        return np.concatenate(parts)
