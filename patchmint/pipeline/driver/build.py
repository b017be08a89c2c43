"""A build from beginning to end: lease, plan, roll forward, work, manifest.

Crash at any point and run it again: what is committed stays, the rest is done.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from patchmint.config.build import BuildConfig
from patchmint.config.grids import stored_grids
from patchmint.datasets.extension import added, extended_manifest
from patchmint.datasets.ledger import Ledger, roll_forward
from patchmint.errors import BuildError, ConfigError, ShardError, StorageError
from patchmint.json_values import differences
from patchmint.logs import know
from patchmint.pipeline.driver.contracts import Pool, Progress, Reporter
from patchmint.pipeline.driver.runs import RunLog, new_run_id
from patchmint.pipeline.driver.supervise import Supervisor
from patchmint.pipeline.orders import UnitResult, WorkerSettings
from patchmint.pipeline.plan import (
    discard_plan,
    is_whole,
    library_versions,
    make_plan,
    make_retry_plan,
    reading,
    record_models,
    sweep_unplanned,
)
from patchmint.pipeline.plan.memory import runs_on_gpu
from patchmint.pipeline.preflight import check_buildable
from patchmint.pipeline.sources import open_sources
from patchmint.samples import count_parts
from patchmint.shards.commit import sweep
from patchmint.shards.endings import DOCUMENT, INSTANCES, told_tokens, unnumbered
from patchmint.shards.layout import FurtherGridLayout, GridLayout, Layout, TokensLayout
from patchmint.shards.lease import Lease
from patchmint.shards.manifest import (
    SECTIONS,
    ColumnEntry,
    Manifest,
    ModelEntry,
    Totals,
    describe_members,
    write_manifest,
)
from patchmint.shards.plan import ModelRecord, Plan, Unit
from patchmint.shards.reader import iter_samples
from patchmint.shards.readme import write_readme
from patchmint.shards.records import CommitRecord, ImageCounts
from patchmint.shards.saved import forget_saved
from patchmint.shards.schema import TokensDocument, dump_features, parse_features
from patchmint.shards.shard_list import write_shard_list
from patchmint.shards.versions import VERSION
from patchmint.storage import Storage, creates_conditionally, open_storage, syncs_names

_LOG = logging.getLogger(__name__)

MakePool = Callable[[WorkerSettings], Pool]

UNSYNCED = (
    "the file system of {} syncs no folders: after a power cut there, files that were committed shortly before may be "
    "gone; patchmint inspect verify finds them"
)
_DARK = (
    "nearly black images: {}. They have 16 bits, use the lowest twelve at most, and don't say so; scale them to 16, or "
    "add the chunk sBIT (docs/bad-input.md)"
)
_TAKEN_OVER = "another driver has taken over this output (this one was silent for a while); it continues there"


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        run: id of the run.
        planned, written: samples.
        rejects: by reason, those that still stand.
        absent: what of the source is no sample, or wasn't chosen, by reason (`Absent`); no part of `planned`.
        images: of documents: planned, written, dropped; those of rejected documents are the rest. None of pictures.
        units: in the data set.
        done_before: units that earlier runs had finished.
        profile: where the time of this run went (`patchmint.pipeline.driver.runs.Profile.summary`), and `trace`, the
            timeline's address; None unless it was asked for, or where nothing was left to do.
    """

    run: str
    planned: int
    written: int
    rejects: dict[str, int] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    images: ImageCounts | None = None
    units: int = 0
    done_before: int = 0
    profile: dict[str, Any] | None = None

    @property
    def rejected(self) -> int:
        """How many samples are rejects."""
        return sum(self.rejects.values())

    @property
    def missing(self) -> int:
        """Samples that are neither written nor rejected: 0, or something is wrong."""
        return self.planned - self.written - self.rejected


