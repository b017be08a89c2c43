"""What the plan says about the units: how many samples each has. The rest of the plan is the pipeline's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.errors import ShardError
from patchmint.shards.names import PLAN_PATH, plan_path
from patchmint.storage import Storage, uri_of

_DIGEST = b"patchmint.plan_digest"


@dataclass(frozen=True)
class PlannedUnits:
    """Units and their samples.

    Attributes:
        digests: of the base plan, then of the retries.
        samples: planned samples by unit, retries included.
        total: samples in the source.
        retried: samples planned once more, in retries.
    """

    digests: tuple[str, ...]
    samples: dict[int, int]
    total: int
    retried: int


def read_planned_units(storage: Storage) -> PlannedUnits:
    """Read plan.parquet and the retry plans beside it.

    Raises:
        NotFoundError: there is no plan.
        StorageError: it can't be read.
        ShardError: it is no plan, or two plans have the same unit.
    """
    digests, samples, totals = [], dict[int, int](), []
    for path in _plans(storage):
        digest, units = _read(storage, path)
        if samples.keys() & units.keys():
            message = f"{path} has units that an earlier plan has; the plans are of different builds"
            raise ShardError(message, uri=uri_of(storage, path))
        digests.append(digest)
        samples |= units
        totals.append(sum(units.values()))
    return PlannedUnits(tuple(digests), samples, totals[0], sum(totals[1:]))


def _plans(storage: Storage) -> Iterator[str]:
    yield PLAN_PATH
    for retry in count(1):
        path = plan_path(retry)
        if not storage.exists(path):
            return
        yield path


def _read(storage: Storage, path: str) -> tuple[str, dict[int, int]]:
    with storage.open(path) as file:
        try:
            # pq.read_table makes a dataset of the file first, and takes twice as long to import what it needs for that.
            table = pq.ParquetFile(file).read(columns=["unit", "samples"], use_threads=False)
            digest = (table.schema.metadata or {})[_DIGEST].decode()
            return digest, dict(zip(table["unit"].to_pylist(), table["samples"].to_pylist(), strict=True))
        except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
            message = f"{path} is no plan ({error}); it is damaged, or another program wrote it"
            raise ShardError(message, uri=uri_of(storage, path)) from error
