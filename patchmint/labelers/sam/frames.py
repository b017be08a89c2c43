"""From picture pixels to SAM's square input and back: pure functions, no model.

Three frames: the picture; the *input*, the picture scaled so that its longest side is the model's `image_size`, set in
the top left corner of a square and padded; and the *low-res logits* that the decoder gives, which cover the whole
square, padding included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchmint.types import RgbImage, Size


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
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def scale_boxes(boxes: npt.NDArray[np.float32], size: Size, target: Size) -> npt.NDArray[np.float32]:
    """Carry boxes (N, 4), XYXY, from a picture of `size` to its `target` size in the input, each axis by itself.

    In float64 and then rounded, as upstream's `SamPredictor.predict`.
    """
    across, down = target[1] / size[1], target[0] / size[0]
    return (boxes.astype(np.float64) * (across, down, across, down)).astype(np.float32)