def build(
    config: BuildConfig,
    make_pool: MakePool,
    *,
    min_workers: int,
    max_workers: int,
    reporter: Reporter,
    should_stop: Callable[[], str] = lambda: "",
    retry_failed: bool = False,
    single_driver: bool = False,
    profile: bool = False,
) -> BuildReport:
    """Build a data set, or go on with it.

    Args:
        config: the whole config.
        make_pool: makes the workers, for what they need to know.
        min_workers: workers to have before anything starts.
        max_workers: most workers at a time.
        reporter: where to tell how it stands.
        should_stop: asked often; anything but "" stops the build with that reason.
        retry_failed: once everything is done, take up the rejects in new units.
        single_driver: the caller promises that no other driver runs; for stores that can't create conditionally.
        profile: have the workers time their stages, and write `runs/RUN-trace.json`.

    Raises:
        BusyError: another driver is at work in the output.
        ConfigError: the output holds a build with another config, or the source has no samples.
        BuildError: the build can't go on; what is finished stays.
        StorageError, WeightsError, PluginError: as their names say.
    """
    check_buildable(config)
    storage = open_storage(config.output.uri, outage_seconds=config.limits.outage_seconds)
    if not single_driver and not creates_conditionally(storage):
        raise BuildError(
            f"{storage.uri} ignores conditions (If-None-Match) when an object is created, so two builds could "
            "overwrite each other. If you are sure that only one runs, add --single-driver"
        )
    if not syncs_names(storage):
        reporter.warn(UNSYNCED.format(storage.uri))
    run_id = new_run_id()
    know(run=run_id)
    log = RunLog(storage, run_id)
    with _leased(storage, run_id, reporter) as lease, _swept(storage, run_id, log):

        def stop_reason() -> str:
            if lease.lost.is_set():
                raise BuildError(_TAKEN_OVER)
            return should_stop()

        def planned(samples: int) -> None:
            if reason := stop_reason():
                raise BuildError(reason)
            log.planned(samples)
            reporter.planned(samples)

        log.write()
        roll_forward(storage)
        models = record_models(config)
        ledger = _planned(config, models, storage, lease, planned, reporter, retry_failed=retry_failed)
        ledger.check()
        done_before = len(ledger.records)
        reporter.started(ledger.plans[0], len(ledger.units), done_before)
        # a retry is planned only when everything before it is done, so what is left is of one plan
        plan = next((plan for plan in ledger.plans if ledger.left and ledger.left[0] in plan.units), ledger.plans[-1])
        log.building(compiled=plan.compiled if runs_on_gpu(config) else None)
        if runs_on_gpu(config):
            why = f"of {ledger.planned} samples" if config.runner.compile is None else "of runner.compile"
            _LOG.info("models are %s because %s", "compiled" if plan.compiled else "not compiled", why)
        if ledger.left:
            before = ledger.rejects()
            settings = WorkerSettings(config, run_id, plan.digest, dict(plan.models), profile, plan.compiled)
            supervisor = Supervisor(
                make_pool(settings),
                ledger.left,
                min_workers=min_workers,
                max_workers=max_workers,
                max_reject_share=config.limits.max_reject_share,
                rejected_before=before.total() - count_parts(before),
                samples_before=ledger.planned - sum(unit.samples for unit in ledger.left) - count_parts(before),
                report=lambda progress, result: _report(progress, result, log, reporter),
                warn=reporter.warn,
                should_stop=stop_reason,
                stop_seconds=config.limits.stop_seconds,
                sample_timeout=config.limits.sample_timeout,
                outage_seconds=config.limits.outage_seconds,
                harmless=_harmless(ledger),
            )
            try:
                supervisor.run()
            finally:
                log.work_ended(supervisor.progress)
                if dark := supervisor.progress.dark:
                    reporter.warn(_DARK.format(dark))
            if not lease.is_held():  # the beat would notice too late for a driver that woke up for its last unit
                raise BuildError(_TAKEN_OVER)
            roll_forward(storage)
            ledger = Ledger.read(storage, ledger.plans)
            ledger.check()
        rejects = ledger.rejects()
        _write_manifest(ledger, rejects, extended_manifest(config))
        sweep(storage, None)
        forget_saved(storage)
        log.end("finished")
    return BuildReport(
        run=run_id,
        planned=ledger.planned,
        written=ledger.written,
        rejects=dict(rejects),
        absent=dict(ledger.absent),
        images=ImageCounts.of(ledger.planned_images, ledger.records.values()),
        units=len(ledger.units),
        done_before=done_before,
        profile=log.record.profile,
    )


