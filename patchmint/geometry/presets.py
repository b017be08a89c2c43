"""Grids of published consumers, named after the model and, where two programs read it differently, after the reading.

Numbers are those of the published `preprocessor_config.json` and `config.json`; docs/grids.md has the table, and says
which of them could be compared with a published file. `benchmarks/consumers.py` compares what follows from them with
the processors and the models of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeGuard, cast

from patchmint.errors import ConfigError, did_you_mean
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.native import NativeGrid, Resize
from patchmint.geometry.tiles import (
    BestFit,
    LeastScaling,
    LongestEdge,
    MostCovered,
    NearestAspect,
    OverlapGrid,
    PanAndScan,
    TileGrid,
)

Grid = PatchGrid | TileGrid | OverlapGrid | NativeGrid
"""What lays cells on an image: `place(image_size)` gives a `Placement`."""

GRID_PRESETS: Mapping[str, Grid] = MappingProxyType(
    {
        # LLaVA 1.5: CLIP ViT-L/14 at 336 px. Pre-training sets no aspect ratio (= CLIP's own crop), fine-tuning pads;
        # Hugging Face's processor crops.
        "llava-1.5-pretrain": PatchGrid(24, 24, 14, Fit.CROP),
        "llava-1.5-finetune": PatchGrid(24, 24, 14, Fit.PAD),
        "llava-1.5-hf": PatchGrid(24, 24, 14, Fit.CROP),
        # LLaVA-NeXT: grid pinpoints are (width, height) in LLaVA's code and (height, width) in Hugging Face's, so
        # another canvas comes first on ties, which are the images within 336 x 336.
        "llava-1.6-original": PatchGrid(
            24, 24, 14, Fit.ANYRES, canvases=((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))
        ),
        "llava-next-hf": PatchGrid(
            24,
            24,
            14,
            Fit.ANYRES,
            canvases=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
            reading="hf",
        ),
        "llava-onevision-hf": PatchGrid(
            27,
            27,
            14,
            Fit.ANYRES,
            input_size=(384, 384),
            canvases=tuple((384 * rows, 384 * cols) for rows in range(1, 7) for cols in range(1, 7)),
            max_tiles=9,
            reading="hf",
        ),
        "siglip-so400m-384": PatchGrid(27, 27, 14, Fit.SQUASH, input_size=(384, 384)),
        "siglip2-so400m-512": PatchGrid(32, 32, 16, Fit.SQUASH),
        "siglip2-naflex": NativeGrid(16, 1, 16, Resize.PATCHES, 0, 256),
        "seed-224": PatchGrid(16, 16, 14, Fit.SQUASH),
        "dinov2-224": PatchGrid(16, 16, 14, Fit.CROP, short_edge=256),
        "dinov3-224": PatchGrid(14, 14, 16, Fit.SQUASH),
        "gemma3": PatchGrid(16, 16, 56, Fit.SQUASH),
        "gemma3-pan-and-scan": TileGrid(896, 14, 4, PanAndScan(256, 4, 1.2), "first"),
        "internvl3": TileGrid(448, 14, 2, NearestAspect(1, 12), "last"),
        "command-a-vision": TileGrid(512, 16, 2, LeastScaling(12), "last"),
        "ovis2-hf": TileGrid(448, 14, 2, MostCovered(12), "first"),
        "idefics3": TileGrid(364, 14, 2, LongestEdge(1456), "last"),
        "smolvlm": TileGrid(384, 14, 3, LongestEdge(1536), "last"),
        "smolvlm2": TileGrid(512, 16, 4, LongestEdge(2048), "last"),
        "llama4": TileGrid(336, 14, 2, BestFit(16), "last"),
        "molmo2": OverlapGrid(378, 14, 2, 8, 8),
        "qwen2-vl": NativeGrid(14, 2, 28, Resize.SMART, 3136, 12845056),
        "qwen2.5-vl": NativeGrid(14, 2, 28, Resize.SMART, 3136, 12845056),
        "qwen3-vl": NativeGrid(16, 2, 32, Resize.SMART, 65536, 16777216),
        "glm-4.1v": NativeGrid(14, 2, 28, Resize.FRAMES, 12544, 9633792),
        "glm-4.6v": NativeGrid(14, 2, 28, Resize.FRAMES, 12544, 9633792),
        "ernie-4.5-vl": NativeGrid(14, 2, 28, Resize.SMART, 3136, 4842768),
        "video-llama3": NativeGrid(14, 1, 14, Resize.SMART, 3136, 1003520),
        "paddleocr-vl": NativeGrid(14, 2, 28, Resize.GROWN, 147384, 2822400),
        "pixtral": NativeGrid(16, 1, 16, Resize.EDGE, 0, 1024),
        "mistral3": NativeGrid(14, 2, 28, Resize.EDGE, 0, 1540),
    }
)

_FORMER = {"llava-1.6": "llava-1.6-original"}
# Data sets of earlier versions name it.


def grid_preset(name: str) -> Grid:
    """Look a grid up by name.

    Raises:
        ConfigError: there is no such preset; the message names those that are near.
    """
    grid = GRID_PRESETS.get(_FORMER.get(name, name))
    if grid is None:
        raise ConfigError(
            f"there is no grid preset {name!r}{did_you_mean(name, GRID_PRESETS, most=3)} "
            f"(presets: {', '.join(GRID_PRESETS)}); "
            "a grid spelled out has rows, cols, patch_px and fit, or a processor"
        )
    return grid


def merged(grid: Grid, merge: int) -> Grid:
    """The grid with cells of `merge` x `merge` patches; 1 = the encoder's patches. The input stays the same.

    Raises:
        ConfigError: the grid's patches aren't merged, or so many can't be.
    """
    if isinstance(grid, PatchGrid):
        raise ConfigError("merge: the patches of this grid aren't merged; spell out the grid you want")
    return replace(grid, merge=merge)


def fixed_presets() -> dict[str, PatchGrid]:
    """The presets with the same rows and columns in every view of every image."""
    return {name: grid for name, grid in GRID_PRESETS.items() if has_fixed_cells(grid)}


def is_one_input(grid: Grid) -> TypeGuard[PatchGrid]:
    """Whether every image becomes one input of the same size."""
    return isinstance(grid, PatchGrid) and grid.fit is not Fit.ANYRES


def grid_settings(grid: Grid) -> dict[str, Any]:
    """A grid's kind and numbers as plain values of JSON: what `grid_of_settings` reads."""
    return cast(dict[str, Any], _plain(grid))


def grid_of_settings(settings: Mapping[str, Any]) -> Grid:
    """The grid that `grid_settings` described.

    Raises:
        ConfigError: they describe none.
    """
    try:
        grid = _built(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"these settings describe no grid: {error!r}") from error
    if not isinstance(grid, PatchGrid | TileGrid | OverlapGrid | NativeGrid):
        raise ConfigError(f"these settings describe no grid, but a {type(grid).__name__}")
    return grid


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **own}
    if isinstance(value, StrEnum):
        return value.value
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _KINDS[value["kind"]](**{name: _built(each) for name, each in value.items() if name != "kind"})
    return tuple(map(_built, value)) if isinstance(value, list) else value


_KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        PatchGrid,
        TileGrid,
        OverlapGrid,
        NativeGrid,
        NearestAspect,
        MostCovered,
        LeastScaling,
        LongestEdge,
        BestFit,
        PanAndScan,
    )
}


def has_fixed_cells(grid: Grid) -> TypeGuard[PatchGrid]:
    """Whether every view of every image has the same rows and columns."""
    return isinstance(grid, PatchGrid) and not grid.max_tiles
