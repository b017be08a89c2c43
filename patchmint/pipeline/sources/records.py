"""Records from outside: what in them can be used, and what becomes a fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from patchmint.errors import InputError
from patchmint.geometry.rle import box_of, from_coco
from patchmint.samples import PART, Absent, Fault, Found, ImageRef, SourceSample, SourceText, Turn
from patchmint.types import Box, Instance, Size, Span, Text

NO_IMAGE = ImageRef("")
"""Stands for the image of a record that names none, or none that may be read."""

_MAX_NAME_BYTES = 255
"""Longest name in a path that Linux file systems take; reading a longer one is an error of its own kind."""

_MAX_PATH_BYTES = 1024
"""Longest key of an S3 object."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})
NOT_ANNOTATED = Absent("not-annotated")
"""An image that the annotations of others don't speak of."""

_ELSEWHERE = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://|file:")
_QUOTED = 200


def source_fault(reason: str, message: str) -> Fault:
    """A fault found while reading the source."""
    return Fault("source", reason, message)


def faulty(name: str, reason: str, message: str) -> SourceSample:
    """A sample that only says what is wrong, under the source's name for it."""
    return SourceSample(printable(name), (NO_IMAGE,), (), fault=source_fault(reason, message))


def printable(text: str) -> str:
    """The text with lone surrogates spelled out, so that it can be stored; other text stays as it is."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def quoted(value: object) -> str:
    """A value from outside for a message: ASCII only, and not longer than a line or two."""
    shown = ascii(value if not isinstance(value, str) else value[:_QUOTED])
    return shown if len(shown) <= 2 * _QUOTED else shown[: 2 * _QUOTED] + "..."


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8 (no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def inner_path(path: object) -> str | Fault:
    """A path from an annotation, normalised; or why it isn't one within the source."""
    if not isinstance(path, str) or not path:
        return source_fault("record-malformed", f"the image's path is {quoted(path)}, not the name of a file")
    if not is_unicode(path):
        return source_fault("path-not-unicode", f"the image's path {quoted(path)} isn't valid Unicode; rename the file")
    if path[:5].lower() == "data:":
        return source_fault(
            "image-inline",
            f"the image is written into the record as text (it begins with {quoted(path[:30])}), which isn't read; "
            "save it as a file and name that, or make a Parquet table with the image's bytes in a column",
        )
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts or set(path) & {"\\", "\0"} or _ELSEWHERE.match(path):
        return source_fault(
            "path-outside-source",
            f"the image's path {quoted(path)} doesn't stay within the source's folder; only relative paths with '/' "
            "are read, and nothing is fetched from the network",
        )
    if len(path.encode()) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return source_fault("path-too-long", f"the image's path {quoted(path)} is longer than a file's can be")
    return "/".join(parts)


def path_of(url: object) -> object:
    """An image's folder and name, which are the last two parts of its address; the address itself is never asked."""
    parts = url.split("/")[-2:] if isinstance(url, str) else []
    return "/".join(parts) if len(parts) == 2 and all(parts) else url


def listed_image(path: str) -> ImageRef | Fault:
    """An image from a listing of the storage, which leads nowhere else whatever it looks like."""
    if is_unicode(path):
        return ImageRef(path)
    return source_fault("path-not-unicode", f"the file name {quoted(path)} isn't valid Unicode; rename the file")


def text_fault(value: object, where: str) -> Fault | None:
    """What is wrong with a text from outside, if anything is."""
    if not isinstance(value, str):
        return source_fault("record-malformed", f"{where} is {quoted(value)}, not a text")
    if not value.strip():
        return source_fault("text-empty", f"{where} is empty")
    if not is_unicode(value):
        return source_fault(
            "text-not-unicode",
            f"{where} isn't valid Unicode: {quoted(value)}; it was mostly saved in another encoding than UTF-8",
        )
    return None


def xywh_box(value: object) -> Box | None:
    """XYXY from a list of x, y, width and height; None if it isn't such a list."""
    numbers = _four_numbers(value)
    if numbers is None:
        return None
    x, y, width, height = numbers
    return xyxy_box((x, y, x + width, y + height))


def xyxy_box(value: object) -> Box | None:
    """XYXY from a list of two corners; None if it isn't such a list."""
    numbers = _four_numbers(value)
    if numbers is None or not all(map(math.isfinite, numbers)):
        return None
    left, top, right, bottom = numbers
    return numbers if left <= right and top <= bottom else None


def _four_numbers(value: object) -> Box | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    try:
        first, second, third, fourth = (float(number) for number in value)
    except OverflowError:
        return None
    return first, second, third, fourth


