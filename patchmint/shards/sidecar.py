"""The table of a shard: a row a sample, with its place in the tar. Enough to list, search and count."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import NotFoundError, ShardError
from patchmint.shards.endings import tokenizer_name
from patchmint.shards.layout import Layout, TokensLayout
from patchmint.shards.reader import StoredSample, iter_samples
from patchmint.shards.schema import KeyJson, SampleDocument, TokensDocument
from patchmint.shards.versions import schema_name
from patchmint.storage import Storage, uri_of

SIDECAR_SCHEMA = schema_name("sidecar")

PARQUET_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
    "store_schema": False,
}
"""Fixed, so that equal rows give equal bytes (from one version of pyarrow to the next they may differ)."""

_ROWS = 1000
_NOTHING: Mapping[str, object] = MappingProxyType({})


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


_NUMBERS, _SHARES, _STRINGS = _list(pa.int32()), _list(pa.float32()), _list(pa.string())
_SAMPLE = {"key": pa.string(), "id": pa.string(), "ordinal": pa.int64(), "offset": pa.int64(), "size": pa.int64()}
_FOUND = {"phrases": _STRINGS, "phrase_texts": _NUMBERS}
_COUNTS = _list(pa.uint32())
_CODES = {"scores": _SHARES, "origins": _STRINGS, "codes": _COUNTS, "code_counts": _COUNTS}


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata={"patchmint.schema": SIDECAR_SCHEMA})


SCHEMA = _schema(
    {
        **_SAMPLE,
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "rows": pa.int32(),
        "cols": pa.int32(),
        "views": pa.int32(),
        "texts": _STRINGS,
        "label_shares": _SHARES,
        **_FOUND,
        **_CODES,
        "source_name": pa.string(),
        "source_path": pa.string(),
        "source_start": pa.int64(),
    }
)
"""Columns of a picture's row; docs/format.md says what each holds."""

DOCUMENTS = _schema(
    {
        **_SAMPLE,
        "images": pa.int32(),
        "widths": _NUMBERS,
        "heights": _NUMBERS,
        "formats": _STRINGS,
        "rows": _NUMBERS,
        "cols": _NUMBERS,
        "views": _NUMBERS,
        "texts": _STRINGS,
        "label_shares": _SHARES,
        "share_images": _NUMBERS,
        "share_texts": _NUMBERS,
        **_FOUND,
        "phrase_images": _NUMBERS,
        **_CODES,
        "source_name": pa.string(),
        "source_paths": _STRINGS,
        "source_starts": _list(pa.int64()),
    }
)
"""Columns of a document's row."""

OF_CODES = ("codes", "code_counts", "code_rows", "code_cols")
"""Columns of a tokenizer's codes; of one that isn't the first `codes_NAME` and so on. The last two are there where its
grid depends on the image."""


def columns_of(tokens: Sequence[TokensLayout | TokensDocument], *, documents: bool) -> pa.Schema:
    """Columns of the sidecars of a data set with these codes."""
    schema = DOCUMENTS if documents else SCHEMA
    for number, each in enumerate(tokens):
        schema = _with_codes(schema, _suffix(each.member) if number else "", varies=not all(each.grid))
    return schema


def columns_among(names: Sequence[str]) -> pa.Schema:
    """As `columns_of`, of the codes for which a sidecar has columns."""
    schema = DOCUMENTS if "images" in names else SCHEMA
    for name in names:
        for first in ("codes", "code_rows"):
            if name.startswith(first):
                schema = _with_codes(schema, name.removeprefix(first), varies=first != "codes")
    return schema


def _with_codes(schema: pa.Schema, suffix: str, *, varies: bool) -> pa.Schema:
    side = _NUMBERS if "images" in schema.names else pa.int32()
    kinds = dict(zip(OF_CODES, (_COUNTS, _COUNTS, side, side) if varies else (_COUNTS, _COUNTS), strict=False))
    for name, kind in kinds.items():
        if name + suffix not in schema.names:
            schema = schema.append(pa.field(name + suffix, kind, nullable=False))
    return schema


def _suffix(member: str) -> str:
    return f"_{tokenizer_name(member) or member}"


def code_columns(layout: Layout) -> dict[str, tuple[str, ...]]:
    """Columns of each tokenizer's codes, as `OF_CODES`, by its name; of the one without a name by ""."""
    return {
        tokenizer_name(tokens.member): tuple(
            name + (_suffix(tokens.member) if number else "") for name in OF_CODES[: 4 if tokens.varies else 2]
        )
        for number, tokens in enumerate(layout.all_tokens)
    }


ADDED: dict[str, Any] = {"rows": 0, "cols": 0, "views": 0, "source_name": "", "origins": []}
"""Columns that sidecars of version 1 lack, and what they would hold."""

EDITED = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in [("wrong", pa.bool_()), ("corrected", pa.bool_())]]
    + [pa.field("edits", pa.string(), nullable=False)]
)
"""Further columns where there are corrections (`Layout.edits`)."""

NOT_EDITED: Mapping[str, object] = MappingProxyType({"wrong": False, "corrected": False, "edits": "[]"})
"""What they hold of a sample that nobody touched."""

