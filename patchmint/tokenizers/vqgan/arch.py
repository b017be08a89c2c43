"""What a VQGAN is built from, and the published ones. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.weights.architecture import Architecture, Shaped

_GROUPS = 32
# Upstream's GroupNorm always has 32 groups (taming/modules/diffusionmodules/model.py, `Normalize`).

_MAX_NUMBER = 65536
_MAX_BLOCKS = 64
# An architecture can come from a file, so it must not be able to ask for a huge model. Shards hold codes as uint16.

_NEAREST = "quantize.embedding.weight"
_GUMBEL = "quantize.embed.weight"


@dataclass(frozen=True)
class VqganArch(Architecture):
    """The shape of a VQGAN for RGB images: the `ddconfig` of a taming-transformers config, and its codebook.

    Fixed, as in every published RGB model: 3 channels in and out, `double_z` False, dropout 0, resampling by
    convolution.

    Attributes:
        ch: channels of the first level, a multiple of 32 (upstream's GroupNorm has 32 groups).
        ch_mult: channels of each level as multiples of `ch`; every level but the last halves the size.
        num_res_blocks: residual blocks a level.
        attn_resolutions: sizes in pixels, at an input of `resolution`, of the levels that have attention.
        resolution: input size in pixels that the model was trained at. Other sizes work too; it only says at which
            levels attention sits.
        z_channels: channels of the encoder's output.
        embed_dim: length of a codebook entry.
        n_embed: number of codebook entries, 65536 at most (shards hold codes as uint16).
        gumbel: True = a code is chosen by a learnt projection (upstream's `GumbelVQ`), False = by distance (`VQModel`).

    Raises:
        ConfigError: a number is out of range, or numbers contradict each other.
    """

    WHAT = "VQGAN"

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    embed_dim: int
    n_embed: int
    gumbel: bool

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if name != "gumbel" and not 1 <= number <= _MAX_NUMBER:
                    raise ConfigError(f"a VQGAN's {name} must lie in 1..{_MAX_NUMBER}, not {number}")
        if not self.ch_mult:
            raise ConfigError("a VQGAN's ch_mult is empty; give one number a level, for example [1, 1, 2, 2, 4]")
        if len(self.ch_mult) * self.num_res_blocks > _MAX_BLOCKS or self.ch * max(self.ch_mult) > _MAX_NUMBER:
            raise ConfigError(
                f"a VQGAN of {len(self.ch_mult)} levels with {self.num_res_blocks} blocks each and up to "
                f"{self.ch * max(self.ch_mult)} channels is too large; {_MAX_BLOCKS} blocks and {_MAX_NUMBER} channels "
                "are the most"
            )
        if self.ch % _GROUPS:
            raise ConfigError(f"a VQGAN's ch must be a multiple of {_GROUPS} (its GroupNorm's groups), not {self.ch}")
        if self.resolution % self.factor:
            raise ConfigError(
                f"a VQGAN with {len(self.ch_mult)} levels shrinks by {self.factor}, so its resolution must be a "
                f"multiple of that, not {self.resolution}"
            )
        if self.gumbel and self.embed_dim != self.z_channels:
            # Upstream's quant_conv makes embed_dim channels, and its quantize.proj reads z_channels of them.
            raise ConfigError(
                f"a Gumbel VQGAN needs embed_dim = z_channels, not {self.embed_dim} and {self.z_channels}"
            )

    @property
    def factor(self) -> int:
        """Input pixels along one side of a code's cell: 16 for f16, 8 for f8."""
        return 1 << (len(self.ch_mult) - 1)

    def upstream_config(self) -> dict[str, Any]:
        """Keyword arguments of upstream's `Encoder` and `Decoder` (its `ddconfig`)."""
        return {
            "double_z": False,
            "z_channels": self.z_channels,
            "resolution": self.resolution,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.ch,
            "ch_mult": self.ch_mult,
            "num_res_blocks": self.num_res_blocks,
            "attn_resolutions": self.attn_resolutions,
            "dropout": 0.0,
        }


def _f16(n_embed: int) -> VqganArch:
    return VqganArch(
        ch=128,
        ch_mult=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        attn_resolutions=(16,),
        resolution=256,
        z_channels=256,
        embed_dim=256,
        n_embed=n_embed,
        gumbel=False,
    )


OFFICIAL: Mapping[str, VqganArch] = MappingProxyType(
    {
        "vqgan-imagenet-f16-1024": _f16(1024),
        "vqgan-imagenet-f16-16384": _f16(16384),
        "vqgan-gumbel-f8-8192": VqganArch(
            ch=128,
            ch_mult=(1, 1, 2, 4),
            num_res_blocks=2,
            attn_resolutions=(32,),
            resolution=256,
            z_channels=256,
            embed_dim=256,
            n_embed=8192,
            gumbel=True,
        ),
    }
)
"""Published models by name (taming-transformers' README; `configs/imagenet_vqgan.yaml`; `model.yaml` beside each
checkpoint)."""

TINY = VqganArch(
    ch=32,
    ch_mult=(1, 1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(8,),
    resolution=64,
    z_channels=32,
    embed_dim=32,
    n_embed=64,
    gumbel=False,
)
"""The same classes, small: 64 px become 8 x 8 codes out of 64. For tests and the `untrained-tiny` preset."""


def codebook_shape(tensors: Mapping[str, Shaped]) -> tuple[int, int]:
    """Number of codes and their length, from a state dict.

    Raises:
        WeightsMismatchError: it is no VQGAN's.
    """
    codebook = tensors.get(_NEAREST, tensors.get(_GUMBEL))
    if codebook is None or codebook.ndim != 2:
        raise WeightsMismatchError(
            f"the file holds no VQGAN: it has no matrix {_NEAREST} or {_GUMBEL}. "
            f"Known architectures: {', '.join(OFFICIAL)}"
        )
    return codebook.shape[0], codebook.shape[1]


def cell_and_codes(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> tuple[int, int]:
    """Pixels along a code's cell and number of codes, from a state dict, without building the model.

    Args:
        tensors: the state dict, with upstream's key names.
        metadata: a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsMismatchError: it is no VQGAN's.
    """
    arch = VqganArch.from_metadata(metadata)
    if arch is not None:
        return arch.factor, arch.n_embed
    levels = {key.split(".")[2] for key in tensors if key.startswith("encoder.down.")}
    return 1 << max(len(levels) - 1, 0), codebook_shape(tensors)[0]
