"""What other tools give back, and what somebody changed in it: their files become edits.

They are compared with the data set as it is read now; when it was exported isn't known.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
import zlib
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.edits import Addition, Change, Edit, words_in
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import positions_of, rows_at
from patchmint.errors import InputError, ShardError
from patchmint.geometry.rle import (
    MAX_MASK_PIXELS,
    area,
    box_of,
    decode_mask,
    encode_masks,
    from_coco,
)
from patchmint.inspection.export.formats import WRONG, category_of
from patchmint.shards.codec import decode_array
from patchmint.shards.endings import DOCUMENT, INSTANCES
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import FoundDocument, MaskDocument
from patchmint.types import Box, Progress, Rle, Size

SAME_BOX = 0.5
"""Pixels by which all sides of two boxes may differ that count as the same: tools round."""

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file raises that isn't as its tool writes it."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Thing:
    """Something that a tool's file shows in an image.

    Attributes:
        words: its category.
        box: XYXY in pixels.
        mask: of the image's size; None where there is only the box.
        text: the number of the text that it answers to; None where the file doesn't say.
    """

    words: str
    box: Box
    mask: Rle | None = None
    text: int | None = None


@dataclass(frozen=True)
class Returned:
    """What a tool's file says of one image.

    Attributes:
        where: in the file, for errors.
        key: of its sample.
        image: its number in a document.
        things: what it shows; a function of the stored image, since some formats have relative places only.
        wrong: whether its sample is marked; None where the file can't say.
        by, at: who changed it last, and when, as far as the file says.
        texts: contents of the texts that the file tells of; None: all.
        size: (height, width) of the image; None where the file doesn't say.
    """

    where: str
    key: str
    image: int
    things: Callable[[StoredImage], Iterable[Thing]]
    wrong: bool | None = None
    by: str = ""
    at: datetime | None = None
    texts: tuple[str, ...] | None = None
    size: Size | None = None


def edit_of(returned: Returned, image: StoredImage, *, wrong: bool = False) -> Edit | None:
    """What somebody changed in an image, if anything.

    Where a thing has a mask, only that counts, not its box. A thing that is at another place, or has another category,
    than all that was stored changes the stored instance that it overlaps most, if there is one. A new one answers to
    each text that has its words, unless the file says to which.

    Args:
        returned: what the tool's file says of it.
        image: as stored, with instances.
        wrong: whether its sample is marked now.

    Raises:
        InputError: the file shows what can't be in this image.
    """
    texts, found = image.key_json.texts, image.instances or ()
    size = image.info.height, image.info.width
    if returned.size not in (None, size):
        raise InputError(f"it is of an image of {returned.size} pixels (height, width), the data set's has {size}")
    own = [number for number in image.texts if returned.texts is None or texts[number] in returned.texts]
    try:
        things = list(returned.things(image))
        left = {
            number: _Shown(category_of(texts[each.text_index][each.start : each.end]), each, each.mask.rle)
            for number, each in enumerate(found)
            if each.text_index in own
        }
        known = list(left.values())
        changed = [thing for thing in things if not any(each.is_same(thing) for each in known)]
        left = {n: each for n, each in left.items() if not any(each.is_same(thing) for thing in things)}
        pairs = _pairs(changed, left)
        changes, added = list[Change](), [thing for at, thing in enumerate(changed) if at not in pairs]
        for at, numbers in pairs.items():
            thing, was = changed[at], left[numbers[0]]
            if len(numbers) > 1 and category_of(thing.words) != was.words:  # other texts may have the new words
                added.append(replace(thing, mask=was.mask) if thing.mask is None and was.is_at(thing) else thing)
            else:
                changes += [left[number].change_to(thing, number) for number in numbers]
        additions = tuple(addition for thing in added for addition in _additions(thing, own, texts))
    except (ShardError, *_MALFORMED) as error:
        raise InputError(f"it isn't as the tool writes it: {error!r:.200}") from error
    gone = left.keys() - {change.instance for change in changes}
    marked = returned.wrong if returned.wrong is not None and returned.wrong != wrong else None
    if not gone and not changes and not additions and marked is None:
        return None
    return Edit(
        key=image.key,
        image=image.number,
        by=returned.by,
        at=returned.at,
        delete=tuple(sorted(gone)),
        change=tuple(changes),
        add=additions,
        wrong=marked,
    )


@dataclass(frozen=True)
class _Shown:
    """A stored instance, as tools were shown it."""

    words: str
    found: FoundDocument
    mask: Rle

    def is_same(self, thing: Thing) -> bool:
        return (
            thing.text in (None, self.found.text_index) and category_of(thing.words) == self.words and self.is_at(thing)
        )

    def is_at(self, thing: Thing) -> bool:
        """Whether it has the thing's mask or, where that has none, its box."""
        if thing.mask is None:
            return bool(np.abs(np.subtract(thing.box, self.found.box)).max() <= SAME_BOX)
        if thing.mask["counts"] == self.mask["counts"]:
            return True
        return area(thing.mask) == area(self.mask) and np.array_equal(decode_mask(thing.mask), decode_mask(self.mask))

    def change_to(self, thing: Thing, number: int) -> Change:
        there = self.is_at(thing)
        return Change(
            instance=number,
            phrase=thing.words if category_of(thing.words) != self.words else None,
            mask=None if there or thing.mask is None else MaskDocument.of(thing.mask),
            box=None if there or thing.mask is not None else thing.box,
        )