TRUST = pa.schema(
    [pa.field("trust", pa.float32(), nullable=False), pa.field("trusts", _SHARES, nullable=False)],
)
"""Further columns where trust was computed (`Layout.trust`): the least of a sample, and all, as label shares."""

SCHEMA_1 = pa.schema([field for field in SCHEMA if field.name not in ADDED])

PLACE = ("key", "ordinal", "offset", "size")
_OF_LABELS = (
    *("texts", "label_shares", "share_images", "share_texts", *_FOUND, "phrase_images", "scores", "origins"),
    *("rows", "cols", "views"),
)


def schema_for(layout: Layout) -> pa.Schema:
    """Columns of a data set's sidecars: all; in those of a column what it holds, and of documents `images`."""
    whole = columns_of(layout.all_tokens, documents=layout.documents)
    if layout.edits:
        whole = pa.schema([*whole, *EDITED], metadata=whole.metadata)
    if layout.trust:
        whole = pa.schema([*whole, *TRUST], metadata=whole.metadata)
    if not layout.column:
        return whole
    names = {*PLACE, "images", *EDITED.names, *TRUST.names}
    names |= set(_OF_LABELS) if layout.min_coverage is not None else set()
    names |= {"rows", "cols", "views"} if layout.features is not None else set()
    names |= {name for of_one in code_columns(layout).values() for name in of_one}
    return pa.schema([field for field in whole if field.name in names], metadata=whole.metadata)


def sidecar_row(
    told: KeyJson,
    selectors: Sequence[npt.NDArray[Any]],
    codes: Mapping[str, Sequence[npt.NDArray[Any]]],
    *,
    ordinal: int,
    offset: int,
    size: int,
) -> dict[str, Any]:
    """A sample's row, as plain values.

    Args:
        told: its KEY.json.
        selectors: of each image uint8 (texts that label it, rows, cols); none where there are no labels.
        codes: by member, of each image as stored; those that are given.
        ordinal: position in the source's order.
        offset: first byte of its first member's header in the tar.
        size: bytes of all its members, headers and padding included.
    """
    phrases, trusts = told.phrases, np.array(told.trust, np.float32)
    sample: dict[str, Any] = {
        "key": told.key,
        "id": told.id,
        "ordinal": ordinal,
        "offset": offset,
        "size": size,
        "texts": list(told.texts),
        "label_shares": [float(share) for labels in selectors for share in _shares(labels)],
        "phrases": [phrase.text for phrase in phrases],
        "phrase_texts": [phrase.text_index for phrase in phrases],
        "scores": np.array([phrase.score for phrase in phrases], np.float32).tolist(),
        "origins": [phrase.origin for phrase in phrases],
        "codes": [],
        "code_counts": [],
        "source_name": told.images[0].source.name,
        "trust": float(np.min(trusts, initial=1)),
        "trusts": trusts.tolist(),
    }
    for number, tokens in enumerate(told.all_tokens):
        if tokens.member not in codes:  # in a column of labels
            continue
        found: list[Any] = [*_histogram(codes[tokens.member], tokens.codebook_sizes)]
        sides = [list(side) for side in zip(*tokens.grids, strict=True)]
        found += [side[0] for side in sides] if isinstance(told, SampleDocument) else sides
        suffix = _suffix(tokens.member) if number else ""
        sample |= {name + suffix: value for name, value in zip(OF_CODES, found, strict=False)}
    each: dict[str, list[Any]] = {
        "width": [image.width for image in told.images],
        "height": [image.height for image in told.images],
        "format": [image.format for image in told.images],
        "rows": [image.grid.rows for image in told.images],
        "cols": [image.grid.cols for image in told.images],
        "views": [image.grid.views for image in told.images],
        "source_path": [image.source.path for image in told.images],
        "source_start": [image.source.start for image in told.images],
    }
    if isinstance(told, SampleDocument):
        return sample | {name: value for name, (value,) in each.items()}
    labelled = [(image, text) for image, texts in enumerate(told.image_texts) for text in texts] if selectors else []
    return (
        sample
        | {name if name in DOCUMENTS.names else f"{name}s": values for name, values in each.items()}
        | {
            "images": len(told.images),
            "share_images": [image for image, _ in labelled],
            "share_texts": [text for _, text in labelled],
            "phrase_images": [phrase.image for phrase in phrases],
        }
    )


