"""Parquet files that hold images, as on the Hugging Face Hub."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.sources import ParquetSourceConfig
from patchmint.errors import ConfigError, ImageMissingError, StorageError
from patchmint.pipeline.sources.base import Section, StoredImages, in_sections
from patchmint.pipeline.sources.choice import columns_of
from patchmint.pipeline.sources.documents import as_documents
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice
from patchmint.pipeline.sources.records import NO_IMAGE, Sample, as_id, listed_image, quoted
from patchmint.pipeline.sources.tables import is_bytes, parquet_file, parquet_rows, require_columns
from patchmint.pipeline.sources.turns import listed
from patchmint.samples import NO_NUMBER, Fault, Found, ImageRef
from patchmint.storage import Entry, Storage

USUAL_TEXTS = ("caption", "captions", "text", "texts")
_KEPT_GROUPS = 2
"""Threads read in order, so all are in one row group or on the border of two."""

_BATCH_ROWS = 64


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of a Parquet URI, and the name of the file in it ("" = all)."""
    if not uri.endswith(".parquet"):
        return uri, ""
    cut = uri.rfind("/") + 1
    return uri[:cut] or ".", uri[cut:]


@dataclass(frozen=True)
class ImageColumn:
    """A column of images, or of lists of images, or of their paths.

    Attributes:
        name: of the column.
        counted: what to read of it while planning, to know how many images there are; not their bytes, if possible.
        embedded: whether it holds images, not paths.
    """

    name: str
    counted: tuple[str, ...]
    embedded: bool

    def images_of(self, row: dict[str, Any], file: ImageRef | Fault, number: int) -> Any:
        """Images of a row, one or a list: references to those that it holds, or their paths. None: there is none."""

        def image(item: Any, place: int = NO_NUMBER) -> object:
            if item is None or not self.embedded:
                return item["path"] if isinstance(item, dict) else item
            return file if isinstance(file, Fault) else replace(file, start=number, number=place)

        value = row.get(self.name, True if not self.counted else None)
        return [image(item, place) for place, item in enumerate(value)] if isinstance(value, list) else image(value)


def image_column(table: pq.ParquetFile, name: str) -> ImageColumn:
    """Where a Parquet file has its images, of which the column is known to be there."""
    kind = table.schema_arrow.field(name).type
    many = hasattr(kind, "value_type") and not pa.types.is_dictionary(kind)
    item = kind.value_type if many else kind
    if not pa.types.is_struct(item) and not is_bytes(item):
        return ImageColumn(name, (name,), embedded=False)
    leaves = {table.schema.column(index).path: index for index in range(len(table.schema.names))}
    own = {leaf: index for leaf, index in leaves.items() if leaf.startswith(f"{name}.")}
    paths = tuple(leaf for leaf in own if leaf.endswith(".path"))
    if paths and all(_is_null(table, index) for leaf, index in own.items() if leaf.endswith(".bytes")):
        return ImageColumn(name, paths, embedded=False)
    return ImageColumn(name, paths or ((name,) if many else ()), embedded=True)


def _is_null(table: pq.ParquetFile, leaf: int) -> bool:
    """Whether a leaf column says that it holds nothing at all."""
    groups = (table.metadata.row_group(group).column(leaf) for group in range(table.num_row_groups))
    return all(
        chunk.statistics is not None
        and chunk.statistics.has_null_count
        and chunk.statistics.null_count == chunk.num_values
        for chunk in groups
    )


