"""Ground values: images, sizes, spans, texts, run-length masks.

Images are `RgbImage` everywhere: HWC uint8, RGB, 0..255, EXIF orientation already applied. Boxes are XYXY in original
pixels, continuous coordinates (a pixel `x` covers `[x, x+1)`). Sizes are `(height, width)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from patchmint.errors import TextError

RgbImage = npt.NDArray[np.uint8]
"""HWC uint8, RGB, 0..255."""

Integers = npt.NDArray[np.int64]
"""Positions, counts or ids."""

Size = tuple[int, int]
"""(height, width) in pixels."""

Span = tuple[int, int]
"""Half-open range of characters `[start, end)` in a text as the user gave it."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

Box = tuple[float, float, float, float]
"""XYXY in pixels."""

UNKNOWN_SCORE = -1.0
"""Stands for "the model gives no score" (null never reaches the disk)."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Number format of a model's large products; auto = the fastest that keeps its answers."""

Origin = Literal["model", "annotator", "mixed", "corrected"]
"""Whose box and mask they are: the models', the annotators' (or a user's), a box of theirs outlined by a model, or of
somebody who corrected what the build had made."""

PHRASE_SEPARATOR = " . "
"""Grounding DINO's own separator between phrases of one prompt (upstream README, "Tips")."""


class Rle(TypedDict):
    """A binary mask as COCO run-length encoding (`pycocotools.mask`): column-major runs, compressed counts."""

    size: list[int]
    """[height, width] of the mask."""
    counts: bytes


@dataclass(frozen=True)
class Instance:
    """One thing that a text names, as people drew it.

    Attributes:
        box: XYXY in pixels of the image.
        span: characters of the text that name it; None = not known, which stands for its only phrase, or else for all.
        mask: of the image's size; then it counts, and the box doesn't. None = not drawn.
    """

    box: Box
    span: Span | None = None
    mask: Rle | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Text:
    """A text that goes with an image, and, where known, the phrases in it that name things.

    Attributes:
        content: the text as the user gave it.
        phrases: character spans in `content`; empty = not known. Where they are given, these and nothing else are
            looked for.
        instances: what the text is about, in the upright image; empty = not known. Where they are given, nothing is
            looked for.

    Raises:
        TextError: a span is empty or lies outside the text, the text isn't valid Unicode, or a box isn't one.
    """

    content: str
    phrases: tuple[Span, ...] = ()
    instances: tuple[Instance, ...] = ()

    def __post_init__(self) -> None:
        try:
            self.content.encode()
        except UnicodeEncodeError as error:
            raise TextError(
                f"the text isn't valid Unicode (at character {error.start}: a lone surrogate, mostly bytes of another "
                "encoding); decode it with the right encoding first"
            ) from error
        spans = (instance.span for instance in self.instances if instance.span is not None)
        for start, end in (*self.phrases, *spans):
            if not 0 <= start < end <= len(self.content):
                raise TextError(
                    f"phrase span ({start}, {end}) lies outside the text of {len(self.content)} characters; "
                    "spans are half-open character ranges [start, end)"
                )
        for box in (instance.box for instance in self.instances if instance.mask is None):
            if len(box) != 4 or not all(map(isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
                raise TextError(f"{box} isn't a box: give left, top, right, bottom in pixels")

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


@dataclass(frozen=True)
class Phrase:
    """One thing found: a box, and the words that it answers to. Two cats are two phrases of one span.

    Attributes:
        text: the words, as they stand in the text.
        text_index: which of the image's texts.
        span: characters `[start, end)` of that text.
        box: XYXY in original pixels.
        score: 0..1, or `UNKNOWN_SCORE`.
        origin: whose box and mask they are.
    """

    text: str
    text_index: int
    span: Span
    box: Box
    score: float
    origin: Origin = "model"


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
