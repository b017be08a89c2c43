"""COCO captions, and COCO instances as lists of what is in the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchmint.config.sources import CocoSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import StoredImages, inner_setting, require, require_images
from patchmint.pipeline.sources.json_stream import stream_members
from patchmint.pipeline.sources.records import (
    Sample,
    as_id,
    faulty,
    image_at,
    is_unicode,
    listing,
    quoted,
    xywh_box,
)
from patchmint.samples import Box, Found, SourceSample
from patchmint.storage import Storage

_LAYOUT = "annotations/captions_train2017.json, annotations/instances_train2017.json and train2017/*.jpg there"


class CocoSource(StoredImages):
    """Images in the order of the annotation file."""

    def __init__(self, config: CocoSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        kind = "captions" if config.texts == "caption" else "instances"
        annotations = config.annotations or f"annotations/{kind}_{config.split}.json"
        self._annotations = inner_setting(annotations, "source.annotations or source.split")
        images = config.split if config.images is None else config.images
        self._images = inner_setting(images, "source.images or source.split")
        self._captions = config.texts == "caption"

    def check(self) -> None:
        """As `Source.check`."""
        next(stream_members(self._storage, self._require()), None)
        require_images(self._storage, self._images, "source.images or source.split")

    def _require(self) -> str:
        return require(self._storage, self._annotations, "source.annotations or source.split", _LAYOUT)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = self._require()
        file = CocoFile(self._storage, path, captions=self._captions)
        yield from file.faults
        for number, record in enumerate(file.images):
            yield from self._sample(file, number, record)
        for image_id, found in file.annotations.items():
            message = f"{path} has {len(found)} annotations of the image {quoted(image_id)}, which it doesn't list"
            yield faulty(f"image-{image_id}", "image-unlisted", message)

    def _sample(self, file: CocoFile, number: int, record: tuple[str, object]) -> Iterator[Found]:
        image_id, name = record
        found = file.annotations.pop(image_id, [])
        sample = Sample(image_id, image_at(self._images, name))
        if self._captions:
            for position, caption in found:
                sample.add_text(caption, f"the caption of annotation {position} in {file.path}")
        else:
            _add_categories(sample, file, found)
        yield from sample.finish(f"{file.path} has no annotation of image {quoted(image_id)} (number {number})")


def _add_categories(sample: Sample, file: CocoFile, found: list[tuple[int, Any]]) -> None:
    present: set[str] = set()
    boxes: list[Box] = []
    for position, (category, box) in found:
        if category not in file.categories:
            message = f"annotation {position} in {file.path} is of category {category}, which it doesn't list"
            sample.add_fault("record-malformed", message)
            continue
        present.add(category)
        boxes.append(box)
    if present:
        sample.add(listing([name for key, name in file.categories.items() if key in present], boxes))


class CocoFile:
    """What is needed of an annotation file: polygons are dropped as they come by.

    Attributes:
        path: the file.
        images: id and file name of each image, in order.
        annotations: by image id, each with its position in the file: a caption, or a category id and a box.
        categories: names by id, in order.
        faults: what can't be said of any image.
    """

    def __init__(self, storage: Storage, path: str, *, captions: bool) -> None:
        """Read the file.

        Raises:
            ConfigError: it isn't a COCO file.
            StorageError: it can't be read.
        """
        self.path = path
        self.images: list[tuple[str, object]] = []
        self.annotations: dict[str, list[tuple[int, Any]]] = {}
        self.categories: dict[str, str] = {}
        self.faults: list[SourceSample] = []
        self._captions = captions
        self._listed: set[str] = set()
        self._read(storage)

    def _read(self, storage: Storage) -> None:
        needed = {"images", "annotations"} | (set() if self._captions else {"categories"})
        seen: dict[str, int] = {}
        for key, record in stream_members(storage, self.path):
            position = seen[key] = seen.get(key, -1) + 1
            if key not in needed:
                continue
            why = self._take(key, position, record)
            if why:
                self.faults.append(
                    faulty(f"{key}-{position}", "record-malformed", f"{key} {position} in {self.path} {why}")
                )
        missing = sorted(needed - set(seen))
        if missing:
            raise ConfigError(
                f"{self.path} in {storage.uri} has no {' and no '.join(missing)}: it isn't a COCO file of "
                f"{'captions' if self._captions else 'instances'}; choose it with source.annotations"
            )

    def _take(self, key: str, position: int, record: Any) -> str:
        """Keep a record; or say what is wrong with it."""
        if not isinstance(record, dict):
            return f"is {quoted(record)}, not an object"
        match key:
            case "images":
                return self._take_image(record)
            case "categories":
                return self._take_category(record)
            case _:
                return self._take_annotation(position, record)

    def _take_image(self, record: dict[str, Any]) -> str:
        image_id = as_id(record.get("id"))
        if image_id is None:
            return "has no id"
        if image_id in self._listed:
            return f"has the id {quoted(image_id)} of an image before it"
        self._listed.add(image_id)
        self.images.append((image_id, record.get("file_name")))
        return ""

    def _take_category(self, record: dict[str, Any]) -> str:
        category, name = as_id(record.get("id")), record.get("name")
        if category is None or not isinstance(name, str) or not name.strip() or not is_unicode(name):
            return f"has no id, or its name isn't text: {quoted(name)}"
        self.categories[category] = name
        return ""

    def _take_annotation(self, position: int, record: dict[str, Any]) -> str:
        image_id = as_id(record.get("image_id"))
        if image_id is None:
            return "has no image_id"
        if self._captions:
            value: Any = record.get("caption")
        else:
            category, box = as_id(record.get("category_id")), xywh_box(record.get("bbox"))
            if category is None or box is None:
                return "has no category_id, or its bbox isn't four numbers: x, y, width and height"
            value = (category, box)
        self.annotations.setdefault(image_id, []).append((position, value))
        return ""
