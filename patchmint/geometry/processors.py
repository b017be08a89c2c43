"""A consumer's grid from what it publishes: the settings of its image processor, and its model's where they matter.

Defaults are those of the classes in transformers 5.23, for settings that a file leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from patchmint.errors import ConfigError, did_you_mean
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.native import NativeGrid, Resize
from patchmint.geometry.presets import Grid
from patchmint.geometry.tiles import (
    BestFit,
    LeastScaling,
    LongestEdge,
    MostCovered,
    NearestAspect,
    OverlapGrid,
    PanAndScan,
    TileGrid,
    TileRule,
)

Settings = Mapping[str, Any]

PROCESSOR_KEYS = (
    *("image_processor_type", "feature_extractor_type", "size", "crop_size", "do_center_crop", "do_pad", "patch_size"),
    *("image_grid_pinpoints", "min_patches", "max_patches", "crop_to_patches", "use_covering_area_grid"),
    *("max_image_size", "do_image_splitting", "resize_to_max_canvas", "do_pan_and_scan", "pan_and_scan_min_crop_size"),
    *("pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate", "pooling_size", "max_crops"),
    *("overlap_margins", "merge_size", "min_pixels", "max_pixels", "max_num_patches"),
)
"""What grids need of a processor's file."""

MODEL_KEYS = (
    *("model_type", "patch_size", "downsample_ratio", "downsample_factor", "scale_factor", "pixel_shuffle_ratio"),
    *("mm_tokens_per_image", "hidden_stride", "spatial_merge_size", "vision_aspect_ratio"),
)
"""What grids need of a model's `config.json`, at its top or in its `vision_config`."""


_MOST = 2**28
# Pixels of an input, far more than encoders read.


class _Settings:
    """Settings by name, that must be whole numbers of at least 1 or be left out."""

    def __init__(self, processor: Settings, model: Settings) -> None:
        self._processor, self._model = processor, model

    def number(self, *names: str) -> int:
        """The processor's number of one of these names."""
        return _whole(self.get(*names), names[0], "preprocessor_config.json")

    def get(self, *names: str) -> Any:
        """The processor's setting of the first of these names that it has; None = none."""
        return next((self._processor[name] for name in names if self._processor.get(name) is not None), None)

    def model(self, *names: str) -> Any:
        """The model's setting of the first of these names that it has; None = none."""
        return next((self._model[name] for name in names if self._model.get(name) is not None), None)

    def edge(self, name: str, *sides: str) -> int:
        """A size's only number, or that of its key `sides`; a square's side where it has height and width."""
        size = self.get(name)
        if isinstance(size, Mapping):
            if size.get("height") is not None and size.get("height") != size.get("width"):
                raise ConfigError(f"{name} {dict(size)}: inputs that aren't square have no known grid")
            size = next((size[side] for side in (*sides, "height") if size.get(side) is not None), None)
        return _whole(size, name, "preprocessor_config.json")

    @property
    def patch_px(self) -> int:
        """Side of the encoder's patch; processors that know it say so."""
        size = self.get("patch_size")
        size = size["height"] if isinstance(size, Mapping) else size
        return _whole(size or self.model("patch_size"), "patch_size", "config.json")

    def inverse(self, *names: str) -> int:
        """How many patches along a side become one token, by the model's factor or its share."""
        value = self.model(*names)
        return _whole(
            round(1 / value) if isinstance(value, float) and 0 < value < 1 else value, names[0], "config.json"
        )