def _shares(selector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(selector.mean(axis=(1, 2)), np.float32)


def stored_row(sample: StoredSample, ordinal: int) -> dict[str, Any]:
    """The row of a sample as it lies in its shard. Raises a ShardError, as the sample does."""
    labels = [image.selector for image in sample.images if image.selector is not None]
    codes = {tokens.member: sample.arrays(f"{tokens.member}.npy") for tokens in sample.key_json.all_tokens}
    return sidecar_row(sample.key_json, labels, codes, ordinal=ordinal, offset=sample.offset, size=sample.size)


def read_table(
    storage: Storage,
    path: str,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    defaults: Mapping[str, object] = _NOTHING,
) -> pa.Table:
    """A whole table of a data set: a sidecar, or samples that were rejected.

    Args:
        storage: the data set's.
        path: of the table.
        schema: what it must be.
        columns: those wanted; None: all.
        defaults: by name, values of columns that may be absent.

    Raises:
        NotFoundError, StorageError: it can't be read.
        ShardError: it is damaged, or a column is absent, of another type, or has nulls.
    """
    names = schema.names if columns is None else list(columns)
    with storage.open(path) as file:
        try:
            # Opening twice as fast as pq.read_table, which makes a dataset of the file first.
            parquet = pq.ParquetFile(file)
            absent = (ADDED if is_of_version_1(parquet) else {}) | {
                name: value for name, value in defaults.items() if name not in parquet.schema_arrow.names
            }
            added = [name for name in names if name in absent]
            table = parquet.read(columns=[name for name in names if name not in added], use_threads=False)
            for name in added:
                column = pa.repeat(pa.scalar(absent[name], schema.field(name).type), parquet.metadata.num_rows)
                table = table.append_column(name, column) if table.num_columns else pa.table({name: column})
            table = table.select(names) if added else table
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _no_table(storage, path, str(error)) from error
    for name in names:
        kind = schema.field(name).type
        if table.column_names.count(name) != 1 or table[name].type != kind or table[name].null_count:
            raise _no_table(storage, path, f"its column {name!r} isn't what the format says")
    return table


def schema_of(storage: Storage, path: str) -> pa.Schema:
    """The columns that a sidecar must have, by those that it has (`columns_among`).

    Raises:
        NotFoundError, StorageError: it can't be read.
        ShardError: it is damaged.
    """
    with storage.open(path) as file:
        try:
            return columns_among(pq.read_schema(file).names)
        except (pa.ArrowException, OSError) as error:
            raise _no_table(storage, path, str(error)) from error


def is_of_version_1(parquet: pq.ParquetFile) -> bool:
    """Whether a sidecar lacks the columns of `ADDED`, as its name of its form says."""
    return (parquet.schema_arrow.metadata or {}).get(b"patchmint.schema") == schema_name("sidecar", 1).encode()


def is_sidecar(storage: Storage, path: str) -> bool:
    """Whether there is a table, and it is ours as far as it says what it is: img2dataset's has the same name.

    Raises:
        StorageError: it can't be read.
    """
    try:
        with storage.open(path) as file:
            metadata = pq.read_metadata(file)
    except NotFoundError:
        return False
    except (pa.ArrowException, OSError):  # who reads it says what is wrong
        return True
    return b"patchmint.schema" in (metadata.metadata or {})


def scan_tar(storage: Storage, tar: str) -> pa.Table:
    """The sidecar of a tar of ours that has none, from the samples themselves: the tar is read through.

    Raises:
        ShardError: the tar is damaged, or no shard of patchmint.
        StorageError: it can't be read.
    """
    rows, block = [], tarfile.BLOCKSIZE
    tokens: Sequence[TokensDocument] = ()
    for ordinal, sample in enumerate(iter_samples(storage, tar)):
        if sample.size != sum(block + len(data) + -len(data) % block for data in sample.members.values()):
            raise ShardError(
                f"{tar} was packed again with extended (PAX or GNU) headers, which shards don't have; pack it with "
                "`tar --format=ustar`, or get the shard as it was built"
            )
        try:
            row, tokens = stored_row(sample, ordinal), sample.key_json.all_tokens
        except ShardError as error:
            raise ShardError(f"{tar} isn't a patchmint shard throughout: {error}") from error
        rows.append(row | {"key": sample.key})  # whatever its document says
    if len({"images" in row for row in rows}) > 1:
        raise ShardError(f"{tar} holds pictures and documents; a shard of patchmint holds one of them")
    return pa.Table.from_pylist(rows, schema=columns_of(tokens, documents="images" in rows[0]) if rows else SCHEMA)


class TableWriter:
    """Writes rows to Parquet. What is held until the end is encoded and compressed: some kB a sample.

    It goes to the file at once and last, since pyarrow finishes an abandoned file when it is garbage-collected.

    Args:
        file: open for writing; it stays open.
        schema: the columns.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._encoded = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._encoded, schema, **PARQUET_OPTIONS)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Encode what is left, and write the file."""
        if self._rows:
            self._flush()
        self._writer.add_key_value_metadata(self._schema.metadata)
        self._writer.close()
        self._file.write(self._encoded.getvalue())

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _histogram(codes: Sequence[npt.NDArray[Any]], codebook_sizes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Distinct codes, ascending, and how often each is there; codebook k's codes come after those before it."""
    starts = np.array([0, *accumulate(codebook_sizes[:-1])])
    none = np.zeros((0, len(starts)), np.int64)  # they may not have been read
    wide = np.concatenate([none, *(each.reshape(-1, len(starts)) for each in codes)]) + starts
    distinct, counts = np.unique(wide, return_counts=True)
    return distinct.tolist(), counts.tolist()


def _no_table(storage: Storage, path: str, why: str) -> ShardError:
    message = f"{path} of {storage.uri} isn't a patchmint table: {why}; run `patchmint inspect verify`"
    return ShardError(message, uri=uri_of(storage, path))
