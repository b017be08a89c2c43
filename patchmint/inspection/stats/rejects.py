"""Samples that are in no shard, by stage and reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.ledger import iter_rejects


@dataclass(frozen=True)
class RejectCount:
    """How many samples were rejected at a stage for a reason."""

    stage: str
    reason: str
    count: int


def count_rejects(dataset: Dataset) -> tuple[RejectCount, ...]:
    """Rejects that no retry took up, the most frequent first.

    Raises:
        ShardError: a table of rejects, a plan or a record is damaged.
        StorageError: one can't be read.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for table in iter_rejects(dataset):
        counts.update(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True))
    return tuple(
        RejectCount(*cause, count) for cause, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