def _whole(value: Any, name: str, file: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not 1 <= value <= _MOST:
        found = "isn't given" if value is None else f"is {value!r}, not a whole number from 1 to {_MOST}"
        raise ConfigError(f"{name} {found}; it belongs in the consumer's {file}")
    return int(value)


def _fixed(of: _Settings) -> Grid:
    crop = bool(of.get("do_center_crop"))
    side = of.edge("crop_size" if crop else "size", "shortest_edge")
    rows, input_size = side // of.patch_px, (side, side)
    if of.get("do_pad"):
        return PatchGrid(rows, rows, of.patch_px, Fit.PAD, input_size)
    if not crop:
        return PatchGrid(rows, rows, of.patch_px, Fit.SQUASH, input_size)
    edge = of.edge("size", "shortest_edge")
    return PatchGrid(rows, rows, of.patch_px, Fit.CROP, input_size, short_edge=0 if edge == side else edge)


def _anyres(of: _Settings) -> Grid:
    side = of.edge("crop_size" if of.get("crop_size") else "size", "shortest_edge")
    rows = side // of.patch_px
    most = str(of.model("vision_aspect_ratio") or of.get("vision_aspect_ratio") or "").removeprefix("anyres_max_")
    return PatchGrid(
        rows,
        rows,
        of.patch_px,
        Fit.ANYRES,
        (side, side),
        canvases=tuple((int(height), int(width)) for height, width in of.get("image_grid_pinpoints")),
        max_tiles=int(most) if most.isdecimal() else 0,
        reading="hf",
    )


def _onevision(of: _Settings) -> Grid:
    if of.model("vision_aspect_ratio") is None:
        raise ConfigError("vision_aspect_ratio isn't given; it belongs in the consumer's config.json")
    return _anyres(of)


def _got(of: _Settings) -> Grid:
    if of.model("model_type") not in ("internvl", "aya_vision"):
        raise ConfigError(
            "GotOcr2ImageProcessor: how its pixels become tokens is known of InternVL and Aya Vision; the consumer's "
            "config.json must say which it is (model_type)"
        )
    # InternVL's and Aya Vision's processors cut, whatever the file says.
    rule = NearestAspect(of.number("min_patches"), of.number("max_patches"))
    return TileGrid(of.edge("size"), of.patch_px, of.inverse("downsample_ratio", "downsample_factor"), rule, "last")


def _ovis(of: _Settings) -> Grid:
    covering = of.get("use_covering_area_grid")
    most = of.number("max_patches")
    rule: TileRule = MostCovered(most) if covering else NearestAspect(of.number("min_patches"), most)
    if not of.get("crop_to_patches"):
        rule = NearestAspect(1, 1)
    return TileGrid(of.edge("size"), of.patch_px, of.inverse("hidden_stride"), rule, "first")


def _cohere(of: _Settings) -> Grid:
    rule: TileRule = LeastScaling(of.number("max_patches")) if of.get("crop_to_patches") else NearestAspect(1, 1)
    return TileGrid(of.edge("size"), of.patch_px, of.inverse("downsample_factor"), rule, "last")


def _idefics(of: _Settings) -> Grid:
    split = of.get("do_image_splitting")
    rule: TileRule = LongestEdge(of.edge("size", "longest_edge")) if split else NearestAspect(1, 1)
    return TileGrid(of.edge("max_image_size", "longest_edge"), of.patch_px, of.inverse("scale_factor"), rule, "last")


def _llama4(of: _Settings) -> Grid:
    rule = BestFit(of.number("max_patches"), bool(of.get("resize_to_max_canvas")))
    return TileGrid(of.edge("size"), of.patch_px, of.inverse("pixel_shuffle_ratio"), rule, "last")


def _gemma(of: _Settings) -> Grid:
    side, tokens = of.edge("size"), _whole(of.model("mm_tokens_per_image"), "mm_tokens_per_image", "config.json")
    merge = side // of.patch_px // math.isqrt(tokens)
    if not of.get("do_pan_and_scan"):
        rows = math.isqrt(tokens)
        return PatchGrid(rows, rows, merge * of.patch_px, Fit.SQUASH, (side, side))
    rule = PanAndScan(
        of.number("pan_and_scan_min_crop_size"),
        of.number("pan_and_scan_max_num_crops"),
        float(of.get("pan_and_scan_min_ratio_to_activate")),
    )
    return TileGrid(side, of.patch_px, merge, rule, "first")


def _molmo(of: _Settings) -> Grid:
    pooling = of.get("pooling_size")
    if len(set(pooling)) != 1:
        raise ConfigError(f"pooling_size {pooling}: tokens of patches that aren't square blocks have no known grid")
    return OverlapGrid(
        of.edge("size"), of.patch_px, int(pooling[0]), of.number("max_crops"), sum(map(int, of.get("overlap_margins")))
    )


def _smart(resize: Resize) -> Callable[[_Settings], Grid]:
    def read(of: _Settings) -> Grid:
        merge = of.number("merge_size")
        least = of.number("min_pixels") if of.get("min_pixels") else of.edge("size", "shortest_edge")
        most = of.number("max_pixels") if of.get("max_pixels") else of.edge("size", "longest_edge")
        return NativeGrid(of.patch_px, merge, of.patch_px * merge, resize, least, most)

    return read


def _pixtral(of: _Settings) -> Grid:
    merge = int(of.model("spatial_merge_size") or 1)
    return NativeGrid(of.patch_px, merge, of.patch_px * merge, Resize.EDGE, 0, of.edge("size", "longest_edge"))


def _naflex(of: _Settings) -> Grid:
    return NativeGrid(of.patch_px, 1, of.patch_px, Resize.PATCHES, 0, of.number("max_num_patches"))


_CROPPED = {"size": 224, "crop_size": 224, "do_center_crop": True}
_MERGED = {"patch_size": 14, "merge_size": 2}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_IDEFICS: Settings = {"size": 1456, "max_image_size": 364, "do_image_splitting": True}
_SIZE: Settings = {"size": 224}

_READERS: Mapping[str, tuple[Callable[[_Settings], Grid], Settings]] = {
    "CLIPImageProcessor": (_fixed, _CROPPED),
    "LlavaImageProcessor": (_fixed, _CROPPED),
    "BitImageProcessor": (_fixed, _CROPPED),
    "SiglipImageProcessor": (_fixed, _SIZE),
    "ViTImageProcessor": (_fixed, _SIZE),
    "DINOv3ViTImageProcessor": (_fixed, _SIZE),
    "LlavaNextImageProcessor": (_anyres, {"size": 224, "crop_size": 224, "image_grid_pinpoints": _PINPOINTS}),
    "LlavaOnevisionImageProcessor": (
        _onevision,
        {
            "size": 384,
            "image_grid_pinpoints": [[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)],
        },
    ),
    "GotOcr2ImageProcessor": (_got, {"size": 384, "min_patches": 1, "max_patches": 12}),
    "Ovis2ImageProcessor": (
        _ovis,
        {"size": 384, "min_patches": 1, "max_patches": 12, "use_covering_area_grid": True},
    ),
    "Cohere2VisionImageProcessor": (
        _cohere,
        {"size": 512, "patch_size": 16, "max_patches": 12, "crop_to_patches": True},
    ),
    "Idefics3ImageProcessor": (_idefics, _IDEFICS),
    "SmolVLMImageProcessor": (_idefics, _IDEFICS),
    "Llama4ImageProcessor": (_llama4, {"size": 336, "max_patches": 16}),
    "Gemma3ImageProcessor": (
        _gemma,
        {
            "size": 224,
            "pan_and_scan_min_crop_size": 256,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
    ),
    "Molmo2ImageProcessor": (
        _molmo,
        {"size": 378, "patch_size": 14, "pooling_size": [2, 2], "max_crops": 8, "overlap_margins": [4, 4]},
    ),
    "Qwen2VLImageProcessor": (
        _smart(Resize.SMART),
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}, **_MERGED},
    ),
    "VideoLlama3ImageProcessor": (
        _smart(Resize.SMART),
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}, "patch_size": 14, "merge_size": 1},
    ),
    "Ernie4_5_VLMoeImageProcessor": (
        _smart(Resize.SMART),
        {"size": {"shortest_edge": 3136, "longest_edge": 4842768}, **_MERGED},
    ),
    "Glm4vImageProcessor": (
        _smart(Resize.FRAMES),
        {"size": {"shortest_edge": 12544, "longest_edge": 11760000}, **_MERGED},
    ),
    "Glm46VImageProcessor": (
        _smart(Resize.FRAMES),
        {"size": {"shortest_edge": 12544, "longest_edge": 11760000}, **_MERGED},
    ),
    "PaddleOCRVLImageProcessor": (
        _smart(Resize.GROWN),
        {"size": {"shortest_edge": 147456, "longest_edge": 2359296}, **_MERGED},
    ),
    "PixtralImageProcessor": (_pixtral, {"size": 1024, "patch_size": 16}),
    "Siglip2ImageProcessor": (_naflex, {"patch_size": 16, "max_num_patches": 256}),
}


def grid_of_processor(settings: Settings) -> Grid:
    """The grid of a consumer's image processor.

    Args:
        settings: those of `preprocessor_config.json`, and under `model` those of `MODEL_KEYS` that the model's
            `config.json` has.

    Raises:
        ConfigError: the processor isn't known, or a setting that its grid needs is missing or no number.
    """
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in _READERS:
        problem = f"no grid is known of the image processor {kind}" if kind else "there is no image_processor_type"
        raise ConfigError(f"{problem}{did_you_mean(name, _READERS)} (known: {', '.join(_READERS)})")
    read, defaults = _READERS[name]
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return read(_Settings({**defaults, **given}, settings.get("model") or {}))
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"the settings of the image processor {name} can't be read: {error!r}") from error
