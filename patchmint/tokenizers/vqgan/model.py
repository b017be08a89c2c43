"""The VQGAN itself: upstream's encoder and decoder around a codebook, without Lightning and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from taming.modules.diffusionmodules import model as upstream
from torch import Tensor, nn

from patchmint.compute.compiled import Compiled, batch_sizes
from patchmint.compute.devices import computing_fully, reduced_copy
from patchmint.compute.norms import silu_of_norm
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.tokenizers.vqgan.arch import OFFICIAL, VqganArch, codebook_shape
from patchmint.tokenizers.vqgan.quantize import Codebook, GumbelCodebook, NearestCodebook
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.loading import StateFile, load_into

IGNORED_KEYS = ("loss.", "colorize")
"""Starts of keys in official checkpoints that inference doesn't need: the discriminator and LPIPS, and the random
projection that upstream draws segmentations with."""


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
            if not encoded.is_cuda:
                return cast("Tensor", self.quant_conv(encoded.float()))
            # cuDNN's convolutions round float32 to TF32 unless told otherwise, and products of matrices don't.
            weight = self.quant_conv.weight.flatten(1)
            return nn.functional.linear(encoded.float().movedim(1, -1), weight, self.quant_conv.bias).movedim(-1, 1)

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


class _NormedBlock(nn.Module):
    """Upstream's `ResnetBlock` with norms and activations in one, for inference on a GPU."""

    def __init__(self, block: upstream.ResnetBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.block, self._dtype = block, dtype

    def forward(self, x: Tensor, temb: None) -> Tensor:  # noqa: ARG002 (an encoder has no timestep)
        block = self.block
        hidden = block.conv1(silu_of_norm(x, block.norm1, self._dtype))
        hidden = block.conv2(silu_of_norm(hidden, block.norm2, self._dtype))
        if block.in_channels != block.out_channels:
            x = block.nin_shortcut(x)
        return cast("Tensor", x + hidden)


def encoder_for(model: Vqgan, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model's encoder for calls within `computing_in(dtype, device)`; the model stays as it is."""
    encoder = reduced_copy(model.encoder, dtype, device)
    if encoder is not model.encoder:
        for part in [*encoder.modules()]:
            for name, child in [*part.named_children()]:
                if isinstance(child, upstream.ResnetBlock):
                    setattr(part, name, _NormedBlock(child, dtype))
    return encoder


def compiled_encoder(encoder: nn.Module, most: int) -> Compiled[Tensor]:
    """A model's encoder, compiled for batches of at most `most` images, for `Vqgan.latents`."""
    sizes = batch_sizes(most)
    return Compiled(encoder, name="VQGAN's encoder", sizes=lambda _: sizes)


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
    n_embed, embed_dim = codebook_shape(tensors)
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
