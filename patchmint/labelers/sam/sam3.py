"""SAM 3 (arXiv 2511.16719) as a segmenter: transformers' `Sam3Model`, asked for all phrases of a picture at once.

What costs most, the picture's features, serves all of its phrases; each phrase is encoded once for all pictures; and
the mask decoder sees only queries that count, of phrases that have any.

A mask is where the scaled *probability* of its logits is over 0.5 (`post_process_instance_segmentation`). Weights of a
bilinear mean sum to 1, so that is where the scaled probability less 0.5 is over 0: `SamMasks` measures it as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from transformers import Sam3Config, Sam3Model
from transformers.initialization import no_init_weights

from patchmint.compute.devices import (
    attending_to_any_shape,
    computing_fully,
    computing_in,
    ready_for,
    store_products,
    to_device,
)
from patchmint.compute.memory import even_parts
from patchmint.compute.stages import stage
from patchmint.errors import WeightsCorruptError, WeightsMismatchError
from patchmint.geometry.rle import ChosenMasks
from patchmint.interfaces import Instances
from patchmint.labelers.mask_rules import MaskRules
from patchmint.labelers.phrases import phrase_spans
from patchmint.labelers.sam.arch import Sam3Arch, own_of_sam3
from patchmint.labelers.sam.masks import Behind, MaskCollector, MaskCoverage
from patchmint.types import RgbImage, Size, Span, Text
from patchmint.weights.loading import StateFile, load_into

_HELD = 64
_MOST_WAITING = 16
# As of `SamMasker`.

_MOST_PHRASES = 64
_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
# In the tensor that runs through the network.


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
            precision: number format of the vision encoder's large products.
            threshold: what an instance's score must be over.
            thresholds: the same for single phrases.
            splits: whether a text that names no phrases has one between each two full stops.
            coverage: as of `SamMasks.mode`.
            rules: what becomes of masks; None = they stay.
        """
        self._model = model.to(device).eval()
        self._device = model.device
        # What the model asks its mask decoder for is answered later, once it is known which queries count.
        self._decoder, model.mask_decoder = model.mask_decoder, _Later()
        self._precision = precision
        store_products(model.vision_encoder, precision)
        self._words = words
        self._threshold, self._thresholds = threshold, thresholds
        self._splits = splits
        self._coverage = coverage
        self._rules = rules or MaskRules()
        vision = model.config.vision_config
        rows, cols = (-(-vision.image_size // vision.backbone_config.patch_size),) * 2
        at_once = _NUMBERS_AT_ONCE["cuda" if self._device.type == "cuda" else "cpu"] // (rows * cols)
        self._image_batch = max(1, at_once // vision.backbone_config.hidden_size)
        self._phrase_batch = min(_MOST_PHRASES, max(1, at_once // vision.fpn_hidden_size))
        self._behind = Behind(_MOST_WAITING) if self._device.type == "cuda" else None

    def prepare(self, image: RgbImage) -> RgbImage:
        """Squash a picture into the model's input, as `Sam3ImageProcessor` does to a pixel; in any thread."""
        side = self._model.config.vision_config.image_size
        planes = resize(torch.from_numpy(image.copy()).permute(2, 0, 1), [side, side], antialias=True)
        return ready_for(self._device, planes.permute(1, 2, 0).contiguous().numpy())

    def segment(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        prepared: Sequence[RgbImage] | None = None,
    ) -> list[Instances]:
        """Find what each text talks about; see `patchmint.interfaces.Segmenter`."""
        asked = [self._asked(each) for each in texts]
        phrases = {words: number for number, words in enumerate(dict.fromkeys(a[2] for each in asked for a in each))}
        squares = [self.prepare(image) for image in images] if prepared is None else prepared
        answers = []
        with torch.inference_mode():
            features, read = self._encoded(list(phrases))
            for part in even_parts(len(images), self._image_batch):
                seen = self._seen(squares[part])
                for place, (image, own) in enumerate(zip(images[part], asked[part], strict=True)):
                    of_picture = [each[place : place + 1] for each in seen.fpn_hidden_states]
                    places = [each[:1] for each in seen.fpn_position_encoding]
                    one = type(seen)(fpn_hidden_states=of_picture, fpn_position_encoding=places)
                    size = (image.shape[0], image.shape[1])
                    answers.append(self._rules.apply(self._found(one, size, own, phrases, features, read)))
        return answers

    def _asked(self, texts: Sequence[Text]) -> list[tuple[int, Span, str]]:
        """The phrases of a picture's texts: which text, where in it, and the words."""
        return [
            (number, (start, end), text.content[start:end])
            for number, text in enumerate(texts)
            for start, end in (phrase_spans(text) if self._splits else text.phrases or [(0, len(text.content))])
        ]

    def _encoded(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (N, 32, C) of phrases, and which of the tokens are theirs, bool (N, 32)."""
        tokens = self._model.config.text_config.max_position_embeddings
        with stage("text", self._device), computing_fully(self._device):
            read = self._words.encode_batch(list(phrases))
            ids = to_device(np.array([each.ids for each in read], np.int64).reshape(-1, tokens), self._device)
            mask = to_device(np.array([each.attention_mask for each in read], bool).reshape(ids.shape), self._device)
            found = [
                self._model.get_text_features(ids[part], mask[part]).pooler_output
                for part in even_parts(len(read), _MOST_PHRASES)
            ]
        return (torch.cat(found) if found else torch.zeros((0, 0, 0))), mask

    def _seen(self, squares: Sequence[RgbImage]) -> Any:
        """Features of pictures, float32."""
        with stage("encode", self._device):
            pixels = torch.stack([to_device(each, self._device) for each in squares]).permute(0, 3, 1, 2)
            with computing_in(self._precision, self._device), attending_to_any_shape(self._device):
                seen = self._model.get_vision_features(pixels / 127.5 - 1)
        return replace(seen, fpn_hidden_states=tuple(each.float() for each in seen.fpn_hidden_states))

    def _found(
        self,
        seen: Any,
        size: Size,
        asked: Sequence[tuple[int, Span, str]],
        phrases: Mapping[str, int],
        features: Tensor,
        read: Tensor,
    ) -> Instances:
        """The instances of one picture. A phrase that is asked several times is looked for once."""
        wanted = list(dict.fromkeys(words for _, _, words in asked))
        collector = MaskCollector(size, None, self._coverage, held=_HELD, behind=self._behind)
        boxes, scores, numbers = list[list[float]](), list[float](), dict[str, range]()
        for part in even_parts(len(wanted), self._phrase_batch):
            rows = [phrases[words] for words in wanted[part]]
            said = self._said(seen, features[rows], read[rows])
            for row, words in enumerate(wanted[part]):
                chosen, of_chosen = self._best(said, row, words)
                if len(chosen):
                    collector.add(self._probabilities(said.pred_masks, row, chosen))
                numbers[words] = range(len(scores), len(scores) + len(chosen))
                scores.extend(of_chosen)
                boxes.extend(said.pred_boxes[row, chosen].tolist())
        taken = [(text, span, number) for text, span, words in asked for number in numbers[words]]
        order = [number for _, _, number in taken]
        masks, edges = collector.masks(), np.array([*size[::-1], *size[::-1]], np.float32)
        return Instances(
            image_size=size,
            masks=masks if order == list(range(len(masks))) else ChosenMasks(masks, tuple(order)),
            text_index=np.array([text for text, _, _ in taken], np.int64),
            scores=np.array(scores, np.float32)[order],
            boxes=(np.array(boxes, np.float32).reshape(-1, 4)[order] * edges).clip(0, edges),
            spans=np.array([span for _, span, _ in taken], np.int64).reshape(-1, 2),
        )

    def _said(self, seen: Any, features: Tensor, read: Tensor) -> Any:
        """What the model says of one picture and some phrases; `pred_masks` is what its mask decoder is asked."""
        with stage("match", self._device), attending_to_any_shape(self._device), computing_fully(self._device):
            several = type(seen)(
                fpn_hidden_states=[each.expand(len(read), -1, -1, -1) for each in seen.fpn_hidden_states],
                fpn_position_encoding=[each.expand(len(read), -1, -1, -1) for each in seen.fpn_position_encoding],
            )
            return self._model(
                vision_embeds=several, text_embeds=SimpleNamespace(pooler_output=features), attention_mask=read
            )

    def _best(self, said: Any, row: int, words: str) -> tuple[list[int], list[float]]:
        """Queries of a phrase that score well enough, and their scores; the best first."""
        scores = (said.pred_logits[row].sigmoid() * said.presence_logits[row].sigmoid()).cpu()
        if not scores.isfinite().all():
            raise WeightsCorruptError("SAM 3 gave NaN: its weights are damaged, or its numbers overflow (float32)")
        values, order = scores.sort(descending=True, stable=True)
        count = int((values > self._thresholds.get(" ".join(words.casefold().split()), self._threshold)).sum())
        return order[:count].tolist(), values[:count].tolist()

    def _probabilities(self, given: Mapping[str, Any], row: int, queries: list[int]) -> npt.NDArray[np.float32]:
        """Of each mask (N, n, n) how probable it is, less 0.5."""
        one = slice(row, row + 1)
        with stage("masks", self._device), computing_fully(self._device):
            logits = self._decoder(
                decoder_queries=given["decoder_queries"][one, queries],
                backbone_features=[each[one] for each in given["backbone_features"]],
                encoder_hidden_states=given["encoder_hidden_states"][one],
                prompt_features=given["prompt_features"][one],
                prompt_mask=given["prompt_mask"][one],
            ).pred_masks[0]
            return np.asarray(logits.sigmoid_().sub_(0.5).cpu().numpy())


class _Later(nn.Module):
    """In the place of a mask decoder: gives back what it is given."""

    def forward(self, **given: Any) -> Any:
        """Anything."""
        return SimpleNamespace(pred_masks=given, semantic_seg=None, attentions=None)


def load_sam3(state: StateFile, arch: Sam3Arch) -> tuple[Any, Tokenizer]:
    """Build the SAM 3 of a checkpoint in transformers' layout, every tensor accounted for, and its text tokenizer.

    Raises:
        WeightsMismatchError: tensors are missing, left over or misshapen, or config.json or tokenizer.json describes
            another model.
    """
    state = replace(state, tensors=own_of_sam3(state.tensors))
    try:
        with no_init_weights():
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing is copied: shapes are compared before memory is taken
                load_into(Sam3Model(Sam3Config(**arch.config)), state, what="SAM 3")
            model = Sam3Model(Sam3Config(**arch.config))
    except WeightsMismatchError:
        raise
    except Exception as error:  # strict configs raise errors of their own
        raise WeightsMismatchError(f"{state.path}: the config.json beside it describes no SAM 3: {error}") from error
    load_into(model, state, what="SAM 3")
    text = model.config.text_config
    return model.eval().requires_grad_(False), _words(state.path, text.max_position_embeddings, text.vocab_size)


def _words(weights: Path, tokens: int, most: int) -> Tokenizer:
    path = weights.with_name("tokenizer.json")
    try:
        words = Tokenizer.from_file(str(path))
    except Exception as error:  # of Rust, without a class of its own
        raise WeightsMismatchError(f"{path} is no text tokenizer: {error}") from error
    if words.get_vocab_size() > most:
        raise WeightsMismatchError(f"{path} has {words.get_vocab_size()} tokens, SAM 3's text encoder reads {most}")
    words.enable_truncation(tokens)
    words.enable_padding(length=tokens, pad_id=0)  # which id is the same: nothing attends to it
    return words
