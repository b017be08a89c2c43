"""The plan's parts: Parquet files with the samples, a row group a unit, named after their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ShardError
from patchmint.pipeline.plan.index import Unit
from patchmint.pipeline.plan.rows import SCHEMA, from_table
from patchmint.samples import PlannedSample
from patchmint.storage import Storage

UNITS_A_PART = 100
BYTES_A_PART = 16 << 20
"""A part is closed after the unit with which it reaches one of these: parts are held in memory until they are whole."""


def write_parts(batches: Iterable[pa.RecordBatch], storage: Storage, first_unit: int) -> Iterator[Unit]:
    """Write units into parts.

    A part is written in one step and its name comes from its bytes, so writing it again, or twice at once, is harmless.

    Args:
        batches: a unit each, of `rows.SCHEMA`, none empty.
        storage: where to.
        first_unit: id of the first.

    Yields:
        The units of each part, once it is written.
    """
    part = _Part()
    for batch in batches:
        part.add(batch)
        if part.is_full:
            yield from part.write(storage, first_unit)
            first_unit += len(part.units)
            part = _Part()
    yield from part.write(storage, first_unit)


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
        self.units: list[tuple[int, int]] = []
        self._buffer = pa.BufferOutputStream()
        # statistics nobody asks for would put two texts a column into the footer, which every worker reads
        self._writer = pq.ParquetWriter(
            self._buffer, SCHEMA, compression="zstd", write_statistics=False, write_page_checksum=True
        )

    def add(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        self.units.append((batch.num_rows, batch["ordinal"][0].as_py()))

    @property
    def is_full(self) -> bool:
        return len(self.units) >= UNITS_A_PART or self._buffer.tell() >= BYTES_A_PART

    def write(self, storage: Storage, first_unit: int) -> Iterator[Unit]:
        self._writer.close()
        if not self.units:
            return
        data = self._buffer.getvalue().to_pybytes()
        path = f"plan/{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        storage.write(path, data)
        for row_group, (samples, first_ordinal) in enumerate(self.units):
            yield Unit(first_unit + row_group, samples, first_ordinal, path, row_group)


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
    if not table.schema.equals(SCHEMA):
        raise _unusable(storage, unit, f"it holds other columns: {', '.join(table.schema.names)}")
    return table


def _unusable(storage: Storage, unit: Unit, why: str) -> ShardError:
    return ShardError(
        f"{unit.part} in {storage.uri} can't be used: {why}. Bring it back from a copy, or build into another "
        "output.uri"
    )
