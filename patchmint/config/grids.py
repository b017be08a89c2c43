"""Settings of grids: a preset's name, a grid spelled out, or the consumer's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from patchmint.config.parsing import ONE_OR_TWO, Settings, parse_settings
from patchmint.errors import ConfigError
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.native import NativeGrid
from patchmint.geometry.presets import Grid, grid_preset, merged
from patchmint.geometry.processors import MODEL_KEYS, PROCESSOR_KEYS, grid_of_processor

_MAX_INPUT_PX = 16384
"""Side of an encoder's input, far beyond what encoders read."""

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
MAX_GRID_NAME = 18
"""Characters of a grid's name in the names of members, which must fit the 100 bytes of a USTAR header."""

_MOST_BYTES = 2**20
# Of a settings file; published ones have a few thousand.


class _GivenOnly(Settings):
    """Settings that are written without what isn't used, so that a config of an earlier version stays the same."""

    @model_serializer(mode="wrap")
    def _given(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value}


class GridConfig(_GivenOnly):
    """A patch grid spelled out."""

    rows: int = Field(ge=1, le=1024, description="Patch rows.")
    cols: int = Field(ge=1, le=1024, description="Patch columns.")
    patch_px: int = Field(ge=1, le=1024, description="Side of a patch in pixels of the encoder's input.")
    fit: Literal["pad", "crop", "squash", "anyres"] = Field(description="How an image becomes the encoder's input.")
    input_size: Annotated[tuple[int, int] | None, ONE_OR_TWO] = Field(
        default=None,
        description="Height and width of the encoder's input, or one number for both. Null: what the patches fill.",
    )
    short_edge: int = Field(
        default=0, ge=0, le=_MAX_INPUT_PX, description="crop: what the short edge is resized to. 0: the input's side."
    )
    canvases: tuple[tuple[int, int], ...] = Field(
        default=(), description="anyres: heights and widths to choose from, multiples of the input's."
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        height, width = self.input_size or (self.rows * self.patch_px, self.cols * self.patch_px)
        if max(height, width) > _MAX_INPUT_PX:
            raise ValueError(
                f"{self.rows} x {self.cols} patches of {self.patch_px} px are an input of {height} x {width} px; "
                f"{_MAX_INPUT_PX} px a side are the most"
            )
        return self


def _as_settings(value: Any) -> Any:
    """A path as the settings that it leads to, so that a config says everything wherever it is read."""
    if not isinstance(value, str):
        return value
    try:
        return read_processor(Path(value))
    except ConfigError as error:
        raise ValueError(str(error)) from error


class ConsumerGridConfig(_GivenOnly):
    """The grid of a consumer, by its preset or by its own files."""

    preset: str | None = Field(default=None, description="A preset's name.")
    processor: Annotated[
        dict[str, Any] | None, BeforeValidator(_as_settings, json_schema_input_type=str | dict[str, Any] | None)
    ] = Field(
        default=None,
        description="The consumer's folder, or its preprocessor_config.json, with config.json beside it; or the "
        "settings themselves.",
    )
    merge: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="A cell is so many patches a side. 1: the encoder's patches. Null: what becomes one token.",
    )
    min_pixels: int | None = Field(default=None, ge=0, description="Fewest pixels of the input, as in Qwen-VL.")
    max_pixels: int | None = Field(default=None, ge=1, description="Most pixels of the input, as in Qwen-VL.")

    @model_validator(mode="after")
    def _one_consumer(self) -> Self:
        if (self.preset is None) == (self.processor is None):
            raise ValueError("give a preset or a processor, and not both")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "str"
    if isinstance(value, ConsumerGridConfig):
        return "ConsumerGridConfig"
    of_consumer = isinstance(value, Mapping) and not value.keys().isdisjoint(ConsumerGridConfig.model_fields)
    return "ConsumerGridConfig" if of_consumer else "GridConfig"


AnyGridConfig = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[GridConfig, Tag("GridConfig")]
    | Annotated[ConsumerGridConfig, Tag("ConsumerGridConfig")],
    Discriminator(_kind),
]
"""What the setting `grid` may be."""


