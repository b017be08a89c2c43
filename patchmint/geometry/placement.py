"""A grid laid on one image: exact maps between original pixels, input pixels, cells and tokens.

Coordinates are continuous: pixel `x` covers `[x, x+1)`, in the original as in the input. Resizing `n` pixels to `m`
maps `x` to `x * m / n`, as Pillow and torchvision define it. All maps are kept as integers until one final division,
so that a cell border that falls on a pixel border is exactly there: a sliver made by rounding would turn a label from
0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patchmint.errors import ConfigError
from patchmint.types import Size

Floats = npt.NDArray[np.float64]

Borders = range | tuple[int, ...]
"""Borders of the cells along an axis in input pixels, rising: one more than there are cells."""


def require_pixels(image_size: Size) -> None:
    """Raise a ConfigError for an image without pixels."""
    if min(image_size) < 1:
        raise ConfigError(f"an image of size {image_size} has no pixels to lay a grid on")


def cell_borders(patches: int, patch_px: int, merge: int = 1) -> Borders:
    """Borders of cells of `merge` patches each; where their number doesn't divide, the last cell has fewer."""
    end = patches * patch_px
    borders = range(0, end + 1, patch_px * merge)
    return borders if borders[-1] == end else (*borders, end)


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

    def edges(self, borders: Borders, length: int, frame: float) -> Floats:
        """Cell borders along this axis.

        Args:
            borders: of the cells, in input pixels.
            length: the image's length along this axis.
            frame: the length of the frame to give the borders in; `length` for original pixels, less for a mask that
                shows the whole image at lower resolution.

        Returns:
            float64 (cells + 1,), rising; positions outside `[0, frame]` lie outside the image.
        """
        positions = [(border * self.numerator - self.shift) * frame for border in borders]
        return np.array([position / (self.denominator * length) for position in positions])


@dataclass(frozen=True)
class View:
    """One input of the encoder: where its pixels lie in the original image, its cells, and their tokens.

    Attributes:
        y: from rows of input pixels to the image's.
        x: from columns of input pixels to the image's.
        y_borders: of the rows of cells, in input pixels.
        x_borders: of the columns of cells.
        token: position among the image's tokens at which cell (0, 0) has its token, or would have.
        stride: tokens from a cell to the one below it; 0 = as many as there are columns.
        block: side of the blocks of cells whose tokens follow each other; 1: row by row.
        seen: (first row, end, first column, end) of the cells that have tokens; None = all.
    """

    y: AxisMap
    x: AxisMap
    y_borders: Borders
    x_borders: Borders
    token: int = 0
    stride: int = 0
    block: int = 1
    seen: tuple[int, int, int, int] | None = None

    @property
    def rows(self) -> int:
        """Rows of cells."""
        return len(self.y_borders) - 1

    @property
    def cols(self) -> int:
        """Columns of cells."""
        return len(self.x_borders) - 1


@dataclass(frozen=True)
class Placement:
    """A grid on one image.

    Cells are counted row-major. Where an image becomes several inputs their grids are stacked from top to bottom in the
    order of the inputs. A view that is narrower than another is filled up on the right with cells that are nowhere and
    have no tokens.

    Attributes:
        image_size: (height, width) of the original image.
        views: the encoder's inputs, at least one.
        tokens: how many image tokens the consumer's language model sees.
    """

    image_size: Size
    views: tuple[View, ...]
    tokens: int

    @classmethod
    def in_order(cls, image_size: Size, views: Sequence[View]) -> Placement:
        """Views whose tokens follow each other, nothing between them."""
        start, placed = 0, []
        for view in views:
            placed.append(replace(view, token=start))
            start += view.rows * view.cols
        return cls(image_size, tuple(placed), start)

    @property
    def rows(self) -> int:
        """Rows of the first view: of each, but for grids whose views differ."""
        return self.views[0].rows

    @property
    def cols(self) -> int:
        """Columns of the first view."""
        return self.views[0].cols

    @property
    def patch_px(self) -> int:
        """Side of a cell of the first view in input pixels."""
        return self.views[0].y_borders[1] - self.views[0].y_borders[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of all views together."""
        return sum(view.rows for view in self.views), max(view.cols for view in self.views)

    @cached_property
    def overview(self) -> int:
        """Which view shows most of the image: the whole, with tiles as without."""
        return max(range(len(self.views)), key=lambda index: self.share_seen(self.views[index]))

    def share_seen(self, view: View) -> float:
        """Share of the image that a view's cells cover, 0..1."""
        share = 1.0
        for edges, length in zip(self.edges(view), self.image_size, strict=True):
            share *= max(min(edges[-1], length) - max(edges[0], 0), 0) / length
        return share

    def cells_of(self, index: int) -> tuple[slice, slice]:
        """Where the cells of a view lie in an array (rows, cols) of all views."""
        start = sum(view.rows for view in self.views[:index])
        view = self.views[index]
        return slice(start, start + view.rows), slice(0, view.cols)

    def stack(self, parts: Sequence[Floats]) -> Floats:
        """Arrays (rows, cols), one a view, as one of all views: float64 `shape`, 0 where there is no cell."""
        stacked = np.zeros(self.shape)
        for index, part in enumerate(parts):
            stacked[self.cells_of(index)] = part
        return stacked

    def token_order(self) -> npt.NDArray[np.int64]:
        """Which cell each image token shows, in the order in which the language model sees them.

        These are the tokens with the model's image token id, so `labels.reshape(-1)[order]` lines up with
        `input_ids == image_token_id`. Tokens with ids of their own that a processor writes between tiles or rows
        (`[IMG_BREAK]`, `<row_1_col_2>`) aren't among them.

        Returns:
            int64 (tokens,): indices into an array of `shape`, flattened; -1 where a token shows no part of the image
            (LLaVA's newlines). Cells that appear nowhere have no token: LLaVA drops those of the canvas's padding.
        """
        order = np.full(self.tokens, -1, dtype=np.int64)
        cells = np.arange(np.prod(self.shape)).reshape(self.shape)
        for index, view in enumerate(self.views):
            top, bottom, left, right = view.seen or (0, view.rows, 0, view.cols)
            row, col = np.ogrid[top:bottom, left:right]
            side = view.block
            along = (row // side) * side * (view.stride or view.cols) + (col // side) * side * side
            at = view.token + along + (row % side) * side + col % side
            order[at] = cells[self.cells_of(index)][top:bottom, left:right]
        return order

    def edges(self, view: View, frame: tuple[float, float] | None = None) -> tuple[Floats, Floats]:
        """Cell borders of a view: y (rows + 1,) and x (cols + 1,), in pixels of the frame (default: the original)."""
        height, width = self.image_size
        frame_height, frame_width = frame or self.image_size
        return (
            view.y.edges(view.y_borders, height, frame_height),
            view.x.edges(view.x_borders, width, frame_width),
        )

    def cell_box(self, row: int, col: int) -> tuple[float, float, float, float]:
        """XYXY of a cell in original pixels; it may reach out of the image.

        Raises:
            IndexError: there is no such cell.
        """
        below = row
        for view in self.views:
            if 0 <= below < view.rows and 0 <= col < view.cols:
                return (
                    view.x.to_original(view.x_borders[col]),
                    view.y.to_original(view.y_borders[below]),
                    view.x.to_original(view.x_borders[col + 1]),
                    view.y.to_original(view.y_borders[below + 1]),
                )
            below -= view.rows
        raise IndexError(f"no cell ({row}, {col}) in a grid of {self.shape}")

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
        return self.stack(parts)
