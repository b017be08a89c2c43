"""A build from beginning to end: lease, plan, roll forward, work, manifest.

Crash at any point and run it again: what is committed stays, the rest is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from patchmint.annotate.preflight import check_loadable
from patchmint.config.build import BuildConfig, differences
from patchmint.datasets.extension import check_extension
from patchmint.datasets.ledger import Ledger, roll_forward
from patchmint.errors import BuildError, ConfigError, ShardError, StorageError
from patchmint.pipeline.driver.manifest import finish
from patchmint.pipeline.driver.runs import RunLog, new_run_id
from patchmint.pipeline.driver.supervise import Pool, Progress, Reporter, Supervisor
from patchmint.pipeline.orders import UnitResult, WorkerSettings
from patchmint.pipeline.plan import library_versions, make_plan, make_retry_plan, record_models
from patchmint.pipeline.sources import open_source
from patchmint.shards.commit import sweep
from patchmint.shards.lease import Lease
from patchmint.shards.plan import ModelRecord
from patchmint.storage import Storage, creates_conditionally, open_storage

MakePool = Callable[[WorkerSettings], Pool]


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        run: id of the run.
        planned, written: samples.
        rejects: by reason, those that still stand.
        units: in the data set.
        done_before: units that earlier runs had finished.
        profile: where the time of this run went (`patchmint.pipeline.driver.profile.Profile.summary`), and `trace`, the
            timeline's address; None unless it was asked for, or where nothing was left to do.
    """

    run: str
    planned: int
    written: int
    rejects: dict[str, int] = field(default_factory=dict)
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
    check_extension(config)
    check_loadable(config)
    storage = open_storage(config.output.uri)
    if not single_driver and not creates_conditionally(storage):
        raise BuildError(
            f"{storage.uri} ignores conditions (If-None-Match) when an object is created, so two builds could "
            "overwrite each other. If you are sure that only one runs, add --single-driver"
        )
    run_id = new_run_id()
    log = RunLog(storage, run_id)
    with _leased(storage, run_id, reporter) as lease, _swept(storage, run_id, log):

        def stop_reason() -> str:
            if lease.lost.is_set():
                return "another driver has taken over this output (this one was silent for a while); it goes on there"
            return should_stop()

        def planned(samples: int) -> None:
            if reason := stop_reason():
                raise BuildError(reason)
            reporter.planned(samples)

        log.write()
        roll_forward(storage)
        models = record_models(config)
        ledger = _planned(config, models, storage, planned, reporter, retry_failed=retry_failed)
        ledger.check()
        done_before = len(ledger.records)
        reporter.started(ledger.plans[0], len(ledger.units), done_before)
        log.building()
        if ledger.left:
            # a retry is planned only when everything before it is done, so what is left is of one plan
            plan = next(plan for plan in ledger.plans if ledger.left[0] in plan.units)
            supervisor = Supervisor(
                make_pool(WorkerSettings(config, run_id, plan.digest, dict(plan.models), profile)),
                ledger.left,
                min_workers=min_workers,
                max_workers=max_workers,
                max_reject_share=config.limits.max_reject_share,
                rejected_before=ledger.rejects().total(),
                samples_before=ledger.planned - sum(unit.samples for unit in ledger.left),
                report=lambda progress, result: _report(progress, result, log, reporter),
                warn=reporter.warn,
                should_stop=stop_reason,
            )
            try:
                supervisor.run()
            finally:
                log.update(supervisor.progress)
                log.write_profile()
            roll_forward(storage)
            ledger = Ledger.read(storage, ledger.plans)
            ledger.check()
        rejects = ledger.rejects()
        finish(ledger, rejects)
        sweep(storage, None)
        log.end("finished")
    return BuildReport(
        run=run_id,
        planned=ledger.planned,
        written=ledger.written,
        rejects=dict(rejects),
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
        # what ended the run may be the storage itself; the next run tidies up as well
        with suppress(StorageError, ShardError):
            roll_forward(storage)
            sweep(storage, run_id)
            log.end("stopped", str(error) or type(error).__name__)
        raise


def _planned(
    config: BuildConfig,
    models: dict[str, ModelRecord],
    storage: Storage,
    planned: Callable[[int], None],
    reporter: Reporter,
    *,
    retry_failed: bool,
) -> Ledger:
    """The plan that there is, or a new one; with a further one for the rejects if they are to be taken up."""
    ledger = Ledger.read(storage)
    if not ledger.plans:
        if retry_failed:
            raise ConfigError(f"{storage.uri} holds no build whose rejects could be taken up; build first")
        source = open_source(config.source)
        return Ledger.read(storage, [make_plan(source.samples(), config, models, storage, planned)])
    ledger.plans[0].check_same(config, models)
    changed = differences(ledger.plans[0].versions, library_versions())
    if changed:
        reporter.warn("the plan was made with other versions, so bytes may differ: " + "; ".join(changed))
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
