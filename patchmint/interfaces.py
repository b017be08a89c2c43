"""The contracts of models: what each takes, what it gives, and what it may do ahead. The plug-in contract.

Images, boxes and sizes are as in `patchmint.types`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from patchmint.errors import PluginError
from patchmint.geometry.grid import PatchGrid
from patchmint.geometry.native import NativeGrid
from patchmint.geometry.rle import ChosenMasks, Masks, RleMasks, bounding_box, encode_masks
from patchmint.types import UNKNOWN_SCORE, Box, Integers, Origin, Phrase, RgbImage, Size, Span, Text

__all__ = [
    "Detections",
    "Detector",
    "FeatureEncoder",
    "FeatureSpec",
    "Instances",
    "Masker",
    "PhraseBoxes",
    "PhraseDetector",
    "PrefersLikeSizes",
    "PreparesImages",
    "Segmenter",
    "Tokenizer",
    "TokenizerSpec",
    "Tokens",
]


@dataclass(frozen=True)
class Instances:
    """What a segmenter found in one image, for all of the image's texts.

    Attributes:
        image_size: (height, width) of the image.
        masks: one mask an instance.
        text_index: int64 (N,), which text of the image an instance belongs to.
        scores: float32 (N,), 0..1, or `UNKNOWN_SCORE`.
        boxes: float32 (N, 4), XYXY in original pixels, inside the image.
        spans: int64 (N, 2), characters `[start, end)` of the text; the whole text where the model can't tell.
        origins: whose each is; empty = all are the model's.
        unconfirmed: phrases all of whose boxes a second look took away (`labels.presence`): text and span of each.

    Raises:
        PluginError: there aren't N of each.
    """

    image_size: Size
    masks: Masks
    text_index: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    spans: npt.NDArray[np.int64]
    origins: tuple[Origin, ...] = ()
    unconfirmed: frozenset[tuple[int, int, int]] = frozenset()

    def __post_init__(self) -> None:
        n = len(self.masks)
        shapes = (self.text_index.shape, self.scores.shape, self.boxes.shape, self.spans.shape)
        if shapes != ((n,), (n,), (n, 4), (n, 2)):
            raise PluginError(
                f"a segmenter gave {n} masks, but text_index, scores, boxes and spans of shapes {shapes}; "
                f"they must be ({n},), ({n},), ({n}, 4) and ({n}, 2)"
            )
        if len(self.origins) not in (0, n):
            raise PluginError(f"a segmenter gave {n} masks and {len(self.origins)} origins; give one a mask, or none")

    @classmethod
    def of(
        cls, size: Size, found: Iterable[tuple[int, Span, float, npt.ArrayLike | None, npt.NDArray[np.bool_]]]
    ) -> Instances:
        """What a model has found, one instance after another.

        Args:
            size: (height, width) of the image.
            found: of each instance which text it belongs to, the span, the score, the box (XYXY; it is cut off at the
                image; None = that of the mask) and the mask, bool (height, width).
        """
        rows = []
        for text, span, score, box, mask in found:
            (rle,) = encode_masks(np.asarray(mask, np.bool_)[None])
            rows.append((text, span, score, bounding_box(rle) if box is None else box, rle))
        texts, spans, scores, boxes, rles = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(
            image_size=size,
            masks=RleMasks(rles),
            text_index=np.array(texts, np.int64),
            scores=np.array(scores, np.float32),
            boxes=np.array(boxes, np.float32).reshape(-1, 4).clip(0, np.array([*size[::-1]] * 2, np.float32)),
            spans=np.array(spans, np.int64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.masks)

    def only(self, numbers: Integers) -> Instances:
        """Those of these numbers, in their order."""
        return Instances(
            image_size=self.image_size,
            masks=ChosenMasks(self.masks, tuple(numbers.tolist())),
            text_index=self.text_index[numbers],
            scores=self.scores[numbers],
            boxes=self.boxes[numbers],
            spans=self.spans[numbers],
            origins=tuple(self.origins[number] for number in numbers) if self.origins else (),
            unconfirmed=self.unconfirmed,
        )

    def phrases(self, texts: Sequence[str]) -> list[Phrase]:
        """The instances as phrases, in order.

        Args:
            texts: the image's texts.
        """
        model: Origin = "model"
        origins = self.origins or (model,) * len(self)
        rows = zip(self.text_index, self.spans, self.boxes, self.scores, origins, strict=True)
        return [
            Phrase(
                text=texts[text][start:end],
                text_index=int(text),
                span=(int(start), int(end)),
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                score=float(score),
                origin=origin,
            )
            for text, (start, end), box, score, origin in rows
        ]


@dataclass(frozen=True)
class Detections:
    """Boxes found for the texts of one image.

    Attributes:
        boxes: float32 (N, 4), XYXY in original pixels, inside the image.
        scores: float32 (N,), 0..1.
        spans: int64 (N, 2), characters `[start, end)` of the text; of a text that names phrases, one of these.
        text_index: int64 (N,), which of the image's texts.

    Raises:
        PluginError: there aren't N of each.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    spans: npt.NDArray[np.int64]
    text_index: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = (self.boxes.shape, self.scores.shape, self.spans.shape, self.text_index.shape)
        if shapes != ((n, 4), (n,), (n, 2), (n,)):
            raise PluginError(
                f"a detector gave boxes, scores, spans and text_index of shapes {shapes}; they must be ({n}, 4), "
                f"({n},), ({n}, 2) and ({n},)"
            )

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
class PhraseBoxes:
    """Boxes found for the phrases of one image, in any order.

    Attributes:
        boxes: float32 (N, 4), XYXY in original pixels, inside the image.
        scores: float32 (N,), 0..1.
        phrase_index: int64 (N,), which of the image's phrases. A thing that answers to two phrases is there twice.

    Raises:
        PluginError: there aren't N of each.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    phrase_index: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.boxes)
        shapes = (self.boxes.shape, self.scores.shape, self.phrase_index.shape)
        if shapes != ((n, 4), (n,), (n,)):
            raise PluginError(
                f"a detector gave boxes, scores and phrase_index of shapes {shapes}; they must be ({n}, 4), ({n},) "
                f"and ({n},)"
            )


Reason = Literal[
    "found",
    "drawn",
    "not-asked",
    "unreadable",
    "threshold",
    "negative_phrases",
    "nms",
    "box_area",
    "presence",
    "mask_area",
    "tile-edge",
    "smaller-tile",
    "other-tile",
]
"""Why a phrase has boxes or none: `REASONS` says it in words."""

REASONS: Mapping[Reason, str] = MappingProxyType(
    {
        "found": "found",
        "drawn": "its boxes or masks were given, so nothing was looked for",
        "not-asked": "nothing is looked for: labels.boxes or labels.masks leave it to annotators",
        "unreadable": "the detector's vocabulary can't read it",
        "threshold": "its best score isn't over its threshold",
        "negative_phrases": "a box of labels.negative_phrases scores better in its place",
        "nms": "a better box of the same phrase overlaps it (labels.nms)",
        "box_area": "its box is too small or too large (labels.box_area)",
        "presence": "a second look doesn't confirm it (labels.presence)",
        "mask_area": "its mask is too small or too large (labels.mask_area)",
        "tile-edge": "an edge of a tile cuts it, and no tile has it whole",
        "smaller-tile": "it lies whole in a smaller tile, which doesn't find it",
        "other-tile": "another tile has a better box of the same words",
    }
)


@dataclass(frozen=True)
class Explanation:
    """Why a phrase has boxes, or none.

    Attributes:
        text: the words; a whole text where no phrases were asked for.
        text_index: which of the image's texts.
        span: characters `[start, end)` of that text.
        boxes: how many it has.
        best: the best score of any box, counted or not; `UNKNOWN_SCORE` where none was looked for.
        box: of that score, XYXY in original pixels; zeros where there is none.
        threshold: what a score must be over.
        reason: "found" if it has boxes, else what took its best box away.
        lost: boxes over the threshold that don't count, by reason.
    """

    text: str
    text_index: int
    span: Span
    boxes: int
    best: float
    box: Box
    threshold: float
    reason: Reason
    lost: Mapping[Reason, int]


@dataclass(frozen=True)
class Tokens:
    """Discrete codes of one image.

    Attributes:
        codes: int32 (*grid, codebooks): (16, 16, 1) for VQGAN f16 at 256 px, (32, 1) for a 1-D tokenizer. Row-major
            where there is a grid; before any vocabulary offset.
    """

    codes: npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenizerSpec:
    """What is fixed about a tokenizer, whatever the image.

    Attributes:
        name: preset name or path, as recorded in manifests.
        grid_shape: shape of `Tokens.codes` without its last axis; (0, 0) where it depends on the image.
        codebook_sizes: number of codes in each codebook; its length is the last axis of `Tokens.codes`.
        cells: how grid positions lie in the image; None for a 1-D tokenizer, whose codes have no place. Where the shape
            depends on the image, it follows from this grid.
        preprocessing: short name of how pixels are prepared, such as "pad-256-bicubic"; codes of two data sets may
            only be mixed where it is the same.
        can_decode: whether `decode` works.
        rule: how a code is chosen (`tokens.rule`); empty where that is the model's own affair.
    """

    name: str
    grid_shape: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    cells: PatchGrid | NativeGrid | None
    preprocessing: str
    can_decode: bool = False
    rule: str = ""

    def grid_on(self, size: Size) -> tuple[int, ...]:
        """Shape of an image's codes without their last axis.

        Args:
            size: (height, width) of the image.
        """
        return self.grid_shape if all(self.grid_shape) or self.cells is None else self.cells.place(size).shape


class FeatureSpec(BaseModel):
    """What is fixed about continuous features, whatever the image. Data sets store it as it is here.

    Of a data set these are KEY.features.npy, float16 (tokens of all views, channels).

    Raises:
        pydantic.ValidationError: a number is out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(min_length=1, description="Name or path of the vision encoder.")
    connector: str = Field(description="none, sti, sci or dci (Dense Connector, arXiv 2405.13800).")
    layers: tuple[tuple[int, ...], ...] = Field(
        min_length=1,
        description="Hidden states: that of V_L first, then those of each further part; 0 = the first block's input.",
    )
    select_feature: str = Field(
        description="patch, or cls_patch: with the CLS token first (LLaVA's names); merged: tokens that the encoder "
        "makes of several patches each."
    )
    pool: str = Field(description="Empty, or when patches were pooled (DeCo): before or after the connector.")
    grid: tuple[int, int] = Field(
        description="Rows and columns of the tokens of one view that lie on a grid, pooled; 0, 0: those of the image's "
        "own grid."
    )
    leading: int = Field(ge=0, description="Tokens of one view before those of the grid: 1 with CLS.")
    trailing: int = Field(ge=0, description="Tokens of one view after those of the grid: those that STI appends.")
    channels: int = Field(ge=1, description="Numbers of one token.")

    @property
    def merged(self) -> bool:
        """Whether tokens are those that the encoder makes of several patches each."""
        return self.select_feature == "merged"

    @property
    def tokens(self) -> int:
        """Tokens of one view; 0 where they are the cells of the image's own grid."""
        return self.tokens_of(0)

    def tokens_of(self, cells: int) -> int:
        """Tokens of one view whose grid has so many cells."""
        return self.leading + (prod(self.grid) or cells) + self.trailing


