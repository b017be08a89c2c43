"""Columns that are made in this process, without a pool: of corrections, of trust. A build's protocol writes them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from patchmint.datasets.dataset import Dataset
from patchmint.json_values import canonical_json
from patchmint.shards.commit import Attempt, committed_units, read_records, sweep
from patchmint.shards.layout import Layout
from patchmint.shards.manifest import ColumnEntry, Manifest, ModelEntry, Totals, describe_members, write_manifest
from patchmint.shards.plan import Plan, Unit
from patchmint.shards.reader import StoredSample
from patchmint.shards.records import ImageCounts
from patchmint.shards.shard_list import write_shard_list
from patchmint.shards.writer import ShardWriter
from patchmint.storage import Storage

Row = tuple[StoredSample, int, Mapping[str, object]]
"""A sample as the column has it, its place in the plan, and what else its sidecar says."""


def plan_column(dataset: Dataset, units: Sequence[Unit], config: dict[str, Any]) -> Plan:
    """The plan of a column of a finished data set; `config` says what decides its bytes."""
    base = dataset.manifest
    assert base is not None
    return Plan(
        generation=0,
        units=list(units),
        config=config,
        config_digest=hashlib.sha256(canonical_json(config).encode()).hexdigest(),
        models={},
        versions=base.versions,
    )


def write_column(
    dataset: Dataset,
    storage: Storage,
    plan: Plan,
    layout: Layout,
    rows_of: Callable[[int], Iterable[Row]],
    *,
    sparse: bool = False,
    models: Mapping[str, ModelEntry] | None = None,
) -> None:
    """Write the units of a plan that aren't there yet, and the manifest.

    Args:
        dataset: whose column it is.
        storage: the column's folder, which has the plan.
        plan: `plan_column`'s.
        layout: of the column.
        rows_of: the samples of a unit, by its number; one after another, so that they needn't be in memory.
        sparse: whether it has some samples only.
        models: that took part, by role.

    Raises:
        StorageError: it can't be written.
        ShardError: a sample isn't as the format says.
    """
    base = dataset.manifest
    assert base is not None
    run, done = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(4)}", committed_units(storage)
    for unit in plan.units:
        if unit.id not in done:
            _write_unit(Attempt(storage, unit.id, run), layout, rows_of(unit.id), plan.digest)
    records = read_records(storage, [unit.id for unit in plan.units])
    sweep(storage, None)
    manifest = Manifest(
        notice=base.notice,
        config=plan.config,
        config_digest=plan.config_digest,
        plan_digest=plan.digest,
        models=dict(models or {}),
        versions=base.versions,
        layout=layout,
        members=describe_members(layout),
        totals=Totals.of(records, plan.total, {}, images=plan.images),
        column=ColumnEntry(base=base.plan_digest, units=base.totals.units, sparse=sparse),
    )
    write_shard_list(storage, 1, [record.listed() for record in records])
    write_manifest(storage, manifest)


def _write_unit(attempt: Attempt, layout: Layout, rows: Iterable[Row], plan_digest: str) -> None:
    _, table, tar = attempt.paths
    images = []
    with (
        attempt.new_file(tar) as shard,
        attempt.new_file(table) as sidecar,
        ShardWriter(shard, sidecar, layout) as writer,
    ):
        for sample, ordinal, told in rows:
            writer.add_stored(sample, ordinal, told)
            images.append(len(sample.images))
    counts = ImageCounts(planned=sum(images), written=sum(images), most=max(images)) if layout.documents else None
    written = len(images)
    attempt.commit(written, written, {}, plan_digest, texts=writer.texts, label_share=writer.label_share, images=counts)