def listing(names: Sequence[str], things: Sequence[tuple[str, Instance]]) -> SourceText:
    """One text that lists names, each with its span, and what was drawn, each thing with its name."""
    distinct = list(dict.fromkeys(name.strip() for name in names))
    text = Text.from_phrases(distinct)
    spans = dict(zip(distinct, text.phrases, strict=True))
    instances = tuple(replace(instance, span=spans[name.strip()]) for name, instance in things)
    return SourceText(text.content, text.phrases, instances)


@dataclass(frozen=True)
class Drawn:
    """What an annotation says of a thing's place.

    Attributes:
        box: None if it isn't one.
        mask: COCO's `segmentation` as JSON, which is smaller than Python's lists; empty where there is none, or none is
            wanted.
    """

    box: Box | None
    mask: str = ""

    @classmethod
    def of_coco(cls, record: Mapping[str, Any], *, masks: bool) -> Drawn:
        """Take it from a record with `bbox` and `segmentation`."""
        segmentation = record.get("segmentation") if masks else None
        return cls(xywh_box(record.get("bbox")), json.dumps(segmentation) if segmentation else "")


def size_of(image: Mapping[str, Any]) -> Size | None:
    """What COCO's record of an image says of its size."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


class Sample:
    """Collects what a source says about one image.

    A bad text never takes the image's good ones along: it becomes a faulty sample of its own, so that it is counted.
    """

    def __init__(self, name: str, image: ImageRef | Fault, record: Mapping[str, Any] = _NOTHING) -> None:
        """Begin one.

        Args:
            name: the source's own name for it.
            image: where its bytes are, or why they can't be read.
            record: the source's own fields of it.
        """
        self._name = name
        self._image = image
        self._record = record
        self._texts: list[SourceText] = []
        self._faults: list[Fault] = []
        self._absent: list[Absent] = []

    def add_absent(self, reason: str) -> None:
        """Count something that isn't there; no fault, as long as there is a text."""
        self._absent.append(Absent(reason))

    def instance(self, drawn: Drawn, span: Span | None = None, size: Size | None = None) -> list[Instance]:
        """A thing as annotators drew it; what can't be used of it is counted. Empty where nothing can.

        Args:
            drawn: its place.
            span: what names it.
            size: (height, width) of the image as its record says it; polygons need it.
        """
        box, mask = drawn.box, None
        if drawn.mask:
            try:
                mask = from_coco(json.loads(drawn.mask), size)
            except InputError:
                self.add_absent("mask-malformed")
        if box is None:
            self.add_absent("box-malformed")
            box = box_of(mask) if mask is not None else None
        return [] if box is None else [Instance(box, span, mask)]

    def add_text(self, value: object, where: str, instances: Sequence[Instance] = ()) -> None:
        """Take a text, or note what is wrong with it; `where` says which one it is."""
        fault = text_fault(value, where)
        if fault is not None:
            self._faults.append(fault)
        else:
            self._texts.append(SourceText(str(value), instances=tuple(instances)))

    def add(self, text: SourceText) -> None:
        """Take a text that is known to be good."""
        self._texts.append(text)

    def add_fault(self, reason: str, message: str) -> None:
        """Note something wrong."""
        self._faults.append(source_fault(reason, message))

    def finish(self, missing: str, conversation: Sequence[Turn] = ()) -> Iterator[Found]:
        """The image's sample, then a faulty one for each thing that is wrong beside its good texts.

        Args:
            missing: what to say if there is no text at all.
            conversation: the turns that the texts are from.
        """
        faults, name = self._faults, printable(self._name)
        if isinstance(self._image, Fault):
            yield SourceSample(name, (NO_IMAGE,), (), fault=self._image, record=self._record)
        elif self._texts:
            yield SourceSample(name, (self._image,), tuple(self._texts), tuple(conversation), record=self._record)
            yield from self._absent
        else:
            first, *faults = faults or [source_fault("text-missing", missing)]
            yield SourceSample(name, (self._image,), (), fault=first, record=self._record)
        for number, fault in enumerate(faults):
            part = replace(fault, reason=PART + fault.reason)
            yield SourceSample(f"{name}#fault-{number}", (NO_IMAGE,), (), fault=part, record=self._record)


def json_object(data: str | bytes) -> dict[str, Any] | None:
    """The fields of an object in JSON; None if it is something else."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def as_id(value: Any) -> str | None:
    """A source's own name for something: a text or a whole number, as text; None if it is something else.

    9.0 is 9, as pycocotools and pandas have it.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
