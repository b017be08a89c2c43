"""What becomes of masks before they label patches: cut off at their boxes, too small or too large ones left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from patchmint.geometry.rle import RleMasks, area, decode_mask, encode_masks
from patchmint.interfaces import Instances
from patchmint.types import Rle


@dataclass(frozen=True)
class MaskRules:
    """The settings `labels.mask_area` and `labels.clip_to_box`.

    Attributes:
        mask_area: shares of the image that a mask has at least, and at most; None = any.
        clip_to_box: whether masks end at their boxes.
    """

    mask_area: tuple[float, float] | None = None
    clip_to_box: bool = False

    def clip(self, found: Instances) -> Instances:
        """The instances, with masks that end at their boxes where the settings say so."""
        if not self.clip_to_box:
            return found
        masks = RleMasks([_clipped(*pair) for pair in zip(found.masks.rles(), found.boxes, strict=True)])
        return replace(found, masks=masks)

    def kept(self, found: Instances) -> npt.NDArray[np.bool_]:
        """Of which instances the mask is neither too small nor too large, bool (N,)."""
        if self.mask_area is None:
            return np.ones(len(found.boxes), bool)
        least, most = self.mask_area
        height, width = found.image_size
        shares = np.array([area(rle) / (height * width) for rle in found.masks.rles()])
        return (shares >= least) & (shares <= most)

    def apply(self, found: Instances) -> Instances:
        """The instances that are left, with their masks."""
        clipped = self.clip(found)
        return clipped.only(np.flatnonzero(self.kept(clipped)))


def _clipped(rle: Rle, box: npt.NDArray[np.float32]) -> Rle:
    """A mask without the pixels that lie outside of its box, XYXY, entirely."""
    mask = decode_mask(rle)
    (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = mask[top:bottom, left:right]
    return encode_masks(inside[None])[0]
