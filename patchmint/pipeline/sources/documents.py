"""Documents of several images: conversations, MMC4, OBELICS, MINT-1T, and keys of tars with several images.

What a record says becomes a `Document`: its parts in order, and each image once. Sources make samples of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeGuard

from patchmint.pipeline.sources.records import faulty, is_unicode, printable, quoted, source_fault
from patchmint.pipeline.sources.turns import (
    FRAMES,
    IMAGES,
    MARK,
    TURNS,
    Said,
    Wrong,
    count_marks,
    of_fields,
    read_turns,
    with_marks,
)
from patchmint.samples import (
    NO_NUMBER,
    Absent,
    Document,
    Fault,
    Found,
    ImageRef,
    Part,
    SourceSample,
    SourceText,
    Turn,
)

Locate = Callable[[object, int], ImageRef | Fault]
"""Where an image is: from what the record has in its place, and its number among the record's images."""

Spread = Literal["all", "neighbours", "own"]
"""Which texts label an image, see `texts_of`."""

TALKERS = ("human", "gpt")
"""Who speaks about images; systems give orders."""

_PAGED = ("tif", "tiff")
_FRAMES_MARK = "<video>"
_DIGITS = re.compile(r"(\d+)")


class _Making:
    """A document in the making."""

    def __init__(self, name: str, where: str, locate: Locate) -> None:
        self.where = where
        self._name = name
        self._locate = locate
        self._images: dict[ImageRef | Fault, int] = {}
        self._parts: list[Part] = []

    def checked(self, text: object) -> str:
        if not isinstance(text, str):
            raise Wrong("record-malformed", f"part {len(self._parts)} of {self.where} is {quoted(text)}, not a text")
        if not is_unicode(text):
            raise Wrong("text-not-unicode", f"{self.where} isn't valid Unicode; save the file as UTF-8")
        return text

    def add_text(self, text: object, role: str = "") -> None:
        self._parts.append(Part(self.checked(text), role=role))

    def add_image(self, given: object, number: int, role: str = "") -> None:
        image = self._locate(given, number)
        self._parts.append(Part(image=self._images.setdefault(image, len(self._images)), role=role))

    def finish(self, *, flowing: bool = False, captioned: bool = False) -> Document | Absent:
        if not self._images:
            return Absent("text-only")
        return Document(self._name, tuple(self._images), tuple(self._parts), flowing, captioned)


def read_document(
    record: Mapping[str, Any], name: str, where: str, locate: Locate, *, prepend: bool = False
) -> Document | Fault | Absent:
    """Read a record of any of the forms.

    - MMC4: `text_list`, and `image_info` with `image_name` and `matched_text_index`. An image stands before its text.
    - OBELICS, MINT-1T: lists `images` and `texts` of equal length. At each place is an image or a text, or neither.
    - Conversations: as `read_turns` says. The images are in `image` or `images`, in parts of turns, or the frames of
      `video` or `frames`, which stand for one `<video>` mark.

    In a human's turns there are as many `<image>` marks as images, or none (`prepend`). A mark anywhere else is text.

    Args:
        record: an object of a JSON file, or a row.
        name: the source's name for it.
        where: which record that is, for messages.
        locate: finds its images.
        prepend: put missing marks before the first question.

    Returns:
        The document; what is wrong with it; or that it has no image.
    """
    making = _Making(name, where, locate)
    try:
        if isinstance(record.get("text_list"), list) and isinstance(record.get("image_info"), list):
            return _matched(record["text_list"], record["image_info"], making)
        if _is_interleaved(record):
            return _interleaved(record["images"], record["texts"], making)
        if isinstance(record.get("texts"), list) and not any(isinstance(text, dict) for text in record["texts"]):
            message = f"{where} has no lists images and texts of equal length, one of which is null at each place"
            raise Wrong("record-malformed", message)
        return _conversation(record, making, prepend=prepend)
    except Wrong as wrong:
        return source_fault(wrong.reason, str(wrong))


