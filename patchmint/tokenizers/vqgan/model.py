"""The VQGAN itself: upstream's encoder and decoder around a codebook, without Lightning and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from taming.modules.diffusionmodules import model as upstream
from torch import Tensor, nn

from patchmint.compute.compiled import Compiled, batch_sizes
from patchmint.compute.devices import computing_fully, reduced_copy
from patchmint.compute.norms import silu_of_norm
from patchmint.config.annotator import Rule
from patchmint.tokenizers.vqgan.arch import VqganArch, by_upstreams_names, infer_arch
from patchmint.tokenizers.vqgan.quantize import Codebook, EntriesCodebook, LogitCodebook
from patchmint.weights.loading import StateFile, load_into


def _say_nothing(*_: object) -> None:
    pass


# Upstream's Decoder prints its latent shape when it is built, and stdout is for data. Shadowing `print` in that one
# module is safe between threads, which redirecting stdout is not.
upstream.print = _say_nothing
# Upstream's x * sigmoid(x) in one pass over memory instead of two.
upstream.nonlinearity = nn.functional.silu


class Vqgan(nn.Module):
    """Upstream's `VQModel` or `GumbelVQ` (taming/models/vqgan.py) for inference, with any rule.

    Keys of the state dict are those of upstream's checkpoints without `loss.*`: `encoder.*`, `decoder.*`,
    `quant_conv.*`, `post_quant_conv.*`, and `quantize.embedding.weight` or, for the rule logit, `quantize.proj.*` and
    `quantize.embed.weight`. Without a decoder `decoder` and `post_quant_conv` are missing.

    Codes always come as a grid, (B, rows, cols); upstream returns them flat unless its `sane_index_shape` is set, so
    that setting has no meaning here. Positions are batch-major, then row-major, as upstream's.
    """

    def __init__(self, arch: VqganArch) -> None:
        super().__init__()
        self.arch = arch
        self.encoder: nn.Module = upstream.Encoder(**arch.upstream_config())
        if arch.decodes:
            self.decoder: nn.Module = upstream.Decoder(**arch.upstream_config())
        self.quant_conv = nn.Conv2d(arch.z_channels, arch.embed_dim, kernel_size=1)
        if arch.decodes:
            self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, kernel_size=1)
        self.quantize: Codebook = (
            LogitCodebook(arch.n_embed, arch.embed_dim, arch.z_channels)
            if arch.rule == "logit"
            else EntriesCodebook(arch.n_embed, arch.embed_dim, arch.rule)
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
        """Choose a code for each cell of the images. Deterministic, by every rule.

        Args:
            pixels: as for `latents`.
            among: int64 (U,), codes to choose from; None = all.

        Returns:
            int64 (B, H / factor, W / factor), 0..n_embed-1.
        """
        return self.quantize.codes(self.latents(pixels), among)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Draw the images that codes stand for; `arch.decodes` is True.

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


def load_vqgan(state: StateFile, *, rule: Rule | None = None, told: Rule | None = None) -> Vqgan:
    """Build the VQGAN that a checkpoint holds and load it: every key that it needs is there, and none is left over.

    Args:
        state: the file, with its publisher's names.
        rule: as for `infer_arch`.
        told: as for `infer_arch`.

    Returns:
        The model on the CPU, float32, in eval mode.

    Raises:
        WeightsMismatchError: as `infer_arch`, or not a whole model.
    """
    arch = infer_arch(state.tensors, state.metadata, rule=rule, told=told)
    tensors, _ = by_upstreams_names(state.tensors)
    model = _empty(arch).to_empty(device="cpu")
    load_into(
        model, replace(state, tensors=tensors), what="VQGAN", ignored=() if arch.decodes else ("post_quant_conv.",)
    )
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
