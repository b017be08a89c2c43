"""Vision encoders of transformers that take images of any size: SigLIP 2 NaFlex, DINOv3 and Qwen-VL's. No torch.

What one is follows from its tensors and from the `config.json` beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.geometry import Grid, NativeGrid, PatchGrid
from patchmint.geometry.presets import has_fixed_cells
from patchmint.types import Size
from patchmint.weights.architecture import Shaped

Tensor = TypeVar("Tensor")

_MAX_WEIGHTS = 4 * 10**9
_MAX_LAYERS = 256
_MAX_MERGE = 8
# A file must not be able to ask for a huge model.


@dataclass(frozen=True)
class Inputs:
    """How pixels are prepared, besides the grid's part.

    Attributes:
        mean: of the pixels, red, green and blue, 0..1.
        std: their standard deviation.
        resample: Pillow's number of the filter that resizes images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int

    def told(self, processor: Mapping[str, Any]) -> Inputs:
        """The same as a `preprocessor_config.json` has it, where it says so.

        Raises:
            WeightsMismatchError: it says something impossible.
        """
        found = {ours: processor[theirs] for ours, theirs in _INPUTS.items() if processor.get(theirs) is not None}
        try:
            return TypeAdapter(_ToldInputs).validate_python({**asdict(self), **found}).inputs
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise WeightsMismatchError(
                f"its preprocessor_config.json has an impossible {problem['loc'][-1]}: {problem['msg']}"
            ) from error


_Colours = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
_INPUTS = {"mean": "image_mean", "std": "image_std", "resample": "resample"}


class _ToldInputs(BaseModel):
    mean: _Colours
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    resample: Literal[0, 2, 3, 4, 5]

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.mean, self.std, self.resample)


@dataclass(frozen=True)
class Family:
    """What encoders of one kind have in common.

    Attributes:
        anchor: name of a tensor that they all have, without what stands before it in a whole model.
        blocks: pattern of the names of their blocks' tensors.
        mlp: end of the name of the tensor that has the width of the MLP as its first length.
        inputs: as their published processors have it.
        last: the hidden state that is V_L where the settings don't say, counted from the end.
        settings: keys of `config.json` that describe the architecture.
    """

    anchor: str
    blocks: str
    mlp: str
    inputs: Inputs
    last: int
    settings: tuple[str, ...]


_BILINEAR, _BICUBIC = 2, 3
_HALVES = (0.5, 0.5, 0.5)
_IMAGENET = Inputs((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _BILINEAR)
CLIP_INPUTS = Inputs((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), _BICUBIC)
SIGLIP_INPUTS = Inputs(_HALVES, _HALVES, _BICUBIC)
_QWEN = ("depth", "hidden_size", "hidden_act", "num_heads", "in_channels", "patch_size", "spatial_merge_size")

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "siglip2": Family(
            anchor="embeddings.patch_embedding.weight",
            blocks=r"encoder\.layers\.(\d+)\.",
            mlp="mlp.fc1.weight",
            inputs=Inputs(_HALVES, _HALVES, _BILINEAR),
            last=-2,
            settings=(
                *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
                *("num_channels", "num_patches", "hidden_act", "layer_norm_eps", "vision_use_head"),
            ),
        ),
        "dinov3_vit": Family(
            anchor="embeddings.register_tokens",
            blocks=r"(?:model\.)?layer\.(\d+)\.",
            mlp="mlp.up_proj.weight",
            inputs=_IMAGENET,
            last=-1,
            settings=(
                *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
                *("num_channels", "hidden_act", "layer_norm_eps", "rope_theta", "query_bias", "key_bias", "value_bias"),
                *("proj_bias", "mlp_bias", "use_gated_mlp", "num_register_tokens"),
            ),
        ),
        "qwen2_vl": Family(
            anchor="patch_embed.proj.weight",
            blocks=r"blocks\.(\d+)\.",
            mlp="mlp.fc1.weight",
            inputs=CLIP_INPUTS,
            last=-1,
            settings=(*_QWEN, "embed_dim", "mlp_ratio"),
        ),
        "qwen2_5_vl": Family(
            anchor="patch_embed.proj.weight",
            blocks=r"blocks\.(\d+)\.",
            mlp="mlp.gate_proj.weight",
            inputs=CLIP_INPUTS,
            last=-1,
            settings=(*_QWEN, "intermediate_size", "window_size", "out_hidden_size", "fullatt_block_indexes"),
        ),
        "qwen3_vl": Family(
            anchor="patch_embed.proj.weight",
            blocks=r"blocks\.(\d+)\.",
            mlp="mlp.linear_fc1.weight",
            inputs=SIGLIP_INPUTS,
            last=-1,
            settings=(
                *_QWEN,
                *("intermediate_size", "out_hidden_size", "num_position_embeddings", "deepstack_visual_indexes"),
            ),
        ),
    }
)
"""By the name of the family: the beginning of transformers' `model_type`."""

