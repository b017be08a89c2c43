"""A folder of images, with a caption file beside each or one table for all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from patchmint.config.sources import FolderSourceConfig
from patchmint.errors import ConfigError
from patchmint.images import IMAGE_ENDINGS
from patchmint.pipeline.sources.base import MAX_TEXT_BYTES, Section, inner_setting, read_ahead, require
from patchmint.pipeline.sources.choice import columns_of
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice, check_unmixed
from patchmint.pipeline.sources.images import NamedImages, joined
from patchmint.pipeline.sources.records import (
    NOT_ANNOTATED,
    Sample,
    as_id,
    faulty,
    json_object,
    listed_image,
    quoted,
    source_fault,
)
from patchmint.pipeline.sources.tables import Row, rows
from patchmint.samples import Absent, Fault, Found, ImageRef
from patchmint.storage import Entry, Storage

_SECTION_FILES = 8192
_NO_SIDECAR = (
    "there is neither a .txt nor a .json of the same name beside the image; if a table (metadata.csv, ...) has the "
    "texts, name it in source.table"
)
_SIDECAR_ENDINGS = ("txt", "json")
_TEXT_KEYS = ("caption", "text", "texts")
_TEXT_ALONE = Absent("text-without-image")


class FolderSource(NamedImages):
    """Images in the order of their paths."""

    at_once = 4

    def __init__(self, config: FolderSourceConfig, storage: Storage) -> None:
        self._choice = FileChoice(config, by_folder=True)
        self.chooses_files = config.table is None
        self._config = config
        self._asked = {name.casefold() for name in columns_of(config.where)}
        self._table = None if config.table is None else inner_setting(config.table, "source.table")
        super().__init__(config, storage, folder_of(self._table or ""))

    def check(self) -> None:
        """As `Source.check`."""
        if self._table is not None:
            begin = islice(self._rows(self._table), _SECTION_FILES if _is_metadata(self._table) else 1)
            self._check_unmixed(self._table, list(self._paths(begin)))
            self.check_images()
            return
        images = (entry.path for entry in self._files() if _ending(entry.path) in IMAGE_ENDINGS)
        paths = list(islice(images, _SECTION_FILES))  # of a big folder the rest is seen while it is planned
        if not paths:
            raise ConfigError(
                f"source.uri: there is no image ({_shown_endings()}) in {self._storage.uri}; correct it, or name the "
                "source.kind of what lies there"
            )
        if not self._choice.may_mix:
            check_unmixed(map(self._choice.split_of, paths), self._storage.uri)
        elif not any(map(self._choice.has, chain(paths, images))):
            self._choice.check(paths, self._storage.uri)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        return self._with_sidecars(self._unmixed()) if self._table is None else self._with_table(self._table)

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`: images with their texts; with a table it can't be divided."""
        return _sections(self._unmixed()) if self._table is None else None

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        return self._with_sidecars(section)

    def _files(self, folder: str = "") -> Iterator[Entry]:
        """Without hidden files, such as the ._NAME.jpg that macOS leaves in archives."""
        entries = self._storage.list(folder)
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
        asked = (
            (found, entry.path if entry and self._choice.has(found[0]) and entry.size <= MAX_TEXT_BYTES else None)
            for found in _pairs(files)
            for entry in (found[1], found[2] if self._asked else None)  # a condition looks into a .json beside a .txt
        )
        contents = read_ahead(self._storage, asked)
        while pair := list(islice(contents, 2)):
            ((image, side, beside), data), (_, fields) = pair
            if not self._choice.has(image):
                yield OTHER_FILE
                continue
            if side is None and _ending(image) in _SIDECAR_ENDINGS:
                yield _TEXT_ALONE
                continue
            described, content = (beside, fields) if fields is not None else (side, data)
            own = (
                json_object(content)
                if described and content is not None and _ending(described.path) == "json"
                else None
            )
            sample = Sample(image, _image(image), own or {})
            if side is not None and data is not None:
                for where, text in sidecar_texts(side.path, data):
                    sample.add_text(text, where)
            elif side is not None:
                sample.add_fault("text-too-long", f"{quoted(side.path)} has {side.size} bytes: that isn't a caption")
            yield from sample.finish(_NO_SIDECAR)

    def _with_table(self, table: str) -> Iterator[Found]:
        config, shown = self._config, f"{table} in {self._storage.uri}"
        named: dict[str, _Named] = {}
        for number, record in self._rows(table):
            if isinstance(record, str):
                yield faulty(f"{table}:{number}", "record-malformed", record)
                continue
            image = self.image_at(record.get(config.file_column))
            if isinstance(image, Fault):
                yield faulty(f"{table}:{number}", image.reason, f"row {number} of {shown}: {image.message}")
            else:
                own = as_id(record.get(config.id_column)) if config.id_column else None
                # of a row only what somebody will look at: there may be a hundred million
                asked = {name: value for name, value in record.items() if name.casefold() in self._asked}
                texts = named.setdefault(image.path, _Named(asked, own)).texts
                texts.append((number, record.get(config.text_column)))
        self._check_unmixed(table, named)
        first = self._folders[0]
        for folder in self._folders:
            for entry in self._files(folder):
                if _ending(entry.path) in IMAGE_ENDINGS:
                    found = named.pop(joined(first, entry.path[len(folder) :].lstrip("/")), None)
                    yield from [NOT_ANNOTATED] if found is None else self._from_table(entry.path, found, shown)
        for path, found in named.items():  # not there, or not called like an image: reading them will tell
            yield from self._from_table(path, found, shown)

    def _check_unmixed(self, table: str, paths: Iterable[str]) -> None:
        """As the Hub has it, one table may be about images in the folders of several splits."""
        if _is_metadata(table) and not self._choice.may_mix:
            check_unmixed(map(self._choice.split_of, paths), self._storage.uri)

    def _paths(self, rows: Iterable[Row]) -> Iterator[str]:
        images = (self.image_at(row.get(self._config.file_column)) for _, row in rows if not isinstance(row, str))
        return (image.path for image in images if isinstance(image, ImageRef))

    def _rows(self, table: str) -> Iterator[Row]:
        config = self._config
        require(self._storage, table, "source.table", "a table at that place in the source's folder")
        needed = (config.file_column, config.text_column, *((config.id_column,) if config.id_column else ()))
        return rows(self._storage, table, needed, self._asked)

    def _from_table(self, path: str, found: _Named, shown: str) -> Iterator[Found]:
        sample = Sample(found.id or path, listed_image(path), found.record)
        for number, value in found.texts:
            for text in value if isinstance(value, list) else [value]:
                sample.add_text(text, f"the text in row {number} of {shown}")
        yield from sample.finish(f"{shown} has no row with a text for the image")


