"""The table of samples that weren't written, and of images that documents were written without; and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import BinaryIO

import pyarrow as pa

from patchmint.samples import NO_NUMBER, Fault, Reject
from patchmint.shards.sidecar import TableWriter, read_table
from patchmint.storage import Storage

REJECTS_SCHEMA = "patchmint.rejects/1"

_IMAGE = pa.field("image", pa.int32(), nullable=False)

SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("key", "id", "stage", "reason", "message")),
        _IMAGE,
    ],
    metadata={"patchmint.schema": REJECTS_SCHEMA},
)
"""A row a `Reject`. Tables of pictures lack the last column."""

PICTURES_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index(_IMAGE.name))


def write_rejects(file: BinaryIO, rejects: Iterable[Reject], *, documents: bool = False) -> None:
    """Write rejects in order of their ordinals and images; what isn't valid Unicode is written as escapes.

    Args:
        file: open for writing, at its start; it stays open.
        rejects: in any order.
        documents: whether samples are documents.
    """
    table = TableWriter(file, SCHEMA if documents else PICTURES_SCHEMA)
    for reject in sorted(rejects, key=lambda reject: (reject.ordinal, reject.image)):
        texts = {
            "key": reject.key,
            "id": reject.id,
            "stage": reject.fault.stage,
            "reason": reject.fault.reason,
            "message": reject.fault.message,
        }
        escaped = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}
        image = {"image": reject.image} if documents else {}
        table.add({"ordinal": reject.ordinal, **escaped, **image})
    table.close()


def read_rejects_table(storage: Storage, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table of rejects, of `SCHEMA` or some of its columns.

    Raises:
        NotFoundError: there is none at that path.
        StorageError: it can't be read.
        ShardError: it isn't a table of rejects.
    """
    return read_table(storage, path, SCHEMA, columns, {_IMAGE.name: NO_NUMBER})


def read_rejects(storage: Storage, path: str) -> list[Reject]:
    """Read a table of rejects. Raises as `read_rejects_table`."""
    return [
        Reject(row["ordinal"], row["key"], row["id"], Fault(row["stage"], row["reason"], row["message"]), row["image"])
        for row in read_rejects_table(storage, path).to_pylist()
    ]
