"""A build from beginning to end: lease, plan, roll forward, work, manifest.

Crash at any point and run it again: what is committed stays, the rest is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from patchmint.config.build import BuildConfig
from patchmint.errors import BuildError, ConfigError, ShardError, StorageError
from patchmint.pipeline.manifest import finish
from patchmint.pipeline.orders import UnitResult, WorkerSettings
from patchmint.pipeline.plan import (
    ModelRecord,
    Plan,
    load_plans,
    make_plan,
    make_retry_plan,
    record_models,
)
from patchmint.pipeline.preflight import check_weights
from patchmint.pipeline.runs import RunLog, new_run_id
from patchmint.pipeline.sources import open_source
from patchmint.pipeline.supervise import Pool, Progress, Supervisor
from patchmint.pipeline.totals import standing_rejects, total_rejects
from patchmint.shards.commit import committed_units, publish, read_records, sweep
from patchmint.shards.lease import Lease
from patchmint.storage import Storage, open_storage

MakePool = Callable[[WorkerSettings], Pool]


class Reporter(Protocol):
    """Where a build tells how it stands."""

    def planned(self, samples: int) -> None:
        """The plan is being made, and has so many samples by now."""
        ...

    def started(self, plan: Plan, units: int, done: int) -> None:
        """The plan stands; so many units there are, and so many are done already."""
        ...

    def progress(self, progress: Progress, result: UnitResult | None) -> None:
        """A unit is finished; or, without a result, some time has passed."""
        ...

    def warn(self, line: str) -> None:
        """Something that people should know: a worker died, a unit is tried again."""
        ...


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        run: id of the run.
        planned, written: samples.
        rejects: by reason, those that still stand.
        units: in the data set.
        done_before: units that earlier runs had finished.
    """

    run: str
    planned: int
    written: int
    rejects: dict[str, int] = field(default_factory=dict)
    units: int = 0
    done_before: int = 0

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

    Raises:
        BusyError: another driver is at work in the output.
        ConfigError: the output holds a build with another config, or the source has no samples.
        BuildError: the build can't go on; what is finished stays.
        StorageError, WeightsError, PluginError: as their names say.
    """
    check_weights(config)
    storage = open_storage(config.output.uri)
    if not single_driver and not storage.probe_conditional_create():
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

        models = record_models(config)
        plans = _plans(config, models, storage, planned, retry_failed=retry_failed)
        units = [unit for plan in plans for unit in plan.units]
        _roll_forward(storage)
        done = committed_units(storage)
        records = read_records(storage, sorted(done))
        reporter.started(plans[0], len(units), len(done))
        log.building()
        left = [unit for unit in units if unit.id not in done]
        if left:
            # a retry is planned only when everything before it is done, so what is left is of one plan
            plan = next(plan for plan in plans if left[0] in plan.units)
            settings = WorkerSettings(config, run_id, plan.digest, dict(plan.models))
            supervisor = Supervisor(
                make_pool(settings),
                left,
                min_workers=min_workers,
                max_workers=max_workers,
                max_reject_share=config.limits.max_reject_share,
                rejected_before=sum(sum(record.rejects.values()) for record in records),
                samples_before=sum(record.planned for record in records),
                report=lambda progress, result: _report(progress, result, log, reporter),
                warn=reporter.warn,
                should_stop=stop_reason,
            )
            try:
                supervisor.run()
            finally:
                log.update(supervisor.progress)
            records = read_records(storage, [unit.id for unit in units])
        rejects = total_rejects(storage, plans, records)
        finish(storage, plans, records, rejects)
        sweep(storage, None)
        report = BuildReport(
            run=run_id,
            planned=plans[0].total,
            written=sum(record.written for record in records),
            rejects=dict(rejects),
            units=len(units),
            done_before=len(done),
        )
        log.end("finished")
    return report


def _report(progress: Progress, result: UnitResult | None, log: RunLog, reporter: Reporter) -> None:
    log.update(progress)
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
            _roll_forward(storage)
            sweep(storage, run_id)
            log.end("stopped", str(error) or type(error).__name__)
        raise


def _plans(
    config: BuildConfig,
    models: dict[str, ModelRecord],
    storage: Storage,
    planned: Callable[[int], None],
    *,
    retry_failed: bool,
) -> list[Plan]:
    plans = load_plans(storage)
    if not plans:
        source = open_source(config.source)
        plans = [make_plan(source.samples(), config, models, storage, planned)]
    else:
        plans[0].check_same(config, models)
    if retry_failed:
        plans += _retry(storage, plans)
    return plans


def _retry(storage: Storage, plans: Sequence[Plan]) -> list[Plan]:
    """A plan for the rejects that stand; none if there are no rejects."""
    units = [unit for plan in plans for unit in plan.units]
    left = {unit.id for unit in units} - committed_units(storage)
    if left:
        raise ConfigError(
            f"{len(left)} units aren't built yet; run the same command without --retry-failed first, then with it"
        )
    rejected = standing_rejects(storage, plans)
    return [make_retry_plan(storage, plans, rejected)] if rejected else []


def _roll_forward(storage: Storage) -> None:
    """Publish what is committed but not published: its attempts are still there."""
    attempts = {entry.path.split("/")[1] for entry in storage.list("attempts/")}
    if not attempts:
        return
    for record in read_records(storage, sorted(committed_units(storage))):
        if record.attempt in attempts:
            publish(storage, record)
