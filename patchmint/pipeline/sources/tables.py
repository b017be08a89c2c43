"""Tables of any size (CSV, TSV, JSONL, a list in JSON, Parquet), row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import check_head, open_checked
from patchmint.pipeline.sources.json_stream import LINES, stream_list
from patchmint.pipeline.sources.records import quoted
from patchmint.storage import Storage

Row = tuple[int, dict[str, Any] | str]
"""Number of a row (from 1, the head not counted), and its values by column, or why it has none."""

JSON = (".json", *LINES)
TABLES = (".csv", ".tsv", *JSON, ".parquet")

_BATCH_ROWS = 1024
_DELIMITERS = ("\t", ";", "|", ",")
"""What may part the columns of a table in place of what its ending says."""


class _Bars(csv.excel):
    """A blank follows each bar, and quotes are the texts' own."""

    quoting = csv.QUOTE_NONE
    skipinitialspace = True


_PARQUET_MAGIC = b"PAR1"


def rows(storage: Storage, path: str, columns: Sequence[str], also: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a table.

    Strings that aren't UTF-8 come out with lone surrogates.

    Args:
        storage: the source's root.
        path: the table; its name's ending says what it is.
        columns: those that are needed.
        also: others to read from a Parquet file if they are there, in lower case.

    Raises:
        ConfigError: it isn't a table of this kind, or lacks a column.
        StorageError: it can't be read.
    """
    ending = "." + path.rpartition(".")[2].lower()
    if ending not in TABLES:
        raise ConfigError(f"the table {path} is none that can be read; its name must end with {', '.join(TABLES)}")
    if ending == ".parquet":
        with parquet_file(storage, path) as file:
            require_columns(f"{path} in {storage.uri}", columns, file.schema_arrow.names)
            more = [name for name in file.schema_arrow.names if name.casefold() in also]
            yield from parquet_rows(storage, path, file, dict.fromkeys([*columns, *more]))
        return
    if ending in JSON:
        yield from _records(stream_list(storage, path), f"{path} in {storage.uri}", columns)
        return
    with open_checked(storage, path, f"a {ending} table") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        yield from _csv(text, f"{path} in {storage.uri}", columns, "\t" if ending == ".tsv" else ",")


@contextmanager
def parquet_file(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file.

    Raises:
        ConfigError: it isn't one, or is cut.
        StorageError: it can't be read.
    """
    with storage.open(path) as file:
        if file.read(len(_PARQUET_MAGIC)) != _PARQUET_MAGIC:
            file.seek(0)
            check_head(file, f"{path} in {storage.uri}", "a Parquet file")
        file.seek(0)
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise broken_parquet(storage, path, error) from error
        yield table


def broken_parquet(storage: Storage, path: str, error: Exception) -> ConfigError:
    """The error to raise where pyarrow can't read a file."""
    return ConfigError(f"{path} in {storage.uri} isn't a sound Parquet file ({error}); it may be cut: get it again")


def require_columns(shown: str, needed: Sequence[str], found: Sequence[str]) -> None:
    """Make sure that a table has the columns.

    Raises:
        ConfigError: it lacks one.
    """
    for name in needed:
        if name not in found:
            raise ConfigError(
                f"{shown} has no column {name!r}; its columns: {', '.join(map(quoted, found))}. Name the right one in "
                "the source's settings"
            )


def parquet_rows(
    storage: Storage, path: str, table: pq.ParquetFile, columns: Iterable[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, some of its columns only; memory holds a batch of them.

    Raises:
        ConfigError: it is damaged.
    """
    number = 0
    try:
        for batch in table.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
            values = [_python_values(batch.column(name)) for name in batch.schema.names]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(batch.schema.names, row, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise broken_parquet(storage, path, error) from error


def is_bytes(kind: Any) -> bool:
    """Whether a column of this Arrow type holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _python_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_text_of(value) for value in column.cast(_as_binary(column.type)).to_pylist()]


def _as_binary(kind: Any) -> Any:
    """The same type with bytes in the place of strings."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_binary(field.type)) for field in kind])
    return pa.large_binary() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind


def _text_of(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case list():
            return [_text_of(item) for item in value]
        case dict():
            return {key: _text_of(item) for key, item in value.items()}
        case _:
            return value


def _records(records: Iterator[Any], shown: str, columns: Sequence[str]) -> Iterator[Row]:
    sound = False
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            yield number, f"record {number} of {shown} is {quoted(record)}, not an object in JSON"
            continue
        if not sound:  # a wrong name of a column would otherwise make every record a fault
            require_columns(shown, columns, list(record))
            sound = True
        yield number, record


def _csv(text: io.TextIOWrapper, shown: str, columns: Sequence[str], delimiter: str) -> Iterator[Row]:
    first = text.readline()
    if delimiter not in first:  # open_clip's .csv have tabs, Flickr30k's bars, those of many a spreadsheet semicolons
        delimiter = next((other for other in _DELIMITERS if other in first), delimiter)
    reader = csv.reader(chain([first], text), _Bars if delimiter == "|" else "excel", delimiter=delimiter, strict=True)
    number = 0
    try:
        head = next(reader, [])
        require_columns(shown, columns, head)
        for number, values in enumerate(reader, 1):
            if not values:
                continue
            if len(values) != len(head):
                yield number, f"row {number} of {shown} has {len(values)} values for {len(head)} columns"
                continue
            yield number, dict(zip(head, values, strict=True))
    except csv.Error as error:
        raise ConfigError(
            f"{shown} isn't a sound table after row {number} ({error}); check its quotes, or save it as JSONL"
        ) from error
