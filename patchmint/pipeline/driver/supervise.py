"""The driver's loop: hands units to workers, replaces the dead, finds the samples that kill, and stops in good order.

Knows nothing of processes or Ray: a `Pool` does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from patchmint.errors import BuildError
from patchmint.pipeline.driver.hunt import Hunt
from patchmint.pipeline.orders import Died, Done, Event, Failed, Order, Ready, Saved, UnitResult, Working
from patchmint.shards.plan import Plan, Unit

_LOG = logging.getLogger(__name__)

MIN_REJECTS_TO_STOP = 10
"""Below this many rejects no share stops a build: one bad photograph of fifteen is no wrong config."""

_TRANSIENT_TRIES = 5
_LONGEST_REST_SECONDS = 60.0
_SETUP_DEATHS = 3
_FIRST_TIMEOUT_SECONDS = 1800.0
_LEAST_TIMEOUT_SECONDS = 600.0
_MOST_GAPS = 20
_POLL_SECONDS = 0.5


class Pool(Protocol):
    """Workers, wherever they run. Each does one order at a time; a dead one is replaced by the pool."""

    def start(self, workers: int) -> None:
        """Ask for that many workers at most; those that can't be placed yet may come later."""
        ...

    def submit(self, worker: int, order: Order) -> None:
        """Give an idle worker something to do."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """What happened, waiting at most so long for something to happen."""
        ...

    def observe(self, progress: Progress, result: UnitResult | None) -> None:
        """How the run stands, as often as it is reported: a pool may export the counts."""
        ...

    def interrupt(self, seconds: float) -> None:
        """Ask all workers to save what they have annotated; each that had something to save says `Saved`.

        Args:
            seconds: for each to wait for the end of its batch.
        """
        ...

    def kill(self, worker: int) -> None:
        """End a worker that hangs; `wait` tells of its death."""
        ...

    def retire(self, worker: int) -> None:
        """Let go of an idle worker that there is no work for."""
        ...

    def replace(self, worker: int) -> int:
        """Start another in the place of a worker that failed to set itself up, and say its number."""
        ...

    def stop(self) -> None:
        """End all workers at once, whatever they do."""
        ...


@dataclass
class PlaceTally:
    """What has happened at one place in this run.

    Attributes:
        samples, units: finished there.
        deaths: of workers, hanging ones included.
        hangs: workers that hung.
        aside: whether it gets no units for now.
    """

    samples: int = 0
    units: int = 0
    deaths: int = 0
    hangs: int = 0
    aside: bool = False


@dataclass
class Progress:
    """How a run stands.

    Attributes:
        units: units to do in this run.
        done: units finished in this run.
        samples, written: samples in the finished units, and those of them that were written.
        rejects: by reason.
        bytes: written into shards.
        workers: workers that are ready.
        deaths: workers that died.
        seconds: of all workers together, by stage.
        queue_wait: seconds that workers stood idle while units were left.
        planned: samples in all units of this run.
        batch_sizes: images that models took at once, in ascending order; workers may differ.
        saved: of `samples`, those that an earlier run had annotated.
        working: by worker, how far it is with a unit that isn't finished.
        workers_wanted: workers that were asked for, without those that were let go because no work was left for them.
        by_place: by host and device, as in "node7 cuda:3".
    """

    units: int
    planned: int
    done: int = 0
    samples: int = 0
    written: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    workers: int = 0
    deaths: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    queue_wait: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)
    saved: int = 0
    working: dict[int, Working] = field(default_factory=dict)
    workers_wanted: int = 0
    by_place: dict[str, PlaceTally] = field(default_factory=dict)

    @property
    def through(self) -> int:
        """Samples of this run that are annotated or rejected, also in units that aren't finished."""
        return self.samples + sum(working.samples for working in self.working.values())

    @property
    def annotated(self) -> int:
        """The same without those that an earlier run had annotated: what rates are told by."""
        return self.through - self.saved - sum(working.saved for working in self.working.values())

    def all_rejects(self) -> Counter[str]:
        """By reason, also of units that aren't finished."""
        found = Counter(self.rejects)
        for working in self.working.values():
            found.update(working.rejects)
        return found

    def add(self, result: UnitResult) -> None:
        """Count a finished unit."""
        self.done += 1
        self.saved += result.saved
        self.samples += result.planned
        self.written += result.written
        for reason, count in result.rejects.items():
            self.rejects[reason] = self.rejects.get(reason, 0) + count
        self.bytes += result.bytes
        self.batch_sizes = sorted({*self.batch_sizes, result.batch_size})
        for stage, seconds in result.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Reporter:
    """Is told how a build stands. This one does nothing: override what you want to hear."""

    def planned(self, samples: int) -> None:
        """The plan is being made, and has so many samples by now."""

    def started(self, plan: Plan, units: int, done: int) -> None:
        """The plan stands; so many units there are, and so many are done already."""

    def progress(self, progress: Progress, result: UnitResult | None) -> None:
        """A unit is finished; or, without a result, some time has passed. Half a second at most lies between calls."""

    def warn(self, line: str) -> None:
        """Something that people should know: a worker died, a unit is tried again."""


