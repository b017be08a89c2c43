"""COCO captions, and COCO or LVIS instances as lists of what is in the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from patchmint.config.sources import CocoSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import inner_setting, require
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_members
from patchmint.pipeline.sources.records import (
    NOT_ANNOTATED,
    Drawn,
    Sample,
    as_id,
    faulty,
    is_unicode,
    listing,
    path_of,
    quoted,
    size_of,
)
from patchmint.samples import Fault, Found, ImageRef, SourceSample
from patchmint.storage import Storage
from patchmint.types import Instance, Size

_LAYOUT = "annotations/captions_train2017.json, annotations/instances_train2017.json and train2017/*.jpg there"


class CocoSource(NamedImages):
    """Images in the order of the annotation file."""

    def __init__(self, config: CocoSourceConfig, storage: Storage, *, masks: bool = False) -> None:
        super().__init__(config, storage, config.split)
        self._masks = masks
        kind = "captions" if config.texts == "caption" else "instances"
        annotations = config.annotations or f"annotations/{kind}_{config.split}.json"
        self._annotations = inner_setting(annotations, "source.annotations or source.split")
        self._captions = config.texts == "caption"
        self._of_urls = "" if config.images is None else None

    def check(self) -> None:
        """As `Source.check`."""
        next(stream_members(self._storage, self._require()), None)
        self.check_images("source.images or source.split")

    def _require(self) -> str:
        return require(self._storage, self._annotations, "source.annotations or source.split", _LAYOUT)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = self._require()
        if self._captions:
            file = CocoFile(self._storage, path, self._caption, what="captions")
        else:
            file = CocoFile(self._storage, path, self._thing, what="instances", categories=True)
        yield from file.faults
        for image_id, record in file.images:
            found = file.annotations.pop(image_id, None)
            if found is None:
                yield NOT_ANNOTATED
                continue
            sample = Sample(image_id, self._image(record), record)
            if self._captions:
                for position, caption in found:
                    sample.add_text(caption, f"the caption of annotation {position} in {path}")
            else:
                _add_categories(sample, file, found, size_of(record))
            yield from sample.finish(f"no annotation of image {quoted(image_id)} in {path} can be used")
        yield from file.unlisted()

    def _caption(self, record: dict[str, Any]) -> object:
        if "caption" not in record and "category_id" in record:
            raise ConfigError(
                f"{self._annotations} in {self._storage.uri} holds instances, not captions; read their categories with "
                "source.texts: categories, or name the file of captions in source.annotations"
            )
        return record.get("caption")

    def _thing(self, record: dict[str, Any]) -> tuple[str, Drawn]:
        category = as_id(record.get("category_id"))
        if category is None:
            raise ValueError("has no category_id")
        return category, Drawn.of_coco(record, masks=self._masks)

    def _image(self, record: dict[str, Any]) -> ImageRef | Fault:
        """By its file's name; LVIS has addresses only, and these name the folder, too."""
        if record.get("file_name") is None and record.get("coco_url") is not None:
            return self.image_at(path_of(record["coco_url"]), self._of_urls)
        return self.image_at(record.get("file_name"))


def _add_categories(sample: Sample, file: CocoFile, found: list[tuple[int, Any]], size: Size | None) -> None:
    present: set[str] = set()
    things: list[tuple[str, Instance]] = []
    for position, (category, drawn) in found:
        if category not in file.categories:
            message = f"annotation {position} in {file.path} is of category {category}, which it doesn't list"
            sample.add_fault("record-malformed", message)
            continue
        present.add(category)
        things += [(file.categories[category], instance) for instance in sample.instance(drawn, size=size)]
    if present:
        sample.add(listing([name for key, name in file.categories.items() if key in present], things))


class CocoFile:
    """What is needed of a file with `images` and `annotations`: the rest is dropped as it comes by.

    Attributes:
        path: the file.
        images: id and record of each image, in order.
        annotations: by image id, each with its position in the file.
        categories: names by id, in order.
        faults: what can't be said of any image.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        value_of: Callable[[dict[str, Any]], Any],
        *,
        what: str,
        categories: bool = False,
    ) -> None:
        """Read the file.

        Args:
            storage: the source's root.
            path: the file.
            value_of: what to keep of an annotation; a ValueError says what is wrong with it.
            what: what the file holds, for messages.
            categories: whether categories are needed.

        Raises:
            ConfigError: it isn't such a file.
            StorageError: it can't be read.
        """
        self.path = path
        self.images: list[tuple[str, dict[str, Any]]] = []
        self.annotations: dict[str, list[tuple[int, Any]]] = {}
        self.categories: dict[str, str] = {}
        self.faults: list[SourceSample] = []
        self._value_of = value_of
        self._listed: set[str] = set()
        needed = {"images", "annotations"} | ({"categories"} if categories else set())
        seen: dict[str, int] = {}
        for key, record in stream_members(storage, path):
            position = seen[key] = seen.get(key, -1) + 1
            if key not in needed:
                continue
            try:
                self._take(key, position, record)
            except ValueError as error:
                message = f"{key} {position} in {path} {error}"
                self.faults.append(faulty(f"{key}-{position}", "record-malformed", message))
        missing = sorted(needed - set(seen))
        if missing:
            raise ConfigError(
                f"{path} in {storage.uri} has no {' and no '.join(missing)}: it isn't a COCO file of {what}; choose it "
                "with source.annotations"
            )

    def unlisted(self) -> Iterator[SourceSample]:
        """A faulty sample for each image that there are still annotations of, and that isn't in the list."""
        for image_id, found in self.annotations.items():
            message = f"{self.path} has {len(found)} annotations of the image {quoted(image_id)}, which it doesn't list"
            yield faulty(f"image-{image_id}", "image-unlisted", message)

    def _take(self, key: str, position: int, record: Any) -> None:
        """Keep what is needed of a record.

        Raises:
            ValueError: what is wrong with it.
        """
        if not isinstance(record, dict):
            raise ValueError(f"is {quoted(record)}, not an object")
        match key:
            case "images":
                self._take_image(record)
            case "categories":
                self._take_category(record)
            case _:
                image_id = as_id(record.get("image_id"))
                if image_id is None:
                    raise ValueError("has no image_id")
                value = self._value_of(record)
                self.annotations.setdefault(image_id, []).append((position, value))

    def _take_image(self, record: dict[str, Any]) -> None:
        image_id = as_id(record.get("id"))
        if image_id is None:
            raise ValueError("has no id")
        if image_id in self._listed:
            raise ValueError(f"has the id {quoted(image_id)} of an image before it")
        self._listed.add(image_id)
        self.images.append((image_id, record))

    def _take_category(self, record: dict[str, Any]) -> None:
        category, name = as_id(record.get("id")), record.get("name")
        if category is None or not isinstance(name, str) or not name.strip() or not is_unicode(name):
            raise ValueError(f"has no id, or its name isn't text: {quoted(name)}")
        self.categories[category] = name.replace("_", " ") if "synonyms" in record else name  # LVIS: alarm_clock
