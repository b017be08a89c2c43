"""A folder of images, with a caption file beside each or one table for all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from patchmint.config.sources import FolderSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import (
    MAX_TEXT_BYTES,
    Section,
    StoredImages,
    inner_setting,
    read_ahead,
    require,
)
from patchmint.pipeline.sources.choice import columns_of
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice, check_unmixed
from patchmint.pipeline.sources.records import Sample, faulty, inner_path, listed_image, quoted
from patchmint.pipeline.sources.tables import Row, rows
from patchmint.samples import Fault, Found
from patchmint.storage import Entry, Storage

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif"})
_SECTION_FILES = 8192
_SIDECAR_ENDINGS = ("txt", "json")
_TEXT_KEYS = ("caption", "text", "texts")


class FolderSource(StoredImages):
    """Images in the order of their paths."""

    at_once = 4

    def __init__(self, config: FolderSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._choice = FileChoice(config, by_folder=True)
        self.chooses_files = config.table is None
        self._config = config
        self._asked = {name.casefold() for name in columns_of(config.where)}
        self._table = None if config.table is None else inner_setting(config.table, "source.table")

    def check(self) -> None:
        """As `Source.check`."""
        if self._table is not None:
            next(self._rows(self._table), None)
            return
        images = (entry.path for entry in self._files() if _ending(entry.path) in IMAGE_ENDINGS)
        begin = list(islice(images, _SECTION_FILES))  # of a big folder the rest is seen while it is planned
        if not begin:
            raise ConfigError(
                f"source.uri: there is no image ({', '.join(sorted(IMAGE_ENDINGS))}) in {self._storage.uri}; correct "
                "it, or name the source.kind of what lies there"
            )
        if not self._choice.may_mix:
            check_unmixed(map(self._choice.split_of, begin), self._storage.uri)
        elif not any(map(self._choice.has, chain(begin, images))):
            self._choice.check(begin, self._storage.uri)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        return self._with_sidecars(self._unmixed()) if self._table is None else self._with_table(self._table)

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`: images with their texts; with a table it can't be divided."""
        return _sections(self._unmixed()) if self._table is None else None

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        return self._with_sidecars(section)

    def _files(self) -> Iterator[Entry]:
        """Without hidden files, such as the ._NAME.jpg that macOS leaves in archives."""
        entries = self._storage.list()
        return (entry for entry in entries if not any(part.startswith(".") for part in entry.path.split("/")))

    def _unmixed(self) -> Iterator[Entry]:
        """The files, until there is one of a second split, where none is chosen."""
        first = ""
        for entry in self._files():
            if not self._choice.may_mix and _ending(entry.path) in IMAGE_ENDINGS:
                split = self._choice.split_of(entry.path)
                check_unmixed((first, split), self._storage.uri)
                first = first or split
            yield entry

    def _with_sidecars(self, files: Iterable[Entry]) -> Iterator[Found]:
        pairs = (
            ((image, side), side.path if side and self._choice.has(image) and side.size <= MAX_TEXT_BYTES else None)
            for image, side in _pairs(files)
        )
        for (image, side), data in read_ahead(self._storage, pairs):
            if not self._choice.has(image):
                yield OTHER_FILE
                continue
            sample = Sample(image, listed_image(image), _record(side.path, data) if side and data is not None else {})
            if side is not None and data is not None:
                for where, text in sidecar_texts(side.path, data):
                    sample.add_text(text, where)
            elif side is not None:
                sample.add_fault("text-too-long", f"{quoted(side.path)} has {side.size} bytes: that isn't a caption")
            yield from sample.finish("there is neither a .txt nor a .json of the same name beside the image")

    def _with_table(self, table: str) -> Iterator[Found]:
        config, shown = self._config, f"{table} in {self._storage.uri}"
        texts: dict[str, list[tuple[int, Any]]] = {}
        asked: dict[str, dict[str, Any]] = {}
        for number, record in self._rows(table):
            if isinstance(record, str):
                yield faulty(f"{table}:{number}", "record-malformed", record)
                continue
            path = inner_path(record.get(config.file_column))
            if isinstance(path, Fault):
                yield faulty(f"{table}:{number}", path.reason, f"row {number} of {shown}: {path.message}")
            else:
                texts.setdefault(path, []).append((number, record.get(config.text_column)))
                if self._asked:  # of several rows for an image the first
                    asked.setdefault(path, {n: value for n, value in record.items() if n.casefold() in self._asked})
        for entry in self._files():
            if _ending(entry.path) in IMAGE_ENDINGS:
                found = texts.pop(entry.path, [])
                yield from self._from_table(entry.path, found, shown, asked.get(entry.path, {}))
        for path, found in texts.items():  # not there, or not called like an image: reading them will tell
            yield from self._from_table(path, found, shown, asked.get(path, {}))

    def _rows(self, table: str) -> Iterator[Row]:
        require(self._storage, table, "source.table", "a table at that place in the source's folder")
        return rows(self._storage, table, (self._config.file_column, self._config.text_column), self._asked)

    def _from_table(
        self, path: str, found: list[tuple[int, Any]], shown: str, record: dict[str, Any]
    ) -> Iterator[Found]:
        sample = Sample(path, listed_image(path), record)
        for number, value in found:
            for text in value if isinstance(value, list) else [value]:
                sample.add_text(text, f"the text in row {number} of {shown}")
        yield from sample.finish(f"{shown} has no row with a text for the image")


