"""Edits: what somebody changed in an image's instances by hand, a line of JSON each, and what becomes of the instances.

`patchmint correct` applies them; the gallery's `--edit` and the readers of other tools' files write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, BinaryIO, NamedTuple, Self

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from patchmint.errors import InputError
from patchmint.geometry.rle import box_of, encode_masks, fill_boxes, from_coco
from patchmint.shards.schema import BoxDocument, FoundDocument, MaskDocument, first_error, round_box
from patchmint.types import UNKNOWN_SCORE, Rle, Size, Span

_Number = Annotated[int, Field(ge=0)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Drawn(_Line):
    """An instance as somebody drew it: what is given of it. A mask gives the box; a box alone is the mask as well."""

    box: BoxDocument | None = Field(default=None, description="XYXY in pixels of the upright image.")
    mask: MaskDocument | None = Field(default=None, description="COCO RLE of the upright image's size.")
    text: _Number | None = Field(default=None, description="Which of the sample's texts.")
    span: Span | None = Field(default=None, description="Characters [start, end) of the text that name it.")
    phrase: str | None = Field(default=None, description="The words that name it, in place of `span`.")


class Change(Drawn):
    """A change of an instance: what isn't given stays."""

    instance: _Number = Field(description="Which of the image's instances, as they are before this edit.")


class Addition(Drawn):
    """A new instance. Without `span` and `phrase` it answers to the whole text."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.box is None and self.mask is None:
            raise ValueError("a new instance needs a box or a mask")
        return self


class Edit(_Line):
    """What somebody changed in one image of a sample, at once.

    `delete` and `change` number instances as they are before it; those that are left keep their order, new ones follow,
    and then all are sorted by text. So `edited` gives the numbers that the next edit of the image has to use.
    """

    key: str = Field(min_length=1, description="The sample's.")
    image: _Number = Field(default=0, description="Which image of a document.")
    by: str = Field(default="", description="Who.")
    at: AwareDatetime | None = Field(default=None, description="When, with the time zone.", strict=False)
    undo: bool = Field(default=False, description="First: back to what the build made, of all images of the sample.")
    delete: tuple[_Number, ...] = Field(default=(), description="Instances that aren't.")
    change: tuple[Change, ...] = ()
    add: tuple[Addition, ...] = ()
    wrong: bool | None = Field(default=None, description="The whole sample is wrong (true), or isn't (false).")

    def to_line(self) -> bytes:
        """A line of an edits file, its end included."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"

    @model_validator(mode="after")
    def _is_clear(self) -> Self:
        named = [*self.delete, *(change.instance for change in self.change)]
        if len(set(named)) != len(named):
            raise ValueError("it names an instance twice")
        return self


class EditLine(NamedTuple):
    """An edit, and the number of its line, from 1."""

    number: int
    edit: Edit