_TYPES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in FAMILIES},
        **{f"{name}_vision": name for name in FAMILIES if name.startswith("qwen")},
        "siglip2_vision_model": "siglip2",
        "qwen3_vl_moe": "qwen3_vl",
        "qwen3_vl_moe_vision": "qwen3_vl",
    }
)

_DEPTHS: Mapping[str, str] = MappingProxyType(
    {name: "depth" if name.startswith("qwen") else "num_hidden_layers" for name in FAMILIES}
)

TINY_SIDE = 16
"""Positions along a side that the tiny untrained encoder knows."""


@dataclass(frozen=True)
class TowerArch:
    """The shape of such an encoder.

    Attributes:
        family: one of `FAMILIES`.
        hidden: channels of a patch.
        layers: blocks.
        mlp: hidden width of a block's MLP.
        patch_px: side of a patch in pixels.
        leading: tokens before the patches that features may have: DINOv3's CLS.
        registers: tokens behind these that they never have.
        merge: the encoder makes one token of `merge` x `merge` patches at its end; 1: it doesn't.
        merged: channels of such a token.
        settings: what its `config.json` says, by `Family.settings`.
        inputs: how its pixels are prepared.
        prefix: what stands before its tensors' names in the file.

    Raises:
        WeightsMismatchError: it would be huge.
    """

    family: str
    hidden: int
    layers: int
    mlp: int
    patch_px: int
    leading: int = 0
    registers: int = 0
    merge: int = 1
    merged: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs = SIGLIP_INPUTS
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.layers > _MAX_LAYERS or self.layers * self.hidden * (4 * self.hidden + 2 * self.mlp) > _MAX_WEIGHTS:
            raise WeightsMismatchError(
                f"a vision encoder of {self.layers} blocks of {self.hidden} channels and an MLP of {self.mlp} is too "
                "large"
            )

    @property
    def default_layer(self) -> int:
        """The hidden state that is V_L where the settings don't say, counted from the end."""
        return FAMILIES[self.family].last

    def merges(self, grid: Grid) -> bool:
        """Whether the cells of a grid that fits are tokens that the encoder has merged, not its patches."""
        return self.merge > 1 and _cell_px(grid) == self.patch_px * self.merge

    def whole(self, grid: Grid) -> Size:
        """Rows and columns of a view's tokens on a grid that fits; (0, 0) where they depend on the image."""
        return (grid.rows, grid.cols) if isinstance(grid, PatchGrid) else (0, 0)

    def require(self, grid: Grid, name: str) -> None:
        """Check that the cells of a grid are this encoder's patches, or the tokens that it merges them to.

        Args:
            grid: the grid of the data set.
            name: the encoder, as the user named it.

        Raises:
            ConfigError: they aren't.
        """
        if not isinstance(grid, NativeGrid) and not has_fixed_cells(grid):
            raise ConfigError(
                f"{name} can't give features on this grid: of grids of tiles only LLaVA-NeXT's are read as the encoder "
                "sees them. Others are those of one input an image"
            )
        sides = {self.patch_px, self.patch_px * self.merge}
        unit = self.patch_px * self.merge
        # In a fixed input; images of any size become multiples of `multiple_px`.
        inputs = grid.input_size if isinstance(grid, PatchGrid) else (grid.multiple_px,)
        filled = isinstance(grid, NativeGrid) or grid.input_size == (
            grid.rows * grid.patch_px,
            grid.cols * grid.patch_px,
        )
        if _cell_px(grid) in sides and filled and all(side % unit == 0 for side in inputs):
            return
        merged = f", and merges them to tokens of {unit} px" if self.merge > 1 else ""
        raise ConfigError(
            f"the vision encoder {name} reads patches of {self.patch_px} px{merged}, but the cells of the grid have "
            f"{_cell_px(grid)} px or don't fill the input, so features and labels would not lie on each other; give "
            "the grid of the model that it belongs to (`grid: {processor: PATH}`), with merge: 1 where its patches are "
            "merged later"
        )


