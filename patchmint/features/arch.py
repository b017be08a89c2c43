"""What a vision encoder is built from, and the two whose published weights are used. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.geometry import PatchGrid
from patchmint.geometry.presets import fixed_presets
from patchmint.weights.architecture import ARCH_METADATA_KEY, Architecture, Shaped
from patchmint.weights.recognise import looks_like

Tensor = TypeVar("Tensor")

_PREFIX = "vision_model."
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"

ACTIVATIONS = ("quick_gelu", "gelu_pytorch_tanh", "gelu")
"""Activations of the MLPs, by transformers' names: OpenAI's CLIP, SigLIP, and CLIP as others trained it."""

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
    def layer_norm_eps(self) -> float:
        """What transformers' configurations of the two families set, and all published models use."""
        return 1e-5 if self.family == "clip" else 1e-6

    def fits(self, grid: PatchGrid) -> bool:
        """Whether the cells of a grid are this encoder's patches."""
        return (grid.rows, grid.cols, grid.patch_px, grid.input_size) == (
            self.side,
            self.side,
            self.patch_px,
            (self.image_px, self.image_px),
        )

    def require(self, grid: PatchGrid, name: str) -> None:
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
            f"patches of {self.patch_px} px, but the grid has {grid.rows} x {grid.cols} patches of {grid.patch_px} px "
            f"in an input of {grid.input_size[0]} x {grid.input_size[1]} px, so features and labels would not lie on "
            f"each other; grids that fit: {', '.join(presets) or 'one spelled out with these numbers'}"
        )


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


def untrained_arch(grid: PatchGrid) -> VitArch:
    """A small CLIP whose patches are a grid's cells, for the `untrained-tiny` preset.

    Raises:
        ConfigError: the grid's input or the grid isn't square, so no CLIP and no SigLIP has it.
    """
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


def infer_arch(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> VitArch:
    """Tell the architecture from a state dict of a whole model or of its vision tower.

    It must be that of a published model, which the weights' shapes tell. A metadata entry `ARCH_METADATA_KEY` wins over
    that, and must agree with the weights.

    Args:
        tensors: the state dict.
        metadata: a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsMismatchError: the weights are of no known architecture, or not of the one that the metadata names.
    """
    described = VitArch.from_metadata(metadata)
    measured = _measured(whole_names(tensors))
    if described is not None:
        if _measures(described) != measured:
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) names, {described}; "
                "write the file again from the model that it holds"
            )
        return described
    for arch in OFFICIAL.values():
        if _measures(arch) == measured:
            return arch
    found = ", ".join(f"{name} {value}" for name, value in measured.items())
    raise WeightsMismatchError(
        f"the file holds a vision encoder of none of the known architectures ({found}); known: {', '.join(OFFICIAL)}. "
        f"For another one, give a safetensors file with the metadata entry {ARCH_METADATA_KEY} (VitArch.to_json)"
    )


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
