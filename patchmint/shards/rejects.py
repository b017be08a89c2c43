"""The table of samples that weren't written, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ShardError
from patchmint.samples import Fault, Reject
from patchmint.shards.sidecar import TableWriter
from patchmint.storage import Storage, uri_of

REJECTS_SCHEMA = "patchmint.rejects/1"

SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("key", "id", "stage", "reason", "message")),
    ],
    metadata={"patchmint.schema": REJECTS_SCHEMA},
)


def write_rejects(file: BinaryIO, rejects: Iterable[Reject]) -> None:
    """Write rejects in order of their ordinals; what isn't valid Unicode is written as escapes.

    Args:
        file: open for writing, at its start; it stays open.
        rejects: in any order.
    """
    table = TableWriter(file, SCHEMA)
    for reject in sorted(rejects, key=lambda reject: reject.ordinal):
        texts = {
            "key": reject.key,
            "id": reject.id,
            "stage": reject.fault.stage,
            "reason": reject.fault.reason,
            "message": reject.fault.message,
        }
        escaped = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}
        table.add({"ordinal": reject.ordinal, **escaped})
    table.close()


def read_rejects(storage: Storage, path: str) -> list[Reject]:
    """Read a table of rejects.

    Raises:
        NotFoundError: there is none at that path.
        StorageError: it can't be read.
        ShardError: it isn't a table of rejects.
    """
    with storage.open(path) as file:
        try:
            table = pq.read_table(file, schema=SCHEMA)
        except (pa.ArrowException, OSError) as error:
            message = f"{path} is no table of rejects: {error}; delete its record and build again"
            raise ShardError(message, uri=uri_of(storage, path)) from error
    return [
        Reject(row["ordinal"], row["key"], row["id"], Fault(row["stage"], row["reason"], row["message"]))
        for row in table.to_pylist()
    ]