def _pairs(things: Sequence[Thing], left: Mapping[int, _Shown]) -> dict[int, list[int]]:
    """To each thing the numbers of the instances that it was: several texts may have led to the same one.

    Those at the same place go together first, then those of the same category, those that overlap most before others.
    """
    near = []
    for at, thing in enumerate(things):
        for number, shown in left.items():
            box = shown.found.box if thing.mask is None else box_of(shown.mask)
            overlap = _overlap(thing.box, box)
            if overlap > 0 and thing.text in (None, shown.found.text_index):
                other = category_of(thing.words) != shown.words
                near.append((not shown.is_at(thing), other, -overlap, at, number))
    pairs: dict[int, list[int]] = {}
    taken: set[int] = set()
    for *_, at, number in sorted(near):
        if at in pairs or number in taken:
            continue
        shown, alone = left[number], things[at].text is not None
        same = (n for n, other in left.items() if (other.words, other.mask) == (shown.words, shown.mask))
        pairs[at] = [number] if alone else [n for n in same if n not in taken]
        taken.update(pairs[at])
    return pairs


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (sum(areas) - width * height)


def _additions(thing: Thing, own: Sequence[int], texts: Sequence[str]) -> Iterator[Addition]:
    drawn: dict[str, Any] = {"mask": MaskDocument.of(thing.mask)} if thing.mask is not None else {"box": thing.box}
    if thing.text is None:
        # where no text has the words, the edit without a number is refused, and that says so
        numbers: Sequence[int | None] = [n for n in own if words_in(thing.words, texts[n]) is not None] or [None]
    else:
        numbers = [thing.text]
    for number in numbers:
        yield Addition(**drawn, text=number, phrase=thing.words)


def _each(
    convert: Callable[[_Item, StoredImage], Thing], items: Iterable[_Item]
) -> Callable[[StoredImage], Iterator[Thing]]:
    """The things that some items of a file are, once the image is known."""
    return lambda image: (convert(item, image) for item in items)