def read_edits(lines: BinaryIO, name: str) -> Iterator[EditLine]:
    """Read an edits file; empty lines are passed over.

    Args:
        lines: the file.
        name: what errors call it.

    Raises:
        InputError: a line isn't an edit.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield EditLine(number, Edit.model_validate_json(line))
            except ValidationError as error:
                raise InputError(f"{name}, line {number} isn't an edit: {first_error(error)}") from error


def edited(
    found: Sequence[FoundDocument], edit: Edit, texts: Sequence[str], own: Sequence[int], size: Size
) -> tuple[FoundDocument, ...]:
    """An image's instances after an edit; `undo` and `wrong`, which are about the sample, aside.

    What an edit touches has the origin `corrected` and no score: no model's certainty is about it any more.

    Args:
        found: the instances before it.
        edit: what changes.
        texts: all of the sample's.
        own: numbers of those that label the image.
        size: (height, width) of the image, upright.

    Raises:
        InputError: the edit doesn't fit: it names an instance or a text that isn't there, words that no text has, a box
            outside the image, or an empty mask or one of another size.
    """
    left: list[FoundDocument | None] = list(found)
    for number in edit.delete:
        _number(number, found)
        left[number] = None
    for change in edit.change:
        before = _number(change.instance, found)
        left[change.instance] = _drawn(change, before, texts, own, size)
    kept = [each for each in left if each is not None]
    added = [_drawn(addition, None, texts, own, size) for addition in edit.add]
    return tuple(sorted((*kept, *added), key=lambda each: each.text_index))


def _number(number: int, found: Sequence[FoundDocument]) -> FoundDocument:
    if number >= len(found):
        raise InputError(f"there is no instance {number}; the image has {len(found)}, counted from 0")
    return found[number]


def _drawn(
    drawn: Drawn, before: FoundDocument | None, texts: Sequence[str], own: Sequence[int], size: Size
) -> FoundDocument:
    text, (start, end) = _named(drawn, before, texts, own)
    mask, box = (before.mask.rle, before.box) if before is not None else (None, None)
    if drawn.mask is not None:
        mask = _checked_mask(drawn.mask, size)
        box = drawn.box or box_of(mask)
    elif drawn.box is not None:
        box = drawn.box
    assert box is not None  # an addition has one of them
    box = _inside(box, size)
    if mask is None or (drawn.mask is None and drawn.box is not None):
        mask = encode_masks(fill_boxes([box], size)[None])[0]
    return FoundDocument(
        text_index=text,
        start=start,
        end=end,
        box=box,
        score=UNKNOWN_SCORE,
        origin="corrected",
        mask=MaskDocument.of(mask),
    )


def _checked_mask(mask: MaskDocument, size: Size) -> Rle:
    if mask.size != size:
        raise InputError(f"a mask is of size {mask.size}, the upright image of {size} (height, width)")
    rle = from_coco(mask.model_dump())
    if not any(box_of(rle)):
        raise InputError("a mask is empty; delete the instance instead")
    return rle


def _inside(box: Iterable[float], size: Size) -> BoxDocument:
    """A box, as stored, cut off at the image."""
    left, top, right, bottom = np.clip(np.array(list(box)), 0, (*size[::-1], *size[::-1])).tolist()
    if left >= right or top >= bottom:
        raise InputError(f"of the box {tuple(box)} nothing lies in the image of {size[1]} x {size[0]} pixels")
    return round_box((left, top, right, bottom))


def _named(drawn: Drawn, before: FoundDocument | None, texts: Sequence[str], own: Sequence[int]) -> tuple[int, Span]:
    """The text and its characters that an instance answers to."""
    if drawn.text is not None and drawn.text not in own:
        raise InputError(f"no text {drawn.text} labels the image; those that do: {', '.join(map(str, own)) or 'none'}")
    if drawn.span is not None and drawn.phrase is not None:
        raise InputError("give a span or a phrase, not both")
    if not own:
        raise InputError("no text labels the image, so nothing can be named in it")
    usual = before.text_index if before is not None else own[0]
    text = drawn.text if drawn.text is not None else usual
    if drawn.phrase is not None:
        first = [text] if drawn.text is not None else [usual, *(number for number in own if number != usual)]
        found = ((number, span) for number in first if (span := words_in(drawn.phrase, texts[number])) is not None)
        for number, span in found:
            return number, span
        where = f"text {text}" if drawn.text is not None else "no text of the image"
        has = "hasn't" if drawn.text is not None else "has"
        raise InputError(
            f"{where} {has} the words {drawn.phrase[:80]!r}; name it in words of its texts, or delete it if none is "
            "about it"
        )
    if drawn.span is not None:
        start, end = drawn.span
        if not 0 <= start < end <= len(texts[text]):
            raise InputError(f"characters {start} to {end} aren't in text {text}, which has {len(texts[text])}")
        return text, (start, end)
    if before is not None and text == before.text_index:
        return text, (before.start, before.end)
    if not texts[text]:
        raise InputError(f"text {text} is empty, so it names nothing")
    return text, (0, len(texts[text]))


def words_in(phrase: str, text: str) -> Span | None:
    """Where a text first has some words: whole ones, if it does, whatever their case and the spaces between them."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    if not words:
        return None
    for pattern in (rf"(?<!\w){words}(?!\w)", words):
        if match := re.search(pattern, text, re.IGNORECASE):
            return match.span()
    return None
