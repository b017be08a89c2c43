"""The pixels that an encoder sees: an image fitted to a grid, as the published processors do it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.native import NativeGrid
from patchmint.types import RgbImage, Size

PAD_COLOUR = (122, 116, 104)
"""LLaVA's fill for `pad`: CLIP's mean colour, cut to integers (its `mm_utils.py`, `process_images`)."""

_BICUBIC = Image.Resampling.BICUBIC
# The filter with which CLIP, SigLIP, LLaVA, SEED and Qwen-VL resize.

_FILTER_REACH = 3
# How far a result pixel looks, in result pixels: bicubic has a support of 2, and 1 more for rounding.

_MAX_INTERMEDIATE_PX = 2**26
# Padding or resizing as published makes an image in between: of a 20:1 panorama one with 20 times the pixels. Beyond
# this many it is made in part only. The result is the same to within 1 level, but for tall images that are padded:
# there the two passes change places, and Pillow cuts overshoot off between them (up to 6 levels in 1 % of the values).


def fit_image(image: RgbImage, grid: PatchGrid | NativeGrid, resample: Image.Resampling = _BICUBIC) -> list[RgbImage]:
    """Fit an image to a grid's input.

    Args:
        image: HWC uint8 RGB, any size.
        grid: the grid; its `fit` says how.
        resample: the filter that resizes.

    Returns:
        HWC uint8 RGB arrays of `grid.input_size`, one a view: one, or for `anyres` 1 + tiles (LLaVA `mm_utils.py`,
        `process_images`; transformers' CLIP, SigLIP and Qwen-VL processors).

    Raises:
        InputError: the image is too long and narrow for the grid's consumer.
    """
    source = Image.fromarray(image)
    size = (image.shape[0], image.shape[1])
    if isinstance(grid, NativeGrid):
        return [np.asarray(_resize(source, grid.input_size(size), resample))]
    match grid.fit:
        case Fit.PAD:
            lean = max(size) ** 2 > _MAX_INTERMEDIATE_PX
            fitted = [(_padded_lean if lean else _padded)(source, grid.input_size, resample)]
        case Fit.CROP:
            resized = grid.crop_resize(size)
            top, left = ((new - target) // 2 for new, target in zip(resized, grid.input_size, strict=True))
            if resized[0] * resized[1] > _MAX_INTERMEDIATE_PX:
                fitted = [_resized_window(source, resized, (top, left), grid.input_size, resample)]
            else:
                fitted = [_window(_resize(source, resized, resample), top, left, grid.input_size)]
        case Fit.SQUASH:
            fitted = [_resize(source, grid.input_size, resample)]
        case Fit.ANYRES:
            canvas, resized = grid.anyres_canvas(size)
            board = Image.new("RGB", (canvas[1], canvas[0]))
            board.paste(
                _resize(source, resized, resample), ((canvas[1] - resized[1]) // 2, (canvas[0] - resized[0]) // 2)
            )
            fitted = [_resize(source, grid.input_size, resample)]
            fitted += [
                _window(board, top, left, grid.input_size)
                for top in range(0, canvas[0], grid.input_size[0])
                for left in range(0, canvas[1], grid.input_size[1])
            ]
    return [np.asarray(picture) for picture in fitted]


def _resize(
    image: Image.Image,
    size: Size,
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    return image.resize((size[1], size[0]), resample, box)


def _window(image: Image.Image, top: int, left: int, size: Size) -> Image.Image:
    return image.crop((left, top, left + size[1], top + size[0]))


def _padded(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    side = max(image.size)
    board = Image.new("RGB", (side, side), PAD_COLOUR)
    board.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _resize(board, size, resample)


def _resized_window(
    image: Image.Image, resized: Size, start: Size, window: Size, resample: Image.Resampling
) -> Image.Image:
    """Resize, but only the window that is kept: a 1 x 2000 image would be 336 x 672,000."""
    top, bottom = start[0] * image.height / resized[0], (start[0] + window[0]) * image.height / resized[0]
    left, right = start[1] * image.width / resized[1], (start[1] + window[1]) * image.width / resized[1]
    first_y, last_y = _seen(top, bottom, image.height / resized[0], image.height)
    first_x, last_x = _seen(left, right, image.width / resized[1], image.width)
    # Cut before resizing: Pillow keeps a box as 32-bit floats, off by 4 levels at pixel 500,000 of a long image.
    near = image.crop((first_x, first_y, last_x, last_y))
    box = (left - first_x, top - first_y, min(right - first_x, near.width), min(bottom - first_y, near.height))
    return _resize(near, window, resample, box)


def _padded_lean(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """Pad to a square and resize, without the square: the long axis first, then a strip around the image."""
    if image.height > image.width:
        turned = _padded_lean(image.transpose(Image.Transpose.TRANSPOSE), (size[1], size[0]), resample)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    height, width = size
    side, before = image.width, (image.width - image.height) // 2
    scale = side / height
    # Result rows that the filter can reach the image from; all others are plain fill.
    reach = _FILTER_REACH * max(scale, 1)
    first = max(math.floor((before - reach) / scale), 0)
    last = min(math.ceil((before + image.height + reach) / scale), height)
    start, end = _seen(first * scale, last * scale, scale, side)
    strip = Image.new("RGB", (width, end - start), PAD_COLOUR)
    strip.paste(_resize(image, (image.height, width), resample), (0, before - start))
    box = (0, first * scale - start, width, min(last * scale, side) - start)
    result = Image.new("RGB", (width, height), PAD_COLOUR)
    result.paste(_resize(strip, (last - first, width), resample, box), (0, first))
    return result


def _seen(start: float, end: float, scale: float, length: int) -> tuple[int, int]:
    """Whole pixels of an axis that the filter looks at to resize `[start, end)` by 1 / scale."""
    reach = _FILTER_REACH * max(scale, 1)
    return max(math.floor(start - reach), 0), min(math.ceil(end + reach), length)