def _report(progress: Progress, result: UnitResult | None, log: RunLog, reporter: Reporter) -> None:
    log.update(progress, result)
    reporter.progress(progress, result)


@contextmanager
def _leased(storage: Storage, run_id: str, reporter: Reporter) -> Iterator[Lease]:
    lease = Lease.acquire(storage, run_id, warn=reporter.warn)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def _swept(storage: Storage, run_id: str, log: RunLog) -> Iterator[None]:
    """Whatever ends a run: what it has committed is published, what it hasn't is swept."""
    try:
        yield
    except BaseException as error:
        # what ended the run may be the storage itself, which isn't waited for; the next run tidies up as well
        brief = open_storage(storage.uri)
        with suppress(StorageError, ShardError):
            roll_forward(brief)
            sweep(brief, run_id)
        log.end("stopped", str(error) or type(error).__name__)
        raise


def _planned(
    config: BuildConfig,
    models: dict[str, ModelRecord],
    storage: Storage,
    lease: Lease,
    planned: Callable[[int], None],
    reporter: Reporter,
    *,
    retry_failed: bool,
) -> Ledger:
    """The plan that there is, or a new one; with a further one for the rejects if they are to be taken up."""
    ledger = Ledger.read(storage)
    if not retry_failed and _is_replaced(ledger, config, models, lease, reporter):
        ledger = Ledger(storage, [], {})
    if not ledger.plans:
        if retry_failed:
            raise ConfigError(f"{storage.uri} holds no build whose rejects could be retried; build first")
        sources = open_sources(config, outage_seconds=config.limits.outage_seconds)
        settings = [source.deciding() | config.deciding()["limits"] for source in config.all_sources]
        parts = zip(sources.parts.values(), settings, strict=True)
        with reading(parts, storage, planned, reporter.warn) as read:
            plan = make_plan(read, config, models, storage, lease.is_held, read.absent)
        ledger = Ledger.read(storage, [plan])
    ledger.plans[0].check_same(config, models)
    changed = differences(ledger.plans[0].versions, library_versions())
    if changed:
        reporter.warn("the plan was made with other versions, so bytes may differ: " + "; ".join(changed))
    if not ledger.records and len(ledger.plans) == 1 and lease.is_held():
        sweep_unplanned(storage, ledger.plans[0])
    if not retry_failed:
        return ledger
    if ledger.left:
        raise BuildError(
            f"{len(ledger.left)} units aren't built yet; run the same command without --retry-failed first"
        )
    rejected = ledger.standing_rejects()
    if not rejected:
        return ledger
    return Ledger(storage, [*ledger.plans, make_retry_plan(storage, ledger.plans, rejected)], ledger.records)


def _is_replaced(
    ledger: Ledger, config: BuildConfig, models: dict[str, ModelRecord], lease: Lease, reporter: Reporter
) -> bool:
    """Take away a plan that can't be gone on with, if nothing of it is finished; False if it stays or there is none."""
    if ledger.records or len(ledger.plans) != 1:
        return False
    (plan,) = ledger.plans
    why = ["not all of its parts are there"] if not is_whole(ledger.storage, plan) else []
    if plan.version < VERSION:
        why = [f"it is of format {plan.version}"]
    elif not plan.is_of(config, models):
        why = ["it was made with other settings", *plan.changes(config, models)]
    if not why or not lease.is_held() or not discard_plan(ledger.storage):
        return False
    reporter.warn(f"the plan in {ledger.storage.uri}, of which nothing is finished, is replaced: {'; '.join(why)}")
    return True


