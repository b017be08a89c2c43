"""Records of JSON files, or rows of Parquet files, that name their images or hold them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from patchmint.config.sources import ConversationsSourceConfig, InterleavedSourceConfig, ParquetSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import Section, in_sections, inner_setting, require
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_list
from patchmint.pipeline.sources.parquet import ImageColumn, ParquetSource, image_column
from patchmint.pipeline.sources.records import faulty, listed_image, quoted
from patchmint.pipeline.sources.tables import JSON, parquet_file, parquet_rows, require_columns
from patchmint.pipeline.sources.turns import FRAMES, IMAGES, listed
from patchmint.samples import WHOLE_FILE, Fault, Found, ImageRef
from patchmint.storage import Entry, Storage


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        fields: all that it has; of a row, without its images.
        images: what it has for images, as it stands there. Where a row holds them, references in their place.
        field: that they are from, or one of the same meaning.
        where: which record that is, for messages.
        unnamed: what to call it if it has no name of its own.
        folder: that image paths start from; None: the first of the settings.
    """

    fields: Mapping[str, Any]
    images: object
    field: str
    where: str
    unnamed: str
    folder: str | None = None

    @property
    def own(self) -> Mapping[str, Any]:
        """Its fields for conditions, in which `texts` are those of the sample."""
        return {key: value for key, value in self.fields.items() if key != "texts"}

    @property
    def whole(self) -> Mapping[str, Any]:
        """Its fields, its images among them."""
        return {**self.fields, **dict.fromkeys(IMAGES), self.field: self.images}