def read_coco(path: Path) -> Iterator[Returned]:
    """COCO's instances: `annotations.json`, or that folder."""
    document = _json(path := _file(path, "annotations.json"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    of_image = defaultdict(list)
    for annotation in document["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    for entry in document["images"]:
        key, number = _of_file(entry["file_name"])
        yield Returned(
            f"{path.name}, image {entry['file_name']}",
            str(entry.get("key", key)),
            number,
            _each(partial(_of_annotation, names), of_image[entry["id"]]),
            entry.get(WRONG),
            size=(entry["height"], entry["width"]),
        )


def _of_annotation(names: Mapping[int, str], annotation: Mapping[str, Any], image: StoredImage) -> Thing:
    words, text = names[annotation["category_id"]], annotation.get("text_index")
    if annotation.get("segmentation"):
        mask = from_coco(annotation["segmentation"], (image.info.height, image.info.width))
        return Thing(words, box_of(mask), mask, text)
    left, top, width, height = map(float, annotation["bbox"])
    return Thing(words, (left, top, left + width, top + height), None, text)


def read_label_studio(path: Path) -> Iterator[Returned]:
    """Label Studio's JSON: of each task the annotation that was changed last; a task without one wasn't looked at."""
    for task in _json(path := _file(path, "tasks.json")):
        submitted = [each for each in task.get("annotations", ()) if not each.get("was_cancelled")]
        if not submitted:
            continue
        last = max(submitted, key=lambda each: _time(each.get("updated_at")) or datetime.min.replace(tzinfo=UTC))
        person, name = last.get("completed_by", "unknown"), last.get("created_username", "")
        results = last["result"]
        marks = [choice for each in results if each["type"] == "choices" for choice in each["value"]["choices"]]
        yield Returned(
            f"{path.name}, task {task.get('id')}",
            task["data"]["key"],
            _of_file(task["data"]["image"])[1],
            _each(_of_result, [each for each in results if each["type"] != "choices"]),
            WRONG in marks,
            person.get("email", "") if isinstance(person, dict) else name.partition(",")[0].strip() or f"user {person}",
            _time(last.get("updated_at")),
        )


def _of_result(result: Mapping[str, Any], image: StoredImage) -> Thing:
    kind, value = result["type"], result["value"]
    height, width = image.info.height, image.info.width
    if (result["original_height"], result["original_width"]) != (height, width):
        raise InputError(f"a region is of an image of another size than {width} x {height} pixels")
    if kind not in ("brushlabels", "rectanglelabels", "polygonlabels") or value.get("rotation"):
        raise InputError(f"a region of type {kind} can't be read; use brushes, polygons and upright rectangles")
    (words,) = value[kind]
    if kind == "rectanglelabels":
        left, top = value["x"] * width / 100, value["y"] * height / 100
        return Thing(words, (left, top, left + value["width"] * width / 100, top + value["height"] * height / 100))
    if kind == "brushlabels":
        mask = encode_masks(read_brush_rle(value["rle"], (height, width))[None])[0]
    else:
        corners = np.array(value["points"], np.float64) * (width / 100, height / 100)
        mask = from_coco([corners.reshape(-1).tolist()], (height, width))
    return Thing(words, box_of(mask), mask)


def read_brush_rle(rle: Sequence[int], size: Size) -> npt.NDArray[np.uint8]:
    """A mask of Label Studio's brush, as `formats.brush_rle` writes it: (H, W), 1 where it is more than half opaque.

    Raises:
        InputError: it is of another size, or damaged.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, width = take(32), take(5) + 1
    if number != 4 * size[0] * size[1] or number > 4 * MAX_MASK_PIXELS or width != 8:
        raise InputError(f"a brush mask isn't of the image's {size[1]} x {size[0]} pixels")
    lengths = [take(4) + 1 for _ in range(4)]
    values, runs, total = list[int](), list[int](), 0
    while total < number and place < len(bits):
        is_run = take(1)
        length = take(lengths[take(2)]) + 1
        for _ in range(1 if is_run else length):
            values.append(take(width))
            runs.append(length if is_run else 1)
        total += length
    if total != number:
        raise InputError("a brush mask is cut off")
    return (np.repeat(values, runs).reshape(*size, 4)[..., 3] > 127).astype(np.uint8)


def read_cvat(path: Path) -> Iterator[Returned]:
    """CVAT for images 1.1: `annotations.xml`, or that folder."""
    path = _file(path, "annotations.xml")
    by, at = "", None
    # Nothing external is loaded, and expat (2.4.1 and later) bounds what entities may grow to.
    for _, element in ET.iterparse(path, ["end"]):  # noqa: S314
        if element.tag == "meta":
            names = (element.findtext(f".//{role}/username") for role in ("assignee", "owner"))
            by = next((name for name in names if name), "")
            at = _time(element.findtext(".//updated"))
        elif element.tag == "image":
            key, number = _of_file(name := element.attrib["name"])
            size = int(element.attrib["height"]), int(element.attrib["width"])
            shapes = [shape for shape in element if shape.tag != "tag"]
            wrong = any(tag.get("label") == WRONG for tag in element.iter("tag"))
            things = _each(partial(_of_shape, size), shapes)
            yield Returned(f"{path.name}, image {name}", key, number, things, wrong, by, at, size=size)


def _of_shape(size: Size, shape: ET.Element, _: StoredImage) -> Thing:
    told = shape.attrib
    text = next((each.text for each in shape.iter("attribute") if each.get("name") == "text"), None) or ""
    number = int(text) if text.isdecimal() else None
    if shape.tag == "box":
        if float(told.get("rotation", 0)):
            raise InputError("a box is turned; only upright ones can be read")
        left, top, right, bottom = (float(told[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Thing(told["label"], (left, top, right, bottom), None, number)
    if shape.tag == "polygon":
        corners = [float(part) for point in told["points"].split(";") for part in point.split(",")]
        mask = from_coco([corners], size)
    elif shape.tag == "mask":
        left, top, width, height = (int(told[name]) for name in ("left", "top", "width", "height"))
        runs = np.array([int(run) for run in told["rle"].split(",")], np.int64)
        if runs.min() < 0 or runs.sum() != width * height or width * height > size[0] * size[1]:
            raise InputError(
                f"a mask's runs don't add up to its {width} x {height} pixels, or it is larger than the image"
            )
        flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
        mask = _pasted(flat.reshape(height, width), (left, top), size)
    else:
        raise InputError(f"a shape {shape.tag!r} can't be read; use masks, polygons and boxes")
    return Thing(told["label"], box_of(mask), mask, number)


def read_fiftyone(path: Path) -> Iterator[Returned]:
    """A FiftyOneDataset: `samples.json`, or that folder; detections in the field `instances`."""
    for sample in _json(path := _file(path, "samples.json"))["samples"]:
        key, number = _of_file(sample["filepath"])
        detections = (sample.get("instances") or {}).get("detections", ())
        yield Returned(
            f"{path.name}, sample {sample['filepath']}",
            str(sample.get("key", key)),
            int(sample.get("image", number)),
            _each(_of_detection, detections),
            WRONG in sample.get("tags", ()),
        )


def _of_detection(detection: Mapping[str, Any], image: StoredImage) -> Thing:
    height, width = image.info.height, image.info.width
    left, top, across, down = detection["bounding_box"]
    box = (left * width, top * height, (left + across) * width, (top + down) * height)
    words, text = detection["label"], detection.get("text")
    if detection.get("mask_path"):
        raise InputError("a mask lies in a file of its own; call `import_mask(update=True)` before exporting")
    packed = detection.get("mask")
    if packed is None:
        return Thing(words, box, None, text)
    data = packed["$binary"]["base64"] if isinstance(packed, dict) else packed
    unpacker = zlib.decompressobj()
    try:
        file = unpacker.decompress(b64decode(data), MAX_MASK_PIXELS)
    except zlib.error as error:
        raise InputError(f"a mask can't be unpacked: {error}") from error
    drawn = (decode_array(file, "a mask") > 0).astype(np.uint8)
    x, y, right, bottom = (round(edge) for edge in box)
    rows, cols = bottom - y, right - x
    if drawn.shape != (rows, cols) and drawn.size:  # FiftyOne stretches a mask to its box
        picked = [np.arange(n) * side // n for n, side in zip((rows, cols), drawn.shape, strict=True)]
        drawn = drawn[np.ix_(*picked)]
    mask = _pasted(drawn, (x, y), (height, width))
    return Thing(words, box_of(mask), mask, text)


def read_yolo(path: Path) -> Iterator[Returned]:
    """Ultralytics' folder: `data.yaml` and `labels/NAME.txt`; an image without such a file isn't touched."""
    told = yaml.safe_load(_file(path, "data.yaml").read_text(encoding="utf-8"))["names"]
    names = dict(enumerate(told)) if isinstance(told, list) else told
    for file in sorted((path / "labels").rglob("*.txt")):
        key, number = _of_file(file.name)
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        yield Returned(f"labels/{file.name}", key, number, _each(partial(_of_line, names), lines))


def _of_line(names: Mapping[int, str], line: Sequence[str], image: StoredImage) -> Thing:
    height, width = image.info.height, image.info.width
    words, places = names[int(line[0])], np.array(line[1:], np.float64).reshape(-1, 2) * (width, height)
    if len(places) > 2:  # a polygon
        mask = from_coco([places.reshape(-1).tolist()], (height, width))
        return Thing(words, box_of(mask), mask)
    (x, y), (across, down) = places.tolist()
    return Thing(words, (x - across / 2, y - down / 2, x + across / 2, y + down / 2))


def read_odvg(path: Path) -> Iterator[Returned]:
    """ODVG: `annotations.jsonl`; lines of one image are those of its texts."""
    path = _file(path, "annotations.jsonl")
    of_image: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            told = json.loads(line)
            of_image[told["filename"]].append(told["grounding"])
    for name, lines in of_image.items():
        key, number = _of_file(name)
        captions = [line["caption"] for line in lines]
        regions = [
            (line["caption"], captions[:at].count(line["caption"]), region)
            for at, line in enumerate(lines)
            for region in line["regions"]
        ]
        yield Returned(f"{path.name}, {name}", key, number, _each(_of_region, regions), texts=tuple(captions))


def _of_region(told: tuple[str, int, Mapping[str, Any]], image: StoredImage) -> Thing:
    caption, place, region = told  # of several texts that are the same, the one at this place
    numbers = [number for number in image.texts if image.key_json.texts[number] == caption]
    if place >= len(numbers):
        raise InputError(f"{caption[:80]!r} isn't a text of this image; captions can't be changed")
    left, top, right, bottom = map(float, region["bbox"])
    return Thing(region["phrase"], (left, top, right, bottom), None, numbers[place])


READERS: Mapping[str, Callable[[Path], Iterator[Returned]]] = MappingProxyType(
    {
        "coco": read_coco,
        "label-studio": read_label_studio,
        "cvat": read_cvat,
        "fiftyone": read_fiftyone,
        "yolo": read_yolo,
        "odvg": read_odvg,
    }
)
"""By the name that `patchmint correct --from` knows."""


def read_back(path: Path, kind: str) -> Iterator[Returned]:
    """Read a tool's files.

    Args:
        path: the file, or its folder as it was exported.
        kind: a name of `READERS`.

    Raises:
        InputError: they can't be read, or aren't of that kind.
    """
    try:
        yield from READERS[kind](path)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    except (*_MALFORMED, ET.ParseError, yaml.YAMLError) as error:
        raise InputError(f"{path} isn't as {kind} writes it: {error!r:.200}") from error


def edits_of(
    dataset: Dataset, returned: Iterable[Returned], progress: Progress | None = None
) -> Iterator[tuple[str, Edit]]:
    """What somebody changed in images, each edit with its place in the tool's file.

    Args:
        dataset: with its corrections so far.
        returned: what the tool's file says.
        progress: told after each sample.

    Raises:
        InputError: the data set hasn't the samples, has no instances, or the file shows what can't be in them.
        ShardError, StorageError: a sample is damaged, or can't be read.
    """
    if dataset.manifest is None or not dataset.manifest.layout.instances:
        raise InputError(f"{dataset.uri} stores no instances that could be corrected (labels.instances)")
    of_key: dict[str, list[Returned]] = defaultdict(list)
    for each in returned:
        of_key[each.key].append(each)
    positions = positions_of(dataset, of_key)
    if unknown := [each.where for key, own in of_key.items() if key not in positions for each in own]:
        raise InputError(
            f"{unknown[0]}: {dataset.uri} has no such sample ({len(unknown)} of {len(of_key)} are unknown)"
        )
    order = np.array(sorted(positions.values()), np.int64)
    rows = rows_at(dataset, order, ["key", *(["wrong"] if dataset.has_edits else [])])
    samples = iter_stored(dataset, order, (DOCUMENT, INSTANCES), progress)
    for (_, sample), (_, row) in zip(samples, rows, strict=True):
        for each in of_key[sample.key]:
            try:
                if each.image >= len(sample.images):
                    raise InputError(f"the sample has no image {each.image}")
                edit = edit_of(each, sample.images[each.image], wrong=row.get("wrong", False))
            except InputError as error:
                raise InputError(f"{each.where}: {error}") from error
            if edit is not None:
                yield each.where, edit


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _of_file(name: str) -> tuple[str, int]:
    """Key and number of an image, by the name that it was exported with: KEY.ENDING or KEY.N.ENDING."""
    key, *rest = PurePosixPath(name.replace("\\", "/")).name.split(".")
    return key, int(rest[0]) if len(rest) > 1 and rest[0].isdecimal() else 0


def _pasted(part: npt.NDArray[np.uint8], corner: tuple[int, int], size: Size) -> Rle:
    (left, top), (rows, cols) = corner, part.shape
    if min(left, top) < 0 or top + rows > size[0] or left + cols > size[1]:
        raise InputError("a mask reaches out of the image")
    whole = np.zeros(size, np.uint8)
    whole[top : top + rows, left : left + cols] = part
    return encode_masks(whole[None])[0]


def _time(told: str | None) -> datetime | None:
    """A time with its zone, UTC where none is given; None where it is no time."""
    try:
        time = datetime.fromisoformat(told or "")
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
