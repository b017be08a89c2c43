"""The patch grid that settings mean."""

from __future__ import annotations

from patchmint.config.annotator import GridConfig
from patchmint.geometry import PatchGrid, grid_preset
from patchmint.geometry.grid import Fit


def resolve_grid(grid: str | GridConfig) -> PatchGrid:
    """The patch grid that a config names or spells out.

    Raises:
        ConfigError: there is no such preset.
    """
    if isinstance(grid, str):
        return grid_preset(grid)
    return PatchGrid(grid.rows, grid.cols, grid.patch_px, Fit(grid.fit))
