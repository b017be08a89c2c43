"""The VQGAN as a `Tokenizer`: images of any size in, a grid of codes out, and back to a preview."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from patchmint.compute.devices import computing_in, ready_for, to_device
from patchmint.errors import ConfigError, InputError
from patchmint.geometry.grid import Fit, PatchGrid
from patchmint.geometry.processing import fit_image
from patchmint.interfaces import TokenizerSpec, Tokens
from patchmint.tokenizers.vqgan.model import Vqgan, compiled_encoder, encoder_for
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.types import RgbImage

_SCALED = (np.arange(256) / 127.5 - 1.0).astype(np.float32)
# Upstream's x / 127.5 - 1 for each byte, rounded once from float64, as its data sets do (taming/data/base.py).


class VqganTokenizer:
    """Images -> VQGAN codes.

    An image gives the same codes alone and in a batch, wherever the convolutions round alike for both; where they
    don't, a code can only change between two that fit the cell equally well to within that rounding (float32). On an
    image of one flat colour that rounding is up to 1000 times as large as on a photograph: upstream's GroupNorm divides
    by the root of a variance of nothing + 1e-6.

    Args:
        model: the model; it is moved to `device` and put in eval mode.
        name: preset name or path, as manifests record it.
        size: side in pixels of the square that an image becomes; a multiple of the model's factor.
        fit: "pad", "crop" or "squash". Upstream's own data sets crop.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of the encoder's large products; codes are always chosen in float32, and an image that
            overflows float16 is encoded in float32.
        batch_size: images in one pass of the model; None = 2 on a CPU, 32 on a GPU.
        remap: writes codes as positions in a list. One of the rule logit then chooses among the list's codes only, as
            upstream's does; the others choose among all, and one outside the list becomes `remap`'s unknown.
        compiled: compile the encoder, on a GPU.

    Raises:
        ConfigError: a setting is out of range, or `remap` is for another codebook.
    """

    def __init__(
        self,
        model: Vqgan,
        *,
        name: str,
        size: int,
        fit: str,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        batch_size: int | None = None,
        remap: Remap | None = None,
        compiled: bool = False,
    ) -> None:
        arch = model.arch
        if fit not in (Fit.PAD, Fit.CROP, Fit.SQUASH):
            raise ConfigError(f"a VQGAN's fit is pad, crop or squash, not {fit!r}")
        if size < 1 or size % arch.factor:
            raise ConfigError(f"size must be a multiple of this VQGAN's cell of {arch.factor} px, not {size}")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        if remap is not None and remap.n_embed != arch.n_embed:
            raise ConfigError(f"the list of used codes is for {remap.n_embed} codes, but the model has {arch.n_embed}")
        side = size // arch.factor
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        # The layout that a GPU's convolutions want. On a CPU narrow models were a third faster in it, but group norms
        # less exact: on flat areas 0.2 % of the codes were others.
        self._memory = torch.channels_last if on_gpu else torch.contiguous_format
        self._model = model.to(self._device).to(memory_format=self._memory).eval()
        self._scaled = torch.from_numpy(_SCALED).to(self._device)
        self._precision = precision
        # A CPU is quickest where activations stay near its cache.
        self._batch_size = batch_size or (32 if on_gpu else 2)
        encoder = encoder_for(model, precision, self._device)
        self._encoder = compiled_encoder(encoder, self._batch_size) if compiled and on_gpu else encoder
        self._remap = remap
        self._among = torch.from_numpy(remap.used).to(device) if remap is not None and arch.rule == "logit" else None
        self._cells = PatchGrid(rows=side, cols=side, patch_px=arch.factor, fit=Fit(fit))
        self._spec = TokenizerSpec(
            name=name,
            grid_shape=(side, side),
            codebook_sizes=(arch.n_embed if remap is None else remap.size,),
            cells=self._cells,
            preprocessing=f"{fit}-{size}-bicubic",
            can_decode=arch.decodes,
            rule=arch.rule,
        )

    @property
    def spec(self) -> TokenizerSpec:
        """What is fixed about this tokenizer."""
        return self._spec

    def prepare(self, image: RgbImage) -> RgbImage:
        """What can be done ahead, on the CPU, in any thread: fit an image to the model's square, HWC uint8 RGB."""
        return ready_for(self._device, fit_image(image, self._cells)[0])

    def tokenize(self, images: Sequence[RgbImage], prepared: Sequence[RgbImage] | None = None) -> list[Tokens]:
        """Encode images.

        Args:
            images: HWC uint8 RGB, of any sizes.
            prepared: what `prepare` made of each image; None = nothing was done ahead.

        Returns:
            For each image codes int32 (rows, cols, 1), 0..codebook_sizes[0]-1.
        """
        tokens: list[Tokens] = []
        fitted = prepared if prepared is not None else [self.prepare(image) for image in images]
        for start in range(0, len(fitted), self._batch_size):
            batch = [to_device(levels, self._device) for levels in fitted[start : start + self._batch_size]]
            codes = self._codes(torch.stack(batch)).cpu().numpy()
            if self._remap is not None:
                codes = self._remap.to_used(codes)
            tokens += [Tokens(grid[..., None].astype(np.int32)) for grid in codes]
        return tokens

    @torch.inference_mode()
    def _codes(self, levels: torch.Tensor) -> torch.Tensor:
        """Codes int64 (B, rows, cols) of levels uint8 (B, size, size, 3)."""
        pixels = self._scaled[levels.int()].permute(0, 3, 1, 2).contiguous(memory_format=self._memory)
        with computing_in(self._precision, self._device):
            latents = self._model.latents(pixels, self._encoder)
        if self._precision == torch.float16 and not latents.isfinite().all():
            latents = self._model.latents(pixels)  # some weights drive activations beyond what float16 holds
        codes: torch.Tensor = self._model.quantize.codes(latents, self._among)
        return codes

    def decode(self, tokens: Sequence[Tokens]) -> list[RgbImage]:
        """Draw codes as images, for a preview.

        Args:
            tokens: integers (rows, cols, 1) each, as `tokenize` returns.

        Returns:
            HWC uint8 RGB, (size, size, 3) each.

        Raises:
            InputError: codes of another shape or type, or outside this tokenizer's codebook.
            NotImplementedError: the model has no decoder.
        """
        if not self._spec.can_decode:
            raise NotImplementedError(f"{self._spec.name} has no decoder, so it can't draw codes")
        previews: list[RgbImage] = []
        for start in range(0, len(tokens), self._batch_size):
            grids = np.stack([self._checked(item.codes) for item in tokens[start : start + self._batch_size]])
            codes = torch.from_numpy(grids if self._remap is None else self._remap.to_all(grids))
            drawn = self._model.decode(codes.to(self._device)).clamp(-1, 1).add(1).mul(127.5).round()
            previews += list(drawn.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())
        return previews

    def _checked(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        shape, count = (*self._spec.grid_shape, 1), self._spec.codebook_sizes[0]
        if codes.shape != shape or codes.dtype.kind not in "iu":
            raise InputError(
                f"{self._spec.name} decodes integer codes of shape {shape}, not {codes.dtype} {codes.shape}"
            )
        if codes.min() < 0 or codes.max() >= count:
            raise InputError(
                f"{self._spec.name} has codes 0 to {count - 1}, but these run from {codes.min()} to {codes.max()}; "
                "were they written by another tokenizer, or shifted by a vocabulary offset?"
            )
        return codes[..., 0].astype(np.int64)
