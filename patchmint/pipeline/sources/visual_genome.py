"""Visual Genome: what annotators say of regions, or which objects they named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchmint.config.sources import VisualGenomeSourceConfig
from patchmint.pipeline.sources.base import require
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_list
from patchmint.pipeline.sources.records import (
    NOT_ANNOTATED,
    Drawn,
    Sample,
    as_id,
    faulty,
    listing,
    path_of,
    quoted,
    source_fault,
    text_fault,
    xywh_box,
)
from patchmint.samples import Fault, Found, ImageRef
from patchmint.storage import Storage
from patchmint.types import Instance

_IMAGES_FILE = "image_data.json"
_FILES = {"regions": "region_descriptions.json", "objects": "objects.json"}
_LAYOUT = "image_data.json, region_descriptions.json, objects.json, VG_100K/*.jpg and VG_100K_2/*.jpg there"

_ImagesById = dict[str, tuple[ImageRef | Fault, dict[str, Any]]]


class VisualGenomeSource(NamedImages):
    """Images in the order of the regions' or objects' file, then those that it lacks."""

    def __init__(self, config: VisualGenomeSourceConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        self._texts = config.texts

    def check(self) -> None:
        """As `Source.check`."""
        for path in (_FILES[self._texts], _IMAGES_FILE):
            next(stream_list(self._storage, require(self._storage, path, "source.uri", _LAYOUT)), None)
        self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        file = require(self._storage, _FILES[self._texts], "source.uri", _LAYOUT)
        require(self._storage, _IMAGES_FILE, "source.uri", _LAYOUT)
        images: _ImagesById = {}
        yield from self._read_images(images)
        seen: set[str] = set()
        for number, record in enumerate(stream_list(self._storage, file)):
            image_id = _image_id(record)
            where = f"record {number} of {file}"
            found = record.get(self._texts) if image_id is not None else None
            if image_id is None or not isinstance(found, list):
                message = f"{where} isn't an object with an image_id and a list of {self._texts}"
                yield faulty(f"{self._texts}-{number}", "record-malformed", message)
                continue
            unlisted = source_fault(
                "image-unlisted", f"{_IMAGES_FILE} doesn't list image {quoted(image_id)} of {where}"
            )
            image, own = images.get(image_id, (unlisted, {}))
            sample = Sample(image_id, image, own)
            seen.add(image_id)
            if not found:
                yield NOT_ANNOTATED
                continue
            (_add_regions if self._texts == "regions" else _add_objects)(sample, found, where)
            yield from sample.finish(f"{where} has no {self._texts} that can be used")
        yield from (NOT_ANNOTATED for image_id in images if image_id not in seen)

    def _read_images(self, images: _ImagesById) -> Iterator[Found]:
        for number, record in enumerate(stream_list(self._storage, _IMAGES_FILE)):
            image_id = _image_id(record)
            if image_id is None or image_id in images:
                message = f"record {number} of {_IMAGES_FILE} has no image_id, or that of a record before it"
                yield faulty(f"image-{number}", "record-malformed", message)
            else:
                images[image_id] = (self.image_at(path_of(record.get("url"))), record)


def _image_id(record: Any) -> str | None:
    """Releases and files differ in what they call it."""
    return as_id(record.get("image_id", record.get("id"))) if isinstance(record, dict) else None


def _drawn(thing: dict[str, Any]) -> Drawn:
    """Regions spell out width and height, objects abbreviate them."""
    sides = (thing.get("width", thing.get("w")), thing.get("height", thing.get("h")))
    return Drawn(xywh_box((thing.get("x"), thing.get("y"), *sides)))


def _add_regions(sample: Sample, regions: list[Any], where: str) -> None:
    for position, region in enumerate(regions):
        if not isinstance(region, dict):
            sample.add_fault("record-malformed", f"region {position} of {where} isn't an object")
            continue
        found = sample.instance(_drawn(region))
        sample.add_text(region.get("phrase"), f"the phrase of region {position} of {where}", found)


def _add_objects(sample: Sample, objects: list[Any], where: str) -> None:
    names: list[str] = []
    drawn: list[tuple[str, Instance]] = []
    for position, thing in enumerate(objects):
        given = thing.get("names") if isinstance(thing, dict) else None
        name = given[0] if isinstance(given, list) and given else None
        fault = text_fault(name, f"the name of object {position} of {where}")
        if fault is not None:
            sample.add_fault(fault.reason, fault.message)
            continue
        names.append(str(name))
        drawn += [(str(name), instance) for instance in sample.instance(_drawn(thing))]
    if names:
        sample.add(listing(names, drawn))
