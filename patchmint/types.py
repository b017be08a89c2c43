"""The values that cross room borders: texts, instances, tokens, features, and the interfaces that admit every model.

Images are `RgbImage` everywhere: HWC uint8, RGB, 0..255, EXIF orientation already applied. Boxes are XYXY in original
pixels, continuous coordinates (a pixel `x` covers `[x, x+1)`). Sizes are `(height, width)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

from patchmint.errors import PluginError, TextError

if TYPE_CHECKING:
    from patchmint.geometry.grid import PatchGrid
    from patchmint.geometry.placement import Placement

RgbImage = npt.NDArray[np.uint8]
"""HWC uint8, RGB, 0..255."""

Size = tuple[int, int]
"""(height, width) in pixels."""

Span = tuple[int, int]
"""Half-open range of characters `[start, end)` in a text as the user gave it."""

UNKNOWN_SCORE = -1.0
"""Stands for "the model gives no score" (null never reaches the disk)."""

PHRASE_SEPARATOR = " . "
"""Grounding DINO's own separator between phrases of one prompt (upstream README, "Tips")."""


class Rle(TypedDict):
    """A binary mask as COCO run-length encoding (`pycocotools.mask`): column-major runs, compressed counts."""

    size: list[int]
    """[height, width] of the mask."""
    counts: bytes


@dataclass(frozen=True)
class Text:
    """A text that goes with an image, and, where known, the phrases in it that name things.

    Attributes:
        content: the text as the user gave it.
        phrases: character spans in `content`; empty = not known. Where they are given, these and nothing else are
            looked for.

    Raises:
        TextError: a span is empty or lies outside the text, or the text isn't valid Unicode.
    """

    content: str
    phrases: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        try:
            self.content.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"the text isn't valid Unicode (at character {error.start}: a lone surrogate, mostly bytes of another "
                "encoding); decode it with the right encoding first"
            ) from error
        for start, end in self.phrases:
            if not 0 <= start < end <= len(self.content):
                raise TextError(
                    f"phrase span ({start}, {end}) lies outside the text of {len(self.content)} characters; "
                    "spans are half-open character ranges [start, end)"
                )

    @classmethod
    def from_phrases(cls, phrases: Sequence[str]) -> Text:
        """Build a text from a list of phrases, joined by " . ", with a span for each.

        Raises:
            TextError: the list is empty, a phrase is blank, or it is one string and no list.
        """
        if isinstance(phrases, str):
            raise TextError(f"from_phrases takes a list of phrases, not one string; write [{phrases!r}]")
        if not phrases:
            raise TextError("the list of phrases is empty; give at least one, for example ['a cat', 'a sofa']")
        spans: list[Span] = []
        content = ""
        for phrase in phrases:
            stripped = phrase.strip()
            if not stripped:
                raise TextError("a phrase is blank; leave it out of the list")
            if content:
                content += PHRASE_SEPARATOR
            spans.append((len(content), len(content) + len(stripped)))
            content += stripped
        return cls(content, tuple(spans))


def as_texts(text: str | Text | Sequence[str | Text]) -> list[Text]:
    """Take one text or several, as strings or with their phrases.

    Raises:
        TextError: there is no text, one is blank, or one is something else.
    """
    items = [text] if isinstance(text, str | Text) or not isinstance(text, Sequence) else list(text)
    if not items:
        raise TextError("the list of texts is empty; give at least one text")
    texts = []
    for index, item in enumerate(items):
        if not isinstance(item, str | Text):
            raise TextError(f"text {index} is a {type(item).__name__}; give a str or a patchmint.Text")
        made = Text(item) if isinstance(item, str) else item
        if not made.content.strip():
            raise TextError(f"text {index} is blank; give words to look for")
        texts.append(made)
    return texts


