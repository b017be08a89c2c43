"""What a vision encoder is built from, and the two whose published weights have names. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.features.towers import CLIP_INPUTS, SIGLIP_INPUTS, Inputs, TowerArch, tower_arch, untrained_tower
from patchmint.geometry import Grid, NativeGrid, PatchGrid
from patchmint.geometry.presets import fixed_presets
from patchmint.types import Size
from patchmint.weights.architecture import ARCH_METADATA_KEY, Architecture, Shaped
from patchmint.weights.folder import INPUT, described
from patchmint.weights.recognise import looks_like

Tensor = TypeVar("Tensor")

_PREFIX = "vision_model."
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"

ACTIVATIONS = ("quick_gelu", "gelu_pytorch_tanh", "gelu")
"""Activations of the MLPs, by transformers' names: OpenAI's CLIP, SigLIP, and CLIP as others trained it."""

_DEFAULTS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "clip": {"num_attention_heads": 12, "image_size": 224, "hidden_act": "quick_gelu"},
        "siglip": {"num_attention_heads": 12, "image_size": 224, "hidden_act": "gelu_pytorch_tanh"},
    }
)
"""What transformers' configurations say where a `config.json` doesn't."""

_MAX_WIDTH = 65536
_MAX_LAYERS = 256
_MAX_SIDE = 256
_MAX_WEIGHTS = 4 * 10**9
# An architecture can come from a file, so it must not be able to ask for a huge model.


@dataclass(frozen=True)
class VitArch(Architecture):
    """The shape of a vision encoder, as transformers' `CLIPVisionModel` or `SiglipVisionModel` build it.

    Attributes:
        family: "clip" (a CLS token first, a normalisation before the blocks) or "siglip" (neither).
        hidden: channels of a token; a multiple of `heads`.
        layers: blocks.
        heads: attention heads of a block.
        mlp: hidden width of a block's MLP.
        image_px: side of the square input in pixels.
        patch_px: side of a patch in pixels.
        activation: one of `ACTIVATIONS`.
        preparation: how its pixels are prepared; None: as for the family's published models.

    Raises:
        ConfigError: a value is out of range, or values contradict each other.
    """

    WHAT = "vision encoder"

    family: Literal["clip", "siglip"]
    hidden: int
    layers: int
    heads: int
    mlp: int
    image_px: int
    patch_px: int
    activation: str
    preparation: Inputs | None = None

    def __post_init__(self) -> None:
        if self.family not in ("clip", "siglip"):
            raise ConfigError(f"a vision encoder's family is clip or siglip, not {self.family!r}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"a vision encoder's activation is {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        for name, number in numbers.items():
            most = _MAX_LAYERS if name == "layers" else _MAX_WIDTH
            if not 1 <= number <= most:
                raise ConfigError(f"a vision encoder's {name} must lie in 1..{most}, not {number}")
        if self.hidden % self.heads:
            raise ConfigError(
                f"a vision encoder's hidden must be a multiple of heads, not {self.hidden} of {self.heads}"
            )
        weights = self.layers * self.hidden * (4 * self.hidden + 2 * self.mlp)
        if weights > _MAX_WEIGHTS:
            raise ConfigError(
                f"a vision encoder of {self.layers} blocks of {self.hidden} channels and an MLP of {self.mlp} is too "
                f"large: {weights} weights, and {_MAX_WEIGHTS} are the most"
            )
        if not 1 <= self.side <= _MAX_SIDE:
            raise ConfigError(
                f"an input of {self.image_px} px in patches of {self.patch_px} px gives {self.side} patches a side; "
                f"1 to {_MAX_SIDE} are allowed"
            )

    @property
    def side(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are never looked at."""
        return self.image_px // self.patch_px

    @property
    def leading(self) -> int:
        """Tokens before the patches: CLIP's CLS."""
        return 1 if self.family == "clip" else 0

    @property
    def inputs(self) -> Inputs:
        """How its pixels are prepared, besides the grid's part."""
        return self.preparation or (CLIP_INPUTS if self.family == "clip" else SIGLIP_INPUTS)

    @property
    def default_layer(self) -> int:
        """The hidden state that is V_L where the settings don't say, counted from the end.

        LLaVA takes CLIP's last state but one. Dense Connector removes SigLIP's last block, which comes to the same.
        """
        return -2

    def merges(self, grid: Grid) -> bool:  # noqa: ARG002 (other encoders look at it)
        """Whether the cells of a grid are merged patches: never."""
        return False

    def whole(self, grid: Grid) -> Size:  # noqa: ARG002
        """Rows and columns of a view's patches."""
        return self.side, self.side

    @property
    def layer_norm_eps(self) -> float:
        """What transformers' configurations of the two families set, and all published models use."""
        return 1e-5 if self.family == "clip" else 1e-6

    def fits(self, grid: Grid) -> bool:
        """Whether the cells of a grid are this encoder's patches."""
        return (
            isinstance(grid, PatchGrid)
            and not grid.max_tiles
            and (grid.rows, grid.cols, grid.patch_px, grid.input_size)
            == (
                self.side,
                self.side,
                self.patch_px,
                (self.image_px, self.image_px),
            )
        )

    def require(self, grid: Grid, name: str) -> None:
        """Check that labels on a grid lie on this encoder's patches.

        Args:
            grid: the grid of the data set.
            name: the encoder, as the user named it.

        Raises:
            ConfigError: they don't; the message names the presets that do.
        """
        if self.fits(grid):
            return
        presets = [name for name, other in fixed_presets().items() if self.fits(other)]
        raise ConfigError(
            f"the vision encoder {name} reads {self.image_px} x {self.image_px} px in {self.side} x {self.side} "
            f"patches of {self.patch_px} px, but the grid has {_cells(grid)}, so features and labels would not lie on "
            f"each other; grids that fit: {', '.join(presets) or 'one spelled out with these numbers'} (to try another "
            "grid, set models.vit to untrained-tiny)"
        )


