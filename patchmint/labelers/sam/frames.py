"""From picture pixels to SAM's square input and back: pure functions, no model.

Three frames: the picture; the *input*, the picture scaled so that its longest side is the model's `image_size`, set in
the top left corner of a square and padded; and the *low-res logits* that the decoder gives, which cover the whole
square, padding included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from patchmint.types import RgbImage, Size

FAST_LONG_SIDE = 512
"""Longest side of masks in the fast mode: twice the resolution of the official models' logits."""


def input_size(size: Size, image_size: int) -> Size:
    """(height, width) of a picture of `size` in the input.

    As upstream's `ResizeLongestSide.get_preprocess_shape`, but a side that would round to 0 becomes 1, so that pictures
    over 2 * `image_size` : 1 work (upstream fails on them).
    """
    scale = image_size * 1.0 / max(size)
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def resize_longest_side(image: RgbImage, image_size: int) -> RgbImage:
    """Scale a picture to its size in the input, with PIL's bilinear filter, which widens when it shrinks.

    The same pixels as upstream's `ResizeLongestSide.apply_image`, which gets there through torchvision.
    """
    height, width = input_size((image.shape[0], image.shape[1]), image_size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def scale_boxes(boxes: npt.NDArray[np.float32], size: Size, target: Size) -> npt.NDArray[np.float32]:
    """Carry boxes (N, 4), XYXY, from a picture of `size` to its `target` size in the input, each axis by itself.

    In float64 and then rounded, as upstream's `SamPredictor.predict`.
    """
    across, down = target[1] / size[1], target[0] / size[0]
    return (boxes.astype(np.float64) * (across, down, across, down)).astype(np.float32)


def fast_mask_size(size: Size) -> Size:
    """(height, width) of masks in the fast mode: `FAST_LONG_SIDE` at most, never larger than the picture."""
    scale = min(1.0, FAST_LONG_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resample_low_res(logits: Tensor, valid: Size, image_size: int, mask_size: Size) -> Tensor:
    """Read low-res logits straight into a mask frame that covers the picture's whole extent.

    The picture takes up `valid` of `image_size` input pixels, which is a fraction of low-res cells, so cells can't
    simply be cut off: each mask pixel's centre is placed in the square, and the logits read there bilinearly.

    Args:
        logits: float (N, 1, h, w), over the whole square input.
        valid: (height, width) of the picture in the input.
        image_size: side of the square input.
        mask_size: (height, width) to produce.

    Returns:
        float (N, 1, *mask_size).
    """
    rows, columns = (
        # Not past the centre of the picture's outermost input pixels: upstream crops there before it scales again.
        ((torch.arange(count, device=logits.device) + 0.5) / count * side).clamp(0.5, side - 0.5) / image_size * 2 - 1
        for count, side in zip(mask_size, valid, strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return functional.grid_sample(
        logits,
        grid.to(logits.dtype).expand(len(logits), -1, -1, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
