"""A vision encoder as a `FeatureEncoder`: images of any size in, float16 features out.

What is made of hidden states: Dense Connector's STI, SCI and DCI, and DeCo's pooling, functions without parameters.
Tokens are (B, tokens, channels): with `leading` 1 a CLS token, which is never pooled and stays first, then the grid's
tokens row-major, then what STI appends.

Under `cls_patch` the authors' Dense Connector drops CLS from all parts but V_L: STI then appends averages of patches to
[CLS, patches], as here, and SCI and DCI fail on 577 against 576 tokens. Here these two join the CLS tokens of all
parts, so that it has as many channels as the other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from PIL import Image
from torch import Tensor

from patchmint.compute.devices import computing_any_shape_in, ready_for, reduced_copy, to_device
from patchmint.compute.memory import even_parts
from patchmint.errors import ConfigError, InputError
from patchmint.features.arch import EncoderArch, VitArch
from patchmint.features.model import Vit, mean_states
from patchmint.features.plan import STI_WINDOW
from patchmint.features.tower import Parts, Tower
from patchmint.geometry import Grid, NativeGrid, PatchGrid, fit_image
from patchmint.interfaces import FeatureSpec
from patchmint.types import RgbImage, Size

_MOST_PATCHES = 2**14
# Of images of unlike sizes in one pass of the model, if there are more than one in it.


class Backbone(Protocol):
    """A vision encoder: CLIP and SigLIP (`Vit`), or one for images of any size (`Tower`)."""

    @property
    def arch(self) -> EncoderArch:
        """What it is built from."""

    def parts(self, pixels: Sequence[Tensor], layers: Parts | None) -> Iterator[tuple[list[Tensor], Size]]:
        """Averages of hidden states, (B, leading + n, channels) each, and the rows and columns of the n."""


class VitFeatureEncoder:
    """Images -> features of a frozen vision encoder, on the data set's own grid.

    An image gives the same features alone and in a batch, but for rounding: matrix products of another size may add up
    in another order (about 1e-6 of a value in float32, mostly below what float16 shows).

    Args:
        model: a `Vit` or a `Tower`; it is moved to `device` and put in eval mode.
        spec: what to make of its hidden states (`plan_features`).
        grid: how an image becomes the encoder's input, and in how many views.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of the large products.
        batch_size: views in one pass of the model; None = 8 on a CPU, 32 on a GPU. Of large ones fewer are taken.

    Raises:
        ConfigError: the grid isn't the encoder's, or batch_size is out of range.
    """

    def __init__(
        self,
        model: Vit | Tower,
        spec: FeatureSpec,
        grid: Grid,
        *,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        batch_size: int | None = None,
    ) -> None:
        model.arch.require(grid, spec.encoder)
        assert isinstance(grid, PatchGrid | NativeGrid)  # no encoder's patches are those of other grids
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self._model: Backbone = model.to(device).eval()
        self._spec = spec
        self._grid = grid
        self._device = torch.device(device)
        self._precision = precision
        self._batch_size = batch_size or (32 if self._device.type == "cuda" else 8)
        self._reduced: Backbone = reduced_copy(model, precision, self._device)
        inputs = model.arch.inputs
        self._resample = Image.Resampling(inputs.resample)
        self._mean, self._std = (torch.tensor(values).to(device) for values in (inputs.mean, inputs.std))

    @property
    def spec(self) -> FeatureSpec:
        """What is fixed about these features."""
        return self._spec

    def prepare(self, image: RgbImage) -> list[RgbImage]:
        """What can be done ahead, on the CPU, in any thread: fit an image to the grid, a HWC uint8 RGB array a view."""
        return [ready_for(self._device, view) for view in fit_image(image, self._grid, self._resample)]

    def encode(
        self, images: Sequence[RgbImage], prepared: Sequence[list[RgbImage]] | None = None
    ) -> list[npt.NDArray[np.float16]]:
        """Encode images.

        Args:
            images: HWC uint8 RGB, of any sizes.
            prepared: what `prepare` made of each image; None = nothing was done ahead.

        Returns:
            For each image float16 (tokens, spec.channels): view after view, each with `spec.tokens_of` its cells,
            row-major as labels are.

        Raises:
            InputError: a feature is beyond float16's range, or no number at all. The published encoders' features reach
                some hundreds, and float16 holds 65504: then the weights are at fault, and cutting the value off, or
                writing infinity, would hide that.
        """
        if not images:
            return []
        views = prepared if prepared is not None else [self.prepare(image) for image in images]
        flat = [view for image_views in views for view in image_views]
        features = [one for part in self._passes(flat) for one in self._encode(flat[part])]
        bounds = pairwise(accumulate((len(image_views) for image_views in views), initial=0))
        return [np.concatenate(features[start:end]) for start, end in bounds]

    def _passes(self, views: Sequence[RgbImage]) -> Iterator[slice]:
        """Cut views into passes of the model: no more than the batch size, and of large views fewer."""
        if isinstance(self._grid, PatchGrid):
            yield from even_parts(len(views), self._batch_size)
            return
        start, largest = 0, 0
        for end, view in enumerate(views):
            # some encoders fill all up to the largest
            largest = max(largest, view.shape[0] * view.shape[1] // self._grid.patch_px**2)
            taken = end - start + 1
            if taken > 1 and (taken > self._batch_size or taken * largest > _MOST_PATCHES):
                yield slice(start, end)
                start, largest = end, view.shape[0] * view.shape[1] // self._grid.patch_px**2
        yield slice(start, len(views))

    def pixel_values(self, views: Sequence[RgbImage]) -> Tensor:
        """Rescale and normalise as the published processors do.

        Args:
            views: HWC uint8 RGB, all of one size.

        Returns:
            float32 (B, 3, H, W).
        """
        levels = torch.stack([to_device(view, self._device) for view in views])
        return ((levels.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def _encode(self, views: Sequence[RgbImage]) -> Iterator[npt.NDArray[np.float16]]:
        alike = len({view.shape for view in views}) == 1
        pixels = list(self.pixel_values(views)) if alike else [self.pixel_values([view])[0] for view in views]
        found = self._features(pixels, self._precision)
        if self._precision == torch.float16 and not all(features.isfinite().all() for features in found):
            found = self._features(pixels, torch.float32)  # it may only have overflowed on the way
        for features in found:
            stored = features.to(torch.float16)
            if not stored.isfinite().all():
                raise InputError(
                    f"features of {self._spec.encoder} are beyond what float16 holds (65504): they reach "
                    f"{features.abs().max().item():.3g}; check its weights (`patchmint models check`), or choose other "
                    "layers (features.select_layer, features.layers)"
                )
            yield from stored.cpu().numpy()

    def _features(self, pixels: Sequence[Tensor], precision: torch.dtype) -> list[Tensor]:
        spec = self._spec
        model = self._model if precision == torch.float32 else self._reduced
        with computing_any_shape_in(precision, self._device):
            made = model.parts(pixels, None if spec.merged else spec.layers)
            return [joined(parts, spec, model.arch.leading, whole) for parts, whole in made]


def features_of(states: Iterable[Tensor], spec: FeatureSpec, arch: VitArch) -> Tensor:
    """Make the features that a spec describes.

    Args:
        states: hidden states 0, 1, ..., each float (B, arch.leading + patches, hidden); as many as the spec needs.
        spec: from `plan_features`.
        arch: the encoder's architecture.

    Returns:
        float (B, spec.tokens, spec.channels).
    """
    return joined(mean_states(states, spec.layers), spec, arch.leading, (arch.side, arch.side))


def joined(parts: Sequence[Tensor], spec: FeatureSpec, leading: int, whole: Size) -> Tensor:
    """Make the features that a spec describes of the averages of its hidden states.

    Args:
        parts: float (B, leading + rows * cols, channels) each, V_L first.
        spec: from `plan_features`.
        leading: tokens before the grid's.
        whole: (rows, cols) of the grid.

    Returns:
        float (B, tokens, spec.channels).
    """
    parts = [part[:, leading - spec.leading :] for part in parts]
    if spec.pool == "before":
        parts = [pool_grid(part, whole, spec.grid, spec.leading) for part in parts]
    made = connect(parts, spec.connector, spec.leading)
    return pool_grid(made, whole, spec.grid, spec.leading) if spec.pool == "after" else made


def connect(parts: Sequence[Tensor], connector: str, leading: int = 0) -> Tensor:
    """Join V_L with further parts (Dense Connector, arXiv 2405.13800).

    Args:
        parts: float (B, leading + n, C) each, V_L first.
        connector: "none": V_L alone. "sti": to its tokens are appended those of the other parts, without CLS, averaged
            by eights along the flattened token axis (AvgPool1d(8, 8): a rest of fewer is left out). "sci" and "dci":
            channels of all parts behind each other.
        leading: tokens before the grid's.

    Returns:
        "none": (B, leading + n, C); "sti": (B, leading + n + (len(parts) - 1) * (n // 8), C); else
        (B, leading + n, len(parts) * C).
    """
    match connector:
        case "none":
            return parts[0]
        case "sti":
            averages = [
                nnf.avg_pool1d(part[:, leading:].transpose(1, 2), STI_WINDOW, STI_WINDOW).transpose(1, 2)
                for part in parts[1:]
            ]
            return torch.cat([parts[0], *averages], dim=1)
        case _:
            return torch.cat(list(parts), dim=2)


def pool_grid(tokens: Tensor, grid: tuple[int, int], pooled: tuple[int, int], leading: int = 0) -> Tensor:
    """Pool the grid's tokens by 2-D adaptive averages (DeCo, arXiv 2405.20985); the others stay as they are.

    Args:
        tokens: float (B, leading + rows * cols + trailing, C).
        grid: (rows, cols) of the grid.
        pooled: (rows, cols) to pool it to; bins as `patchmint.geometry.adaptive_bins`.
        leading: tokens before the grid's.

    Returns:
        float (B, leading + pooled rows * pooled cols + trailing, C).
    """
    count = grid[0] * grid[1]
    before, after = tokens[:, :leading], tokens[:, leading + count :]
    plane = tokens[:, leading : leading + count].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
    averages = nnf.adaptive_avg_pool2d(plane, pooled).flatten(2).transpose(1, 2)
    return torch.cat([before, averages, after], dim=1)