@dataclass
class _RowGroup:
    """The images of one row group, read by the first thread that needs one."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    images: list[Any] | None = None


class ParquetSource(StoredImages):
    """Rows in order, file by file in the order of their names."""

    at_once = 8
    chooses_files = True

    def __init__(self, config: ParquetSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._choice = FileChoice(config)
        _, self._name = split_uri(config.uri)
        self._image = config.image_column
        self._texts = config.text_columns
        self._asked = {name.casefold() for name in columns_of(config.where)}
        self._id = config.id_column
        self._documents = config.documents
        self._spread = config.image_texts
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int], _RowGroup] = OrderedDict()
        self._starts: dict[str, list[int]] = {}

    def check(self) -> None:
        """As `Source.check`: files are there, and the first has the columns."""
        path = next(file.path for file in self._files() if self._choice.has(file.path))
        with parquet_file(self._storage, path) as table:
            self._columns(path, table)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`. Only texts and names are read; images stay where they are."""
        return self.in_section(tuple(self._files()))

    def sections(self) -> Iterator[Section]:
        """As `Source.sections`: files."""
        return in_sections(self._files())

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        for file in section:
            if not self._choice.has(file.path):
                yield OTHER_FILE
                continue
            with parquet_file(self._storage, file.path) as table:
                yield from self._in_file(file.path, table)

    def _files(self) -> list[Entry]:
        files = [entry for entry in self._storage.list() if entry.path.endswith(".parquet")]
        if self._name:
            files = [file for file in files if file.path == self._name]
        if not files:
            raise ConfigError(f"source.uri: there is no {self._name or '.parquet file'} in {self._storage.uri}")
        self._choice.check([file.path for file in files], self._storage.uri)
        return files

    def _columns(self, path: str, table: pq.ParquetFile) -> tuple[tuple[str, ...], ImageColumn]:
        """The columns of texts, and that of images.

        Raises:
            ConfigError: a column isn't there, or holds something else.
        """
        shown, schema = f"{path} in {self._storage.uri}", table.schema_arrow
        require_columns(shown, (self._image, *self._texts, *([self._id] if self._id else [])), schema.names)
        texts = self._texts or _only_usual(shown, schema.names)
        for name in texts:
            _check_texts(shown, name, schema.field(name).type)
        _check_images(shown, self._image, schema.field(self._image).type, lists=self._documents)
        return texts, image_column(table, self._image)

    def _in_file(self, path: str, table: pq.ParquetFile) -> Iterator[Found]:
        shown = f"{path} in {self._storage.uri}"
        texts, images = self._columns(path, table)
        columns = [*texts, *([self._id] if self._id else []), *images.counted]
        asked = [name for name in table.schema_arrow.names if name.casefold() in self._asked and name != self._image]
        file = listed_image(path)
        for number, row in parquet_rows(self._storage, path, table, dict.fromkeys([*columns, *asked])):
            given = row.get(self._image)
            named = given.get("path") if isinstance(given, dict) else None
            own = (as_id(row.get(self._id)) if self._id else named) or f"{path}:{number}"
            record = {name: row[name] for name in asked}
            image = replace(file, start=number - 1) if isinstance(file, ImageRef) else file
            sample = Sample(own, NO_IMAGE if self._documents else image, record)
            for name in texts:
                for value in row[name] if isinstance(row[name], list) else [row[name]]:
                    if value is None:
                        sample.add_absent("text-null")
                    else:
                        sample.add_text(value, f"{quoted(name)} in row {number} of {shown}")
            found = sample.finish(f"row {number} of {shown} has no text, only nulls or empty lists")
            if self._documents:
                held: list[Any] = listed(images.images_of(row, file, number - 1))
                found = as_documents(found, held, f"row {number} of {shown}", self._spread)
            yield from found

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`. The row group around the image is kept, since its neighbours come next."""
        starts = self._row_group_starts(ref.path)
        number = bisect_right(starts, ref.start) - 1
        if not 0 <= number < len(starts) - 1:
            raise StorageError(
                f"{ref.path} in {self._storage.uri} has no row {ref.start}; it was replaced since the plan was made: "
                "bring it back, or build into a new folder"
            )
        value = self._row_group(ref.path, number)[ref.start - starts[number]]
        value = value.as_py()
        if isinstance(value, list):
            value = value[ref.number] if 0 <= ref.number < len(value) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise ImageMissingError(
                f"row {ref.start + 1} of {ref.path} in {self._storage.uri} holds no image bytes; embed the images when "
                "writing the Parquet files, or read them as a folder",
                path=ref.path,
            )
        return data  # type: ignore[no-any-return]

    def _row_group_starts(self, path: str) -> list[int]:
        with self._lock:
            starts = self._starts.get(path)
        if starts is None:
            with self._opened(path) as table:
                sizes = (table.metadata.row_group(index).num_rows for index in range(table.num_row_groups))
                starts = list(accumulate(sizes, initial=0))
            with self._lock:
                self._starts[path] = starts
        return starts

    def _row_group(self, path: str, number: int) -> list[Any]:
        key = (path, number)
        with self._lock:
            group = self._groups.setdefault(key, _RowGroup())
            self._groups.move_to_end(key)
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        with group.lock:
            if group.images is None:
                group.images = self._read_group(path, number)
            return group.images

    def _read_group(self, path: str, number: int) -> list[Any]:
        with self._opened(path) as table:
            kind = table.schema_arrow.field(self._image).type
            # of lists, all is read: there is no name for the bytes in them that every writer uses
            column = f"{self._image}.bytes" if pa.types.is_struct(kind) else self._image
            # batches, because a row group of more than 2 GB of structs doesn't come in one piece
            batches = table.iter_batches(_BATCH_ROWS, row_groups=[number], columns=[column], use_threads=False)
            return [value for batch in batches for value in batch.column(0)]

    @contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        try:
            with parquet_file(self._storage, path) as table:
                yield table
        except (ConfigError, KeyError, pa.ArrowException, OSError) as error:
            raise StorageError(
                f"{path} in {self._storage.uri} can't be read any more ({error}); bring the file back as it was when "
                "the plan was made, and run again"
            ) from error


def _only_usual(shown: str, columns: list[str]) -> tuple[str, ...]:
    found = [name for name in USUAL_TEXTS if name in columns]
    if len(found) != 1:
        what = f"several columns of texts ({', '.join(found)})" if found else "no column that is clearly one of texts"
        raise ConfigError(
            f"source.text_columns: {shown} has {what}; name it. Its columns: {', '.join(map(quoted, columns))}"
        )
    return (found[0],)


def _check_texts(shown: str, column: str, kind: Any) -> None:
    """Refuse columns that can hold no text at all.

    Raises:
        ConfigError: it is one of numbers, dates, bytes or structs.
    """
    item = kind.value_type if hasattr(kind, "value_type") else kind  # of a list, or of a dictionary
    if not (pa.types.is_string(item) or pa.types.is_large_string(item) or pa.types.is_null(item)):
        raise ConfigError(
            f"source.text_columns: column {column!r} of {shown} is of type {kind}, not strings or lists of strings; "
            "name the right column"
        )


def _check_images(shown: str, column: str, kind: Any, *, lists: bool) -> None:
    """Refuse a column that doesn't hold images, or lists of them, where there may be such.

    Raises:
        ConfigError: it is that.
    """
    item = kind.value_type if lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)) else kind
    data = {each.name: each.type for each in item}.get("bytes") if pa.types.is_struct(item) else item
    if data is None or not is_bytes(data):
        raise ConfigError(
            f"source.image_column: column {column!r} of {shown} is of type {kind}, not bytes or a struct of bytes and "
            "path; name the right column, or read files that are beside their table with kind: folder. Lists of images "
            "are read with documents: true"
        )