class Supervisor:
    """Does the units that are left with a pool's workers."""

    def __init__(
        self,
        pool: Pool,
        units: Iterable[Unit],
        *,
        min_workers: int,
        max_workers: int,
        max_reject_share: float,
        rejected_before: int,
        samples_before: int,
        report: Callable[[Progress, UnitResult | None], None],
        warn: Callable[[str], None],
        should_stop: Callable[[], str],
        stop_seconds: float = 0.0,
        sample_timeout: float | None = None,
        rest_seconds: float = 2.0,
    ) -> None:
        """Prepare.

        Args:
            pool: where the workers run.
            units: what is left to do.
            min_workers: workers to have before anything starts.
            max_workers: most workers at a time.
            max_reject_share: a larger share of rejects, over all runs, stops the build.
            rejected_before: rejects of units finished in earlier runs.
            samples_before: samples of those units.
            report: called after each unit, and now and then with None.
            warn: takes a line for people: a worker died, a unit is tried again.
            should_stop: asked often; anything but "" stops the build with that reason.
            stop_seconds: to let workers save what they have annotated, if the build is stopped.
            sample_timeout: see `LimitsConfig`.
            rest_seconds: how long nothing new is begun after storage trouble, and before a worker that met it while it
                set itself up is replaced; twice as long each further time.
        """
        self._pool = pool
        self._todo = deque(units)
        self._max_workers = min(max_workers, len(self._todo))
        self._wanted = min(min_workers, self._max_workers)
        self._max_share = max_reject_share
        self._rejected, self._samples = rejected_before, samples_before
        # sums over `progress.working`: limits are looked at whenever any of many workers says anything
        self._working_rejected = self._working_samples = 0
        self._report, self._warn, self._should_stop = report, warn, should_stop
        self._orders: dict[int, Order] = {}
        self._idle: dict[int, float] = {}
        self._hunts: dict[int, Hunt] = {}
        # What a worker begins to read while it ends its unit. It is to get that one next, but anybody idle may take it.
        self._promised: dict[int, Unit] = {}
        self._failures: Counter[int] = Counter()
        self._failures_in_a_row = 0
        self._stop_seconds = stop_seconds
        self._sample_timeout = sample_timeout
        self._longest = 0.0
        self._moved: dict[int, float] = {}
        self._news: dict[int, Working] = {}
        self._hung: dict[int, str] = {}
        self._rest_seconds = rest_seconds
        self._resting_until = 0.0
        self._setup_deaths = 0
        self._loading = 0
        self._setup_tries: Counter[int] = Counter()
        self._replacements: dict[int, float] = {}  # when those that failed to set themselves up are to be replaced
        planned = sum(unit.samples for unit in self._todo)
        self.progress = Progress(len(self._todo), planned, workers_wanted=self._max_workers)

    def run(self) -> Progress:
        """Work until every unit is done.

        Raises:
            BuildError: the build can't go on; the message says why. Finished units stay, the rest can be resumed.
        """
        self._check_rejects()
        self._loading = self._max_workers
        self._pool.start(self._max_workers)
        try:
            while self._todo or self._promised or self._orders:
                if reason := self._should_stop():
                    saved = self._wind_down()
                    raise BuildError(f"{reason}{f'; {saved} annotated samples are saved for it' if saved else ''}")
                self._replace_failed()
                self._hand_out()
                for event in self._pool.wait(_POLL_SECONDS):
                    self._handle(event)
                self._end_hanging()
                self._check_rejects()
                self._tell(None)
        except KeyboardInterrupt:
            self._wind_down()
            raise
        finally:
            self._pool.stop()
        return self.progress

    def _hand_out(self) -> None:
        if self.progress.workers < self._wanted:
            return
        self._wanted = 0
        now = time.monotonic()
        if now < self._resting_until:
            return
        for worker in list(self._idle):
            unit = self._next_unit(worker)
            if unit is None:
                # a unit in flight may come back if its worker dies; one idle worker at least stays for it
                if len(self._idle) > len(self._orders):
                    del self._idle[worker]
                    self.progress.workers -= 1
                    self.progress.workers_wanted -= 1
                    self._pool.retire(worker)
                continue
            hunt = self._hunts.get(unit.id)
            order = hunt.next_order() if hunt else Order(unit, ahead=self._promise(worker))
            self.progress.queue_wait += now - self._idle.pop(worker)
            self._orders[worker] = order
            self._moved[worker] = now
            _LOG.debug("to worker %d: unit %s%s", worker, order.unit.name, " (a probe)" if order.probe else "")
            self._pool.submit(worker, order)

    def _end_hanging(self) -> None:
        """Kill the workers that haven't finished a sample for too long."""
        limit = self._sample_timeout
        if limit is None:
            limit = max(_LEAST_TIMEOUT_SECONDS, _MOST_GAPS * self._longest) if self._longest else _FIRST_TIMEOUT_SECONDS
        now = time.monotonic()
        for worker in self._orders.keys() - self._hung.keys():
            if now - self._moved[worker] > limit:
                news = self._news.get(worker)
                where = f" in {news.doing}" if news is not None and news.doing else ""
                self._hung[worker] = f"it hung: no sample was finished for {limit:.0f} s{where} (limits.sample_timeout)"
                self._pool.kill(worker)

    def _wind_down(self) -> int:
        """Let units end that are nearly done, and workers save what they have annotated of the others.

        Returns:
            How many samples of unfinished units are saved.
        """
        until = time.monotonic() + self._stop_seconds
        self._orders = {worker: order for worker, order in self._orders.items() if order.probe is None}
        if self._orders:
            self._pool.interrupt(self._stop_seconds / 2)
        saved = 0
        while self._orders and (left := until - time.monotonic()) > 0:
            for event in self._pool.wait(min(left, _POLL_SECONDS)):
                match event:
                    case Saved(worker, samples):
                        self._orders.pop(worker, None)
                        saved += samples
                    case Done(worker) if worker in self._orders:
                        self._handle(event)
                    case Failed(worker) | Died(worker):
                        self._orders.pop(worker, None)
            self._tell(None)
        return saved

    def _next_unit(self, worker: int) -> Unit | None:
        if worker in self._promised:
            return self._promised.pop(worker)
        if self._todo:
            return self._todo.popleft()
        return self._promised.pop(next(iter(self._promised))) if self._promised else None

    def _promise(self, worker: int) -> Unit | None:
        """The unit that a worker is to get next, unless others will want it first.

        None that is hunted in: a worker that dies of it would be taken to have died of the unit that it was ending.
        """
        if len(self._todo) < max(1, self.progress.workers) or self._todo[0].id in self._hunts:
            return None
        self._promised[worker] = self._todo.popleft()
        return self._promised[worker]

    def _handle(self, event: Event) -> None:
        _LOG.debug("%r", event)
        match event:
            case Ready(worker):
                self._setup_deaths = 0
                self._loading -= 1
                self.progress.workers += 1
                self._idle[worker] = time.monotonic()
            case Working(worker, unit):
                order = self._orders.get(worker)
                if order is not None and order.unit.id == unit:  # it may come late
                    self._hear(event, is_probe=order.probe is not None)
            case Saved():
                pass  # nobody is asked to stop here
            case Done(worker, result):
                self._forget(worker)
                self._idle[worker] = time.monotonic()
                self._finish(self._orders.pop(worker), result)
            case Failed(worker, transient, message):
                self._fail(worker, transient, message)
            case Died(worker, innocent, message):
                self._bury(worker, innocent, message)

    def _hear(self, news: Working, *, is_probe: bool) -> None:
        before = self._news.get(news.worker)
        if before is None or news.samples != before.samples:
            now = time.monotonic()
            if before is not None:
                self._longest = max(self._longest, now - self._moved[news.worker])
            self._moved[news.worker] = now
        self._news[news.worker] = news
        if not is_probe:
            self._set_working(news.worker, news)

    def _forget(self, worker: int) -> Working | None:
        """Its order is over; the last that was heard of it."""
        self._set_working(worker, None)
        return self._news.pop(worker, None)

    def _set_working(self, worker: int, news: Working | None) -> None:
        before = self.progress.working.pop(worker, None)
        for working, sign in ((before, -1), (news, 1)):
            if working is not None:
                self._working_samples += sign * working.samples
                self._working_rejected += sign * sum(working.rejects.values())
        if news is not None:
            self.progress.working[worker] = news

    def _finish(self, order: Order, result: UnitResult | None) -> None:
        if result is None:
            self._hunts[order.unit.id].survived()
            self._todo.appendleft(order.unit)
            return
        self._hunts.pop(order.unit.id, None)
        self._failures_in_a_row = 0
        self.progress.add(result)
        self._samples += result.planned
        self._rejected += sum(result.rejects.values())
        self._tell(result)
        self._check_rejects()

    def _tell(self, result: UnitResult | None) -> None:
        self._pool.observe(self.progress, result)
        self._report(self.progress, result)

    def _fail(self, worker: int, transient: bool, message: str) -> None:
        order = self._orders.pop(worker, None)
        self._forget(worker)
        if order is None:
            self._fail_setup(worker, transient, message)
            return
        if not transient:
            raise BuildError(message)
        self._idle[worker] = time.monotonic()
        self._failures[order.unit.id] += 1
        self._failures_in_a_row += 1
        in_a_row = max(_TRANSIENT_TRIES, 2 * self.progress.workers)
        if self._failures[order.unit.id] >= _TRANSIENT_TRIES or self._failures_in_a_row >= in_a_row:
            raise BuildError(
                f"unit {order.unit.name} failed {self._failures[order.unit.id]} times, and {self._failures_in_a_row} "
                f"units in a row did; the last time with: {message}"
            )
        self._resting_until = time.monotonic() + self._rest(self._failures_in_a_row)
        self._warn(f"unit {order.unit.name} is tried again: {message}")
        self._todo.append(order.unit)

    def _fail_setup(self, worker: int, transient: bool, message: str) -> None:
        self._setup_tries[worker] += 1
        if transient and self._setup_tries[worker] < _TRANSIENT_TRIES:
            rest = self._rest(self._setup_tries[worker])
            self._replacements[worker] = time.monotonic() + rest
            self._warn(f"a worker failed to start, and is replaced in {rest:g} s: {message}")
            return
        self._max_workers -= 1
        self._loading -= 1
        # a bad node must not stop those that are well, nor trouble that passes those that are on their way
        others = self._orders or self._idle or (transient and self._loading)
        if not others or self._wanted > self._max_workers:
            raise BuildError(message)
        self._warn(f"a worker failed to start; continuing without it: {message}")
        self._pool.retire(worker)

    def _replace_failed(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, due in self._replacements.items() if due <= now]:
            del self._replacements[worker]
            self._setup_tries[self._pool.replace(worker)] = self._setup_tries.pop(worker)

    def _rest(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(_LONGEST_REST_SECONDS, self._rest_seconds * 2.0 ** (failures - 1))

    def _bury(self, worker: int, innocent: bool, message: str) -> None:
        was_idle = self._idle.pop(worker, None) is not None
        order = self._orders.pop(worker, None)
        news, hung = self._forget(worker), self._hung.pop(worker, "")
        self.progress.deaths += 1
        self._replacements.pop(worker, None)  # the pool has done it
        if order is None and not was_idle:
            self._setup_deaths += not innocent
            if self._setup_deaths >= _SETUP_DEATHS and not (self._orders or self._idle):
                raise BuildError(f"{_SETUP_DEATHS} workers died one after another while they loaded models: {message}")
            self._warn(f"a worker died while it loaded its models, and is replaced: {message}")
            return
        self.progress.workers -= 1
        self._loading += 1
        if (promised := self._promised.pop(worker, None)) is not None:
            # It may be this one that kills, while it is read ahead. From now on it is only given out by itself.
            self._hunts.setdefault(promised.id, Hunt(promised))
            self._todo.appendleft(promised)
        if order is None:
            self._warn(f"an idle worker died, and is replaced: {message}")
            return
        self._warn(
            f"a worker died at unit {order.unit.name}, and is replaced; the unit is tried again: {hung or message}"
        )
        if hung:
            self._hunts.setdefault(order.unit.id, Hunt(order.unit)).hung(news.places if news is not None else ())
        elif not innocent:
            self._hunts.setdefault(order.unit.id, Hunt(order.unit)).died()
        self._todo.appendleft(order.unit)

    def _check_rejects(self) -> None:
        rejected, samples = self._rejected + self._working_rejected, self._samples + self._working_samples
        if rejected > max(MIN_REJECTS_TO_STOP, self._max_share * samples):
            found = self.progress.all_rejects().most_common()
            reasons = f" (in this run {', '.join(f'{count} {reason}' for reason, count in found)})" if found else ""
            raise BuildError(
                f"{rejected} of {samples} samples were rejected, more than limits.max_reject_share "
                f"({self._max_share:g}) allows{reasons}. If the data set is like "
                "that, raise limits.max_reject_share and run the same command again; else fix the config and build "
                "into another folder"
            )