def _cell_px(grid: Grid) -> int:
    return grid.patch_px if isinstance(grid, PatchGrid) else grid.patch_px * grid.merge


def untrained_tower(grid: NativeGrid) -> TowerArch:
    """A small SigLIP 2 whose patches are the cells of a grid that depends on the image, for `untrained-tiny`."""
    cell = _cell_px(grid)
    hidden, layers, mlp = 128, 4, 256
    settings = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "patch_size": cell,
        "num_patches": TINY_SIDE**2,
        "vision_use_head": False,
    }
    return TowerArch("siglip2", hidden, layers, mlp, cell, settings=settings)


def tower_arch(
    tensors: Mapping[str, Shaped], config: Mapping[str, Any], processor: Mapping[str, Any]
) -> TowerArch | None:
    """The encoder that a file holds, alone or in a whole model; None where `config.json` names none of the families.

    Args:
        tensors: of the file.
        config: what `config.json` beside it says.
        processor: what `preprocessor_config.json` beside it says; empty where there is none.

    Raises:
        WeightsMismatchError: the tensors aren't those of the encoder that it names.
    """
    vision = config.get("vision_config") if isinstance(config.get("vision_config"), Mapping) else config
    kind = _TYPES.get(str(config.get("model_type")))
    if kind is None:
        return None
    family = FAMILIES[kind]
    prefix = next((name[: -len(family.anchor)] for name in tensors if name.endswith(family.anchor)), None)
    if prefix is None:
        raise WeightsMismatchError(f"its config.json says {config['model_type']}, but it has no tensor {family.anchor}")
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    numbers = [int(match[1]) for name in own if (match := re.match(family.blocks, name))]
    mlps = [tensor.shape[0] for name, tensor in own.items() if name.endswith(family.mlp)]
    settings = {
        key: vision[key] for key in family.settings if isinstance(vision, Mapping) and vision.get(key) is not None
    }
    try:
        layers = max(numbers) + 1
        # One module each will be made of these, before shapes can be compared.
        if settings.get(_DEPTHS[kind], layers) != layers or len(settings.get("deepstack_visual_indexes", ())) > layers:
            raise ValueError(_DEPTHS[kind])
        return TowerArch(
            kind,
            layers=layers,
            mlp=mlps[0],
            settings=MappingProxyType(settings | {_DEPTHS[kind]: layers}),
            inputs=family.inputs.told(processor),
            prefix=prefix,
            **_measured(kind, own, settings),
        )
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise WeightsMismatchError(
            f"its tensors aren't those of the {config['model_type']} that config.json names"
        ) from error


def _measured(kind: str, own: Mapping[str, Shaped], settings: Mapping[str, Any]) -> dict[str, int]:
    """What of an encoder shows in its tensors' shapes."""
    shape = own[FAMILIES[kind].anchor].shape
    match kind:
        case "siglip2":
            return {"hidden": shape[0], "patch_px": round((shape[1] / 3) ** 0.5)}
        case "dinov3_vit":
            return {
                "hidden": shape[-1],
                "patch_px": own["embeddings.patch_embeddings.weight"].shape[-1],
                "leading": 1,
                "registers": shape[1],
            }
    end = "merger.linear_fc2.weight" if kind == "qwen3_vl" else "merger.mlp.2.weight"
    merge = settings.get("spatial_merge_size", 2)
    if merge not in range(1, _MAX_MERGE + 1):
        raise ValueError(merge)
    return {"hidden": shape[0], "patch_px": shape[-1], "merge": merge, "merged": own[end].shape[0]}


def own_tensors(tensors: Mapping[str, Tensor], arch: TowerArch) -> dict[str, Tensor]:
    """The encoder's tensors, named as transformers 5 names them in the encoder alone."""
    own = {name.removeprefix(arch.prefix): value for name, value in tensors.items() if name.startswith(arch.prefix)}
    if arch.family == "dinov3_vit":  # published files lack a level
        own = {f"model.{name}" if name.startswith("layer.") else name: value for name, value in own.items()}
    return own
