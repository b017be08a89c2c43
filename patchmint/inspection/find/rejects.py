"""Which samples weren't written, and why? Looked up in the tables of rejects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.ledger import iter_rejects
from patchmint.errors import InputError
from patchmint.inspection.find.sql import Conditions
from patchmint.samples import Fault, Reject
from patchmint.shards.rejects import SCHEMA
from patchmint.types import Integers


def find_rejects(
    dataset: Dataset, *, reason: str = "", key: str = "", where: str = "", sort: str = "", limit: int = 0
) -> tuple[int, list[Reject]]:
    """Look through the tables of rejects. What a retry took up isn't there; what it rejected again is there once.

    Args:
        dataset: where.
        reason: such as "image-missing"; empty for any.
        key: a pattern for the key, with *, ? and [a-f]; empty for any.
        where: a condition in SQL over the columns of these tables; empty for none.
        sort: what to sort by, in SQL; may end in asc or desc. Empty: in the data set's order.
        limit: rejects wanted; 0: all.

    Returns:
        How many match, and the first `limit` of them, in order.

    Raises:
        InputError: an SQL condition can't be used, or it is one tar.
        ShardError: a table is damaged.
        StorageError: one can't be read.
    """
    if dataset.uri.endswith(".tar"):
        raise InputError(f"{dataset.uri} is one tar; rejects stand beside the shards: give the data set's folder")
    own = [f"{column} {sign} ${column}" for column, sign, value in _given(reason, key) if value]
    values = {column: value for column, _, value in _given(reason, key) if value}
    with Conditions(SCHEMA, own, values, where=where, sort=sort) as conditions:
        for table in iter_rejects(dataset):
            conditions.add(table)
        total, numbers = conditions.total, conditions.numbers(limit)
    return total, _read(dataset, numbers)


def _given(reason: str, key: str) -> tuple[tuple[str, str, str], ...]:
    return ("reason", "=", reason), ("key", "GLOB", key)


def _read(dataset: Dataset, numbers: Integers) -> list[Reject]:
    ascending = np.sort(numbers)
    found: dict[int, Reject] = {}
    first = 0
    for table in iter_rejects(dataset):
        begin, end = np.searchsorted(ascending, [first, first + table.num_rows])
        chosen = ascending[begin:end]
        for number, row in zip(chosen.tolist(), table.take(pa.array(chosen - first)).to_pylist(), strict=True):
            fault = Fault(row["stage"], row["reason"], row["message"])
            found[number] = Reject(row["ordinal"], row["key"], row["id"], fault)
        first += table.num_rows
    return [found[number] for number in numbers.tolist()]
