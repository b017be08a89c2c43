"""Where cells lie in an image: grids, their placement, and how much of a cell a mask covers. No models, no torch."""

from patchmint.geometry.coverage import adaptive_bins, coverage_share, coverage_to_uint8, pool_coverage
from patchmint.geometry.coverage_logits import coverage_from_logits
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.native import NativeGrid, Resize
from patchmint.geometry.placement import Placement
from patchmint.geometry.presets import GRID_PRESETS, Grid, grid_preset
from patchmint.geometry.processing import fit_image
from patchmint.geometry.processors import grid_of_processor
from patchmint.geometry.rle import RleMasks
from patchmint.geometry.tiles import OverlapGrid, TileGrid

__all__ = [
    "GRID_PRESETS",
    "Fit",
    "Grid",
    "NativeGrid",
    "OverlapGrid",
    "PatchGrid",
    "Placement",
    "Resize",
    "RleMasks",
    "TileGrid",
    "adaptive_bins",
    "coverage_from_logits",
    "coverage_share",
    "coverage_to_uint8",
    "fit_image",
    "grid_of_processor",
    "grid_preset",
    "pool_coverage",
]
