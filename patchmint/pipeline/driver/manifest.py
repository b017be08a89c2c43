"""dataset.json and shards.json of a finished build, put together from plans, commit records and one written sample."""

from __future__ import annotations

from collections.abc import Mapping

from patchmint.datasets.extension import finished_manifest
from patchmint.datasets.ledger import Ledger
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import SECTION_OF_ROLE, Manifest, ModelEntry, Totals, describe_members, write_manifest
from patchmint.shards.paths import unit_name
from patchmint.shards.plan import ModelRecord, Plan
from patchmint.shards.reader import iter_samples
from patchmint.shards.records import CommitRecord
from patchmint.shards.shard_list import write_shard_list
from patchmint.storage import Storage, open_storage


def finish(ledger: Ledger, rejects: Mapping[str, int]) -> None:
    """Write the list of shards, then the manifest.

    Args:
        ledger: of a build whose units are all done.
        rejects: standing rejects by reason.

    Raises:
        StorageError, ShardError: a shard can't be read, or the manifest not be written.
    """
    plan, storage = ledger.plans[0], ledger.storage
    records = [ledger.records[unit.id] for unit in ledger.units]
    first = next((record for record in records if record.written), None)
    if first is None:
        return  # a data set without a sample has no layout; the build says that nothing was written
    source = plan.config["source"]
    extended = finished_manifest(open_storage(source["uri"])) if source["kind"] == "patchmint" else None
    layout = _layout(storage, plan, first, extended)
    manifest = Manifest(
        notice=layout.notice,
        config=dict(plan.config) | ({"extended": extended.config} if extended else {}),
        config_digest=plan.config_digest,
        plan_digest=plan.digest,
        models=_carried_models(plan, extended) | {role: _entry(record) for role, record in plan.models.items()},
        versions=dict(plan.versions),
        layout=layout,
        members=describe_members(layout),
        totals=Totals.of(records, ledger.planned, rejects),
    )
    write_shard_list(storage, len(ledger.plans), [record.listed() for record in records])
    write_manifest(storage, manifest)


def _carried_models(plan: Plan, extended: Manifest | None) -> dict[str, ModelEntry]:
    """Those that made what is carried over from the data set that was extended."""
    if extended is None:
        return {}
    return {
        role: entry
        for role, entry in extended.models.items()
        if role in SECTION_OF_ROLE and plan.config[SECTION_OF_ROLE[role]] is None
    }


def _layout(storage: Storage, plan: Plan, record: CommitRecord, extended: Manifest | None) -> Layout:
    """Read from the data itself, so that a driver without a worker (all was done before it came) can tell."""
    sample = next(iter_samples(storage, f"shards/{unit_name(record.unit)}.tar"))
    document = sample.document
    labels = plan.config["labels"]
    carried = extended.layout.min_coverage if extended else None
    tokens = None
    if document.tokens.member:
        tokens = TokensLayout(**document.tokens.model_dump())
    grid = document.grid
    return Layout(
        grid=GridLayout(rows=grid.rows, cols=grid.cols, patch_px=grid.patch_px, fit=grid.fit),
        min_coverage=labels["min_coverage"] if labels else carried,
        tokens=tokens,
        features=document.features,
        notice=document.notice,
    )


def _entry(record: ModelRecord) -> ModelEntry:
    name = f"{record.name} ({record.distribution})" if record.distribution else record.name
    return ModelEntry(name=name, sha256=record.sha256, size=record.size, licence=record.licence)