class RecordsSource(NamedImages):
    """Records in the order of the file, or of the files, one at a time. Base of the sources of such files."""

    at_once = 8
    chooses_files = True  # Parquet files, or images of a JSON file
    several = False
    """Whether there may be several JSON files."""
    layout = ""
    """What the folder should look like, for messages."""
    usual: Sequence[str] = ()
    """Names of files at the top that are read where the settings name none."""
    markers: Sequence[str] = ()
    """Columns one of which a Parquet file must have."""
    what = ""
    """What these columns hold, and how tables without them are read."""

    def __init__(self, config: ConversationsSourceConfig | InterleavedSourceConfig, storage: Storage) -> None:
        self._choice = FileChoice(config)
        self._choice_of_images = FileChoice(config, by_folder=True)
        super().__init__(config, storage)
        self._uri = config.uri
        given = config.annotations
        self._annotations = None if given is None else inner_setting(given, "source.annotations")
        self._image_column = config.image_column
        self._stored: ParquetSource | None = None
        self._lock = threading.Lock()

    def read_record(self, record: Record) -> Iterator[Found]:
        """What a record is about."""
        raise NotImplementedError

    def folder_of(self, path: str) -> str | None:  # noqa: ARG002 (others look at it)
        """The folder that image paths of a file start from, where the settings don't say."""
        return None

    def locate(self, given: object, folder: str | None) -> ImageRef | Fault:
        """Where an image is: from what `Record.images` has in its place."""
        return given if isinstance(given, ImageRef | Fault) else self.image_at(given, folder)

    def check(self) -> None:
        """As `Source.check`."""
        first = next(file for file in self._files if self._choice.has(file.path) or not self._chosen_by_file).path
        if not first.endswith(".parquet"):
            next(stream_list(self._storage, first), None)
            self.check_images(folder=self.folder_of(first))
        else:
            with parquet_file(self._storage, first) as table:
                column = self._column(first, table)
                if column is None or not column.embedded:
                    self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        return self.in_section(tuple(self._files))

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`: files; a single JSON file can't be divided."""
        return in_sections(self._files) if self._chosen_by_file else None

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        for file in section:
            if self._chosen_by_file and not self._choice.has(file.path):
                yield OTHER_FILE
            elif file.path.endswith(".parquet"):
                yield from self._in_parquet(file.path)
            else:
                yield from self._in_json(file.path)

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        if ref.start == WHOLE_FILE:
            return super().read_image(ref)
        with self._lock:
            if self._stored is None:
                with parquet_file(self._storage, ref.path) as table:
                    column = self._column(ref.path, table)
                assert column is not None, "the image is one of a column"
                config = ParquetSourceConfig(kind="parquet", uri=self._uri, image_column=column.name)
                self._stored = ParquetSource(config, self._storage)
        return self._stored.read_image(ref)

    @property
    def _chosen_by_file(self) -> bool:
        return self.several or self._files[0].path.endswith(".parquet")

    @cached_property
    def _files(self) -> list[Entry]:
        """All Parquet files, or the JSON file, or those that there may be."""
        storage, given = self._storage, self._annotations
        if given is None:
            names = [name for name in self.usual if storage.exists(name)]
            found = [Entry(name, storage.size(name)) for name in names] or self._below("")
        else:
            found = self._below(given)
            if not found:
                path = require(storage, given, "source.annotations", self.layout)
                found = [Entry(path, storage.size(path))]
        files = [entry for entry in found if entry.path.endswith(".parquet")] or found
        if not files or not (self.several or len(files) == 1 or files[0].path.endswith(".parquet")):
            names = [entry.path for entry in files]
            what = f"several JSON files ({', '.join(names)})" if files else "neither JSON nor Parquet files"
            raise ConfigError(
                f"source.annotations: there are {what} in {storage.uri}; name the one to read. Expected {self.layout}"
            )
        if self.several or files[0].path.endswith(".parquet"):
            self._choice.check([entry.path for entry in files], storage.uri)
        return files

    def _below(self, folder: str) -> list[Entry]:
        """Parquet files in a folder at any depth, and JSON files at its top: images may be there in millions."""
        depth = folder.count("/") + 1 if folder else 0
        return [
            entry
            for entry in self._storage.list(folder)
            if entry.path.endswith(".parquet") or (entry.path.endswith(JSON) and entry.path.count("/") == depth)
        ]

    def _in_json(self, path: str) -> Iterator[Found]:
        folder, many = self.folder_of(path), len(self._files) > 1
        fields = IMAGES if self._image_column is None else (self._image_column,)
        field = fields[0] if fields[0] in FRAMES else "images"
        for number, entry in enumerate(stream_list(self._storage, path)):
            where, name = f"entry {number} of {path}", f"{path}:{number}" if many else f"entry-{number}"
            if not isinstance(entry, dict):
                yield faulty(name, "record-malformed", f"{where} isn't an object: {quoted(entry)}")
                continue
            images = next((entry[field] for field in fields if entry.get(field) is not None), None)
            if not self._chosen_by_file:
                named = [self.locate(image, folder) for image in listed(images)]
                if not all(isinstance(image, Fault) or self._choice_of_images.has(image.path) for image in named):
                    yield OTHER_FILE
                    continue
            yield from self.read_record(Record(entry, images, field, where, name, folder))

    def _in_parquet(self, path: str) -> Iterator[Found]:
        with parquet_file(self._storage, path) as table:
            column, file = self._column(path, table), listed_image(path)
            others = [name for name in table.schema_arrow.names if column is None or name != column.name]
            read = [*others, *(column.counted if column else ())]
            field = column.name if column and column.name in FRAMES else "images"
            for number, row in parquet_rows(self._storage, path, table, read):
                images = column.images_of(row, file, number - 1) if column else None
                row.pop(column.name if column else "", None)
                yield from self.read_record(Record(row, images, field, f"row {number} of {path}", f"{path}:{number}"))

    def _column(self, path: str, table: pq.ParquetFile) -> ImageColumn | None:
        """Where a Parquet file has its images; None where other columns tell.

        Raises:
            ConfigError: a column is missing.
        """
        shown, names = f"{path} in {self._storage.uri}", table.schema_arrow.names
        if not any(name in names for name in self.markers):
            raise ConfigError(
                f"{shown} has no column of {self.what}; its columns: {', '.join(map(quoted, names))}. Tables with a "
                "text for each image are read with source.kind: parquet"
            )
        image = self._image_column or next((name for name in (*IMAGES, *FRAMES) if name in names), IMAGES[0])
        if image not in names and "image_info" in names:
            return None
        require_columns(shown, [image], names)
        return image_column(table, image)
