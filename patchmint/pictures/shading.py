"""The photo with its patches: kept ones bright and tinted, others dimmed, what the encoder never sees hatched."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchmint.geometry import Placement
from patchmint.types import RgbImage

KEPT_TINT = (64, 255, 180)
"""Mint."""

_MIN_CELL_PX = 5
# Grid lines closer than this would hide the photo.

_HATCH_PX = 9
_DIM = 0.36
_LEAST_TINT, _MORE_TINT = 0.04, 0.2
_UNSEEN_DIM = 0.2
_LINE_WEIGHT = 0.22


def shade_patches(
    photo: RgbImage, placement: Placement, kept: npt.NDArray[np.bool_], strength: npt.NDArray[np.float32]
) -> RgbImage:
    """Draw the first view's patches on a photo.

    Args:
        photo: HWC uint8 RGB, the whole image at any scale.
        placement: the grid on the original image.
        kept: (rows, cols) of one view.
        strength: float32 (rows, cols), 0..1, how strongly a kept patch is tinted.

    Returns:
        HWC uint8 RGB of the photo's size.
    """
    height, width = photo.shape[:2]
    y_edges, x_edges = placement.edges(placement.views[0], (height, width))
    row, row_seen = _cell_of_pixels(y_edges, height)
    col, col_seen = _cell_of_pixels(x_edges, width)
    seen = row_seen[:, None] & col_seen[None]
    bright = kept[np.ix_(row, col)] & seen

    colours = photo.astype(np.float32)
    grey = (colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    share = (_LEAST_TINT + _MORE_TINT * strength[np.ix_(row, col)])[..., None]
    shaded = np.where(
        bright[..., None],
        colours + share * (np.array(KEPT_TINT, dtype=np.float32) - colours),
        _DIM * (0.8 * grey + 0.2 * colours),
    )
    hatch = (np.add.outer(np.arange(height), np.arange(width)) % _HATCH_PX < 2)[..., None]
    shaded = np.where(seen[..., None], shaded, _UNSEEN_DIM * grey + np.where(hatch, 70, 22))

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
    """Share of the image that lies outside the first view, 0..1."""
    seen = 1.0
    for edges, length in zip(placement.edges(placement.views[0]), placement.image_size, strict=True):
        seen *= max(min(edges[-1], length) - max(edges[0], 0), 0) / length
    return 1 - seen


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
