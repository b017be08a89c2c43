"""Named patch grids of published encoders."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from patchmint.errors import ConfigError, did_you_mean
from patchmint.geometry.grid import Fit, PatchGrid

GRID_PRESETS: Mapping[str, PatchGrid] = MappingProxyType(
    {
        # LLaVA 1.5: CLIP ViT-L/14 at 336 px. Pre-training sets no aspect ratio (= CLIP's own crop), fine-tuning pads.
        "llava-1.5-pretrain": PatchGrid(24, 24, 14, Fit.CROP),
        "llava-1.5-finetune": PatchGrid(24, 24, 14, Fit.PAD),
        # LLaVA-NeXT: the grid pinpoints of llava-v1.6, there (width, height), here (height, width).
        "llava-1.6": PatchGrid(
            24,
            24,
            14,
            Fit.ANYRES,
            canvases=((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336)),
        ),
        "siglip-so400m-384": PatchGrid(27, 27, 14, Fit.SQUASH, input_size=(384, 384)),
        "seed-224": PatchGrid(16, 16, 14, Fit.SQUASH),
    }
)


def grid_preset(name: str) -> PatchGrid:
    """Look a grid up by name.

    Raises:
        ConfigError: there is no such preset; the message names the nearest one.
    """
    grid = GRID_PRESETS.get(name)
    if grid is None:
        raise ConfigError(
            f"there is no grid preset {name!r}{did_you_mean(name, GRID_PRESETS)} (presets: {', '.join(GRID_PRESETS)}); "
            "a grid spelled out has rows, cols, patch_px and fit"
        )
    return grid
