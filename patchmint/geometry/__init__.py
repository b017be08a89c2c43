"""Where patches lie in an image: grids, their placement, and how much of a cell a mask covers. No models, no torch."""

from patchmint.geometry.coverage import coverage_share, coverage_to_uint8
from patchmint.geometry.coverage_logits import coverage_from_logits
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.masks import RleMasks
from patchmint.geometry.placement import Placement
from patchmint.geometry.pooling import adaptive_bins, pool_coverage
from patchmint.geometry.presets import GRID_PRESETS, grid_preset
from patchmint.geometry.processing import fit_image

__all__ = [
    "GRID_PRESETS",
    "Fit",
    "PatchGrid",
    "Placement",
    "RleMasks",
    "adaptive_bins",
    "coverage_from_logits",
    "coverage_share",
    "coverage_to_uint8",
    "fit_image",
    "grid_preset",
    "pool_coverage",
]
