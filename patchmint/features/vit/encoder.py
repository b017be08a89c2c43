"""A vision encoder as a `FeatureEncoder`: images of any size in, float16 features out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patchmint.compute.precision import computing_in
from patchmint.compute.transfer import to_device
from patchmint.errors import ConfigError, InputError
from patchmint.features.connectors.features import features_of
from patchmint.features.vit.model import Vit
from patchmint.geometry import PatchGrid, fit_image
from patchmint.interfaces import FeatureSpec
from patchmint.types import RgbImage

_MEAN_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# The published `preprocessor_config.json` of both.


class VitFeatureEncoder:
    """Images -> features of a frozen vision encoder, on the data set's own grid.

    An image gives the same features alone and in a batch, but for rounding: matrix products of another size may add up
    in another order (about 1e-6 of a value in float32, mostly below what float16 shows).

    Args:
        model: the model; it is moved to `device` and put in eval mode.
        spec: what to make of its hidden states (`plan_features`).
        grid: how an image becomes the encoder's input, and in how many views.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of the large products.
        batch_size: views in one pass of the model.

    Raises:
        ConfigError: the grid isn't the encoder's, or batch_size is out of range.
    """

    def __init__(
        self,
        model: Vit,
        spec: FeatureSpec,
        grid: PatchGrid,
        *,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        model.arch.require(grid, spec.encoder)
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self._model = model.to(device).eval()
        self._spec = spec
        self._grid = grid
        self._device = torch.device(device)
        self._precision = precision
        self._batch_size = batch_size
        self._last = max(max(part) for part in spec.layers)
        self._mean, self._std = (torch.tensor(values).to(device) for values in _MEAN_STD[model.arch.family])

    @property
    def spec(self) -> FeatureSpec:
        """What is fixed about these features."""
        return self._spec

    def prepare(self, image: RgbImage) -> list[RgbImage]:
        """What can be done ahead, on the CPU, in any thread: fit an image to the grid, a HWC uint8 RGB array a view."""
        return fit_image(image, self._grid)

    def encode(
        self, images: Sequence[RgbImage], prepared: Sequence[list[RgbImage]] | None = None
    ) -> list[npt.NDArray[np.float16]]:
        """Encode images.

        Args:
            images: HWC uint8 RGB, of any sizes.
            prepared: what `prepare` made of each image; None = nothing was done ahead.

        Returns:
            For each image float16 (views * spec.tokens, spec.channels): view after view, tokens row-major.

        Raises:
            InputError: a feature is beyond float16's range, or no number at all. The published encoders' features reach
                some hundreds, and float16 holds 65504: then the weights are at fault, and cutting the value off, or
                writing infinity, would hide that.
        """
        if not images:
            return []
        views = prepared if prepared is not None else [self.prepare(image) for image in images]
        flat = [view for image_views in views for view in image_views]
        chunks = range(0, len(flat), self._batch_size)
        features = np.concatenate([self._encode(flat[start : start + self._batch_size]) for start in chunks])
        bounds = pairwise(accumulate((len(image_views) for image_views in views), initial=0))
        return [features[start:end].reshape(-1, self._spec.channels) for start, end in bounds]

    def pixel_values(self, views: Sequence[RgbImage]) -> Tensor:
        """Rescale and normalise as the published processors do.

        Args:
            views: HWC uint8 RGB of the grid's input size.

        Returns:
            float32 (B, 3, H, W).
        """
        levels = to_device(np.stack(views), self._device)
        return ((levels.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def _encode(self, views: Sequence[RgbImage]) -> npt.NDArray[np.float16]:
        pixels = self.pixel_values(views)
        features = self._features(pixels, self._precision)
        if self._precision == torch.float16 and not features.isfinite().all():
            features = self._features(pixels, torch.float32)  # it may only have overflowed on the way
        stored = features.to(torch.float16)
        if not stored.isfinite().all():
            raise InputError(
                f"features of {self._spec.encoder} are beyond what float16 holds (65504): they reach "
                f"{features.abs().max().item():.3g}; check its weights (`patchmint models check`), or choose other "
                "layers (features.select_layer, features.layers)"
            )
        return stored.cpu().numpy()

    def _features(self, pixels: Tensor, precision: torch.dtype) -> Tensor:
        with computing_in(precision, self._device):
            # States come one by one, as they are asked for.
            return features_of(self._model.states(pixels, self._last), self._spec, self._model.arch)
