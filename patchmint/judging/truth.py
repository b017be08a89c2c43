"""What is truly in images: truth.json, annotators' own marks, another data set; and which image it is the truth of.

```
{"images": [
  {"image_id": 17, "key": "000017", "file_name": "train/17.jpg",       one of them; the id is the source's name for it
   "image": 0, "width": 640, "height": 480,                            number in a document; sizes are checked if given
   "objects": [{"id": 3, "bbox": [x, y, width, height], "segmentation": COCO's, "iscrowd": 0}],
   "texts": [{"content": "a cat", "phrases": [{"span": [2, 5], "objects": [3]}], "whole": true}]}]}
```

A phrase without objects names something absent. `whole` says that a text names nothing else: then its patches are
judged, too. What else stands there is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.reader import SampleReader
from patchmint.datasets.rows import iter_tables, read_table, size_columns
from patchmint.errors import InputError
from patchmint.geometry.rle import box_of, from_coco, union
from patchmint.images.reading import upright_instance
from patchmint.samples import Absent, Found
from patchmint.shards.codec import Array
from patchmint.shards.endings import DOCUMENT, INSTANCES, SELECTOR
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import GridDocument
from patchmint.shards.verify_tar import key_hash
from patchmint.types import Box, Instance, Rle, Size, Span

TRUTH_FILE = "truth.json"

_TABLES = 4


@dataclass(frozen=True)
class TrueThing:
    """A thing in an image.

    Attributes:
        box: XYXY in pixels of the upright image.
        mask: what is seen of it; None where that isn't known.
        crowd: whether it stands for any number of such things.
    """

    box: Box
    mask: Rle | None = None
    crowd: bool = False


@dataclass(frozen=True)
class TruePhrase:
    """A phrase of a text.

    Attributes:
        span: its characters.
        things: what it names; none where that is absent.
    """

    span: Span
    things: tuple[TrueThing, ...]

    @property
    def mask(self) -> Rle | None:
        """What is seen of all that it names; None where that is absent, or not all masks are known."""
        return joined(self.things)


@dataclass(frozen=True)
class TrueText:
    """A text.

    Attributes:
        content: its words.
        phrases: those that it is known of what they name, in order.
        whole: whether the text names nothing else.
        selector: patch labels (rows, cols) that are the truth, with the grid that they lie on; None: masks are.
    """

    content: str
    phrases: tuple[TruePhrase, ...]
    whole: bool = True
    selector: tuple[Array, GridDocument] | None = field(default=None, compare=False, repr=False)

    @property
    def things(self) -> tuple[TrueThing, ...]:
        """All that it names, each once."""
        return tuple({id(thing): thing for phrase in self.phrases for thing in phrase.things}.values())

    @cached_property
    def mask(self) -> Rle | None:
        """What is seen of all that it names; None where nothing of that is there, or not all masks are known."""
        return joined(self.things)


def joined(things: Sequence[TrueThing]) -> Rle | None:
    """The union of all masks; None where there is none, or one isn't known."""
    masks = [thing.mask for thing in things if thing.mask is not None]
    return union(masks) if masks and len(masks) == len(things) else None


@dataclass(frozen=True)
class TrueImage:
    """An image.

    Attributes:
        texts: those about which something is known.
        things: what is seen of everything known to be there.
        categories: what things are called, with all that go by that name: for texts that aren't in `texts`, which are
            searched for these names. Such with none are known to be absent.
        size: (height, width), if known.
    """

    texts: tuple[TrueText, ...] = ()
    things: tuple[TrueThing, ...] = ()
    categories: Mapping[str, tuple[TrueThing, ...]] = field(default_factory=dict)
    size: Size | None = None

    @property
    def objects(self) -> tuple[Rle, ...]:
        """What is seen of each thing whose mask is known."""
        return tuple(thing.mask for thing in self.things if thing.mask is not None)

    def text(self, number: int, content: str) -> TrueText | None:
        """The truth of a text: the one at its place, if its words are the same, else the first of the same words."""
        at_place = self.texts[number : number + 1]
        for text in (*at_place, *self.texts):
            if text.content == content:
                return text
        return _named(content, self.categories) if self.categories else None


def _named(content: str, categories: Mapping[str, tuple[TrueThing, ...]]) -> TrueText | None:
    """The categories that a text names, in singular or with -s or -es; "hot dog" isn't a dog."""
    pattern = re.compile(
        rf"\b(?:{'|'.join(re.escape(name) for name in sorted(categories, key=len, reverse=True))})(?=(?:e?s)?\b)",
        re.IGNORECASE,
    )
    found = list(pattern.finditer(content))
    phrases = tuple(TruePhrase(match.span(), categories[match.group().lower()]) for match in found)
    rest = pattern.sub("", content)
    return TrueText(content, phrases, whole=not re.search(r"\w", rest)) if phrases else None


