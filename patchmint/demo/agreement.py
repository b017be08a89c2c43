"""What figures are made of: how far one label, mask or picture agrees with the true one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from patchmint.geometry import Placement, RleMasks, coverage_to_uint8
from patchmint.geometry.masks import Masks
from patchmint.geometry.rle import decode_mask
from patchmint.labelers.patches import select_patches
from patchmint.types import RgbImage, Rle

Patches = npt.NDArray[np.bool_]

_LEAST_ERROR = 1e-6
# Keeps the PSNR of equal pictures finite.


def touched_patches(mask: Rle, placement: Placement) -> Patches:
    """Patches that a mask touches: bool `placement.shape`."""
    coverage = RleMasks([mask]).coverage([0], placement)
    return select_patches(coverage_to_uint8(coverage), 0.0) > 0


def f1_and_iou(labelled: Patches, true: Patches) -> tuple[float, float]:
    """F1 and IoU of two sets of patches, or pixels, of one shape; 1 where both are empty."""
    both, either = int((labelled & true).sum()), int((labelled | true).sum())
    if not either:
        return 1.0, 1.0
    return 2 * both / (either + both), both / either


def mask_ious(masks: Masks, truths: Iterable[Patches]) -> list[float]:
    """IoU of each mask with the true one (height, width) at its place."""
    return [f1_and_iou(decode_mask(found) > 0, true)[1] for found, true in zip(masks.rles(), truths, strict=True)]


def psnr(drawn: RgbImage, true: RgbImage) -> float:
    """Peak signal-to-noise ratio of a picture against the true one of the same shape, in dB; 108 if they are equal."""
    error = float(np.square(drawn - true.astype(np.float64)).mean())
    return float(10 * np.log10(255**2 / max(error, _LEAST_ERROR)))
