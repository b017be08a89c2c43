"""Planned samples as Arrow rows, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from patchmint.samples import Fault, ImageRef, PlannedSample, SourceSample, SourceText, Turn

_STRING = pa.string()
_SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64())])
_BOX = pa.struct([("x0", pa.float64()), ("y0", pa.float64()), ("x1", pa.float64()), ("y1", pa.float64())])
_TEXT = pa.struct([("content", _STRING), ("phrases", pa.list_(_SPAN)), ("boxes", pa.list_(_BOX))])

SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("key", _STRING),
        ("id", _STRING),
        ("image", pa.struct([("path", _STRING), ("start", pa.int64()), ("length", pa.int64())])),
        ("texts", pa.list_(_TEXT)),
        ("conversation", pa.list_(pa.struct([("role", _STRING), ("content", _STRING)]))),
        ("fault", pa.struct([("stage", _STRING), ("reason", _STRING), ("message", _STRING)])),
    ],
    metadata={"patchmint.schema": "patchmint.plan-part/1"},
)
"""Everything that a `PlannedSample` holds; `fault` is null where there is none."""


def to_batch(samples: Sequence[PlannedSample]) -> pa.RecordBatch:
    """Samples as one batch of `SCHEMA`. Each must be `storable`."""
    return pa.RecordBatch.from_pylist([_row(sample) for sample in samples], schema=SCHEMA)


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
    return SourceSample(
        id=_escaped(sample.id),
        image=replace(sample.image, path=_escaped(sample.image.path)),
        texts=(),
        fault=Fault("source", "not-unicode", message),
    )


def _strings(sample: SourceSample) -> Iterator[str]:
    yield sample.id
    yield sample.image.path
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


def _row(planned: PlannedSample) -> dict[str, Any]:
    sample = planned.sample
    return {
        "ordinal": planned.ordinal,
        "key": planned.key,
        "id": sample.id,
        "image": vars(sample.image),
        "texts": [
            {
                "content": text.content,
                "phrases": [{"start": start, "end": end} for start, end in text.phrases],
                "boxes": [{"x0": x0, "y0": y0, "x1": x1, "y1": y1} for x0, y0, x1, y1 in text.boxes],
            }
            for text in sample.texts
        ],
        "conversation": [vars(turn) for turn in sample.conversation],
        "fault": vars(sample.fault) if sample.fault is not None else None,
    }


def _sample(row: dict[str, Any]) -> PlannedSample:
    sample = SourceSample(
        id=row["id"],
        image=ImageRef(**row["image"]),
        texts=tuple(_text(text) for text in row["texts"]),
        conversation=tuple(Turn(**turn) for turn in row["conversation"]),
        fault=Fault(**row["fault"]) if row["fault"] is not None else None,
    )
    return PlannedSample(row["ordinal"], row["key"], sample)


def _text(row: dict[str, Any]) -> SourceText:
    return SourceText(
        content=row["content"],
        phrases=tuple((span["start"], span["end"]) for span in row["phrases"]),
        boxes=tuple((box["x0"], box["y0"], box["x1"], box["y1"]) for box in row["boxes"]),
    )
