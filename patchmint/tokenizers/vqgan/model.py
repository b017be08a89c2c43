"""The VQGAN itself: upstream's encoder and decoder around a codebook, without Lightning and without the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from taming.modules.diffusionmodules import model as upstream
from torch import Tensor, nn

from patchmint.compute.compiled import Compiled, batch_sizes
from patchmint.compute.precision import computing_fully
from patchmint.tokenizers.vqgan.arch import VqganArch
from patchmint.tokenizers.vqgan.quantize import Codebook, GumbelCodebook, NearestCodebook


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
