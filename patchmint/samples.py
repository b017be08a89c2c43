"""What goes from a source to the shards: a sample as its source describes it, its place in the plan, and its reject."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from patchmint.types import Instance, Span, Text

WHOLE_FILE = -1

NO_NUMBER = -1
"""Number of an image where there is only one, or none."""


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of an image are; only the source that made it can read it.

    Attributes:
        path: a file, relative to the source's root.
        start: first byte in that file (a tar), or row (a Parquet file); `WHOLE_FILE` where the file is the image.
        length: number of bytes from `start`; `WHOLE_FILE` where there is no range of bytes.
        source: name of that source; empty where there is only one, without a name.
        number: which of several images there: in the list of a row, or among the pages of a file; else `NO_NUMBER`.
    """

    path: str
    start: int = WHOLE_FILE
    length: int = WHOLE_FILE
    source: str = ""
    number: int = NO_NUMBER


@dataclass(frozen=True)
class SourceText:
    """A text, and what its source says about it.

    Attributes:
        content: the text, as it stands in the source.
        phrases: spans that name things, where the source knows them; then these and nothing else are looked for.
        instances: what the source's annotators say that the text is about, in pixels of the image as it is stored,
            before any EXIF orientation. Kept beside the labels, which `labels.boxes` and `labels.masks` may make of
            them. Boxes may be without an area.
    """

    content: str
    phrases: tuple[Span, ...] = ()
    instances: tuple[Instance, ...] = ()

    def to_text(self) -> Text:
        """The text as models take it.

        Raises:
            TextError: it isn't valid Unicode, or a span lies outside it.
        """
        return Text(self.content, self.phrases)


ROLES = ("human", "gpt", "system")
"""Who speaks."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "human", "gpt" or "system", whatever the source calls them.
        content: as in the source, with its "<image>" mark.
    """

    role: str
    content: str


PART = "part-"


@dataclass(frozen=True)
class Fault:
    """Why a sample can't be written.

    Attributes:
        stage: where it came out: source, read, decode, text, annotate, worker.
        reason: a short lower-case code to count by, such as "image-missing"; it begins with `PART` where a text or an
            image is at fault whose sample has others, and is written.
        message: for people: what, why, what to do.
    """

    stage: str
    reason: str
    message: str


def count_parts(rejects: Mapping[str, int]) -> int:
    """How many of some rejects, by reason, are single texts of samples: `limits.max_reject_share` is about samples."""
    return sum(count for reason, count in rejects.items() if reason.startswith(PART))


@dataclass(frozen=True)
class Part:
    """A text of a document, or the place of one of its images.

    Attributes:
        text: as in the source, without marks; "" where it is an image's place.
        image: number of the image; `NO_NUMBER` where it is a text.
        role: "human", "gpt" or "system", who begins to speak with this part; "": it goes on with the turn before, or
            nobody speaks.
    """

    text: str = ""
    image: int = NO_NUMBER
    role: str = ""


@dataclass(frozen=True)
class SourceSample:
    """A picture or a document with its texts, as a source describes it.

    Attributes:
        id: the source's own name for it, any string.
        images: where the bytes of each are, each once, however often a document shows it; a fault in the place of one
            that can't be read. A picture has exactly one.
        texts: at least one, unless there is a fault.
        conversation: its turns, where the source has conversations. Those of a document are in its parts.
        fault: what the source found wrong already (a path that leads outside, say); such a sample is planned and
            becomes a reject.
        key: the key that it must keep; empty = one is made from the id.
        record: the source's own fields of it (columns, JSON), which `where` may ask for. Not part of the plan.
        parts: texts and images of a document in their order; empty = it is a picture.
        image_texts: for each image of a document the numbers of the texts that label it, ascending; empty: all texts
            label the one image.
    """

    id: str
    images: tuple[ImageRef | Fault, ...]
    texts: tuple[SourceText, ...]
    conversation: tuple[Turn, ...] = ()
    fault: Fault | None = None
    key: str = ""
    record: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    parts: tuple[Part, ...] = ()
    image_texts: tuple[tuple[int, ...], ...] = ()

    @property
    def image(self) -> ImageRef:
        """Where the bytes of the first image are; of a picture, its only one."""
        image = self.images[0]
        assert isinstance(image, ImageRef)  # without the bad ones, if it is a document
        return image

    def without(self, bad: Collection[int]) -> SourceSample:
        """The document without some of its images and all their places; the others are numbered anew.

        Its texts stay. A turn that was only such an image stays, too, with an empty text.
        """
        kept = [number for number in range(len(self.images)) if number not in bad]
        parts = []
        for part in self.parts:
            if part.image in bad:
                parts += [Part(role=part.role)] if part.role else []
            else:
                parts.append(part if part.image == NO_NUMBER else replace(part, image=kept.index(part.image)))
        return replace(
            self,
            images=tuple(self.images[number] for number in kept),
            parts=tuple(parts),
            image_texts=tuple(self.image_texts[number] for number in kept),
        )


@dataclass(frozen=True)
class Document:
    """Texts and images in their order, as a record has them: a `SourceSample` in the making.

    Attributes:
        id: the source's own name for it.
        images: each once, however often it is shown; a fault in the place of one that can't be read.
        parts: in order. Of a conversation, the first part has a role.
        flowing: whether its texts stand around its images, so that only those beside an image are about it.
        captioned: whether each image belongs to the text that follows it (MMC4's matched texts).
    """

    id: str
    images: tuple[ImageRef | Fault, ...]
    parts: tuple[Part, ...]
    flowing: bool = False
    captioned: bool = False


@dataclass(frozen=True)
class Absent:
    """Something in a source that is no sample and no fault: it is counted by its reason, not rejected.

    Attributes:
        reason: a short lower-case code to count by, such as "download-failed"; what the settings leave out begins with
            `NOT_CHOSEN`.
    """

    reason: str


NOT_CHOSEN = "not-chosen-"


Found = SourceSample | Absent
"""What a source yields."""


def describe_absent(counts: Mapping[str, int]) -> str:
    """What is no sample, for people: "absent: 12 download-failed; not chosen: 30 where"; empty where there is nothing.

    Args:
        counts: by reason.
    """
    absent = [f"{count} {reason}" for reason, count in counts.items() if not reason.startswith(NOT_CHOSEN)]
    left = [f"{n} {reason.removeprefix(NOT_CHOSEN)}" for reason, n in counts.items() if reason.startswith(NOT_CHOSEN)]
    told = (("absent", absent), ("not chosen", left))
    return "; ".join(f"{what}: {', '.join(counted)}" for what, counted in told if counted)


@dataclass(frozen=True)
class PlannedSample:
    """A sample with its place in the data set.

    Attributes:
        ordinal: position in the source's order, from 0.
        key: unique in the data set, `[a-z0-9_-]+`.
        sample: what the source says.
    """

    ordinal: int
    key: str
    sample: SourceSample = field(repr=False)


@dataclass(frozen=True)
class Reject:
    """A planned sample that wasn't written, or an image of a document that was written without it, and why.

    Attributes:
        ordinal: the sample's.
        key: the sample's.
        id: the sample's.
        fault: what is wrong. Of an image, its reason begins with `PART`.
        image: number of the image among those planned; `NO_NUMBER`: the sample itself wasn't written.
    """

    ordinal: int
    key: str
    id: str
    fault: Fault
    image: int = NO_NUMBER