def _cells(grid: Grid) -> str:
    if not isinstance(grid, PatchGrid) or grid.max_tiles:
        return "rows and columns that depend on the image"
    height, width = grid.input_size
    return f"{grid.rows} x {grid.cols} patches of {grid.patch_px} px in an input of {height} x {width} px"


EncoderArch = VitArch | TowerArch
"""Any vision encoder."""

OFFICIAL: Mapping[str, VitArch] = MappingProxyType(
    {
        "clip-vit-l-14-336": VitArch(
            family="clip",
            hidden=1024,
            layers=24,
            heads=16,
            mlp=4096,
            image_px=336,
            patch_px=14,
            activation="quick_gelu",
        ),
        "siglip-so400m-384": VitArch(
            family="siglip",
            hidden=1152,
            layers=27,
            heads=16,
            mlp=4304,
            image_px=384,
            patch_px=14,
            activation="gelu_pytorch_tanh",
        ),
    }
)
"""Published models by name (`config.json` of openai/clip-vit-large-patch14-336, google/siglip-so400m-patch14-384)."""

TINY_LAYERS = 4
"""Blocks of `untrained-tiny`."""


def untrained_arch(grid: Grid) -> EncoderArch:
    """A small encoder whose patches are a grid's cells, for the `untrained-tiny` preset.

    CLIP, or SigLIP 2 where rows and columns depend on the image.

    Raises:
        ConfigError: the grid's input or the grid isn't square, so no CLIP and no SigLIP has it; or it is of tiles,
            other than LLaVA-NeXT's.
    """
    if isinstance(grid, NativeGrid):
        return untrained_tower(grid)
    if not isinstance(grid, PatchGrid) or grid.max_tiles:
        raise ConfigError(
            "features can't have this grid: of grids of tiles only LLaVA-NeXT's are read as the encoder sees them; "
            f"choose one of {', '.join(fixed_presets())}, or one of an input that keeps the image's shape"
        )
    arch = VitArch(
        family="clip",
        hidden=128,
        layers=TINY_LAYERS,
        heads=4,
        mlp=256,
        image_px=grid.input_size[0],
        patch_px=grid.patch_px,
        activation="quick_gelu",
    )
    if not arch.fits(grid):
        raise ConfigError(
            f"features need a grid that is square and fills its input, not {grid.rows} x {grid.cols} patches of "
            f"{grid.patch_px} px in {grid.input_size[0]} x {grid.input_size[1]} px; choose a preset: "
            f"{', '.join(fixed_presets())}"
        )
    return arch


