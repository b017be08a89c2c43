"""Where patches lie in an image: grids, their placement, and how much of a cell a mask covers. No models, no torch."""

from patchmint.geometry.coverage import adaptive_bins, coverage_share, coverage_to_uint8, pool_coverage
from patchmint.geometry.coverage_logits import coverage_from_logits
from patchmint.geometry.grid import GRID_PRESETS, Fit, PatchGrid, grid_preset
from patchmint.geometry.placement import Placement
from patchmint.geometry.processing import fit_image
from patchmint.geometry.rle import RleMasks

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
