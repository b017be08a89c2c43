"""The VQGAN itself: its sizes, and upstream's encoder and decoder around a codebook, without Lightning and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from taming.modules.diffusionmodules import model as upstream
from torch import Tensor, nn

from patchmint.compute.compiled import Compiled, batch_sizes
from patchmint.compute.precision import computing_fully
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.tokenizers.vqgan.quantize import Codebook, GumbelCodebook, NearestCodebook
from patchmint.weights.architecture import ARCH_METADATA_KEY, Architecture
from patchmint.weights.loading import StateFile, load_into

_GROUPS = 32
# Upstream's GroupNorm always has 32 groups (taming/modules/diffusionmodules/model.py, `Normalize`).

_MAX_NUMBER = 65536
_MAX_BLOCKS = 64
# An architecture can come from a file, so it must not be able to ask for a huge model. Shards hold codes as uint16.

IGNORED_KEYS = ("loss.", "colorize")
"""Starts of keys in official checkpoints that inference doesn't need: the discriminator and LPIPS, and the random
projection that upstream draws segmentations with."""

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


def _say_nothing(*_: object) -> None:
    pass


# Upstream's Decoder prints its latent shape when it is built, and stdout is for data. Shadowing `print` in that one
# module is safe between threads, which redirecting stdout is not.
upstream.print = _say_nothing
# Upstream's x * sigmoid(x) in one pass over memory instead of two.
upstream.nonlinearity = nn.functional.silu


class Vqgan(nn.Module):
    """Upstream's `VQModel` or `GumbelVQ` (taming/models/vqgan.py) for inference.

    Keys of the state dict are those of the official checkpoints without `loss.*`: `encoder.*`, `decoder.*`,
    `quant_conv.*`, `post_quant_conv.*`, and `quantize.embedding.weight` or, for Gumbel, `quantize.proj.*` and
    `quantize.embed.weight`.

    Codes always come as a grid, (B, rows, cols); upstream returns them flat unless its `sane_index_shape` is set, so
    that setting has no meaning here. Positions are batch-major, then row-major, as upstream's.
    """

    def __init__(self, arch: VqganArch) -> None:
        super().__init__()
        self.arch = arch
        self.encoder: nn.Module = upstream.Encoder(**arch.upstream_config())
        self.decoder: nn.Module = upstream.Decoder(**arch.upstream_config())
        self.quant_conv = nn.Conv2d(arch.z_channels, arch.embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, kernel_size=1)
        self.quantize: Codebook = (
            GumbelCodebook(arch.n_embed, arch.embed_dim, arch.z_channels)
            if arch.gumbel
            else NearestCodebook(arch.n_embed, arch.embed_dim)
        )

    @torch.no_grad()
    def latents(self, pixels: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Encode without choosing codes (upstream's `encode_to_prequant`).

        Args:
            pixels: float (B, 3, H, W), RGB, -1..1; H and W multiples of `arch.factor`.
            encoder: what runs in the place of `self.encoder`: `compiled_encoder`, say.

        Returns:
            float (B, embed_dim, H / factor, W / factor).
        """
        encoded = (self.encoder if encoder is None else encoder)(pixels)
        with computing_fully(pixels.device):  # codes hang on its last bits
            return cast("Tensor", self.quant_conv(encoded.float()))

    @torch.no_grad()
    def encode(self, pixels: Tensor, among: Tensor | None = None) -> Tensor:
        """Choose a code for each cell of the images. Deterministic, for Gumbel too.

        Args:
            pixels: as for `latents`.
            among: int64 (U,), codes to choose from; None = all.

        Returns:
            int64 (B, H / factor, W / factor), 0..n_embed-1.
        """
        return self.quantize.codes(self.latents(pixels), among)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Draw the images that codes stand for.

        Args:
            codes: int64 (B, rows, cols), 0..n_embed-1.

        Returns:
            float (B, 3, rows * factor, cols * factor), RGB, about -1..1; not clamped.
        """
        return cast("Tensor", self.decoder(self.post_quant_conv(self.quantize.vectors(codes))))


def compiled_encoder(model: Vqgan, most: int) -> Compiled[Tensor]:
    """The model's encoder, compiled for batches of at most `most` images, for `Vqgan.latents`."""
    sizes = batch_sizes(most)
    return Compiled(model.encoder, name="VQGAN's encoder", sizes=lambda _: sizes)


def infer_arch(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> VqganArch:
    """Tell the architecture from a state dict.

    The size of the codebook and its kind are read off the weights; the rest must be that of a published model, which
    the encoder's weights tell. A metadata entry `ARCH_METADATA_KEY` wins over that, and must agree with the weights.

    Args:
        tensors: the state dict, with upstream's key names.
        metadata: a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsMismatchError: the weights are of no known architecture, or not of the one that the metadata names.
    """
    arch = VqganArch.from_metadata(metadata)
    if arch is not None:
        if not _fits(arch, tensors):
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) names, {arch}; "
                "write the file again from the model that it holds"
            )
        return arch
    codebook = tensors.get(_NEAREST, tensors.get(_GUMBEL))
    if codebook is None or codebook.ndim != 2:
        raise WeightsMismatchError(
            f"the file holds no VQGAN: it has no matrix {_NEAREST} or {_GUMBEL}. "
            f"Known architectures: {', '.join(OFFICIAL)}"
        )
    n_embed, embed_dim = codebook.shape
    for published in OFFICIAL.values():
        try:
            arch = replace(published, n_embed=n_embed, embed_dim=embed_dim, gumbel="quantize.proj.weight" in tensors)
        except ConfigError:
            continue
        if _fits(arch, tensors):
            return arch
    raise WeightsMismatchError(
        f"the file holds a VQGAN with {n_embed} codes of length {embed_dim} whose encoder is none of the known "
        f"architectures: {', '.join(OFFICIAL)}. For another one, give a safetensors file with the metadata entry "
        f"{ARCH_METADATA_KEY} (VqganArch.to_json)"
    )


def load_vqgan(state: StateFile) -> Vqgan:
    """Build the VQGAN that a checkpoint holds and load it: every key but `IGNORED_KEYS` is there and none is left over.

    Returns:
        The model on the CPU, float32, in eval mode.

    Raises:
        WeightsMismatchError: the checkpoint is of no known architecture, or not a whole model.
    """
    model = _empty(infer_arch(state.tensors, state.metadata)).to_empty(device="cpu")
    load_into(model, state, what="VQGAN", ignored=IGNORED_KEYS)
    return model.eval()


def untrained_vqgan(arch: VqganArch, seed: int) -> Vqgan:
    """Build a model with random weights: the same for the same seed. Its codes mean nothing.

    The caller's random numbers go on as if nothing had happened.

    Returns:
        The model on the CPU, float32, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Vqgan(arch).eval()


def _empty(arch: VqganArch) -> Vqgan:
    """A model with shapes but without memory: building one is quick and draws no random numbers."""
    with torch.device("meta"):
        return Vqgan(arch)


def _fits(arch: VqganArch, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the encoder's and the codebook's keys and shapes are those of `arch`.

    Equal shapes mean an equal function: levels, blocks, attention and resampling all show in the keys.
    """
    parts = ("encoder.", "quantize.")
    expected = {key: value.shape for key, value in _empty(arch).state_dict().items() if key.startswith(parts)}
    return expected == {key: value.shape for key, value in tensors.items() if key.startswith(parts)}
