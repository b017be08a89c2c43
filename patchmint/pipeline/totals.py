"""Counting rejects over a plan and its retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patchmint.pipeline.plan import Plan, read_unit
from patchmint.shards.commit import read_records
from patchmint.shards.records import CommitRecord, unit_name
from patchmint.shards.rejects import read_rejects
from patchmint.storage import Storage


def standing_rejects(storage: Storage, plans: Sequence[Plan]) -> dict[int, str]:
    """Rejects that no later retry has turned into written samples, or hasn't taken up: reason by ordinal."""
    standing: dict[int, str] = {}
    for plan in plans:
        if plan is not plans[0]:
            for unit in plan.units:
                for planned in read_unit(storage, unit):
                    standing.pop(planned.ordinal, None)
        for record in read_records(storage, [unit.id for unit in plan.units]):
            if record.rejects:
                path = f"rejects/{unit_name(record.unit)}.parquet"
                standing |= {reject.ordinal: reject.fault.reason for reject in read_rejects(storage, path)}
    return standing


def total_rejects(storage: Storage, plans: Sequence[Plan], records: Sequence[CommitRecord]) -> Counter[str]:
    """Number of standing rejects by reason, in alphabetical order."""
    rejects: Counter[str] = Counter()
    if len(plans) > 1:
        rejects.update(standing_rejects(storage, plans).values())
    else:
        for record in records:
            rejects.update(record.rejects)
    return Counter(dict(sorted(rejects.items())))