def read_key(
    key: str,
    images: Mapping[str, ImageRef],
    record: Mapping[str, Any],
    where: str,
) -> Document | Fault | Absent:
    """Read a key of a tar by its record, as `read_document`.

    The record names images by their members (`KEY.0.jpg` or `0.jpg`), or they are as many as the record's, and taken in
    order: 2.jpg before 10.jpg; or the record's image 2 is 2.jpg, whichever others are lacking. All of a record may be
    pages of a single TIFF (MINT-1T's PDFs).

    Args:
        key: of the members.
        images: by member's ending.
        record: what is in KEY.json.
        where: which key that is, for messages.
    """
    ordered = in_order(images)
    if not any(record.get(field) for field in (*IMAGES, *FRAMES, "text_list")):
        record = {**record, IMAGES[0]: sorted(images, key=_natural)}
    named: list[ImageRef] = []

    def count(_: object, number: int) -> ImageRef:
        named.append(ImageRef("", number))
        return named[-1]

    def locate(given: object, number: int) -> ImageRef | Fault:
        file = given.rpartition("/")[2] if isinstance(given, str) else ""
        found = images.get(file.removeprefix(f"{key}.").lower())
        if found is None and len(ordered) == len(named):
            found = ordered[number]
        elif found is None and paged is not None:
            found = replace(paged, number=number)
        found = found or next((image for ending, image in images.items() if ending.split(".")[0] == str(number)), None)
        message = f"{where} has {len(ordered)} images, its record {len(named)}, and {quoted(given)} isn't among those"
        return found or source_fault("image-missing", message)

    paged = next((images[ending] for ending in images if len(images) == 1 and ending.endswith(_PAGED)), None)
    read_document(record, key, where, count, prepend=True)
    return read_document(record, key, where, locate, prepend=True)


def read_texts(
    name: str, images: Sequence[ImageRef | Fault], texts: Sequence[object], where: str
) -> Document | Fault | Absent:
    """Read texts with a mark for each image, or without marks: then the images stand before the first.

    Args:
        name: the source's name for the document.
        images: in order.
        texts: in order; at least one.
        where: which document that is, for messages.
    """
    if not images:
        return Absent("text-only")
    making = _Making(name, where, lambda _, number: images[number])
    try:
        said = [Turn("human", making.checked(text)) for text in texts]
        left: Iterator[tuple[int, object]] = iter(enumerate(images))
        for turn in with_marks(Said(said, [], marked=False), len(images), where, prepend=True):
            _add_turn(turn.content, "", left, making)
        return making.finish(flowing=count_marks(said) > 0)
    except Wrong as wrong:
        return source_fault(wrong.reason, str(wrong))


def to_sample(
    found: Document | Fault | Absent,
    name: str,
    record: Mapping[str, Any],
    where: str,
    *,
    spread: Spread | None,
    roles: Collection[str] = TALKERS,
) -> Found:
    """A document as a sample.

    Args:
        found: what `read_document` or `read_key` gave.
        name: what a faulty one is called.
        record: the source's own fields.
        where: which document that is, for messages.
        spread: as for `texts_of`; None: "neighbours" where texts flow around images, else "all".
        roles: as for `texts_of`.
    """
    if isinstance(found, Absent):
        return found
    if isinstance(found, Document):
        texts, labels = texts_of(found, roles, spread or ("neighbours" if found.flowing else "all"))
        if any(labels):
            return SourceSample(
                printable(found.id),
                found.images,
                tuple(map(SourceText, texts)),
                record=record,
                parts=found.parts,
                image_texts=tuple(map(tuple, labels)),
            )
        found = source_fault("text-missing", f"{where} has no text that says something of its images")
    return replace(faulty(name, found.reason, found.message), record=record)


def as_documents(
    found: Iterable[Found], images: Sequence[ImageRef | Fault], where: str, spread: Spread | None
) -> Iterator[Found]:
    """What `records.Sample` collected of texts that stand beside several images, as documents.

    Args:
        found: what it gives in the end.
        images: in order.
        where: which document that is, for messages.
        spread: as for `to_sample`.
    """
    for each in found:
        if isinstance(each, SourceSample) and each.texts:
            said = read_texts(each.id, images, [text.content for text in each.texts], where)
            yield to_sample(said, each.id, each.record, where, spread=spread)
        else:
            yield each