class Masks(Protocol):
    """The masks of one image's instances, in whatever form they came.

    Patch labels need to know how much of each cell they cover, and mostly nothing else; a segmenter may be able to tell
    without ever making a mask of the image's size. `patchmint.geometry.RleMasks` holds ordinary masks.
    """

    def __len__(self) -> int: ...

    def coverage(self, members: Sequence[int], placement: Placement) -> npt.NDArray[np.float64]:
        """Share of each cell's area under the union of some of the masks: `placement.shape`, 0..1.

        Exactly 0 where they don't overlap the cell; what of a cell lies outside the image counts as not covered.
        """
        ...

    def rles(self) -> tuple[Rle, ...]:
        """All masks as COCO RLE, of one size; they cover the image's whole extent."""
        ...


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

    Raises:
        PluginError: the arrays don't have N rows each.
    """

    image_size: Size
    masks: Masks
    text_index: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    spans: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.masks)
        shapes = (self.text_index.shape, self.scores.shape, self.boxes.shape, self.spans.shape)
        if shapes != ((n,), (n,), (n, 4), (n, 2)):
            raise PluginError(
                f"a segmenter gave {n} masks, but text_index, scores, boxes and spans of shapes {shapes}; "
                f"they must be ({n},), ({n},), ({n}, 4) and ({n}, 2)"
            )

    def __len__(self) -> int:
        return len(self.masks)


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
        grid_shape: shape of `Tokens.codes` without its last axis.
        codebook_sizes: number of codes in each codebook; its length is the last axis of `Tokens.codes`.
        cells: how grid positions lie in the image; None for a 1-D tokenizer, whose codes have no place.
        preprocessing: short name of how pixels are prepared, such as "pad-256-bicubic"; codes of two data sets may
            only be mixed where it is the same.
        can_decode: whether `decode` works.
    """

    name: str
    grid_shape: tuple[int, ...]
    codebook_sizes: tuple[int, ...]
    cells: PatchGrid | None
    preprocessing: str
    can_decode: bool = False


@dataclass(frozen=True)
class FeatureSpec:
    """What is fixed about continuous features, whatever the image.

    Attributes:
        encoder: name or path of the vision encoder, as recorded in manifests.
        connector: "none", "sti", "sci" or "dci" (Dense Connector, arXiv 2405.13800).
        layers: hidden states that take part: first (V_L,), then a tuple for each further part; 0 = the first block's
            input.
        select_feature: "patch", or "cls_patch" where the CLS token stays (LLaVA's names).
        pool: "" = not pooled; "before" or "after" the connector (DeCo, arXiv 2405.20985).
        grid: rows and columns of those tokens of one view that lie on a grid, pooling done.
        leading: tokens of one view before the grid's: 1 with CLS.
        trailing: tokens of one view after the grid's: those that STI appends.
        channels: numbers of one token.
    """

    encoder: str
    connector: str
    layers: tuple[tuple[int, ...], ...]
    select_feature: str
    pool: str
    grid: tuple[int, int]
    leading: int
    trailing: int
    channels: int

    @property
    def tokens(self) -> int:
        """Tokens of one view."""
        return self.leading + self.grid[0] * self.grid[1] + self.trailing


@runtime_checkable
class Segmenter(Protocol):
    """Image + texts -> instances. Grounding DINO + SAM is one; a text-prompted segmenter without boxes is another.

    It may have two methods besides (`patchmint.pipeline.hooks`): `batch_key(size: Size) -> Hashable`, since images with
    equal keys are best put into one batch, and `prepare(image: RgbImage)`, for what can be done ahead of `segment`.
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


class FeatureEncoder(Protocol):
    """Image -> continuous patch features of a frozen vision encoder. It may have `prepare`, as a `Segmenter` may."""

    @property
    def spec(self) -> FeatureSpec:
        """What is fixed about these features."""
        ...

    def encode(self, images: Sequence[RgbImage]) -> list[npt.NDArray[np.float16]]:
        """Encode images of any sizes.

        Returns:
            One float16 (views * spec.tokens, spec.channels) an image, in order: view after view, row-major.
        """
        ...