@runtime_checkable
class Segmenter(Protocol):
    """Image + texts -> instances. Grounding DINO + SAM is one; a text-prompted segmenter without boxes is another.

    It may have two methods more, for speed: `batch_key` (`PrefersLikeSizes`) and `prepare` (`PreparesImages`).
    """

    def segment(self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]]) -> list[Instances]:
        """Find what each text talks about.

        Args:
            images: any sizes, in one batch.
            texts: for each image its texts (at least one).

        Returns:
            One `Instances` an image, in order; an image in which nothing is found has none, which is no error.
        """
        ...


@runtime_checkable
class PhraseDetector(Protocol):
    """Image + phrases -> boxes: a detector that is told what to look for, as most are.

    The phrases are made of the image's texts: those that a text names; else, with `labels.prompt: phrases`, what stands
    between its full stops; else the whole text. `labels.negative_phrases` are among them. Each stands in the list once,
    as it is written, whichever texts have it. Rules for boxes (`labels.nms` ...) are applied to the answer.

    It may have `batch_key` and `prepare`, as a `Segmenter` may.
    """

    def find(self, images: Sequence[RgbImage], phrases: Sequence[Sequence[str]], threshold: float) -> list[PhraseBoxes]:
        """Find every instance of each phrase.

        Args:
            images: any sizes, in one batch.
            phrases: for each image what to look for; at least one, none of them blank.
            threshold: boxes that don't score over it needn't be given.

        Returns:
            One `PhraseBoxes` an image, in order, which don't depend on what else is in the batch.
        """
        ...