def texts_of(document: Document, roles: Collection[str], spread: Spread) -> tuple[list[str], list[list[int]]]:
    """The texts of a document that say something, and which of them label each image.

    A turn of a conversation is one text, without its marks; elsewhere each part is.

    Args:
        document: read from a record.
        roles: whose turns are texts; of what nobody speaks, all are.
        spread: "all": every text labels every image, as MaVEn has a question guide all images. "neighbours": in a
            conversation the turns from one human's to the next, elsewhere the nearest texts before and after the image,
            wherever it is shown. "own": as neighbours, but of MMC4's documents the text that the image was matched to.

    Returns:
        Texts, and a list of their numbers for each image, ascending.
    """
    said: list[tuple[str, str, int]] = []  # text, role, number of the exchange
    shown: list[tuple[int, int, int]] = []  # image, exchange, texts before it
    exchange, speaks = 0, ""
    for part in document.parts:
        begins, speaks = bool(part.role), part.role or speaks
        exchange += begins and speaks == "human"
        if part.image != NO_NUMBER:
            shown.append((part.image, exchange, len(said)))
        elif speaks and said and not begins and said[-1][1:] == (speaks, exchange):
            said[-1] = (f"{said[-1][0].rstrip()} {part.text.lstrip()}".strip(), speaks, exchange)
        else:
            said.append((part.text.strip(), speaks, exchange))
    kept = [number for number, (text, role, _) in enumerate(said) if text and (not role or role in roles)]
    labels: list[set[int]] = [set() for _ in document.images]
    for image, at, before in shown:
        if spread == "all":
            labels[image].update(kept)
        elif speaks:
            labels[image].update(number for number in kept if said[number][2] == at)
        else:
            behind = [number for number in kept if number >= before][:1]
            ahead = [number for number in kept if number < before][-1:]
            labels[image].update(behind if spread == "own" and document.captioned else ahead + behind)
    return [said[number][0] for number in kept], [[kept.index(number) for number in sorted(own)] for own in labels]


def is_document(record: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether a record is in any of the forms of `read_document`."""
    return record is not None and (_is_interleaved(record) or any(field in record for field in (*TURNS, "text_list")))


def in_order(images: Mapping[str, ImageRef]) -> list[ImageRef]:
    """Images by the endings of their members: 2.jpg before 10.jpg."""
    return [images[ending] for ending in sorted(images, key=_natural)]


def _is_interleaved(record: Mapping[str, Any]) -> bool:
    """Whether texts and images are parallel lists; the_cauldron's `texts` are objects, and beside its images."""
    images, texts = record.get("images"), record.get("texts")
    return (
        isinstance(images, list)
        and isinstance(texts, list)
        and len(images) == len(texts)
        and not any(isinstance(text, dict) for text in texts)
        and not any(image is not None and text is not None for image, text in zip(images, texts, strict=True))
    )


def _interleaved(images: Sequence[object], texts: Sequence[object], making: _Making) -> Document | Absent:
    number = 0
    for image, text in zip(images, texts, strict=True):
        if text is not None:
            making.add_text(text)
        elif image is not None:
            making.add_image(image, number)
            number += 1
    return making.finish(flowing=True)


def _matched(texts: Sequence[object], infos: Sequence[object], making: _Making) -> Document | Absent:
    before: dict[int, list[tuple[object, int]]] = defaultdict(list)
    for number, info in enumerate(infos):
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(info, dict) or type(index) is not int or not 0 <= index < len(texts):
            what = f"image {number} of {making.where} is matched to none of its {len(texts)} texts: {quoted(info)}"
            raise Wrong("record-malformed", what)
        before[index].append((info.get("image_name"), number))
    for index, text in enumerate(texts):
        for name, number in before[index]:
            making.add_image(name, number)
        making.add_text(text)
    return making.finish(flowing=True, captioned=True)


def _conversation(record: Mapping[str, Any], making: _Making, *, prepend: bool) -> Document | Absent:
    said, where = read_turns(record, making.where), making.where
    named = said.images or of_fields(record, IMAGES)
    frames = next((record[field] for field in FRAMES if record.get(field)), None)
    if not named and isinstance(frames, list):
        named, mark = frames, "\n".join([MARK] * len(frames))
        said.turns = [
            Turn(turn.role, turn.content.replace(_FRAMES_MARK, mark, 1) if turn.role == "human" else turn.content)
            for turn in said.turns
        ]
    if not named:
        if frames or count_marks(said.turns):
            raise Wrong("no-image", f"{where} has a video or an {MARK} mark, but names no image")
        return making.finish()
    left = iter(enumerate(named))
    for turn in with_marks(said, len(named), where, prepend=prepend):
        if turn.role == "human":
            _add_turn(turn.content, turn.role, left, making)
        else:
            making.add_text(turn.content, turn.role)
    return making.finish()


def _add_turn(content: str, role: str, images: Iterator[tuple[int, object]], making: _Making) -> None:
    """Take a text with its marks apart. A turn that says nothing at all is an empty text."""
    pieces = content.split(MARK)
    for position, text in enumerate(pieces):
        if position:
            number, image = next(images)
            making.add_image(image, number, role)
            role = ""
        if text or len(pieces) == 1:
            making.add_text(text, role)
            role = ""


def _natural(ending: str) -> list[tuple[bool, int, str]]:
    """What sorts numbers in names by their size."""
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in _DIGITS.split(ending)]
