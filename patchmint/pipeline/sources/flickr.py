"""Flickr30k Entities: captions whose phrases are marked, and XML files with the boxes of what these name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any
from xml.parsers import expat

from patchmint.config.sources import FlickrSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import read_ahead, require
from patchmint.pipeline.sources.files import OwnSplits
from patchmint.pipeline.sources.grounding import Thing, add_grounded
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.records import Sample, faulty, quoted, xyxy_box
from patchmint.samples import Absent, Found
from patchmint.storage import Storage
from patchmint.types import Box, Instance

_LAYOUT = "Sentences/*.txt, Annotations/*.xml and flickr30k-images/*.jpg"
_PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]*)\]")
_NOT_VISUAL = "0"
_SPLITS = ("test", "train", "val")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class FlickrSource(NamedImages):
    """Images in the order of their names."""

    def __init__(self, config: FlickrSourceConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        self._splits = OwnSplits(config.split)

    def check(self) -> None:
        """As `Source.check`."""
        for name in self._splits.names:
            require(self._storage, f"{name}.txt", "source.split", f"{_LAYOUT} and {name}.txt there")
        self._splits.check((name for name in _SPLITS if self._storage.exists(f"{name}.txt")), self._storage.uri)
        if next(self._storage.list("Sentences"), None) is None:
            raise ConfigError(
                f"source.uri: there is nothing in Sentences in {self._storage.uri}; expected {_LAYOUT} there. Unpack "
                "annotations.zip first"
            )
        self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        listed = self._listed()
        boxes = {entry.path for entry in self._storage.list("Annotations")}
        names = [entry.path for entry in self._storage.list("Sentences") if entry.path.endswith(".txt")]
        ids = [name.removeprefix("Sentences/").removesuffix(".txt") for name in names]
        chosen = [image for image in ids if listed is None or image in listed]
        yield from (Absent("not-chosen-split") for _ in range(len(ids) - len(chosen)))
        for image in sorted((listed or set()) - set(ids)):
            yield faulty(
                image,
                "text-missing",
                f"{'.txt, '.join(self._splits.names)}.txt lists it, and there is no Sentences/{image}.txt",
            )
        pairs = (
            (image, path if path in {text} or path in boxes else None)
            for image in chosen
            for text in [f"Sentences/{image}.txt"]
            for path in (text, f"Annotations/{image}.xml")
        )
        contents = read_ahead(self._storage, pairs)
        while pair := list(islice(contents, 2)):
            (image, sentences), (_, annotation) = pair
            yield from self._sample(image, sentences or b"", annotation)

    def _listed(self) -> set[str] | None:
        if not self._splits.names:
            return None
        paths = [require(self._storage, f"{name}.txt", "source.split", _LAYOUT) for name in self._splits.names]
        lists = [self._storage.read(path).decode("utf-8-sig", "surrogateescape").split() for path in paths]
        return {name.removesuffix(".jpg") for names in lists for name in names}

    def _sample(self, image: str, sentences: bytes, annotation: bytes | None) -> Iterator[Found]:
        sample = Sample(image, self.image_at(f"{image}.jpg"))
        boxes: dict[str, list[Box]] = {}
        try:
            boxes = entity_boxes(annotation) if annotation is not None else {}
        except (expat.ExpatError, ValueError):
            sample.add_absent("boxes-malformed")
        where = f"Sentences/{quoted(image)}.txt"
        lines = sentences.decode("utf-8-sig", "surrogateescape").splitlines()
        for number, line in enumerate(lines, 1):
            if line.strip():
                caption, things = marked(line.strip(), boxes)
                add_grounded(sample, caption, things, f"line {number} of {where}")
        yield from sample.finish(f"{where} is empty")


def marked(line: str, boxes: dict[str, list[Box]]) -> tuple[str, list[Thing]]:
    """A caption without its marks, and what these say: "[/EN#1/people Two men] run" is "Two men run" with one thing.

    Args:
        line: with marks.
        boxes: by entity.
    """
    caption, at = "", 0
    things: list[Thing] = []
    for match in _PHRASE.finditer(line):
        caption += line[at : match.start()]
        if match[2].strip() and match[1] != _NOT_VISUAL:
            drawn = [Instance(box) for box in boxes.get(match[1], [])]
            things.append(([(len(caption), len(caption) + len(match[2]))], drawn))
        caption += match[2]
        at = match.end()
    return caption + line[at:], things


def entity_boxes(data: bytes) -> dict[str, list[Box]]:
    """The boxes of an annotation file, by entity.

    Raises:
        ExpatError: it isn't XML.
        ValueError: it declares entities of XML, which can make a small file a huge one; or a box isn't one.
    """
    found: dict[str, list[Box]] = {}
    names: list[str] = []
    corners: dict[str, float] = {}
    text: list[str] = []

    def start(tag: str, _: dict[str, str]) -> None:
        text.clear()
        if tag == "object":
            names.clear()
            corners.clear()

    def end(tag: str) -> None:
        value = "".join(text).strip()
        text.clear()
        if tag == "name":
            names.append(value)
        elif tag in _CORNERS:
            corners[tag] = float(value)
        elif tag == "object" and corners:
            box = xyxy_box([corners.get(corner) for corner in _CORNERS])
            if box is None:
                raise ValueError(f"{corners} isn't a box")
            for name in names:
                found.setdefault(name, []).append(box)

    def refuse(*_: Any) -> None:
        raise ValueError("it declares entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
    return found
