"""Grounding DINO as a detector of phrases: images and texts in, boxes with character spans out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torchvision.ops import box_iou

from patchmint.compute.devices import attending_to_any_shape, computing_in, ready_for, to_device
from patchmint.compute.stages import stage
from patchmint.errors import WeightsCorruptError
from patchmint.interfaces import Reason
from patchmint.labelers.grounding_dino.arch import GroundingDinoArch, detector_size
from patchmint.labelers.grounding_dino.canvas import like_pairs
from patchmint.labelers.grounding_dino.encoders import (
    ImageFeatures,
    PromptFeatures,
    compile_backbone,
    encode_images,
    encode_prompts,
    fuse_windows,
)
from patchmint.labelers.grounding_dino.model import store_reduced
from patchmint.labelers.grounding_dino.prompts import Prompt, Vocabulary, caption_prompts, phrase_prompts
from patchmint.labelers.grounding_dino.transformer import compile_layers, match
from patchmint.labelers.phrases import phrase_spans
from patchmint.types import Integers, RgbImage, Size, Span, Text

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# ImageNet's, as in upstream `inference.py`, `load_image`.

_HALF = 0.5


class PromptMode(StrEnum):
    """What is looked for of a text that names no phrases itself."""

    CAPTION = "caption"
    """The whole text; the model decides which words name things."""
    PHRASES = "phrases"
    """What stands between its ".", each on its own."""


@dataclass(frozen=True)
class BoxRules:
    """Which boxes count, beside their scores over the threshold of all; each rule is off by default.

    Attributes:
        thresholds: of single phrases, instead.
        negative: phrases that are looked for in each image as well: a box is dropped if one of theirs scores better,
            and overlaps it by more than half (IoU).
        nms: of a phrase's boxes that overlap by more than this IoU, the best stays.
        area: shares of the image that a box has at least, and at most.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    negative: tuple[str, ...] = ()
    nms: float | None = None
    area: tuple[float, float] | None = None


NO_RULES = BoxRules()


class GroundingDino:
    """Finds what texts talk about. Any batch gives what each image and text gives alone.

    Args:
        model: upstream's `GroundingDINO`, from `build_grounding_dino`.
        arch: its architecture.
        vocabulary: its text encoder's vocabulary.
        prompt: what of a text is looked for.
        box_threshold: a box is kept if its best word scores over this (upstream's default 0.35).
        text_threshold: a word belongs to a box's phrase if it scores over this (upstream's default 0.25).
        rules: which of the boxes count.
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
        prompt: PromptMode = PromptMode.CAPTION,
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        rules: BoxRules = NO_RULES,
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
        self.prompt = PromptMode(prompt)
        self.box_threshold = box_threshold
        self.text_threshold = text_threshold
        self._rules = rules
        self._thresholds = {_plain(phrase): threshold for phrase, threshold in rules.thresholds.items()}
        self._negative = [Text.from_phrases(rules.negative)] if rules.negative else []
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
        prepared: Sequence[RgbImage] | None = None,
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Detections]:
        """Find what each text talks about.

        Args:
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts. All texts of an image share its pass through the backbone; a text of more
                than 256 tokens becomes several prompts.
            prepared: what `prepare` made of each image; None = nothing was done ahead.
            losses: for each image a list to which is added which boxes don't count, and why: all queries of the model,
                then. None = nobody asks.

        Returns:
            One `Detections` an image. A text in which the vocabulary can read nothing gives none.
        """
        pairs = [
            (index, text_index, prompt)
            for index, image_texts in enumerate(texts)
            for text_index, text in enumerate([*image_texts, *self._negative])
            for prompt in self.prompts(text)
        ]
        wanted = sorted({index for index, _, _ in pairs})
        resized = [self.prepare(images[index]) if prepared is None else prepared[index] for index in wanted]
        with stage("backbone", self.device):
            pixels = [self._normalised(image) for image in resized]
            with self._in_any_shape():
                features = dict(zip(wanted, encode_images(self.model, pixels), strict=True))
        with stage("text", self.device), self._in_any_shape():
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
                        box_threshold=min([self.box_threshold, *self._thresholds.values()]) if losses is None else 0.0,
                        text_threshold=self.text_threshold,
                    )
                )
        merged = zip(map(merge, found), texts, images, [None] * len(images) if losses is None else losses, strict=True)
        return [self._kept(*each) for each in merged]

    def _kept(self, found: Detections, texts: Sequence[Text], image: RgbImage, losses: list[Loss] | None) -> Detections:
        """What the rules leave of an image's boxes."""
        rules = self._rules
        if rules == NO_RULES and losses is None:
            return found
        asked = [*texts, *self._negative]
        places = zip(found.text_index, found.spans, strict=True)
        limits = [self.threshold_of(asked[text].content[start:end]) for text, (start, end) in places]
        found = _without(found, found.scores <= np.array(limits, np.float32), "threshold", losses)
        if self._negative:
            theirs = np.asarray(found.text_index == len(texts))
            against, found = found.only(theirs), found.only(~theirs)
            better = against.scores > found.scores[:, None]
            beaten = better & (overlaps(found.boxes, against.boxes) > _HALF)
            found = _without(found, np.asarray(beaten.any(axis=1)), "negative_phrases", losses)
        if rules.nms is not None:
            found = _without(found, ~_best_of_alike(found, rules.nms), "nms", losses)
        if rules.area is not None:
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            share = sides.prod(axis=1) / (image.shape[0] * image.shape[1])
            found = _without(found, (share < rules.area[0]) | (share > rules.area[1]), "box_area", losses)
        return found

    def threshold_of(self, phrase: str) -> float:
        """The score over which a box of a phrase counts."""
        return self._thresholds.get(_plain(phrase), self.box_threshold)

    def prompts(self, text: Text) -> list[Prompt]:
        """Make the prompts of a text: of its phrases where it names some, else by this detector's mode."""
        return (phrase_prompts if self.spans(text) else caption_prompts)(text, self.vocabulary)

    def spans(self, text: Text) -> Sequence[Span]:
        """The phrases that are looked for, which the vocabulary may be unable to read; none: the whole text is."""
        return phrase_spans(text) if text.phrases or self.prompt is PromptMode.PHRASES else ()

    def prepare(self, image: RgbImage) -> RgbImage:
        """What can be done ahead, on the CPU, in any thread: resize (upstream `transforms.py`, `RandomResize`).

        Args:
            image: HWC uint8 RGB, any size.

        Returns:
            HWC uint8 RGB of `detector_size`.
        """
        height, width = detector_size((image.shape[0], image.shape[1]), self.arch.short_side, self.arch.long_side)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return ready_for(self.device, np.asarray(resized))

    def preprocess(self, image: RgbImage) -> torch.Tensor:
        """Resize and normalise: float (3, h, w), on the device."""
        return self._normalised(self.prepare(image))

    def _normalised(self, resized: RgbImage) -> torch.Tensor:
        levels = to_device(resized, self.device).permute(2, 0, 1).float()
        return (levels / self._white - self._mean) / self._std

    @contextmanager
    def _in_any_shape(self) -> Iterator[None]:
        with computing_in(self.precision, self.device), attending_to_any_shape(self.device):
            yield

    def _match(self, images: list[ImageFeatures], prompts: list[PromptFeatures]) -> list[tuple[np.ndarray, np.ndarray]]:
        with stage("transformer", self.device), self._in_any_shape():
            raw = match(self.model, images, prompts)
        words = max(len(prompt.hidden) for prompt in prompts)
        scores, boxes = raw.logits[..., :words].sigmoid().cpu().numpy(), raw.boxes.cpu().numpy()
        if np.isnan(scores).any() or np.isnan(boxes).any():
            raise WeightsCorruptError(
                "the detector gave NaN: its weights are damaged (see `patchmint models check`), or its numbers overflow"
            )
        return list(zip(scores, boxes, strict=True))


