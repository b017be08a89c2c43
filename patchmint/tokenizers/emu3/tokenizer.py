"""Emu3's tokenizer as a `Tokenizer`: transformers' `Emu3VQVAE`, of one frame where that would encode it four times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from patchmint.compute.devices import computing_in, ready_for, to_device
from patchmint.geometry.native import native_name
from patchmint.geometry.processing import fit_image
from patchmint.interfaces import TokenizerSpec, Tokens
from patchmint.tokenizers.emu3.arch import Emu3Arch, by_transformers_names, infer_emu3
from patchmint.tokenizers.vqgan.quantize import best_codes
from patchmint.types import RgbImage
from patchmint.weights.described import load_described
from patchmint.weights.loading import StateFile


class Emu3Tokenizer:
    """Images -> Emu3's codes; each image by itself, so batches change nothing.

    Args:
        state: the file, in BAAI's layout or in transformers'.
        name: path or `hub:` name, as manifests record it.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of large products; codes are chosen in float32.

    Raises:
        WeightsMismatchError: the file is of another model.
    """

    def __init__(self, state: StateFile, *, name: str, device: str, precision: torch.dtype) -> None:
        self._arch = arch = infer_emu3(state.tensors, state.metadata)
        self._device, self._precision = torch.device(device), precision
        self._model = _load(state, arch).to(self._device)
        levels = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
        self._mean, self._std = (np.array(each, np.float32) for each in (arch.mean, arch.std))
        scaled = (levels - self._mean) / self._std
        self._scaled = torch.from_numpy(scaled.T.copy()).to(self._device)  # (3, 256)
        self._spec = TokenizerSpec(
            name=name,
            grid_shape=(0, 0),
            codebook_sizes=(arch.config["codebook_size"],),
            cells=arch.grid,
            preprocessing=native_name(arch.grid),
            can_decode=True,
            rule=arch.rule,
        )

    @property
    def spec(self) -> TokenizerSpec:
        """What is fixed about this tokenizer."""
        return self._spec

    def prepare(self, image: RgbImage) -> RgbImage:
        """What can be done ahead, on the CPU, in any thread: resize an image, HWC uint8 RGB."""
        return ready_for(self._device, fit_image(image, self._arch.grid)[0])

    def tokenize(self, images: Sequence[RgbImage], prepared: Sequence[RgbImage] | None = None) -> list[Tokens]:
        """Encode images.

        Args:
            images: HWC uint8 RGB, of any sizes.
            prepared: what `prepare` made of each image; None = nothing was done ahead.

        Returns:
            For each image codes int32 (rows, cols, 1), a cell for each 8 x 8 pixels of what it is resized to.

        Raises:
            InputError: an image is more than 200 times as long as wide.
        """
        fitted = prepared if prepared is not None else [self.prepare(image) for image in images]
        grids = (self._codes(to_device(levels, self._device)) for levels in fitted)
        return [Tokens(grid.cpu().numpy()[..., None].astype(np.int32)) for grid in grids]

    @torch.inference_mode()
    def _codes(self, levels: Tensor) -> Tensor:
        """Codes int64 (rows, cols) of levels uint8 (H, W, 3)."""
        pixels = torch.stack([row[levels[..., at].int()] for at, row in enumerate(self._scaled)])[None]
        with computing_in(self._precision, self._device):
            latents = self._latents(pixels)[0, :, 0].float()
        book = self._model.quantize.embedding.weight
        codes = best_codes(latents.flatten(1).T, book, -book.square().sum(1) / 2)
        return codes.reshape(latents.shape[1:])

    def _latents(self, pixels: Tensor) -> Tensor:
        """`Emu3VQVAE.encode` up to the codebook, (1, C, 1, rows, cols); the frames differ from `time_conv` on only."""
        encoder = self._model.encoder
        hidden = encoder.norm_out(encoder.middle_block(encoder.down_block(encoder.conv_in(pixels))))
        frame = encoder.conv_out(hidden * hidden.sigmoid())
        hidden = frame[:, :, None].expand(-1, -1, self._arch.config["temporal_downsample_factor"], -1, -1)
        for conv in encoder.time_conv:
            hidden = conv(hidden)
            hidden = hidden * hidden.sigmoid()
        for block in encoder.time_res_stack:
            hidden = block(hidden)
        latents: Tensor = self._model.quant_conv(hidden)
        return latents

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Tokens]) -> list[RgbImage]:
        """Draw codes (rows, cols, 1) as images, HWC uint8 RGB, of 8 x 8 pixels a code, for a preview."""
        drawn = []
        for item in tokens:
            codes = torch.from_numpy(item.codes[..., 0].astype(np.int64)).to(self._device)
            picture = self._model.decode(codes[None])[0].permute(1, 2, 0).float().cpu().numpy()
            levels = (picture * self._std + self._mean) * 255
            drawn.append(levels.round().clip(0, 255).astype(np.uint8))
        return drawn


def _load(state: StateFile, arch: Emu3Arch) -> Any:
    own = by_transformers_names(state.tensors)
    flat = {name: own[name][..., 0, 0] for name in own if name.endswith("_proj.weight") and own[name].ndim == 4}
    tensors = own | flat  # what is a matrix here is a 1 x 1 convolution in BAAI's layout
    return load_described(
        lambda: Emu3VQVAE(Emu3VQVAEConfig(**arch.config)), replace(state, tensors=tensors), what="Emu3's tokenizer"
    )
