"""SAM 3 (arXiv 2511.16719) as a segmenter: transformers' `Sam3Model`, asked for all phrases of a picture at once.

What costs most, the picture's features, serves all of its phrases; each phrase is encoded once for all pictures; and
the mask decoder sees only queries that count, of phrases that have any.

A mask is where the scaled *probability* of its logits is over 0.5 (`post_process_instance_segmentation`). Weights of a
bilinear mean sum to 1, so that is where the scaled probability less 0.5 is over 0: `SamMasks` measures it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torchvision.transforms.v2.functional import resize

from patchmint.compute.devices import ready_for, to_device
from patchmint.compute.memory import at_once, even_parts
from patchmint.compute.stages import stage
from patchmint.errors import WeightsCorruptError
from patchmint.geometry.rle import ChosenMasks
from patchmint.interfaces import Instances, PhraseBoxes
from patchmint.labelers.mask_rules import MaskRules
from patchmint.labelers.phrases import Asked, asked, of_texts, plain
from patchmint.labelers.sam.masks import Behind, MaskCollector, MaskCoverage
from patchmint.labelers.sam.sam3_model import Matched, Parts, Picture, Texts
from patchmint.types import RgbImage, Size, Text
from patchmint.weights.words import ids_of

_HELD = 64
_MOST_WAITING = 16
# As of `SamMasker`.

_MOST_PHRASES = 64


class Sam3:
    """A `Segmenter` that finds every instance of a phrase, without a detector.

    A text's phrases are asked, or else the whole text; no more than 32 tokens of each are read.
    """

    def __init__(
        self,
        model: Any,
        words: Tokenizer,
        *,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
        threshold: float = 0.35,
        thresholds: Mapping[str, float] = MappingProxyType({}),
        splits: bool = False,
        coverage: MaskCoverage = "exact",
        rules: MaskRules | None = None,
    ) -> None:
        """Take over a model.

        Args:
            model: a `Sam3Model`; changed in place.
            words: the text tokenizer.
            device: where the model runs.
            precision: as of `Parts`.
            threshold: what an instance's score must be over.
            thresholds: the same for single phrases.
            splits: whether a text that names no phrases has one between each two full stops.
            coverage: as of `SamMasks.mode`.
            rules: what becomes of masks; None = they stay.
        """
        self._parts = Parts(model.to(device).eval(), precision)
        self._device = model.device
        self._words = words
        self._threshold, self._thresholds = threshold, thresholds
        self._splits = splits
        self._coverage = coverage
        self._rules = rules or MaskRules()
        vision, decoder = model.config.vision_config, model.config.detr_decoder_config
        self._side = vision.image_size
        positions = (vision.image_size // vision.backbone_config.patch_size) ** 2
        self._image_batch = at_once(positions * vision.backbone_config.hidden_size, self._device)
        self._phrase_batch = at_once(positions * decoder.num_queries * decoder.num_attention_heads, self._device)
        self._behind = Behind(_MOST_WAITING) if self._device.type == "cuda" else None

    def prepare(self, image: RgbImage) -> RgbImage:
        """Squash a picture into the model's input, as `Sam3ImageProcessor` does to a pixel; in any thread."""
        planes = resize(torch.from_numpy(image.copy()).permute(2, 0, 1), [self._side] * 2, antialias=True)
        return ready_for(self._device, planes.permute(1, 2, 0).contiguous().numpy())

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[RgbImage] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `patchmint.interfaces.Segmenter`."""
        wanted = [asked(own, splits=self._splits) for own in texts]
        phrases = {words: number for number, words in enumerate(dict.fromkeys(a[2] for own in wanted for a in own))}
        squares = [self.prepare(image) for image in images] if prepared is None else prepared
        answers = []
        with torch.inference_mode():
            every = self._read(list(phrases))
            for part in even_parts(len(images), self._image_batch):
                for seen, image, own in zip(self._seen(squares[part]), images[part], wanted[part], strict=True):
                    size = (image.shape[0], image.shape[1])
                    answers.append(self._rules.apply(self._found(seen, size, own, phrases, every)))
        return answers

    def _read(self, phrases: Sequence[str]) -> Texts:
        with stage("text", self._device):
            ids, own = (to_device(each, self._device) for each in ids_of(self._words, phrases))
            mask = own.bool()
            parts = [self._parts.texts(ids[part], mask[part]) for part in even_parts(len(phrases), _MOST_PHRASES)]
        return Texts(torch.cat([each.features for each in parts]) if parts else torch.zeros((0, 0, 0)), mask)

    def _seen(self, squares: Sequence[RgbImage]) -> list[Picture]:
        with stage("encode", self._device):
            pixels = torch.stack([to_device(each, self._device) for each in squares]).permute(0, 3, 1, 2)
            return self._parts.pictures(pixels / 127.5 - 1)

    def _found(
        self,
        seen: Picture,
        size: Size,
        sought: Sequence[Asked],
        phrases: Mapping[str, int],
        texts: Texts,
    ) -> Instances:
        """The instances of one picture. A phrase that is asked several times is looked for once."""
        wanted = list(dict.fromkeys(words for _, _, words in sought))
        collector = MaskCollector(size, None, self._coverage, held=_HELD, behind=self._behind)
        boxes, scores, numbers = list[list[float]](), list[float](), list[int]()
        for part in even_parts(len(wanted), self._phrase_batch):
            with stage("match", self._device):
                said = self._parts.match(seen, texts.only([phrases[words] for words in wanted[part]]))
            for row, number in enumerate(range(len(wanted))[part]):
                chosen, of_chosen = self._best(said, row, wanted[number])
                with stage("masks", self._device):
                    self._decode(collector, seen, said, row, chosen)
                numbers.extend([number] * len(chosen))
                scores.extend(of_chosen)
                boxes.extend(said.boxes[row, chosen].tolist())
        edges = np.array([*size[::-1], *size[::-1]], np.float32)
        pixels = (np.array(boxes, np.float32).reshape(-1, 4) * edges).clip(0, edges)
        every = PhraseBoxes(pixels, np.array(scores, np.float32), np.array(numbers, np.int64))
        found, rows = of_texts(every, sought, wanted)
        masks, order = collector.masks(), tuple(rows.tolist())
        return Instances(
            image_size=size,
            masks=masks if order == tuple(range(len(masks))) else ChosenMasks(masks, order),
            text_index=found.text_index,
            scores=found.scores,
            boxes=found.boxes,
            spans=found.spans,
        )

    def _best(self, said: Matched, row: int, words: str) -> tuple[list[int], list[float]]:
        """Queries of a phrase that score well enough, and their scores; the best first."""
        scores = said.scores[row].cpu()
        if not scores.isfinite().all():
            raise WeightsCorruptError("SAM 3 gave NaN: its weights are damaged, or its numbers overflow (float32)")
        values, order = scores.sort(descending=True, stable=True)
        count = int((values > self._thresholds.get(plain(words), self._threshold)).sum())
        return order[:count].tolist(), values[:count].tolist()

    def _decode(self, collector: MaskCollector, seen: Picture, said: Matched, row: int, queries: Sequence[int]) -> None:
        """Collect of each query's mask how probable it is, less 0.5; few at a time, so that memory stays level."""
        if not queries:
            return
        features = self._parts.features_of(seen, said, row)
        for part in even_parts(len(queries), _HELD):
            logits = self._parts.logits(features, said.queries[row, queries[part]])
            collector.add(logits.sigmoid_().sub_(0.5).cpu().numpy())