def resolve_grid(grid: str | GridConfig | ConsumerGridConfig) -> Grid:
    """The grid that a config names or spells out; a parsed config has one.

    Raises:
        ConfigError: there is no such preset or known processor, or the numbers make no grid.
    """
    match grid:
        case str():
            return grid_preset(grid)
        case GridConfig():
            return PatchGrid(
                grid.rows,
                grid.cols,
                grid.patch_px,
                Fit(grid.fit),
                grid.input_size or (0, 0),
                grid.canvases,
                grid.short_edge,
            )
    found = grid_preset(grid.preset) if grid.preset is not None else grid_of_processor(grid.processor or {})
    pixels = {
        name: value for name, value in (("least", grid.min_pixels), ("most", grid.max_pixels)) if value is not None
    }
    if pixels:
        if not isinstance(found, NativeGrid) or not found.resize.by_area:
            raise ConfigError("min_pixels and max_pixels are for consumers that resize images as Qwen-VL does")
        found = found.limited(**pixels)
    return found if grid.merge is None else merged(found, grid.merge)


def named_grids(grids: Sequence[str | GridConfig | ConsumerGridConfig]) -> dict[str, Grid]:
    """The grids of a config by the names that their members have in shards (`KEY.selector.NAME.npy`), in order.

    Returns:
        By name, `[a-z0-9-]+` of at most 18 characters: a preset's without dots ("llava-1-5-finetune"), "squash-48x48"
        of a grid spelled out, the class of a processor ("qwen2vl"); of equal names the second ends with "-2".

    Raises:
        ConfigError: as for `resolve_grid`.
    """
    named: dict[str, Grid] = {}
    for grid in grids:
        match grid:
            case str():
                told = grid
            case GridConfig():
                told = f"{grid.fit}-{grid.rows}x{grid.cols}"
            case _:
                told = grid.preset or str((grid.processor or {}).get("image_processor_type", "")).split("ImageProc")[0]
        name = plain = re.sub(r"[^a-z0-9]+", "-", told.lower())[:MAX_GRID_NAME].strip("-") or "grid"
        again = 1
        while name in named:
            again += 1
            name = f"{plain[: MAX_GRID_NAME - 3]}-{again}"
        named[name] = resolve_grid(grid)
    return named


def stored_grid(grid: Any) -> str | GridConfig | ConsumerGridConfig:
    """The setting as a data set's manifest holds it.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(grid, str):
        return grid
    if _kind(grid) == "ConsumerGridConfig":
        return parse_settings(ConsumerGridConfig, grid)
    return parse_settings(GridConfig, grid)


def stored_grids(config: Mapping[str, Any]) -> dict[str, Grid]:
    """The grids of settings as a manifest holds them, by name, the first first.

    Raises:
        ConfigError: as for `stored_grid` and `resolve_grid`.
    """
    return named_grids([stored_grid(grid) for grid in config.get("grids") or (config.get("grid"),)])


def read_processor(path: Path) -> dict[str, Any]:
    """What grids need of a consumer's files: `image_processor_type`, its settings, and under `model` the model's.

    Args:
        path: a folder, or a `preprocessor_config.json` or `processor_config.json` in one.

    Raises:
        ConfigError: there is no such file, or it isn't JSON of that kind.
    """
    folder = path if path.is_dir() else path.parent
    file = (
        next((folder / name for name in _PROCESSOR_FILES if (folder / name).is_file()), path) if path.is_dir() else path
    )
    processor = _read_json(file)
    processor = processor.get("image_processor", processor)  # where transformers 5 keeps it
    settings = {key: processor[key] for key in PROCESSOR_KEYS if processor.get(key) is not None}
    if (folder / "config.json").is_file():
        config = _read_json(folder / "config.json")
        vision = config.get("vision_config") or {}
        settings["model"] = {
            key: value
            for part in (vision, config)
            for key, value in part.items()
            if key in MODEL_KEYS and value is not None
        }
    return settings


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{file} is no settings file: it has more than {_MOST_BYTES} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {file}; give a folder with a {_PROCESSOR_FILES[0]}, or the file itself"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} can't be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} must hold a JSON object, not a {type(found).__name__}")
    return found