def infer_arch(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> EncoderArch:
    """Tell the architecture from a state dict of a whole model or of its vision tower.

    A metadata entry `ARCH_METADATA_KEY` describes it, or the `config.json` beside the file; both must agree with the
    weights. Without them it must be that of a published model, which the weights' shapes tell.

    Args:
        tensors: the state dict.
        metadata: of a `StateFile` or `Header`.

    Raises:
        WeightsMismatchError: the weights are of no known architecture, or not of the one that the metadata names.
    """
    config = described(metadata)
    told = VitArch.from_metadata(metadata)
    if told is None and (tower := tower_arch(tensors, config, described(metadata, INPUT))) is not None:
        return tower
    measured = _measured(whole_names(tensors))
    told = told or _configured(config, measured, described(metadata, INPUT))
    if told is not None:
        if _measures(told) != measured:
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) or its config.json "
                f"names, {told}; write the file again from the model that it holds"
            )
        return told
    for arch in OFFICIAL.values():
        if _measures(arch) == measured:
            return arch
    found = ", ".join(f"{name} {value}" for name, value in measured.items())
    raise WeightsMismatchError(
        f"the file holds a vision encoder of none of the known architectures ({found}); known: {', '.join(OFFICIAL)}. "
        "For another one, give the folder with its config.json, or a safetensors file with the metadata entry "
        f"{ARCH_METADATA_KEY} (VitArch.to_json)"
    )


def _configured(
    config: Mapping[str, Any], measured: Mapping[str, object], processor: Mapping[str, Any]
) -> VitArch | None:
    """The CLIP or SigLIP that a `config.json` describes; what it leaves out is transformers' default."""
    kind = str(config.get("model_type")).removesuffix("_vision_model")
    if kind not in _DEFAULTS or kind != measured["family"]:
        return None
    vision = config.get("vision_config", config)
    settings = _DEFAULTS[kind] | {key: vision[key] for key in _DEFAULTS[kind] if key in vision}
    try:
        numbers = {key: value for key, value in measured.items() if key != "patches"}
        arch = TypeAdapter(VitArch).validate_python(
            numbers
            | {
                "heads": settings["num_attention_heads"],
                "image_px": settings["image_size"],
                "activation": settings["hidden_act"],
            }
        )
        return replace(arch, preparation=arch.inputs.told(processor)) if processor else arch
    except (ValidationError, ConfigError) as error:
        raise WeightsMismatchError(f"its config.json describes no vision encoder that is known: {error}") from error


def whole_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named as in a whole model: transformers 5 saves a vision tower alone without the prefix."""
    prefix = _PREFIX if _PATCHES in tensors else ""
    return {prefix + key: value for key, value in tensors.items()}


def _measures(arch: VitArch) -> dict[str, object]:
    """What of an architecture shows in the weights' shapes: not the heads, the activation and the exact input size."""
    return {
        "family": arch.family,
        "hidden": arch.hidden,
        "layers": arch.layers,
        "mlp": arch.mlp,
        "patch_px": arch.patch_px,
        "patches": arch.side**2,
    }


def _measured(tensors: Mapping[str, Shaped]) -> dict[str, object]:
    """The same, of weights.

    Raises:
        WeightsMismatchError: the weights are no vision tower's.
    """
    clip = f"{_PREFIX}embeddings.class_embedding" in tensors
    patches, positions = tensors.get(_PREFIX + _PATCHES), tensors.get(_PREFIX + _POSITIONS)
    mlp = tensors.get(f"{_PREFIX}encoder.layers.0.mlp.fc1.weight")
    if patches is None or positions is None or mlp is None or (patches.ndim, positions.ndim, mlp.ndim) != (4, 2, 2):
        raise WeightsMismatchError(
            f"the file holds no vision encoder of transformers' CLIP or SigLIP (it lacks {_PREFIX}{_PATCHES}, "
            f"{_POSITIONS} or blocks); give the pytorch_model.bin or model.safetensors of one: "
            f"{', '.join(OFFICIAL)}.{looks_like(tensors)}"
        )
    blocks = {match[1] for key in tensors if (match := re.match(r"vision_model\.encoder\.layers\.(\d+)\.", key))}
    return {
        "family": "clip" if clip else "siglip",
        "hidden": patches.shape[0],
        "layers": len(blocks),
        "mlp": mlp.shape[0],
        "patch_px": patches.shape[-1],
        "patches": positions.shape[0] - clip,
    }
