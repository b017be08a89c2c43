"""What SAM's decoder said of one picture's boxes: masks that need not be made to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.coverage_logits import coverage_from_logits
from patchmint.geometry.placement import Floats, Placement
from patchmint.geometry.rle import encode_masks
from patchmint.labelers.sam.frames import input_size
from patchmint.types import Rle, Size

MaskCoverage = Literal["exact", "fast"]

_PIXELS_AT_ONCE = 2**24
# Mask pixels scaled up together: 64 MiB of float32, so that memory stays level on large pictures.


@dataclass(frozen=True, eq=False)
class SamMasks:
    """A `Masks` of low-res logits.

    Attributes:
        logits: float32 (N, n, n), over the model's whole square input; positive = mask (upstream's threshold is 0).
        size: (height, width) of the picture.
        image_size: side of the model's input in pixels.
        mode: how coverage is taken, both times without masks at the picture's size. "exact" = the same number as from
            upstream's mask. "fast" = each logit counts as the pixels it stands for; a cell that an outline only grazes
            may flip (docs/quality.md).
    """

    logits: npt.NDArray[np.float32]
    size: Size
    image_size: int
    mode: MaskCoverage

    def __len__(self) -> int:
        return len(self.logits)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `patchmint.types.Masks`."""
        if len(members) == 0:
            return np.zeros(placement.shape)
        logits = self.logits[np.asarray(members)]
        used = input_size(self.size, self.image_size)
        if self.mode == "exact":
            return coverage_from_logits(logits, placement, input_side=self.image_size, used=used)
        scale = logits.shape[-1] / self.image_size
        return coverage_share(logits.max(axis=0) > 0, placement, extent=(used[0] * scale, used[1] * scale))

    def rles(self) -> tuple[Rle, ...]:
        """All masks at the picture's size, pixel by pixel upstream's. Made chunk by chunk, so memory stays level."""
        if not len(self):
            return ()
        at_once = max(1, _PIXELS_AT_ONCE // max(self.size[0] * self.size[1], self.image_size**2))
        rles: list[Rle] = []
        for part in torch.split(torch.from_numpy(self.logits), at_once):
            # Column-major, as COCO RLE runs: the encoder then needs no copy.
            turned = self._filled(part).transpose(1, 2).contiguous().numpy()
            rles.extend(encode_masks(turned.transpose(0, 2, 1)))
        return tuple(rles)

    @torch.inference_mode()
    def _filled(self, logits: Tensor) -> Tensor:
        """Masks (M, height, width) of logits (M, n, n), scaled as upstream does (`sam.py`, `postprocess_masks`)."""
        used = input_size(self.size, self.image_size)
        square = functional.interpolate(
            logits[:, None], (self.image_size, self.image_size), mode="bilinear", align_corners=False
        )
        picture = functional.interpolate(
            square[..., : used[0], : used[1]], self.size, mode="bilinear", align_corners=False
        )
        return picture[:, 0] > 0
