"""The plan's parts: Parquet files with the samples, a row group a unit, named after their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ShardError
from patchmint.samples import Fault, ImageRef, Part, PlannedSample, SourceSample, SourceText, Turn
from patchmint.shards.plan import Unit
from patchmint.shards.versions import schema_name
from patchmint.storage import Storage, uri_of
from patchmint.types import Box, Instance, Rle

_STRING = pa.string()
_SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64())])
_BOX = pa.struct([("x0", pa.float64()), ("y0", pa.float64()), ("x1", pa.float64()), ("y1", pa.float64())])
_MASK = pa.struct([("height", pa.int32()), ("width", pa.int32()), ("counts", pa.binary())])
_INSTANCE = pa.struct([("box", _BOX), ("span", _SPAN), ("mask", _MASK)])
_TEXT = pa.struct([("content", _STRING), ("phrases", pa.list_(_SPAN)), ("instances", pa.list_(_INSTANCE))])
_TEXT_1 = pa.struct([("content", _STRING), ("phrases", pa.list_(_SPAN)), ("boxes", pa.list_(_BOX))])

_NO_SPAN, _NO_MASK = (0, 0), (0, 0, b"")

_FAULT = pa.struct([("stage", _STRING), ("reason", _STRING), ("message", _STRING)])
_PLACE = [("path", _STRING), ("start", pa.int64()), ("length", pa.int64())]
_IMAGE = pa.struct([*_PLACE, ("source", _STRING), ("number", pa.int64()), ("fault", _FAULT)])

SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("key", _STRING),
        ("id", _STRING),
        ("images", pa.list_(_IMAGE)),
        ("texts", pa.list_(_TEXT)),
        ("conversation", pa.list_(pa.struct([("role", _STRING), ("content", _STRING)]))),
        ("parts", pa.list_(pa.struct([("text", _STRING), ("image", pa.int32()), ("role", _STRING)]))),
        ("image_texts", pa.list_(pa.list_(pa.int32()))),
        ("fault", _FAULT),
    ],
    metadata={"patchmint.schema": schema_name("plan-part")},
)
"""Everything that a `PlannedSample` holds; a `fault` is null where there is none, unknown spans and masks are empty."""

_FIELDS_1 = {"images": pa.field("image", pa.struct(_PLACE)), "texts": pa.field("texts", pa.list_(_TEXT_1))}
_SCHEMA_1 = pa.schema([_FIELDS_1.get(each.name, each) for each in SCHEMA if each.name not in ("parts", "image_texts")])
"""One image a sample, without the name of its source; texts with boxes only."""

PARTS = "plan"
"""Their folder."""

UNITS_A_PART = 100
BYTES_A_PART = 16 << 20
"""A part is closed after the unit with which it reaches one of these: parts are held in memory until they are whole."""


def write_parts(units: Iterable[tuple[int, pa.RecordBatch]], storage: Storage) -> Iterator[Unit]:
    """Write units into parts.

    A part is written in one step and its name comes from its bytes, so writing it again, or twice at once, is harmless.

    Args:
        units: ids, and samples as `SCHEMA` has them, none without any.
        storage: where to.

    Yields:
        The units of each part, once it is written.
    """
    part = _Part()
    for unit, batch in units:
        part.add(unit, batch)
        if part.is_full:
            yield from part.write(storage)
            part = _Part()
    yield from part.write(storage)


def read_unit(storage: Storage, unit: Unit) -> list[PlannedSample]:
    """Read a unit's samples: its row group and the part's footer, nothing else of the part.

    Raises:
        StorageError: the part can't be read.
        ShardError: the part is damaged.
    """
    return from_table(_read(storage, unit))


class _Part:
    """A part in the making."""

    def __init__(self) -> None:
        self.units: list[tuple[int, int, int, int]] = []
        self._buffer = pa.BufferOutputStream()
        # statistics nobody asks for would put two texts a column into the footer, which every worker reads
        self._writer = pq.ParquetWriter(
            self._buffer, SCHEMA, compression="zstd", write_statistics=False, write_page_checksum=True
        )

    def add(self, unit: int, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        self.units.append((unit, batch.num_rows, batch["ordinal"][0].as_py(), int(image_counts(batch).sum())))

    @property
    def is_full(self) -> bool:
        return len(self.units) >= UNITS_A_PART or self._buffer.tell() >= BYTES_A_PART

    def write(self, storage: Storage) -> Iterator[Unit]:
        self._writer.close()
        if not self.units:
            return
        data = self._buffer.getvalue().to_pybytes()
        path = f"{PARTS}/{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        storage.write(path, data)
        for row_group, (unit, samples, first_ordinal, images) in enumerate(self.units):
            yield Unit(unit, samples, first_ordinal, path, row_group, images)


def _read(storage: Storage, unit: Unit) -> pa.Table:
    with storage.open(unit.part) as file:
        try:
            # one coalesced read of the row group, which matters on a store
            source: Any = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
            table = source.read_row_group(unit.row_group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _unusable(storage, unit, f"it is damaged ({error})") from error
    if table.num_rows != unit.samples:
        raise _unusable(
            storage, unit, f"it has {table.num_rows} samples of unit {unit.name}, but the plan has {unit.samples}"
        )
    if not any(table.schema.equals(schema) for schema in (SCHEMA, _SCHEMA_1)):
        raise _unusable(storage, unit, f"it holds other columns: {', '.join(table.schema.names)}")
    return table


def _unusable(storage: Storage, unit: Unit, why: str) -> ShardError:
    return ShardError(
        f"{unit.part} in {storage.uri} can't be used: {why}. Bring it back from a copy, or build into another "
        "output.uri",
        uri=uri_of(storage, unit.part),
    )


def image_counts(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """How many images each document of a batch of `SCHEMA` has, int64 (rows,); 0 of a picture."""
    images, parts = (batch[name].value_lengths().to_numpy() for name in ("images", "parts"))
    return np.where(parts > 0, images, 0).astype(np.int64)


def to_batch(samples: Sequence[PlannedSample]) -> pa.RecordBatch:
    """Samples as one batch of `SCHEMA`. Each must be `storable`."""
    sources = [planned.sample for planned in samples]
    faults = [sample.fault and vars(sample.fault) for sample in sources]
    columns: list[list[Any]] = [
        [planned.ordinal for planned in samples],
        [planned.key for planned in samples],
        [sample.id for sample in sources],
        [[*map(_place, sample.images)] for sample in sources],
        [[(text.content, text.phrases, _instances(text)) for text in sample.texts] for sample in sources],
        [[(turn.role, turn.content) for turn in sample.conversation] for sample in sources],
        [[(part.text, part.image, part.role) for part in sample.parts] for sample in sources],
        [sample.image_texts for sample in sources],
    ]
    arrays = [*map(_array, columns, SCHEMA.types), pa.array(faults, _FAULT)]
    return pa.record_batch(arrays, schema=SCHEMA)


def _instances(text: SourceText) -> list[tuple[Any, ...]]:
    return [
        (each.box, each.span or _NO_SPAN, (*each.mask["size"], each.mask["counts"]) if each.mask else _NO_MASK)
        for each in text.instances
    ]


_NOWHERE = ImageRef("")


def _place(image: ImageRef | Fault) -> tuple[object, ...]:
    fault, ref = (image, _NOWHERE) if isinstance(image, Fault) else (None, image)
    return ref.path, ref.start, ref.length, ref.source, ref.number, fault and vars(fault)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of which structs are tuples; pyarrow itself takes structs as dicts only, in twice the time."""
    if pa.types.is_struct(kind) and kind != _FAULT:
        columns = zip(*values, strict=True) if values else [()] * kind.num_fields
        arrays = [_array(column, field.type) for column, field in zip(columns, kind, strict=True)]
        return pa.StructArray.from_arrays(arrays, fields=list(kind))
    if pa.types.is_list(kind):
        ends = pa.array(accumulate(map(len, values), initial=0), pa.int32())
        return pa.ListArray.from_arrays(ends, _array(list(chain.from_iterable(values)), kind.value_type))
    return pa.array(values, kind)


