"""Phrases of captions with boxes: ODVG's JSON Lines, and MDETR's JSON with `images` and `annotations`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from patchmint.config.sources import GroundingSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import inner_setting, require
from patchmint.pipeline.sources.coco import CocoFile
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_list, stream_members
from patchmint.pipeline.sources.records import (
    NOT_ANNOTATED,
    Drawn,
    Sample,
    faulty,
    listing,
    quoted,
    size_of,
    text_fault,
    xyxy_box,
)
from patchmint.samples import Found, SourceText
from patchmint.storage import Storage
from patchmint.types import Instance, Span

_LAYOUT = "a .jsonl of ODVG, or a .json of MDETR, and the images that it names there"

Thing = tuple[list[Span], list[Instance]]
"""What a part of a caption names: where it does so, and where that is in the image."""


class GroundingSource(NamedImages):
    """Images in the order of the file. MDETR's captions of one image are one sample, ODVG's if their lines adjoin."""

    def __init__(self, config: GroundingSourceConfig, storage: Storage, *, masks: bool = False) -> None:
        super().__init__(config, storage)
        self._masks = masks
        self._annotations = inner_setting(config.annotations, "source.annotations")

    def check(self) -> None:
        """As `Source.check`."""
        path = require(self._storage, self._annotations, "source.annotations", _LAYOUT)
        if not self._is_odvg(path):
            next(stream_members(self._storage, path), None)
        self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = require(self._storage, self._annotations, "source.annotations", _LAYOUT)
        return self._odvg(path) if self._is_odvg(path) else self._mdetr(path)

    def _is_odvg(self, path: str) -> bool:
        """Whether there are records side by side."""
        try:
            next(stream_list(self._storage, path), None)
        except ConfigError:
            return False
        return True

    def _odvg(self, path: str) -> Iterator[Found]:
        for name, group in groupby(enumerate(stream_list(self._storage, path)), key=lambda item: _name_of(item[1])):
            numbered = list(group)
            number, first = numbered[0]
            if not isinstance(first, dict):
                for number, _ in numbered:
                    yield faulty(f"line-{number}", "record-malformed", f"record {number} of {path} isn't an object")
                continue
            sample = Sample(name if isinstance(name, str) and name else f"line-{number}", self.image_at(name), first)
            for number, record in numbered:
                _add_odvg(sample, record, f"record {number} of {path}")
            yield from sample.finish(f"record {number} of {path} has neither a grounding nor a detection")

    def _mdetr(self, path: str) -> Iterator[Found]:
        file = CocoFile(self._storage, path, self._thing, what="captions with tokens_positive")
        yield from file.faults
        by_name: dict[object, list[tuple[str, dict[str, Any]]]] = {}
        for image_id, record in file.images:  # each caption has an entry of its own
            name = record.get("file_name")
            by_name.setdefault(name if isinstance(name, str) else image_id, []).append((image_id, record))
        for captions in by_name.values():
            image_id, first = captions[0]
            sample = Sample(image_id, self.image_at(first.get("file_name")), first)
            for image_id, record in captions:
                caption = record.get("caption")
                things = []
                for _, (spans, drawn) in file.annotations.pop(image_id, []):
                    found = sample.instance(drawn, size=size_of(record))
                    things.append((_within(spans, caption, sample), found))
                add_grounded(sample, caption, things, f"the caption of image {quoted(image_id)} in {path}")
            yield from sample.finish(f"{path} has no caption of image {quoted(image_id)}")
        yield from file.unlisted()

    def _thing(self, record: dict[str, Any]) -> tuple[object, Drawn]:
        return record.get("tokens_positive"), Drawn.of_coco(record, masks=self._masks)


def add_grounded(sample: Sample, caption: object, things: Iterable[Thing], where: str) -> None:
    """Add a caption with the things that it names; `where` says which caption it is.

    A thing that it names in several places is an instance of each.
    """
    if fault := text_fault(caption, where):
        sample.add_fault(fault.reason, fault.message)
        return
    spans = sorted({span for found, _ in things for span in found})
    nowhere: list[Span | None] = [None]
    instances = dict.fromkeys(
        replace(instance, span=span) for places, found in things for instance in found for span in places or nowhere
    )
    sample.add(SourceText(str(caption), tuple(spans), tuple(instances)))


def _name_of(record: Any) -> object:
    if not isinstance(record, dict):
        return None
    name = record.get("filename", record.get("file_name"))
    return name if name is None or isinstance(name, str) else repr(name)


def _add_odvg(sample: Sample, record: dict[str, Any], where: str) -> None:
    grounding, detection = record.get("grounding"), record.get("detection")
    if isinstance(grounding, dict):
        caption, regions = grounding.get("caption"), grounding.get("regions")
        things = []
        for region in regions if isinstance(regions, list) else []:
            given = region if isinstance(region, dict) else {}
            spans = given.get("tokens_positive") or _find(given.get("phrase"), caption)
            found = [instance for drawn in _boxes(given.get("bbox")) for instance in sample.instance(drawn)]
            things.append((_within(spans, caption, sample), found))
        add_grounded(sample, caption, things, f"the caption of {where}")
    instances = detection.get("instances") if isinstance(detection, dict) else None
    if isinstance(instances, list):
        _add_detection(sample, instances, where)


def _add_detection(sample: Sample, instances: list[Any], where: str) -> None:
    names: list[str] = []
    found: list[tuple[str, Instance]] = []
    for position, instance in enumerate(instances):
        name = instance.get("category") if isinstance(instance, dict) else None
        if fault := text_fault(name, f"the category of instance {position} of {where}"):
            sample.add_fault(fault.reason, fault.message)
            continue
        names.append(str(name))
        found += [(str(name), each) for each in sample.instance(Drawn(xyxy_box(instance.get("bbox"))))]
    if names:
        sample.add(listing(names, found))
    elif not instances:
        sample.add_absent(NOT_ANNOTATED.reason)


def _boxes(given: object) -> list[Drawn]:
    """One box, or a list of them."""
    several = isinstance(given, list) and given and isinstance(given[0], list)
    return [Drawn(xyxy_box(box)) for box in (given if several and isinstance(given, list) else [given])]


def _find(phrases: object, caption: object) -> list[Span]:
    """Where a caption has a phrase, or one of several; upper and lower case are the same."""
    wanted = [phrase for phrase in (phrases if isinstance(phrases, list) else [phrases]) if isinstance(phrase, str)]
    if not isinstance(caption, str):
        return []
    found = (re.search(re.escape(phrase), caption, re.IGNORECASE) for phrase in wanted)
    return [match.span() for match in found if match and match[0]]


def _within(spans: object, caption: object, sample: Sample) -> list[Span]:
    """Those spans that lie within the caption; the others are counted."""
    length = len(caption) if isinstance(caption, str) else 0
    found = []
    for span in spans if isinstance(spans, list) else []:
        match span:
            case [int(start), int(end)] | (int(start), int(end)) if 0 <= start < end <= length:
                found.append((start, end))
    if not found or not isinstance(spans, list) or len(found) < len(spans):
        sample.add_absent("span-missing")
    return found
