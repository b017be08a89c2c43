"""Karpathy's splits of COCO, Flickr30k and Flickr8k: one JSON file with images, their splits and sentences."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from patchmint.config.sources import KarpathySourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import inner_setting, require
from patchmint.pipeline.sources.files import OwnSplits
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_members
from patchmint.pipeline.sources.records import Sample, as_id, faulty
from patchmint.samples import Absent, Found
from patchmint.storage import Storage

_LAYOUT = "dataset_coco.json (or another dataset*.json) and the images that it names there"
_BEGINNING = 1000
"""Images of the file among which splits are looked for before it is read."""


class KarpathySource(NamedImages):
    """Images in the order of the file."""

    def __init__(self, config: KarpathySourceConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        given = config.annotations
        self._annotations = None if given is None else inner_setting(given, "source.annotations")
        self._splits = OwnSplits(config.split)

    def check(self) -> None:
        """As `Source.check`."""
        path = self._find()
        self._splits.check(
            map(OwnSplits.of, islice(self._records(path), _BEGINNING)), f"{path} in {self._storage.uri}", all_read=False
        )
        self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = self._find()
        splits: set[str] = set()
        for number, record in enumerate(self._records(path)):
            where = f"image {number} of {path}"
            if not isinstance(record, dict) or not isinstance(record.get("sentences"), list):
                yield faulty(f"image-{number}", "record-malformed", f"{where} isn't an object with sentences")
                continue
            splits.add(OwnSplits.of(record))
            self._splits.check(splits, f"{path} in {self._storage.uri}", all_read=False)
            if not self._splits.has(OwnSplits.of(record)):
                yield Absent("not-chosen-split")
                continue
            yield from self._sample(record, where, number)
        self._splits.check(splits, f"{path} in {self._storage.uri}")

    def _sample(self, record: dict[str, Any], where: str, number: int) -> Iterator[Found]:
        folder, name = record.get("filepath"), record.get("filename")
        path = f"{folder}/{name}" if folder and isinstance(name, str) else name
        known = as_id(record.get("cocoid")) or as_id(record.get("imgid"))
        sample = Sample(known or f"image-{number}", self.image_at(path), record)
        for position, sentence in enumerate(record["sentences"]):
            text = sentence.get("raw") if isinstance(sentence, dict) else None
            sample.add_text(text, f"sentence {position} of {where}")
        yield from sample.finish(f"{where} has no sentences")

    def _records(self, path: str) -> Iterator[Any]:
        members = stream_members(self._storage, path)
        return (record for key, record in members if key == "images")

    def _find(self) -> str:
        if self._annotations is not None:
            return require(self._storage, self._annotations, "source.annotations", _LAYOUT)
        names = (entry.path for entry in self._storage.list())
        found = [name for name in names if "/" not in name and name.startswith("dataset") and name.endswith(".json")]
        if len(found) == 1:
            return found[0]
        what = f"several dataset*.json ({', '.join(found)})" if found else "no dataset*.json"
        raise ConfigError(
            f"source.annotations: there are {what} in {self._storage.uri}; name the file. Expected {_LAYOUT}"
        )