def _record(path: str, data: bytes) -> dict[str, Any]:
    """The fields of a .json."""
    if _ending(path) != "json":
        return {}
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def sidecar_texts(path: str, data: bytes) -> Iterable[tuple[str, object]]:
    """The texts of a .txt or .json file, each after a description of its place; what isn't a text comes out too.

    A .json holds a string, or an object with one of `caption`, `text` (a string each) and `texts` (a list of strings).
    """
    text = data.decode("utf-8-sig", "surrogateescape")
    if _ending(path) == "txt":
        return [(f"the text in {quoted(path)}", text.strip())]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [(f"{quoted(path)} isn't JSON ({error}): it", None)]
    if isinstance(value, dict):
        key = next((key for key in _TEXT_KEYS if value.get(key) is not None), None)
        if key is None:
            return [(f"{quoted(path)} has none of {', '.join(_TEXT_KEYS)}: it", None)]
        value = value[key]
        path = f"{path}: {key}"
    if isinstance(value, list):
        return [(f"text {number} in {quoted(path)}", item) for number, item in enumerate(value)]
    return [(f"the text in {quoted(path)}", value)]


def _ending(path: str) -> str:
    _, dot, ending = path.rpartition("/")[2].rpartition(".")
    return ending.lower() if dot else ""


def _sections(entries: Iterable[Entry]) -> Iterator[Section]:
    section: list[Entry] = []
    for cluster in _clusters(entries):
        section += cluster
        if len(section) >= _SECTION_FILES:
            yield tuple(section)
            section = []
    if section:
        yield tuple(section)


def _pairs(entries: Iterable[Entry]) -> Iterator[tuple[str, Entry | None]]:
    """Each image's path with its sidecar, if it has one."""
    for cluster in _clusters(entries):
        yield from _paired(cluster)


def _clusters(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The files of one stem together. Memory holds no others."""
    cluster: list[Entry] = []
    stem = ""
    for entry in entries:
        if cluster and not entry.path.startswith(stem):
            yield cluster
            cluster = []
        if not cluster:
            folder, slash, name = entry.path.rpartition("/")
            stem = f"{folder}{slash}{name.partition('.')[0]}."  # files that share it lie side by side in the order
        cluster.append(entry)
    if cluster:
        yield cluster


def _paired(cluster: list[Entry]) -> Iterator[tuple[str, Entry | None]]:
    by_path = {entry.path: entry for entry in cluster}
    for path in by_path:
        if _ending(path) not in IMAGE_ENDINGS:
            continue
        stem = path.rpartition(".")[0]
        sidecars = (by_path.get(f"{stem}.{ending}") for ending in _SIDECAR_ENDINGS)
        yield path, next((sidecar for sidecar in sidecars if sidecar is not None), None)