@dataclass(frozen=True, slots=True)
class ImageName:
    """What tells an image from others.

    Attributes:
        key: its sample's.
        id: the source's name for the sample.
        path: of the image's file in the source.
        number: among the sample's images.
        size: (height, width), upright.
        stored: the image itself, with KEY.json; None where only the sidecar was read.
    """

    key: str
    id: str
    path: str
    number: int
    size: Size
    stored: StoredImage | None = field(default=None, repr=False)

    @classmethod
    def of(cls, image: StoredImage) -> ImageName:
        """That of a stored image."""
        size = (image.info.height, image.info.width)
        return cls(image.key, image.key_json.id, image.source.path, image.number, size, image)


class Truth(Protocol):
    """The truth of a data set's images."""

    @property
    def says(self) -> str:
        """What it is, for people."""
        ...

    def of(self, image: ImageName) -> TrueImage | None:
        """That of an image; None where nothing is known."""
        ...

    def unused(self) -> int:
        """How many images it has that weren't asked for."""
        ...


@dataclass(frozen=True)
class TruthEntry:
    """The truth of an image, and what it goes by; what is empty isn't looked at.

    Attributes:
        image: the truth.
        key: the sample's key.
        id: the source's name for it.
        path: of the image's file; the data set's may have further folders in front.
        number: of the image, in a document.
    """

    image: TrueImage
    key: str = ""
    id: str = ""
    path: str = ""
    number: int = 0


class ListedTruth:
    """The truth of listed images, in memory. It goes by key, else by the source's id, else by the file's path.

    Raises:
        InputError: two entries go by the same name.
    """

    def __init__(self, says: str, entries: Iterable[TruthEntry]) -> None:
        self.says = says
        self.entries = tuple(entries)
        self._numbers: dict[tuple[str, str, int], int] = {}
        for number, entry in enumerate(self.entries):
            names = {"key": entry.key, "id": entry.id, "path": entry.path}
            for kind, name in names.items():
                if name and self._numbers.setdefault((kind, name, entry.number), number) != number:
                    raise InputError(f"{says} has two images of the {kind} {name!r}; leave one of them out")
        self._used: set[int] = set()

    def of(self, image: ImageName) -> TrueImage | None:
        """As `Truth.of`; also None where sizes differ, so it must be another image."""
        names = [("key", image.key), ("id", image.id)]
        starts = (0, *(match.end() for match in re.finditer("/", image.path)))
        names += [("path", image.path[start:]) for start in starts]
        for kind, name in names:
            number = self._numbers.get((kind, name, image.number))
            if number is None:
                continue
            true = self.entries[number].image
            if true.size in (None, image.size):
                self._used.add(number)
                return true
        return None

    def unused(self) -> int:
        """As `Truth.unused`."""
        return len(self.entries) - len(self._used)


class AnnotatedTruth:
    """What the source's annotators drew, as it is stored in the samples themselves. What they didn't isn't known."""

    says = "the annotators' marks in the data set"

    def of(self, image: ImageName) -> TrueImage | None:
        """As `Truth.of`; annotators of documents don't say which image they mean.

        Raises:
            InputError: only the sidecar was read, or a mask is of another image.
        """
        if image.stored is None:
            raise InputError(
                "annotators' marks aren't in the sidecars; name the truth with --against, or leave --quick out"
            )
        told, orientation = image.stored.key_json, image.stored.info.orientation
        if told.parts:
            return None
        texts = []
        for content, said in zip(told.texts, told.annotators, strict=False):
            drawn = [upright_instance(each, orientation, image.size) for each in said.drawn]
            if drawn:
                texts.append(true_text(content, said.spans, drawn))
        return TrueImage(tuple(texts), tuple(thing for text in texts for thing in text.things)) if texts else None

    def unused(self) -> int:
        """None: it is the data set's own."""
        return 0


def true_text(content: str, spans: Sequence[Span], drawn: Sequence[Instance]) -> TrueText:
    """A text as annotators marked it: a thing whose words they don't name belongs to the only phrase, or to all.

    Phrases for which they drew nothing may be there all the same, so nothing is said of them.
    """
    default = spans[0] if len(spans) == 1 else (0, len(content))
    things: dict[Span, tuple[TrueThing, ...]] = {}
    for each in drawn:
        span = each.span or default
        box = box_of(each.mask) if each.mask else each.box
        things[span] = (*things.get(span, ()), TrueThing(box, each.mask))
    phrases = tuple(TruePhrase(span, of) for span, of in sorted(things.items()))
    return TrueText(content, phrases, whole=set(spans) <= set(things))


