"""Boxes to masks with SAM: pictures encoded in batches, boxes decoded in bounded chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from patchmint.compute.precision import computing_in
from patchmint.errors import ConfigError, InputError
from patchmint.labelers.sam.frames import input_size, resize_longest_side, scale_boxes
from patchmint.labelers.sam.masks import MaskCoverage, SamMasks
from patchmint.types import RgbImage


class SamMasker:
    """Gives the mask of each box. Keeps nothing between calls, unlike upstream's predictor.

    Example:
        >>> masker = SamMasker(untrained(TINY, seed=0))
        >>> masks = masker.masks([image], [np.array([[10, 10, 90, 60]], dtype=np.float32)])
    """

    def __init__(
        self,
        model: Sam,
        *,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
        coverage: MaskCoverage = "exact",
        box_chunk: int = 64,
        image_batch: int = 1,
    ) -> None:
        """Take over a model.

        Args:
            model: moved to `device` and set to evaluation mode, in place.
            device: where the model runs, such as "cpu" or "cuda:0".
            precision: number format of the large products.
            coverage: how the masks answer, "exact" or "fast"; see `SamMasks.mode`.
            box_chunk: boxes decoded together; bounds memory.
            image_batch: pictures encoded together. Each takes about 2.6 GB in the official ViT-B at float32 (measured
                on a CPU), most of it attention over the whole picture.

        Raises:
            ConfigError: an unknown `coverage`, or a chunk or batch below 1.
        """
        if coverage not in get_args(MaskCoverage):
            raise ConfigError(f"coverage must be 'exact' or 'fast', not {coverage!r}")
        if box_chunk < 1 or image_batch < 1:
            raise ConfigError(f"box_chunk and image_batch must be at least 1; got {box_chunk} and {image_batch}")
        self._model = model.to(device).eval()
        self._precision = precision
        self._coverage = coverage
        self._box_chunk = box_chunk
        self._image_batch = image_batch

    def masks(self, images: Sequence[RgbImage], boxes: Sequence[npt.NDArray[np.float32]]) -> list[SamMasks]:
        """Segment what each box holds.

        Args:
            images: pictures of any sizes.
            boxes: for each picture (N, 4), XYXY in its pixels; N may be 0.

        Returns:
            For each picture its masks, in the order of the boxes. A picture without boxes has none, and isn't encoded.

        Raises:
            InputError: images and boxes aren't equally many, or boxes aren't (N, 4) or not finite.
        """
        if len(images) != len(boxes):
            raise InputError(f"{len(images)} images but {len(boxes)} arrays of boxes; give one array an image")
        for index, array in enumerate(boxes):
            if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
                raise InputError(f"boxes of image {index} must be finite and (N, 4), XYXY; got shape {array.shape}")
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        nothing = np.zeros((0, 1, 1), dtype=np.float32)
        results = [SamMasks(nothing, size, self._image_size, self._coverage) for size in sizes]
        busy = [index for index, array in enumerate(boxes) if len(array)]
        with torch.inference_mode(), computing_in(self._precision, self._model.device):
            for start in range(0, len(busy), self._image_batch):
                batch = busy[start : start + self._image_batch]
                features = self._encode([images[index] for index in batch])
                for index, embedding in zip(batch, torch.split(features, 1), strict=True):
                    scaled = scale_boxes(boxes[index], sizes[index], input_size(sizes[index], self._image_size))
                    chunks = torch.split(torch.from_numpy(scaled).to(self._model.device), self._box_chunk)
                    logits = torch.cat([self._low_res_logits(embedding, chunk).float().cpu() for chunk in chunks])
                    results[index] = SamMasks(logits[:, 0].numpy(), sizes[index], self._image_size, self._coverage)
        return results

    def _encode(self, images: Sequence[RgbImage]) -> Tensor:
        """Image embeddings (B, C, h, w)."""
        squares = []
        for image in images:
            resized = torch.tensor(resize_longest_side(image, self._image_size), device=self._model.device)
            squares.append(self._model.preprocess(resized.permute(2, 0, 1)))
        features: Tensor = self._model.image_encoder(torch.stack(squares))
        return features

    def _low_res_logits(self, embedding: Tensor, boxes: Tensor) -> Tensor:
        """Logits (N, 1, h, w) of boxes (N, 4) in input pixels, over the whole square input."""
        sparse, dense = self._model.prompt_encoder(points=None, boxes=boxes, masks=None)
        logits: Tensor
        logits, _ = self._model.mask_decoder(
            image_embeddings=embedding,
            image_pe=self._model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits

    @property
    def _image_size(self) -> int:
        side: int = self._model.image_encoder.img_size
        return side
