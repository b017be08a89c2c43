"""Tables of rejects, as they stand after retries."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.ledger import Ledger
from patchmint.datasets.rows import iter_rejects
from patchmint.shards.planned import read_planned_units


def iter_standing_rejects(dataset: Dataset) -> Iterator[pa.Table]:
    """Tables of rejects without what a retry took up; what a retry rejected again is there once, as it was last.

    Yields:
        Arrow tables of `patchmint.shards.rejects.SCHEMA`, units in order; of a lone tar none.

    Raises:
        ShardError: a table, a plan or a record is damaged.
        StorageError: one can't be read.
    """
    if not dataset.reject_tables:
        return
    if not read_planned_units(dataset.storage).retried:
        yield from iter_rejects(dataset)
        return
    standing = Ledger.read(dataset.storage).standing_rejects()
    last = {
        ordinal: number
        for number, table in enumerate(iter_rejects(dataset))
        for ordinal in table["ordinal"].to_pylist()
        if ordinal in standing
    }
    for number, table in enumerate(iter_rejects(dataset)):
        yield table.filter(pa.array([last.get(ordinal) == number for ordinal in table["ordinal"].to_pylist()]))