def sample_entries(samples: Iterable[Found]) -> Iterator[TruthEntry]:
    """The truth of a source's pictures, as its annotators drew it; upright images are taken for granted."""
    for sample in samples:
        if isinstance(sample, Absent) or sample.fault or sample.parts:
            continue
        texts = tuple(true_text(text.content, text.phrases, text.instances) for text in sample.texts if text.instances)
        if texts:
            yield TruthEntry(TrueImage(texts), id=sample.id, path=sample.image.path)


class DatasetTruth:
    """Another data set's labels taken for the truth; samples go by their keys. What only one has found is wrong.

    It holds 16 bytes a sample.

    Raises:
        ShardError, StorageError: a sidecar can't be read.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.says = f"the labels of {dataset.uri}"
        self._dataset, self._reader = dataset, SampleReader([dataset], (DOCUMENT, INSTANCES, SELECTOR))
        hashes = np.empty(dataset.samples, np.uint64)
        place = 0
        for _, table in iter_tables(dataset, ["key"]):
            hashes[place : place + table.num_rows] = [key_hash(key) for key in table["key"].to_pylist()]
            place += table.num_rows
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        self._shown: tuple[str, tuple[TrueImage, ...]] = ("", ())
        self._used = 0

    def of(self, image: ImageName) -> TrueImage | None:
        """As `Truth.of`; also None where sizes differ. Raises ShardError and StorageError as a sample does."""
        if self._shown[0] != image.key:
            self._shown = (image.key, self._read(image.key, quick=image.stored is None))
            self._used += bool(self._shown[1])
        true = self._shown[1][image.number] if image.number < len(self._shown[1]) else None
        return true if true is not None and true.size == image.size else None

    def unused(self) -> int:
        """As `Truth.unused`, in samples."""
        return len(self._order) - self._used

    def _read(self, key: str, *, quick: bool) -> tuple[TrueImage, ...]:
        place = int(np.searchsorted(self._hashes, np.uint64(key_hash(key))))
        if place == len(self._hashes) or self._hashes[place] != key_hash(key):
            return ()
        position = int(self._order[place])
        if quick:
            return _of_row(self._row(position))
        return tuple(
            TrueImage(
                tuple(_labelled(image, row, text) for row, text in enumerate(image.texts)),
                size=(image.info.height, image.info.width),
            )
            for image in self._reader.sample(position).images
        )

    def _row(self, position: int) -> Mapping[str, Any]:
        shard, row = self._dataset.place(position)
        return {name: values[row] for name, values in self._table(shard).items()}

    @cached_property
    def _table(self) -> Callable[[Shard], dict[str, list[Any]]]:
        columns = row_columns(self._dataset)
        return lru_cache(_TABLES)(lambda shard: read_table(self._dataset, shard, columns).to_pydict())


def row_columns(dataset: Dataset) -> list[str]:
    """Columns of the sidecar that say what was found, and in which image."""
    of_images = ("source_paths", "phrase_images", "share_images", "share_texts")
    names = ("key", "id", "texts", "phrases", "phrase_texts", "scores")
    return [*names, *size_columns(dataset), *(of_images if dataset.has_documents else ("source_path",))]


@dataclass(frozen=True, slots=True)
class RowImage:
    """An image as a sidecar's row tells of it.

    Attributes:
        name: which it is.
        texts: those that label it, by their numbers.
        found: number of the text, words and score of what was found.
    """

    name: ImageName
    texts: Mapping[int, str]
    found: tuple[tuple[int, str, float], ...]


def row_images(row: Mapping[str, Any]) -> list[RowImage]:
    """The images of a sample, from a row with `row_columns`."""
    texts, found = (
        dict(enumerate(row["texts"])),
        list(zip(row["phrase_texts"], row["phrases"], row["scores"], strict=True)),
    )
    key, source = row["key"], row["id"]
    if "width" in row:
        name = ImageName(key, source, row["source_path"], 0, (row["height"], row["width"]))
        return [RowImage(name, texts, tuple(found))]
    labelled: list[dict[int, str]] = [{} for _ in row["widths"]]
    for image, text in zip(row["share_images"], row["share_texts"], strict=True):
        labelled[image][text] = texts[text]
    sizes = zip(row["source_paths"], row["heights"], row["widths"], strict=True)
    return [
        RowImage(
            ImageName(key, source, path, number, (height, width)),
            labelled[number],
            tuple(each for each, image in zip(found, row["phrase_images"], strict=True) if image == number),
        )
        for number, (path, height, width) in enumerate(sizes)
    ]


def _of_row(row: Mapping[str, Any]) -> tuple[TrueImage, ...]:
    """What a sidecar's row says was found; where, it doesn't say."""
    images = []
    for image in row_images(row):
        texts = []
        for number, content in image.texts.items():
            spans: dict[Span, list[TrueThing]] = {}
            for text, words, _ in image.found:
                if text == number and (start := content.find(words)) >= 0:
                    spans.setdefault((start, start + len(words)), []).append(TrueThing((0, 0, 0, 0)))
            texts.append(TrueText(content, tuple(TruePhrase(span, tuple(of)) for span, of in sorted(spans.items()))))
        images.append(TrueImage(tuple(texts), size=image.name.size))
    return tuple(images)


def _labelled(image: StoredImage, row: int, text: int) -> TrueText:
    """What was found for a text, and what was looked for in vain, where the data set says what was."""
    told, masks = image.key_json, image.instances
    spans = told.annotators[text].spans if text < len(told.annotators) else ()
    things: dict[Span, list[TrueThing]] = {span: [] for span in spans}
    for number, phrase in enumerate(image.phrases):
        if phrase.text_index == text:
            mask = masks[number].mask.rle if masks is not None else None
            things.setdefault((phrase.start, phrase.end), []).append(TrueThing(phrase.box, mask))
    selector = None if image.selector is None else (image.selector[row], image.grid)
    phrases = tuple(TruePhrase(span, tuple(of)) for span, of in sorted(things.items()))
    return TrueText(told.texts[text], phrases, selector=selector)


class _Object(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    id: int
    bbox: tuple[float, float, float, float] | None = None
    segmentation: Any = None
    iscrowd: bool = False


class _Phrase(BaseModel):
    span: Span
    objects: list[int]


class _Text(BaseModel):
    content: str
    phrases: list[_Phrase]
    whole: bool = True


class _Image(BaseModel):
    image_id: int | str = ""
    key: str = ""
    file_name: str = ""
    image: int = 0
    width: int = 0
    height: int = 0
    objects: list[_Object]
    texts: list[_Text]


class TruthDocument(BaseModel):
    """truth.json; the demo's says of which seed its scenes are."""

    seed: int = 0
    images: list[_Image]

    def entries(self) -> Iterator[TruthEntry]:
        """What it says, in order.

        Raises:
            InputError: a mask is damaged, or a phrase names an object that the image hasn't.
        """
        return map(_entry, self.images)