def from_table(table: pa.Table) -> list[PlannedSample]:
    """The samples of a table of `SCHEMA`."""
    return [_sample(row) for row in table.to_pylist()]


def storable(sample: SourceSample) -> SourceSample:
    """The sample if its strings can be written as UTF-8; else one with a fault, its strings escaped.

    A file name in another encoding reaches Python with lone surrogates, which no JSON, tar or Parquet can carry.
    """
    if all(string.isascii() or _is_unicode(string) for string in _strings(sample)):
        return sample
    message = (
        f"the name, the path or a text of {_escaped(sample.id)} isn't valid Unicode (mostly bytes of another encoding)"
        "; rename the file, or write its annotation in UTF-8"
    )
    image = next((image for image in sample.images if isinstance(image, ImageRef)), _NOWHERE)
    return SourceSample(
        id=_escaped(sample.id),
        images=(replace(image, path=_escaped(image.path)),),
        texts=(),
        fault=Fault("source", "not-unicode", message),
    )


def _strings(sample: SourceSample) -> Iterator[str]:
    yield sample.id
    for image in sample.images:
        yield image.message if isinstance(image, Fault) else image.path
    for part in sample.parts:
        yield part.text
    for text in sample.texts:
        yield text.content
    for turn in sample.conversation:
        yield turn.role
        yield turn.content
    if sample.fault is not None:
        yield sample.fault.message


def _is_unicode(string: str) -> bool:
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(string: str) -> str:
    return string.encode(errors="backslashreplace").decode()


def _sample(row: dict[str, Any]) -> PlannedSample:
    sample = SourceSample(
        id=row["id"],
        images=tuple(map(_image, row["images"] if "images" in row else [row["image"]])),
        texts=tuple(_text(text) for text in row["texts"]),
        conversation=tuple(Turn(**turn) for turn in row["conversation"]),
        fault=Fault(**row["fault"]) if row["fault"] is not None else None,
        parts=tuple(Part(**part) for part in row.get("parts", ())),
        image_texts=tuple(map(tuple, row.get("image_texts", ()))),
    )
    return PlannedSample(row["ordinal"], row["key"], sample)


def _image(row: dict[str, Any]) -> ImageRef | Fault:
    fault = row.pop("fault", None)
    return ImageRef(**row) if fault is None else Fault(**fault)


def _text(row: dict[str, Any]) -> SourceText:
    return SourceText(
        content=row["content"],
        phrases=tuple((span["start"], span["end"]) for span in row["phrases"]),
        instances=tuple(map(_instance, row["instances"]))
        if "instances" in row
        else tuple(Instance(_box(box)) for box in row["boxes"]),
    )


def _instance(row: dict[str, Any]) -> Instance:
    span, mask = (row["span"]["start"], row["span"]["end"]), row["mask"]
    return Instance(
        _box(row["box"]),
        span if span != _NO_SPAN else None,
        Rle(size=[mask["height"], mask["width"]], counts=mask["counts"]) if mask["counts"] else None,
    )


def _box(row: dict[str, float]) -> Box:
    return row["x0"], row["y0"], row["x1"], row["y1"]