@runtime_checkable
class Detector(Protocol):
    """Image + texts -> boxes: a detector that can tell by itself which words of a text name things.

    A text that has phrases (named, or cut by `labels.prompt`) is asked for these alone. It may have `batch_key` and
    `prepare`, as a `Segmenter` may.
    """

    def detect(self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]], threshold: float) -> list[Detections]:
        """Find what each text talks about.

        Args:
            images: any sizes, in one batch.
            texts: for each image its texts (at least one).
            threshold: boxes that don't score over it needn't be given.

        Returns:
            One `Detections` an image, in order, which don't depend on what else is in the batch.
        """
        ...


@runtime_checkable
class Masker(Protocol):
    """Image + boxes -> masks. It may have `prepare`, as a `Segmenter` may."""

    def masks(self, images: Sequence[RgbImage], boxes: Sequence[npt.NDArray[np.float32]]) -> list[Masks]:
        """Make the mask of what each box holds.

        Args:
            images: any sizes, in one batch.
            boxes: for each image (N, 4), XYXY in original pixels; N may be 0.

        Returns:
            One `Masks` an image, in order, with as many masks as boxes.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Image -> discrete codes, and back where the model can. It may have `prepare`, as a `Segmenter` may."""

    @property
    def spec(self) -> TokenizerSpec:
        """What is fixed about this tokenizer."""
        ...

    def tokenize(self, images: Sequence[RgbImage]) -> list[Tokens]:
        """Encode images of any sizes; one `Tokens` an image, in order."""
        ...

    def decode(self, tokens: Sequence[Tokens]) -> list[RgbImage]:
        """Decode codes to images of the tokenizer's own input size, for a preview.

        Raises:
            NotImplementedError: `spec.can_decode` is False.
        """
        ...


