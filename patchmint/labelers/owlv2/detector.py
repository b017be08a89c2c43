"""OWLv2 as a detector: transformers' `Owlv2ForObjectDetection`, a picture's pass shared by all of its phrases.

Each patch gives one box, and a vector that is compared with those of phrases: a box doesn't depend on what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as transforms

from patchmint.compute.devices import computing_any_shape_in, store_products, to_device
from patchmint.compute.memory import at_once, even_parts
from patchmint.compute.stages import stage
from patchmint.errors import WeightsCorruptError
from patchmint.interfaces import PhraseBoxes
from patchmint.labelers.owlv2.arch import Owlv2Arch
from patchmint.types import RgbImage
from patchmint.weights.described import load_described
from patchmint.weights.loading import StateFile
from patchmint.weights.words import ids_of

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# CLIP's.

_MOST_PHRASES = 256

_NOT_WEIGHTS = (
    "box_bias",
    "owlv2.text_model.embeddings.position_ids",
    "owlv2.vision_model.embeddings.position_ids",
)
# Older files hold them.

Planes = npt.NDArray[np.float32]


class Owlv2:
    """A `PhraseDetector`."""

    def __init__(
        self, model: Any, words: Tokenizer, *, device: str = "cpu", precision: torch.dtype = torch.float32
    ) -> None:
        """Take over a model.

        Args:
            model: an `Owlv2ForObjectDetection`; changed in place.
            words: the text tokenizer.
            device: where the model runs.
            precision: number format of the vision encoder's large products.
        """
        self._model, self._words, self._precision = model.to(device).eval(), words, precision
        self._device = model.device
        store_products(model.owlv2.vision_model, precision)
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in (_MEAN, _STD))
        vision = model.config.vision_config
        self._side: int = vision.image_size
        self._at_once = at_once((self._side // vision.patch_size) ** 2 * vision.hidden_size, self._device)

    def prepare(self, image: RgbImage) -> Planes:
        """What can be done ahead, in any thread: pad with black to a square, resize, as `Owlv2ImageProcessor`.

        Returns:
            float32 (3, side, side), 0..1: it blurs before it samples, and rounds nothing to levels.
        """
        planes = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous() / 255
        longest = max(image.shape[:2])
        planes = functional.pad(planes, (0, longest - image.shape[1], 0, longest - image.shape[0]))
        blur = (longest / self._side - 1) / 2
        if blur > 0:
            planes = transforms.gaussian_blur(planes, [2 * ceil(3 * blur) + 1] * 2, [blur, blur])
        return np.asarray(transforms.resize(planes, [self._side] * 2, antialias=False).numpy())

    @torch.inference_mode()
    def find(
        self,
        images: Sequence[RgbImage],
        phrases: Sequence[Sequence[str]],
        threshold: float,
        prepared: Sequence[Planes] | None = None,
    ) -> list[PhraseBoxes]:
        """Find every instance of each phrase; see `patchmint.interfaces.PhraseDetector`."""
        every = {words: number for number, words in enumerate(dict.fromkeys(words for own in phrases for words in own))}
        queries = self.read(list(every))
        squares = [self.prepare(image) for image in images] if prepared is None else prepared
        found = []
        for part in even_parts(len(images), self._at_once):
            for seen, image, own in zip(self.see(squares[part]), images[part], phrases[part], strict=True):
                logits, boxes = self.compare(seen, queries[[every[words] for words in own]])
                found.append(_over(threshold, logits.sigmoid().cpu().numpy(), boxes.cpu().numpy(), image))
        return found

    def read(self, phrases: Sequence[str]) -> Tensor:
        """Vectors (N, C) of phrases."""
        parts = []
        with stage("text", self._device):
            for part in even_parts(len(phrases), _MOST_PHRASES):
                ids, mask = (to_device(each, self._device) for each in ids_of(self._words, phrases[part]))
                seen = self._model.owlv2.text_model(input_ids=ids, attention_mask=mask)
                parts.append(self._model.owlv2.text_projection(seen.pooler_output))
        return functional.normalize(torch.cat(parts), dim=-1)

    def see(self, squares: Sequence[Planes]) -> Tensor:
        """Features (B, rows, cols, D) of pictures' patches."""
        with stage("backbone", self._device):
            pixels = torch.stack([to_device(each, self._device) for each in squares])
            with computing_any_shape_in(self._precision, self._device):
                seen = self._model.image_embedder((pixels - self._mean) / self._std)[0]
        return torch.as_tensor(seen.float())

    def compare(self, seen: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Of one picture, (rows, cols, D), the logits (patches, N), and boxes (patches, 4) as shares of the square."""
        with stage("match", self._device):
            patches = seen.flatten(0, 1)[None]
            boxes = self._model.box_predictor(patches, seen[None])[0]
            logits = self._model.class_predictor(patches, queries[None])[0][0]
        return logits, box_convert(boxes, "cxcywh", "xyxy")


def _over(
    threshold: float, scores: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], image: RgbImage
) -> PhraseBoxes:
    """What scores over the threshold, in pixels; a box in the padding is none."""
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise WeightsCorruptError("OWLv2 gave NaN: its weights are damaged (see `patchmint models check`)")
    height, width = image.shape[:2]
    edges = np.array([width, height] * 2, np.float32)
    pixels = (boxes * np.float32(max(height, width))).clip(0, edges)
    inside = (pixels[:, 2:] > pixels[:, :2]).all(axis=1, keepdims=True)
    patches, phrases = np.nonzero((scores > threshold) & inside)
    return PhraseBoxes(pixels[patches], scores[patches, phrases], phrases.astype(np.int64))


def load_owlv2(state: StateFile, arch: Owlv2Arch) -> Any:
    """Build the OWLv2 of a checkpoint in transformers' layout and load it, every tensor accounted for.

    Raises:
        WeightsMismatchError: tensors are missing, left over or misshapen, or config.json describes another model.
    """
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    return load_described(
        lambda: Owlv2ForObjectDetection(Owlv2Config(**arch.config)), state, what="OWLv2", ignored=_NOT_WEIGHTS
    )
