"""The driver's loop: hands units to workers, replaces the dead, finds the samples that kill, and stops in good order.

Knows nothing of processes or Ray: a `Pool` does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from math import inf

from patchmint.errors import BuildError
from patchmint.pipeline.driver.contracts import Pool, Progress
from patchmint.pipeline.driver.hunt import Hunt
from patchmint.pipeline.driver.places import Place, Places, Trials
from patchmint.pipeline.driver.reject_limit import RejectLimit
from patchmint.pipeline.driver.stragglers import Stragglers
from patchmint.pipeline.driver.trouble import LONGEST_REST_SECONDS, Trouble
from patchmint.pipeline.driver.watch import Watch
from patchmint.pipeline.orders import (
    Died,
    Done,
    Event,
    Failed,
    Loading,
    Order,
    Ready,
    Saved,
    UnitResult,
    WorkerInfo,
    Working,
)
from patchmint.shards.plan import Unit

_LOG = logging.getLogger(__name__)

_LONGEST_LOADING_REST_SECONDS = 3600.0
_LOADING_DEATHS = 3
_LOADING_SECONDS = 3600.0
_KILL_SECONDS = 60.0
_UNITS_TO_TRY = 8
_POLL_SECONDS = 0.5


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
        outage_seconds: float = 0.0,
        harmless: Unit | None = None,
        rest_seconds: float = 2.0,
    ) -> None:
        """Prepare.

        Args:
            pool: where the workers run.
            units: what is left to do.
            min_workers: workers to have before anything starts.
            max_workers: most workers at a time.
            max_reject_share: a larger share of rejects, over all runs or lately, stops the build.
            rejected_before: rejects of units finished in earlier runs.
            samples_before: samples of those units.
            report: called after each unit, and now and then with None.
            warn: takes a line for people: a worker died, a unit is tried again.
            should_stop: asked often; anything but "" stops the build with that reason.
            stop_seconds: to let workers save what they have annotated, if the build is stopped.
            sample_timeout: see `LimitsConfig`.
            outage_seconds: how long storage trouble may last in which nothing succeeds; five tries in any case.
            harmless: a unit that an earlier run has finished, and which killed nobody; None where there is none.
            rest_seconds: how long nothing new is begun after storage trouble, and before a worker that met it while it
                set itself up is replaced; twice as long each further time.
        """
        self._pool = pool
        self._todo = deque(units)
        self._max_workers = min(max_workers, len(self._todo))
        self._wanted = min(min_workers, self._max_workers)
        self._limit = RejectLimit(max_reject_share, rejected_before, samples_before)
        self._report, self._warn, self._should_stop = report, warn, should_stop
        planned = sum(unit.samples for unit in self._todo)
        self.progress = Progress(len(self._todo), planned, workers_wanted=self._max_workers)
        self._places = Places(self.progress.by_place)
        self._watch = Watch(sample_timeout)
        self._orders: dict[int, Order] = {}
        self._idle: dict[int, float] = {}
        self._finished: set[int] = set()
        # What a worker begins to read while it ends its unit. It is to get that one next, but anybody idle may take it.
        self._promised: dict[int, Unit] = {}

        self._hunts: dict[int, Hunt] = {}
        self._hunts_waiting: deque[Hunt] = deque()
        self._trials = Trials(harmless)
        self._killed: dict[int, tuple[str, float]] = {}  # why a worker that hangs was killed, and when

        self._trouble = Trouble(outage_seconds, rest_seconds)
        self._dead: dict[int, bool] = {}  # to be replaced when `Places.coming` says, elsewhere rather than there or not
        self._tries: Counter[int] = Counter()  # how often, of those that never got as far as to be ready
        self._loading_deaths = 0

        self._stragglers = Stragglers()
        self._stop_seconds = stop_seconds

    def run(self) -> Progress:
        """Work until every unit is done.

        Raises:
            BuildError: the build can't go on; the message says why. Finished units stay, the rest can be resumed.
        """
        self._limit.check(self.progress)
        for worker in range(self._max_workers):
            self._places.expect(worker)
        self._pool.start(self._max_workers)
        try:
            while self.progress.done < self.progress.units:
                if reason := self._should_stop():
                    saved = self._wind_down()
                    raise BuildError(f"{reason}{f'; {saved} annotated samples are saved for it' if saved else ''}")
                self._replace_dead()
                self._hand_out()
                for event in self._pool.wait(_POLL_SECONDS):
                    self._handle(event)
                self._end_hanging()
                self._limit.check(self.progress)
                self._tell(None)
        except KeyboardInterrupt:
            self._wind_down()
            raise
        finally:
            self._pool.stop()
        return self.progress

    # What to do next

    def _hand_out(self) -> None:
        if self.progress.workers < self._wanted:
            return
        self._wanted = 0
        if time.monotonic() < self._trouble.rests_until:
            return
        for worker in list(self._idle):
            order = self._next_order(worker, self._places.of(worker))
            if order is not None:
                self._give(worker, order)
            # a unit in flight may come back if its worker dies; one idle worker at least stays for it
            elif not self._is_anything_left() and len(self._idle) > len(self._orders):
                self._retire(worker)

    def _next_order(self, worker: int, place: Place) -> Order | None:
        if self._places.is_aside(place):
            return None
        if place.doubted:
            return self._trials.begin(worker, place, self._unbuilt, self._suspects)
        if self._hunts_waiting:
            others = self._places.others(place)
            for hunt in self._hunts_waiting:
                if (order := hunt.next_order(place.name, others)) is not None:
                    self._hunts_waiting.remove(hunt)
                    return order
        unit = self._next_unit(worker)
        if unit is not None:
            return Order(unit, ahead=self._promise(worker))
        return None if self._hunts_waiting else self._doubled()

    def _next_unit(self, worker: int) -> Unit | None:
        if worker in self._promised:
            return self._promised.pop(worker)
        if self._todo:
            return self._todo.popleft()
        return self._promised.pop(next(iter(self._promised))) if self._promised else None

    def _promise(self, worker: int) -> Unit | None:
        """The unit that a worker is to get next, unless others will want it first."""
        if len(self._todo) < max(1, self.progress.workers):
            return None
        self._promised[worker] = self._todo.popleft()
        return self._promised[worker]

    def _is_anything_left(self) -> bool:
        return bool(self._todo or self._promised or self._hunts_waiting)

    def _doubled(self) -> Order | None:
        """The unit of a worker that is much slower than others are, for an idle one; who commits first has built it."""
        unit = self._stragglers.next_unit(self._orders, self.progress.working, self._is_plain)
        if unit is None:
            return None
        self._warn(f"unit {unit.name} is slow; an idle worker builds it too")
        return Order(unit)

    def _is_plain(self, unit: Unit) -> bool:
        """Whether nothing is suspected in a unit, and nobody has finished it meanwhile."""
        return unit.id not in self._hunts and unit.id not in self._finished

    def _unbuilt(self) -> list[Unit]:
        """Units to try single samples of; last those that are suspected, or in work."""
        units = [self._todo[number] for number in range(min(_UNITS_TO_TRY, len(self._todo)))]
        units += [hunt.unit for hunt in self._hunts.values()]
        return units + list(self._promised.values()) + [order.unit for order in self._orders.values()]

    def _suspects(self) -> set[tuple[int, int]]:
        return {(number, sample) for number, hunt in self._hunts.items() for sample in hunt.suspects}

    def _give(self, worker: int, order: Order) -> None:
        now = time.monotonic()
        self.progress.queue_wait += now - self._idle.pop(worker)
        self._orders[worker] = order
        self._stragglers.begin(worker)
        self._watch.begin(worker)
        _LOG.debug("to worker %d: unit %s%s", worker, order.unit.name, " (a probe)" if order.probe is not None else "")
        self._pool.submit(worker, order)

    def _retire(self, worker: int) -> None:
        del self._idle[worker]
        self.progress.workers -= 1
        self.progress.workers_wanted -= 1
        self._places.leave(worker)
        self._pool.retire(worker)

    # What happened

    def _handle(self, event: Event) -> None:
        _LOG.debug("%r", event)
        if event.worker not in self._places:
            return  # one that was given up comes late
        match event:
            case Loading(worker):
                if (coming := self._places.coming.get(worker)) is not None and coming.heard is None:
                    coming.heard = time.monotonic()
            case Ready(worker, info):
                self._welcome(worker, info)
            case Working(worker, unit):
                order = self._orders.get(worker)
                if order is not None and order.unit.id == unit:  # it may come late
                    self._hear(event, order)
            case Saved():
                pass  # nobody is asked to stop here
            case Done(worker, result):
                self._finish(worker, result)
            case Failed(worker):
                self._fail(event)
            case Died(worker):
                self._bury(event)

    def _welcome(self, worker: int, info: WorkerInfo) -> None:
        self._loading_deaths = 0
        self._tries.pop(worker, None)
        self._places.arrive(worker, info.place)
        self.progress.workers += 1
        self._idle[worker] = time.monotonic()

    def _hear(self, news: Working, order: Order) -> None:
        self._watch.hear(news)
        told = self.progress.working
        is_double = order.unit.id in self._stragglers.doubled and any(
            other.unit == news.unit and other.worker != news.worker for other in told.values()
        )
        if order.probe is None and order.unit.id not in self._finished and not is_double:
            told[news.worker] = news
            self._limit.set_working(news.worker, news)

    def _release(self, worker: int, built: Unit | None = None) -> tuple[Order | None, Working | None]:
        """Its order is over; which that was, and the last that was heard of it."""
        self.progress.working.pop(worker, None)
        self._limit.set_working(worker, None)
        self._stragglers.end(worker, built)
        return self._orders.pop(worker, None), self._watch.end(worker)

    def _finish(self, worker: int, result: UnitResult | None) -> None:
        unit, place = self._orders[worker].unit, self._places.of(worker)
        order, _ = self._release(worker, unit if result is not None else None)
        assert order is not None
        self._idle[worker] = time.monotonic()
        self._trouble.succeeded()
        is_trial = self._trials.end(worker) is not None
        hunt = None if is_trial else self._hunts.get(unit.id)
        if result is None:
            self._trials.survived(order)
            if hunt is not None:
                self._strike(hunt.survived())
                self._hunts_waiting.appendleft(hunt)
        elif unit.id not in self._finished:  # or another worker was faster
            self._count(unit, result, place)
            if hunt is not None:
                del self._hunts[unit.id]
                self._strike(hunt.built())
            if result.written:
                self._trials.built(order)
            self._tell(result)
            self._limit.check(self.progress)
        place.doubted = False
        for each in self._hunts.values():
            each.vouch(place.name)

    def _count(self, unit: Unit, result: UnitResult, place: Place) -> None:
        self._finished.add(unit.id)
        self.progress.add(result)
        self._limit.add(result)
        place.tally.units += 1
        place.tally.samples += result.planned
        place.asides = 0
        for worker in [other.worker for other in self.progress.working.values() if other.unit == unit.id]:
            del self.progress.working[worker]
            self._limit.set_working(worker, None)

    def _tell(self, result: UnitResult | None) -> None:
        self._pool.observe(self.progress, result)
        self._report(self.progress, result)

    # Faults

    def _fail(self, event: Failed) -> None:
        order, _ = self._release(event.worker)
        if order is None:
            self._fail_setup(event)
            return
        if not event.transient:
            raise BuildError(event.message)
        self._idle[event.worker] = time.monotonic()
        place = self._places.of(event.worker)
        self._trials.end(event.worker)
        if event.place and self._places.others(place):
            self._warn(f"unit {order.unit.name} is tried elsewhere")
            self._put_aside(place, event.message)
        else:
            self._trouble.failed(event, order.unit, self.progress.workers)
            self._warn(f"unit {order.unit.name} is tried again: {event.message}")
        self._put_back(order)

    def _put_back(self, order: Order) -> None:
        """A unit that wasn't done, unless another worker is at it or has finished it."""
        unit = order.unit
        in_work = {other.unit.id for worker, other in self._orders.items() if worker not in self._trials}
        if unit.id in self._finished or unit.id in in_work or (order.probe is not None and unit.id not in self._hunts):
            return
        if (hunt := self._hunts.get(unit.id)) is None:
            self._todo.appendleft(unit)
        elif hunt not in self._hunts_waiting:
            self._hunts_waiting.appendleft(hunt)

    def _fail_setup(self, event: Failed) -> None:
        worker = event.worker
        self._tries[worker] += 1
        tries = self._tries[worker]
        longest = _LONGEST_LOADING_REST_SECONDS if event.place else LONGEST_REST_SECONDS
        if event.transient and not self._trouble.is_over(tries, longest):
            rest = self._trouble.rest(tries, longest)
            self._replace_in(rest, worker, elsewhere=event.place)
            self._warn(f"a worker failed to start, and is replaced in {rest:g} s: {event.message}")
            return
        self._max_workers -= 1
        self._places.leave(worker)
        # a bad node must not stop those that are well, nor trouble that passes those that are on their way
        others = self._orders or self._idle or (event.transient and self._places.coming)
        if not others or self._wanted > self._max_workers:
            raise BuildError(event.message)
        self._warn(f"a worker failed to start; continuing without it: {event.message}")
        self._pool.retire(worker)

    # Deaths

    def _bury(self, event: Died) -> None:
        worker = event.worker
        hung, _ = self._killed.pop(worker, ("", 0.0))
        cause = hung or event.message
        self.progress.deaths += 1
        if worker in self._places.coming:
            self._bury_unready(event, cause)
            return
        is_idle = self._idle.pop(worker, None) is not None
        order, news = self._release(worker)
        place = self._places.leave(worker)
        assert place is not None
        is_harmless = self._trials.end(worker)
        is_trial = is_harmless is not None
        self.progress.workers -= 1
        place.tally.deaths += 1
        place.tally.hangs += bool(hung)
        place.doubted = place.doubted or not event.innocent
        place.is_gone = event.innocent and not place.workers
        if (promised := self._promised.pop(worker, None)) is not None:
            # It may be this one that kills, while it is read ahead. From now on it is only given out by itself.
            self._hunts[promised.id] = Hunt(promised)
            self._hunts_waiting.append(self._hunts[promised.id])
        if is_idle:
            self._warn(f"an idle worker died on {place.name}, and is replaced: {cause}")
        elif is_trial:
            self._warn(f"a worker on {place.name} died of samples on trial there, and is replaced: {cause}")
        else:
            assert order is not None
            self._warn(
                f"a worker died at unit {order.unit.name} on {place.name}, and is replaced; the unit is tried again: "
                f"{cause}"
            )
            self._suspect(order, place, event, (news.positions if news is not None else ()) if hung else None)
        if is_trial and not event.innocent:
            if is_harmless:
                self._put_aside(place, f"workers die there of samples that others survive; the last one: {cause}")
            else:
                self._trials.killed(place, cause)
        # of two witnesses one is elsewhere, if there is an elsewhere; then somebody has to vouch for them
        hunt = self._hunts.get(order.unit.id) if order is not None else None
        is_alone = hunt is not None and hunt.lacks_witnesses and not self._places.others(place)
        self._replace_in(0.0, worker, None if event.innocent else place, elsewhere=is_trial or is_alone)

    def _suspect(self, order: Order, place: Place, event: Died, hung_at: tuple[int, ...] | None) -> None:
        unit = order.unit
        if unit.id in self._finished:
            return
        if not event.innocent:
            hunt = self._hunts.setdefault(unit.id, Hunt(unit))
            if hung_at is not None:
                hunt.hung(place.name, hung_at)
            else:
                hunt.died(place.name)
        self._put_back(order)

    def _strike(self, names: Iterable[str]) -> None:
        for place in self._places.strike(names):
            self._put_aside(place, "workers die there of units that others survive")

    def _put_aside(self, place: Place, why: str) -> None:
        seconds = self._places.put_aside(place, why)
        for hunt in self._hunts.values():
            hunt.distrust(place.name)
        self._warn(f"{place.name} is put aside for {seconds:.0f} s: {why}")
        if self._places.are_hopeless():
            bad = "; ".join(f"{each.name}: {each.why}" for each in self._places.all.values() if each.asides)
            raise BuildError(f"there is no place left where workers survive. {bad}")

    def _bury_unready(self, event: Died, cause: str) -> None:
        worker = event.worker
        place = self._places.leave(worker)
        self._loading_deaths += not event.innocent
        if self._loading_deaths >= _LOADING_DEATHS and not (self._orders or self._idle):
            raise BuildError(f"{_LOADING_DEATHS} workers died one after another while they loaded models: {cause}")
        self._tries[worker] += not event.innocent
        tries = self._tries[worker]
        rest = self._trouble.rest(tries - 1, _LONGEST_LOADING_REST_SECONDS) if tries > 1 else 0.0
        soon = f" in {rest:g} s" if rest else ""
        self._warn(f"a worker died while it loaded its models, and is replaced{soon}: {cause}")
        self._replace_in(rest, worker, place)

    def _replace_in(self, seconds: float, worker: int, place: Place | None = None, *, elsewhere: bool = False) -> None:
        self._dead[worker] = elsewhere
        self._places.expect(worker, None if elsewhere else place, time.monotonic() + seconds)

    def _replace_dead(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self._dead if self._places.coming[worker].since <= now]:
            place = self._places.leave(worker)
            new = self._pool.replace(worker, elsewhere=self._dead.pop(worker))
            self._places.expect(new, place)
            self._tries[new] = self._tries.pop(worker, 0)

    def _end_hanging(self) -> None:
        """Kill the workers that take too long; one that even so doesn't end is given up."""
        now = time.monotonic()
        hanging = list(self._watch.overdue())
        for worker, coming in self._places.coming.items():
            if coming.heard is not None and now - coming.heard > _LOADING_SECONDS:
                hanging.append((worker, f"it hung: its models weren't loaded after {_LOADING_SECONDS:.0f} s"))
        for worker, why in hanging:
            if worker not in self._killed:
                self._killed[worker] = why, now
                self._pool.kill(worker)
        for worker, (why, since) in list(self._killed.items()):
            if now - since > _KILL_SECONDS:
                self._killed[worker] = f"{why}, and can't be ended", inf
                self._handle(Died(worker, innocent=False, message=""))  # unless it was replaced for another reason

    def _wind_down(self) -> int:
        """Let units end that are nearly done, and workers save what they have annotated of the others.

        Returns:
            How many samples of unfinished units are saved.
        """
        until = time.monotonic() + self._stop_seconds
        for worker in [worker for worker, order in self._orders.items() if order.probe is not None]:
            self._release(worker)
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