@runtime_checkable
class FeatureEncoder(Protocol):
    """Image -> continuous patch features of a frozen vision encoder. It may have `prepare`, as a `Segmenter` may."""

    @property
    def spec(self) -> FeatureSpec:
        """What is fixed about these features."""
        ...

    def encode(self, images: Sequence[RgbImage]) -> list[npt.NDArray[np.float16]]:
        """Encode images of any sizes.

        Returns:
            One float16 (tokens, spec.channels) an image, in order: view after view, each with `spec.tokens_of(cells of
            the view)` tokens, row-major as labels are; `Placement.token_order` says in which order a model sees them.
        """
        ...


@runtime_checkable
class PrefersLikeSizes(Protocol):
    """What a segmenter may have besides: it is faster where the images of a batch are alike."""

    def batch_key(self, size: Size) -> Hashable:
        """Images with equal keys are best put into one batch.

        Args:
            size: (height, width) of an image.
        """
        ...


@runtime_checkable
class PreparesImages(Protocol):
    """What any model may have besides: work on an image that can be done ahead, on the CPU.

    Its method for images (`segment`, `tokenize`, `encode`) then takes a keyword `prepared`: what `prepare` made of each
    image, in order, or None where nothing was done ahead.
    """

    def prepare(self, image: RgbImage) -> object:
        """Do that work. A build calls this in several threads at once, while the model is at work.

        Args:
            image: any size; not to be changed.

        Returns:
            What the model wants: best a uint8 array, or a tuple or list of them. It is kept until the image's turn
            comes, and the bytes of arrays count towards what may wait.
        """
        ...


def prepared_by(model: object, image: RgbImage) -> object:
    """What a model's `prepare` makes of an image; None if it has none."""
    return model.prepare(image) if isinstance(model, PreparesImages) else None


def handed(model: object, prepared: Sequence[object]) -> dict[str, Any]:
    """The keyword by which a model gets what its `prepare` made of images; none if it has no `prepare`."""
    return {"prepared": prepared} if isinstance(model, PreparesImages) else {}


def check_answers(who: str, images: int, answers: object, kind: type = object) -> None:
    """Check that a model has answered once an image.

    Raises:
        PluginError: it hasn't.
    """
    if not isinstance(answers, list):
        raise PluginError(f"{who} answered with a {type(answers).__name__}; it must give a list, one item an image")
    if len(answers) != images:
        raise PluginError(f"{who} answered {len(answers)} times for {images} images; it must answer once an image")
    for answer in answers:
        if not isinstance(answer, kind):
            raise PluginError(f"{who} answered with a {type(answer).__name__}; it must give {kind.__name__}")


def check_found(who: str, found: Detections | Instances, size: Size, texts: Sequence[Text]) -> None:
    """Hold a detector or segmenter to its contract: what is wrong here would only show as wrong labels later.

    Args:
        who: "a detector" or "a segmenter".
        found: its answer for one image.
        size: (height, width) of the image.
        texts: what it was asked.

    Raises:
        PluginError: a text, span, score or box can't be.
    """
    for text_index, (start, end) in zip(found.text_index, found.spans, strict=True):
        if not 0 <= text_index < len(texts) or not 0 <= start < end <= len(texts[text_index].content):
            raise PluginError(
                f"{who} named characters {start} to {end} of text {text_index}; there are {len(texts)} texts, "
                "and a span must lie inside its text"
            )
    scores, limits = found.scores, np.array([size[1], size[0], size[1], size[0]])
    if not ((scores == UNKNOWN_SCORE) | ((scores >= 0) & (scores <= 1))).all():
        raise PluginError(f"{who} gave scores that are neither 0..1 nor UNKNOWN_SCORE")
    if not ((found.boxes >= 0) & (found.boxes <= limits)).all():
        raise PluginError(f"{who} gave boxes that reach out of the image; they are XYXY in its pixels")