def read_truth(path: Path) -> TruthDocument:
    """Read truth.json.

    Raises:
        InputError: it can't be read, or isn't of that form.
    """
    try:
        return TruthDocument.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} things in it are wrong"
        raise InputError(f"{path} can't be read as truth: {why}; docs/judge.md says what it looks like") from error


def _entry(told: _Image) -> TruthEntry:
    name = told.key or str(told.image_id) or told.file_name
    size = (told.height, told.width) if told.height and told.width else None
    things = {
        each.id: true_thing(each.model_dump(), size, f"object {each.id} of image {name}") for each in told.objects
    }
    try:
        texts = tuple(
            TrueText(
                text.content,
                tuple(TruePhrase(each.span, tuple(things[number] for number in each.objects)) for each in text.phrases),
                text.whole,
            )
            for text in told.texts
        )
    except KeyError as error:
        raise InputError(f"a phrase of image {name} names object {error}, which isn't among its objects") from error
    image = TrueImage(texts, tuple(things.values()), size=size)
    return TruthEntry(image, told.key, str(told.image_id), told.file_name, told.image)


def true_thing(record: Mapping[str, Any], size: Size | None, where: str) -> TrueThing:
    """The thing of a COCO annotation; its box is that of its mask if it has none of its own.

    Args:
        record: with `bbox`, `segmentation` or both, and `iscrowd`.
        size: (height, width) of the image, which polygons need.
        where: what errors call it.

    Raises:
        InputError: it has neither, or they are damaged.
    """
    segmentation, bbox = record.get("segmentation"), record.get("bbox")
    try:
        mask = from_coco(segmentation, size) if segmentation else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if bbox is None and mask is None:
        raise InputError(f"{where} has neither a bbox nor a segmentation")
    x, y, width, height = bbox if bbox is not None else (0, 0, 0, 0)
    box = box_of(mask) if bbox is None and mask is not None else (x, y, x + width, y + height)
    return TrueThing(box, mask, bool(record.get("iscrowd")))
