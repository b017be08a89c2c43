"""Trains the demo's VQGAN: an encoder and a decoder around a codebook that follows them.

Squared error only. Upstream adds a perceptual loss and a discriminator, which need other trained weights or a long
second phase and make pictures sharper, not nearer to the original.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchmint.demo.scenes import make_scene
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.processing import fit_image
from patchmint.tokenizers.vqgan.model import Vqgan, untrained_vqgan
from patchmint.tokenizers.vqgan.quantize import EntriesCodebook
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
from tools.demo_training.evaluate import psnr_and_use
from tools.demo_training.models import FILES, TOKENIZER, save_weights

_SIZE = 256
_CROPS = (96, 128, 160)
_SMOOTH_STEPS = 400
# At first nothing is quantized: a codebook laid over a random encoder would use a handful of its codes.
_FOLLOW = 0.99
_REVIVE_EVERY = 50
_COMMITMENT = 0.25


class TokenizerTask:
    """VQGAN with a codebook of moving averages (arXiv 1711.00937, appendix A.1); codes that nobody uses start again."""

    name = "tokenizer"

    def __init__(self, seed: int, held_out: int, batch: int = 8, scenes: int = 60) -> None:
        self.vqgan = untrained_vqgan(TOKENIZER, seed)
        self.model: nn.Module = self.vqgan
        self._seed, self._held_out, self._batch, self._scenes = seed, held_out, batch, scenes
        self.memory = {"used": torch.ones(TOKENIZER.n_embed)}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Squared error of the picture, and of latents to their codes."""
        pixels = self._pixels(step)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vqgan.quant_conv(self.vqgan.encoder(pixels))
        latents = latents.float()
        if step < _SMOOTH_STEPS:
            quantized, commitment = latents, latents.square().mean() * 0.01
        else:
            quantized, commitment = self._quantize(latents, step)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.vqgan.decoder(self.vqgan.post_quant_conv(quantized))
        return {"picture": functional.mse_loss(drawn.float(), pixels) * 10, "commitment": commitment}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR in dB of pictures made of codes again, fitted by padding and by cropping, and how many codes occur."""
        scenes = [make_scene(self._held_out, number, texts=0) for number in range(self._scenes)]
        figures: dict[str, float] = {}
        for fit in (Fit.PAD, Fit.CROP):
            tokenizer = VqganTokenizer(cast(Vqgan, model), name=self.name, size=_SIZE, fit=fit)
            figures |= {f"{name}_{fit}": value for name, value in psnr_and_use(tokenizer, scenes).items()}
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights."""
        save_weights(model, TOKENIZER, folder / FILES["tokenizer"])

    def _pixels(self, step: int) -> Tensor:
        """Crops of scenes, one size a batch; every eighth batch whole, so that attention sees what it will see."""
        rng = np.random.default_rng((self._seed, step, 2))
        whole = step % 8 == 0
        side = _SIZE if whole else int(rng.choice(_CROPS))
        rows = max(2, self._batch * 128**2 // side**2)
        crops = []
        for row in range(rows):
            image = make_scene(self._seed, step * 32 + row, texts=0).image
            fit = Fit.PAD if rng.random() < 0.5 else Fit.CROP
            fitted = fit_image(image, PatchGrid(16, 16, 16, fit))[0]
            top, left = rng.integers(0, _SIZE - side + 1, 2)
            crops.append(fitted[top : top + side, left : left + side])
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()

    def _quantize(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        codebook = cast(EntriesCodebook, self.vqgan.quantize)
        vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        if step == _SMOOTH_STEPS:
            self._lay_out(codebook)
        codes = codebook.codes(latents.detach())
        with torch.no_grad():
            self._follow(codebook.embedding.weight, vectors, codes.flatten(), step)
        quantized = codebook.vectors(codes).detach()
        commitment = functional.mse_loss(latents, quantized) * _COMMITMENT
        return latents + (quantized - latents).detach(), commitment

    @torch.no_grad()
    def _lay_out(self, codebook: EntriesCodebook) -> None:
        """Spread the codes over the latents of a few hundred scenes (k-means)."""
        parts = []
        for extra in range(40):
            latents = self.vqgan.latents(self._pixels(-1 - extra + 2**20))
            parts.append(latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]))
        vectors = torch.cat(parts)
        weight = codebook.embedding.weight
        weight.copy_(vectors[torch.randperm(len(vectors))[: len(weight)]])
        for _ in range(10):
            codes = torch.cdist(vectors, weight).argmin(1)
            counts = torch.bincount(codes, minlength=len(weight)).float()
            sums = torch.zeros_like(weight).index_add_(0, codes, vectors)
            weight.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], weight))

    def _follow(self, weight: Tensor, vectors: Tensor, codes: Tensor, step: int) -> None:
        """Move each code towards the mean of the latents that chose it."""
        used = self.memory["used"]
        counts = torch.bincount(codes, minlength=len(weight)).float()
        sums = torch.zeros_like(weight).index_add_(0, codes, vectors)
        share = (counts / (used * _FOLLOW + counts).clamp(min=1e-3))[:, None].clamp(max=0.3)
        weight.lerp_(sums / counts.clamp(min=1)[:, None], torch.where(counts[:, None] > 0, share, 0))
        used.mul_(_FOLLOW).add_(counts)
        if step % _REVIVE_EVERY == 0:
            unused = torch.nonzero(used < 0.5 * _FOLLOW**_REVIVE_EVERY)[:, 0]
            if len(unused):
                weight[unused] = vectors[torch.randint(len(vectors), (len(unused),))]
                used[unused] = 20.0
