"""Grounding DINO as a detector of phrases: images and texts in, boxes with character spans out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from patchmint.compute.devices import computing_any_shape_in, ready_for, to_device
from patchmint.compute.stages import stage
from patchmint.errors import WeightsCorruptError
from patchmint.interfaces import Detections
from patchmint.labelers.box_rules import merge
from patchmint.labelers.grounding_dino.arch import GroundingDinoArch, detector_size
from patchmint.labelers.grounding_dino.canvas import like_pairs
from patchmint.labelers.grounding_dino.encoders import (
    ImageFeatures,
    PromptFeatures,
    compile_backbone,
    encode_images,
    encode_prompts,
)
from patchmint.labelers.grounding_dino.model import store_reduced
from patchmint.labelers.grounding_dino.prompts import Prompt, Vocabulary, caption_prompts, phrase_prompts
from patchmint.labelers.grounding_dino.swin import fuse_windows
from patchmint.labelers.grounding_dino.transformer import compile_layers, match
from patchmint.types import RgbImage, Size, Span, Text

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# ImageNet's, as in upstream `inference.py`, `load_image`.


class GroundingDino:
    """Finds what texts talk about. Any batch gives what each image and text gives alone.

    Args:
        model: upstream's `GroundingDINO`, from `build_grounding_dino`.
        arch: its architecture.
        vocabulary: its text encoder's vocabulary.
        text_threshold: a word belongs to a box's phrase if it scores over this (upstream's default 0.25).
        device: where to run; the model is moved there.
        precision: number format of the large products; the model's weights for them are kept in it.
        compiled: compile the image backbone, and a layer each of encoder and decoder, on a GPU.

    Raises:
        WeightsMismatchError: the vocabulary isn't of the size of the model's embedding table.
    """

    def __init__(
        self,
        model: nn.Module,
        arch: GroundingDinoArch,
        vocabulary: Vocabulary,
        *,
        text_threshold: float = 0.25,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        vocabulary.check_fits(arch)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.precision = precision
        # As a tensor: torch would multiply by 1 / 255 on a GPU, which rounds otherwise than dividing.
        self._white = torch.tensor(255.0, device=self.device)
        self._mean, self._std = (torch.tensor(each, device=self.device)[:, None, None] for each in (_MEAN, _STD))
        self.arch = arch
        self.vocabulary = vocabulary
        self.text_threshold = text_threshold
        store_reduced(model, precision)
        if self.device.type == "cuda":
            fuse_windows(model, precision)
        if compiled and self.device.type == "cuda":
            compile_backbone(model, self.device)
            compile_layers(model)

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        threshold: float = 0.35,
        prepared: Sequence[RgbImage] | None = None,
    ) -> list[Detections]:
        """Find what each text talks about.

        Args:
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts. All texts of an image share its pass through the backbone; a text of more
                than 256 tokens becomes several prompts.
            threshold: a box is kept if its best word scores over this (upstream's default).
            prepared: what `prepare` made of each image; None = nothing was done ahead.

        Returns:
            One `Detections` an image, best first within each text. A text in which the vocabulary can read nothing
            gives none.
        """
        pairs = [
            (index, text_index, prompt)
            for index, image_texts in enumerate(texts)
            for text_index, text in enumerate(image_texts)
            for prompt in self.prompts(text)
        ]
        wanted = sorted({index for index, _, _ in pairs})
        resized = [self.prepare(images[index]) if prepared is None else prepared[index] for index in wanted]
        with stage("backbone", self.device):
            pixels = [self._normalised(image) for image in resized]
            with computing_any_shape_in(self.precision, self.device):
                features = dict(zip(wanted, encode_images(self.model, pixels), strict=True))
        with stage("text", self.device), computing_any_shape_in(self.precision, self.device):
            asked = encode_prompts(self.model, [prompt for _, _, prompt in pairs], self.device)
        found: list[list[Detections]] = [[] for _ in images]
        shapes = [features[index].levels[0].shape[1:] for index, _, _ in pairs]
        for batch in like_pairs(shapes, [len(prompt.ids) for _, _, prompt in pairs], self.device):
            answers = self._match([features[pairs[row][0]] for row in batch], [asked[row] for row in batch])
            for (index, text_index, prompt), (scores, boxes) in zip(
                (pairs[row] for row in batch), answers, strict=True
            ):
                found[index].append(
                    select(
                        scores,
                        boxes,
                        prompt,
                        image_size=(images[index].shape[0], images[index].shape[1]),
                        text_index=text_index,
                        box_threshold=threshold,
                        text_threshold=self.text_threshold,
                    )
                )
        return list(map(merge, found))

    def prompts(self, text: Text) -> list[Prompt]:
        """Make the prompts of a text: of its phrases where it names some, else of all of it."""
        return (phrase_prompts if text.phrases else caption_prompts)(text, self.vocabulary)

    def batch_key(self, size: Size) -> Size:
        """What it makes of an image of a size: images of one size share their pass through the backbone."""
        return detector_size(size, self.arch.short_side, self.arch.long_side)

    def prepare(self, image: RgbImage) -> RgbImage:
        """What can be done ahead, on the CPU, in any thread: resize (upstream `transforms.py`, `RandomResize`).

        Args:
            image: HWC uint8 RGB, any size.

        Returns:
            HWC uint8 RGB of `detector_size`.
        """
        height, width = self.batch_key((image.shape[0], image.shape[1]))
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return ready_for(self.device, np.asarray(resized))

    def preprocess(self, image: RgbImage) -> torch.Tensor:
        """Resize and normalise: float (3, h, w), on the device."""
        return self._normalised(self.prepare(image))

    def _normalised(self, resized: RgbImage) -> torch.Tensor:
        levels = to_device(resized, self.device).permute(2, 0, 1).float()
        return (levels / self._white - self._mean) / self._std

    def _match(self, images: list[ImageFeatures], prompts: list[PromptFeatures]) -> list[tuple[np.ndarray, np.ndarray]]:
        with stage("transformer", self.device), computing_any_shape_in(self.precision, self.device):
            raw = match(self.model, images, prompts)
        words = max(len(prompt.hidden) for prompt in prompts)
        scores, boxes = raw.logits[..., :words].sigmoid().cpu().numpy(), raw.boxes.cpu().numpy()
        if np.isnan(scores).any() or np.isnan(boxes).any():
            raise WeightsCorruptError(
                "the detector gave NaN: its weights are damaged (see `patchmint models check`), or its numbers overflow"
            )
        return list(zip(scores, boxes, strict=True))


def select(
    scores: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    prompt: Prompt,
    *,
    image_size: Size,
    text_index: int,
    box_threshold: float,
    text_threshold: float,
) -> Detections:
    """Keep the queries that a readable token claims, and name each by the words that claim it.

    Upstream takes the best score over all tokens, `[CLS]` and "." included, and decodes every token over the text
    threshold, which gives empty names, words merged from different places and `##` fragments. Here a query's score is
    that of its best readable token, and its phrase is the unbroken run of whole words around that token that are over
    the text threshold. Where phrases were asked for, each gets all queries that a readable token of its own claims, as
    if it were alone: a query may answer to several.

    Args:
        scores: float32 (queries, 256), sigmoid of the logits.
        boxes: float32 (queries, 4), centre and size as shares of the image.
        prompt: what was asked.
        image_size: (height, width) in original pixels.
        text_index: which of the image's texts the prompt comes from.
        box_threshold: a query is kept if its best score is over this.
        text_threshold: a word belongs to the phrase if one of its tokens is over this.
    """
    readable = np.array([token.readable for token in prompt.tokens])
    of_tokens = np.where(readable, scores[:, prompt.places], -1.0)
    best = of_tokens.argmax(axis=1)
    claims = _scores_of_phrases(of_tokens, prompt) if prompt.phrases else of_tokens.max(axis=1, keepdims=True)
    queries, claimants = np.nonzero(claims > box_threshold)
    # of equal scores the first query's comes first, and of one query the first phrase's
    order = np.argsort(-claims[queries, claimants], kind="stable")
    queries, claimants = queries[order], claimants[order]
    spans = [
        prompt.phrases[claimant]
        if prompt.phrases
        else _run_of_words(prompt, of_tokens[query] > text_threshold, int(best[query]))
        for query, claimant in zip(queries, claimants, strict=True)
    ]
    return Detections(
        boxes=_to_pixels(boxes[queries], image_size),
        scores=claims[queries, claimants].astype(np.float32),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        text_index=np.full(len(queries), text_index, dtype=np.int64),
    )


def _scores_of_phrases(of_tokens: npt.NDArray[np.floating], prompt: Prompt) -> npt.NDArray[np.floating]:
    """Of each query and phrase the best score of a token: (queries, phrases). Equal phrases score alike.

    They do so by the model, too, but for rounding, which differs between batches.
    """
    scores = np.full((len(of_tokens), len(prompt.phrases)), -1.0, of_tokens.dtype)
    columns: dict[tuple[int, ...], int] = {}
    for phrase in range(len(prompt.phrases)):
        own = np.flatnonzero(prompt.phrase_of == phrase)
        first = columns.setdefault(tuple(prompt.tokens[token].id for token in own), phrase)
        scores[:, phrase] = of_tokens[:, own].max(axis=1) if first == phrase else scores[:, first]
    return scores


def _run_of_words(prompt: Prompt, over: npt.NDArray[np.bool_], best: int) -> Span:
    tokens = prompt.tokens
    claimed = {tokens[i].word for i in np.flatnonzero(over)} | {tokens[best].word}

    def grow(step: int) -> int:
        end = best
        following = best + step
        while 0 <= following < len(tokens) and tokens[following].word in claimed:
            end = following
            following += step
        return end

    return tokens[grow(-1)].span[0], tokens[grow(1)].span[1]


def _to_pixels(boxes: npt.NDArray[np.float32], image_size: Size) -> npt.NDArray[np.float32]:
    height, width = image_size
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1)
    return np.asarray(corners * np.array([width, height, width, height], dtype=np.float32), dtype=np.float32)
