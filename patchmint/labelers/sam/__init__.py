"""SAM (segment-anything): boxes to masks, with upstream's network and an inference of our own around it."""

from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.sam.masks import MaskCoverage, SamMasks
from patchmint.labelers.sam.model import OFFICIAL, TINY, SamArch, build_sam, infer_arch, load_sam, untrained

__all__ = [
    "OFFICIAL",
    "TINY",
    "MaskCoverage",
    "SamArch",
    "SamMasker",
    "SamMasks",
    "build_sam",
    "infer_arch",
    "load_sam",
    "untrained",
]