@dataclass(frozen=True)
class Detections:
    """Boxes found for the texts of one image, best first within each text.

    Attributes:
        boxes: float32 (N, 4), XYXY in original pixels, inside the image.
        scores: float32 (N,), 0..1.
        spans: int64 (N, 2), characters of the text.
        text_index: int64 (N,).
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    spans: npt.NDArray[np.int64]
    text_index: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> Detections:
        """Nothing found."""
        return cls(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
        )

    def only(self, kept: npt.NDArray[np.bool_]) -> Detections:
        """Those for which `kept`, bool (N,), is true."""
        return Detections(self.boxes[kept], self.scores[kept], self.spans[kept], self.text_index[kept])


@dataclass(frozen=True)
class Loss:
    """Boxes that don't count, and why.

    Attributes:
        reason: what took them away.
        found: they.
    """

    reason: Reason
    found: Detections

    def moved(self, numbers: Integers, offset: npt.NDArray[np.float32] | float = 0.0) -> Loss:
        """The same where text n is `numbers[n]`, and boxes lie elsewhere."""
        boxes, texts = self.found.boxes + np.float32(offset), numbers[self.found.text_index]
        return Loss(self.reason, Detections(boxes, self.found.scores, self.found.spans, texts))


def _without(found: Detections, lost: npt.NDArray[np.bool_], reason: Reason, losses: list[Loss] | None) -> Detections:
    """The others, when those that are lost, bool (N,), have been noted where somebody asks."""
    if losses is not None:
        losses.append(Loss(reason, found.only(lost)))
    return found.only(~lost)


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


def merge(parts: list[Detections]) -> Detections:
    """Put the detections of several prompts together, texts in order, best first within each."""
    if not parts:
        return Detections.none()
    text_index = np.concatenate([part.text_index for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((-scores, text_index))
    return Detections(
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        spans=np.concatenate([part.spans for part in parts])[order],
        text_index=text_index[order],
    )


def _plain(phrase: str) -> str:
    """A phrase as it is compared with others."""
    return " ".join(phrase.casefold().split())


def overlaps(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intersection over union of boxes (N, 4) and others (M, 4): (N, M)."""
    return np.asarray(box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy())


def _best_of_alike(found: Detections, most: float) -> npt.NDArray[np.bool_]:
    """Non-maximum suppression within each phrase of each text: bool (N,); those found are best first."""
    alike = overlaps(found.boxes, found.boxes)
    names = np.concatenate([found.text_index[:, None], found.spans], axis=1)
    kept = np.zeros(len(names), dtype=np.bool_)
    for number, name in enumerate(names):
        kept[number] = not (kept & (names == name).all(axis=1) & (alike[number] > most)).any()
    return kept


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