@dataclass(slots=True)
class _Named:
    """An image that a table names: what is asked for of its first row, its id, and all its texts with their rows."""

    record: Mapping[str, Any]
    id: str | None
    texts: list[tuple[int, Any]] = field(default_factory=list)


def folder_of(table: str) -> str:
    """The folder that paths in a table start from: its own for the Hub's metadata.csv, metadata.jsonl, ..."""
    return table.rpartition("/")[0] if _is_metadata(table) else ""


def _is_metadata(table: str) -> bool:
    return table.rpartition("/")[2].startswith("metadata.")


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


def _image(path: str) -> ImageRef | Fault:
    if _ending(path) in IMAGE_ENDINGS:
        return listed_image(path)
    return source_fault(
        "image-format",
        f"{quoted(path)} has a text beside it, and isn't called like an image that is read ({_shown_endings()}); "
        "convert it, or rename it if it is one",
    )


def _shown_endings() -> str:
    return ", ".join(sorted(IMAGE_ENDINGS))


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


_Pair = tuple[str, Entry | None, Entry | None]
"""An image's path, the file of its texts, and a .json beside a .txt."""


def _pairs(entries: Iterable[Entry]) -> Iterator[_Pair]:
    """Each image's path with its sidecar, if it has one; what else has one, where no image has it; texts alone."""
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


def _paired(cluster: list[Entry]) -> Iterator[_Pair]:
    by_path = {entry.path: entry for entry in cluster}
    described = {_stem(path) for path in by_path if _ending(path) in IMAGE_ENDINGS}
    for path in by_path:
        stem, ending = _stem(path), _ending(path)
        text, record = (by_path.get(f"{stem}.{side}") for side in _SIDECAR_ENDINGS)
        sidecar = text or record
        if ending in IMAGE_ENDINGS or (sidecar and stem not in described and ending not in _SIDECAR_ENDINGS):
            yield path, sidecar, record if text else None
        elif ending == "txt" and len(cluster) == 1:
            yield path, None, None


def _stem(path: str) -> str:
    return path[: len(path) - len(_ending(path)) - 1] if _ending(path) else path