def _harmless(ledger: Ledger) -> Unit | None:
    """A finished unit whose samples killed nobody."""
    for unit in ledger.units:
        record = ledger.records.get(unit.id)
        if record is not None and record.written and not {"kills-worker", "hangs-worker"} & record.rejects.keys():
            return unit
    return None


def _write_manifest(ledger: Ledger, rejects: Mapping[str, int], base: Manifest | None) -> None:
    """Write shards.json, then dataset.json: from plans, commit records and one written sample.

    Args:
        ledger: of a build whose units are all done.
        rejects: standing rejects by reason.
        base: of the data set that the build reads; None for other sources.

    Raises:
        StorageError, ShardError: a shard can't be read, or the manifest not be written.
    """
    plan, storage = ledger.plans[0], ledger.storage
    records = [ledger.records[unit.id] for unit in ledger.units]
    first = next((record for record in records if record.written), None)
    if first is None:
        return  # a data set without a sample has no layout; the build says that nothing was written
    copied = base if base is not None and all(plan.config[name] is None for name in SECTIONS) else None
    layout = copied.layout if copied is not None else _layout(storage, plan, first, base)
    column = None
    if base is not None and copied is None:
        column = ColumnEntry(base=base.plan_digest, units=base.totals.units)
    manifest = Manifest(
        notice=layout.notice,
        config=dict(plan.config) | ({"extended": copied.config} if copied else {}),
        config_digest=plan.config_digest,
        plan_digest=plan.digest,
        models=(copied.models if copied else {}) | {role: _entry(record) for role, record in plan.models.items()},
        versions=dict(plan.versions),
        layout=layout,
        members=describe_members(layout),
        totals=Totals.of(records, ledger.planned, rejects, plan.absent, plan.images),
        column=column,
    )
    write_shard_list(storage, len(ledger.plans), [record.listed() for record in records], records[0].prefix)
    if column is None:
        write_readme(storage, manifest)
    write_manifest(storage, manifest)


def _tokens(told: Mapping[str, Any], record: CommitRecord) -> TokensLayout:
    """What a sample says of a tokenizer's codes, and what its unit's record does."""
    document = TokensDocument.model_validate_json(json.dumps(told))
    return TokensLayout(**document.model_dump(exclude={"grids"}), rule=record.rules.get(document.member, ""))


def _layout(storage: Storage, plan: Plan, record: CommitRecord, base: Manifest | None) -> Layout:
    """Read from the data itself, so that a driver without a worker (all was done before it came) can tell."""
    sample = next(iter_samples(storage, record.paths[-1]))
    told = json.loads(sample.members[DOCUMENT])  # a column's says what it has only
    labels = plan.config["labels"]
    tokens = [_tokens(each, record) for each in told_tokens(told)]
    (_, grid), *others = stored_grids(plan.config).items()
    layout = Layout(
        grid=GridLayout.of(grid),
        further_grids=tuple(FurtherGridLayout.of(each, name=name) for name, each in others),
        min_coverage=labels["min_coverage"] if labels else None,
        instances=any(unnumbered(ending) == INSTANCES for ending in sample.members),
        tokens=tokens[0] if tokens else None,
        further_tokens=tuple(tokens[1:]),
        features=parse_features(told.get("features_json", dump_features(None))),
        notice=told.get("notice", ""),
        documents="sequence" in told,
    )
    if base is None:
        return layout
    return added(layout, base.layout, keep_labels=bool(plan.config["source"].get("keep_labels")))


def _entry(record: ModelRecord) -> ModelEntry:
    name = f"{record.name} ({record.distribution})" if record.distribution else record.name
    return ModelEntry(name=name, sha256=record.sha256, size=record.size, licence=record.licence)
