"""Boxes to masks with SAM: pictures encoded in batches, boxes decoded in bounded chunks, across pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from patchmint.compute.devices import computing_any_shape_in, ready_for, to_device
from patchmint.compute.memory import at_once, even_parts
from patchmint.compute.stages import stage
from patchmint.errors import ConfigError, InputError, WeightsCorruptError
from patchmint.geometry.rle import Masks
from patchmint.labelers.sam.image_encoder import ImageEncoder
from patchmint.labelers.sam.mask_decoder import MaskDecoder
from patchmint.labelers.sam.masks import (
    Behind,
    MaskCollector,
    MaskCoverage,
    input_size,
    resize,
    scale_boxes,
)
from patchmint.types import RgbImage, Size

_HELD = 64
# Masks of a picture that are kept as logits (256 kB each in the official models); more are made compact at once.

_MOST_WAITING = 16
# Chunks of logits (16 MB each) for which a GPU doesn't wait until they are compact.

_MOST_BOXES = 64
_MOST_IMAGES = 16


class SamMasker:
    """Gives the mask of each box. Keeps nothing between calls, unlike upstream's predictor.

    Example:
        >>> masker = SamMasker(untrained(TINY, seed=0))
        >>> masks = masker.masks([image], [np.array([[10, 10, 90, 60]], dtype=np.float32)])
    """

    _squashes = False
    """Whether a picture is squashed into the input, in the place of padding it."""

    def __init__(
        self,
        model: Sam,
        *,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
        coverage: MaskCoverage = "exact",
        box_chunk: int | None = None,
        image_batch: int | None = None,
        compiled: bool = False,
    ) -> None:
        """Take over a model.

        Args:
            model: moved to `device`, set to evaluation mode, and its encoder's weights kept in `precision`, in place.
                Changes of its weights after that are not seen.
            device: where the model runs, such as "cpu" or "cuda:0".
            precision: number format of the large products.
            coverage: how the masks answer, "exact" or "fast"; see `SamMasks.mode`.
            box_chunk: boxes decoded together, of all pictures of a batch; None = what suits the device and the model.
            image_batch: pictures encoded together, likewise.
            compiled: compile the image encoder, on a GPU. The decoder isn't: its number of boxes changes at each call.

        Raises:
            ConfigError: an unknown `coverage`, or a chunk or batch below 1.
        """
        if coverage not in get_args(MaskCoverage):
            raise ConfigError(f"coverage must be 'exact' or 'fast', not {coverage!r}")
        if any(setting is not None and setting < 1 for setting in (box_chunk, image_batch)):
            raise ConfigError(f"box_chunk and image_batch must be at least 1; got {box_chunk} and {image_batch}")
        self._model = model.to(device).eval()
        self._precision = precision
        self._coverage = coverage
        self._encoder, self._decoder = self._parts(precision)
        self._box_chunk = box_chunk or min(_MOST_BOXES, at_once(self._decoder.numbers, model.device))
        self._image_batch = image_batch or min(_MOST_IMAGES, at_once(self._encoder.numbers, model.device))
        # A CPU has no time to win by it.
        self._behind = Behind(_MOST_WAITING) if model.device.type == "cuda" else None
        if compiled and model.device.type == "cuda":
            self._encoder.compile()

    def prepare(self, image: RgbImage) -> RgbImage:
        """What can be done ahead, on the CPU, in any thread: resize to the model's input."""
        return ready_for(self._model.device, resize(image, self._input_size((image.shape[0], image.shape[1]))))

    def encode(self, image: RgbImage) -> Any:
        """What takes long, of a picture whose masks are asked for again and again."""
        with torch.inference_mode():
            return self._encode([self.prepare(image)])

    def masks(
        self,
        images: Sequence[RgbImage],
        boxes: Sequence[npt.NDArray[np.float32]],
        prepared: Sequence[RgbImage] | None = None,
        encoded: Any = None,
    ) -> list[Masks]:
        """Segment what each box holds.

        Args:
            images: pictures of any sizes.
            boxes: for each picture (N, 4), XYXY in its pixels; N may be 0.
            prepared: what `prepare` made of each picture; None = nothing was done ahead.
            encoded: what `encode` made of the only picture; None = they are encoded here.

        Returns:
            For each picture its masks, in the order of the boxes; memory doesn't grow with their number. A picture
            without boxes has none, and isn't encoded.

        Raises:
            InputError: images and boxes aren't equally many, or boxes aren't (N, 4) or not finite.
        """
        _check(images, boxes)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        side = None if self._squashes else self._encoder.image_size
        collectors = [MaskCollector(size, side, self._coverage, held=_HELD, behind=self._behind) for size in sizes]
        busy = [index for index, array in enumerate(boxes) if len(array)]
        with torch.inference_mode():
            for part in even_parts(len(busy), self._image_batch):
                batch = busy[part]
                embeddings = encoded
                if encoded is None:
                    embeddings = self._encode(
                        [self.prepare(images[index]) if prepared is None else prepared[index] for index in batch]
                    )
                scaled = [scale_boxes(boxes[index], sizes[index], self._input_size(sizes[index])) for index in batch]
                owners = np.repeat(np.arange(len(batch)), [len(array) for array in scaled])
                for chunk, logits in self._decode(embeddings, np.concatenate(scaled), owners):
                    for owner in np.unique(chunk):
                        collectors[batch[owner]].add(logits[chunk == owner])
        return [collector.masks() for collector in collectors]

    def _parts(self, precision: torch.dtype) -> tuple[Any, Any]:
        """What encodes pictures, and what decodes boxes."""
        return ImageEncoder(self._model.image_encoder, precision), MaskDecoder(self._model, precision)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of pixels, (3, 1, 1) each."""
        return self._model.pixel_mean, self._model.pixel_std

    def _input_size(self, size: Size) -> Size:
        """What a picture of a size becomes."""
        side: int = self._encoder.image_size
        return (side, side) if self._squashes else input_size(size, side)

    def _encode(self, resized: Sequence[RgbImage]) -> Any:
        """What the decoder takes: SAM's image embeddings (B, h, w, C)."""
        device, side = self._model.device, self._encoder.image_size
        mean, std = self._normalisation()
        with stage("encode", device):
            squares = torch.zeros((len(resized), 3, side, side), device=device)
            for square, image in zip(squares, resized, strict=True):
                pixels = to_device(image, device).permute(2, 0, 1)
                # Padded when normalised, as upstream does it (`Sam.preprocess`).
                square[:, : pixels.shape[1], : pixels.shape[2]] = (pixels - mean) / std
            # Each number of pictures is a shape, and windows are short.
            with computing_any_shape_in(self._precision, device):
                return self._encoder(squares)

    def _decode(
        self, embeddings: Any, boxes: npt.NDArray[np.float32], owners: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Logits (M, n, n) of boxes in input pixels, chunk by chunk, with the picture that each belongs to (M,)."""
        device = self._model.device
        all_boxes, all_owners = to_device(boxes, device), to_device(owners, device)
        ahead: tuple[npt.NDArray[np.int64], Tensor, torch.cuda.Event | None] | None = None
        for part in even_parts(len(boxes), self._box_chunk):
            with stage("decode", device):
                logits = self._decoder(embeddings, all_boxes[part], all_owners[part])
            ready = (owners[part], *_start_copy(logits))
            # A GPU works on this chunk while the one before it is looked at.
            if ahead is not None:
                yield _finish(*ahead)
            ahead = ready
        if ahead is not None:
            yield _finish(*ahead)


def _start_copy(logits: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The tensor in the CPU's memory, once the event has passed."""
    if not logits.is_cuda:
        return logits, None
    host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
    host.copy_(logits, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(logits.device))
    return host, event


def _finish(
    owners: npt.NDArray[np.int64], logits: Tensor, event: torch.cuda.Event | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    if event is not None:
        event.synchronize()
    found = logits.numpy()
    if np.isnan(found).any():
        raise WeightsCorruptError(
            "the masker gave NaN: its weights are damaged (see `patchmint models check`), or its numbers overflow "
            "(precision: float32)"
        )
    return owners, found


def _check(images: Sequence[RgbImage], boxes: Sequence[npt.NDArray[np.float32]]) -> None:
    if len(images) != len(boxes):
        raise InputError(f"{len(images)} images but {len(boxes)} arrays of boxes; give one array an image")
    for index, array in enumerate(boxes):
        if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
            raise InputError(f"boxes of image {index} must be finite and (N, 4), XYXY; got shape {array.shape}")
