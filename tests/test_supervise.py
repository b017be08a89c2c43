"""The driver's loop against a pool that lives in memory: deaths, accidents, retries, limits."""

import time
from collections import Counter, deque
from itertools import chain, repeat
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchmint.errors import BuildError
from patchmint.pipeline.driver import watch
from patchmint.pipeline.driver.supervise import Supervisor
from patchmint.pipeline.orders import Died, Done, Failed, Ready, Saved, UnitResult, WorkerInfo, Working
from patchmint.shards.plan import Unit

INFO = WorkerInfo("here", "cpu")


class Pool:
    """Workers that do an order when they are asked what happened; places in `killers` kill them."""

    def __init__(self, killers=(), script=(), setup=()):
        self.killers = {(unit, place) for unit, place in killers}
        self.script = deque(script)  # what befalls the next orders, instead of being done
        self.setup = deque(setup)  # what befalls the next workers, instead of being ready
        self.events = deque()
        self.workers = 0
        self.alive = set()
        self.orders = []
        self.ready = 0
        self.stopped = False
        self.interrupted = None

    def start(self, workers):
        for _ in range(workers):
            self._spawn()

    def _spawn(self):
        worker, self.workers = self.workers, self.workers + 1
        if self.setup and (befalls := self.setup.popleft()):
            self.events.append(befalls(worker))
            return
        self.alive.add(worker)
        self.events.append(Ready(worker, INFO))

    def submit(self, worker, order):
        assert worker in self.alive
        self.orders.append(order)
        if self.script and (event := self.script.popleft()):
            self._end(worker, event(worker))
            return
        places = set(range(order.unit.samples)) - order.poison if order.probe is None else order.probe
        if any((order.unit.id, place) in self.killers for place in places):
            self._end(worker, Died(worker, False, "killed"))
            return
        poison = len(order.poison)
        result = UnitResult(
            order.unit.id,
            order.unit.samples,
            order.unit.samples - poison,
            {"kills-worker": poison} if poison else {},
            1,
        )
        self.events.append(Done(worker, result if order.probe is None else None))

    def _end(self, worker, event):
        self.events.append(event)
        if isinstance(event, Died):
            self.alive.discard(worker)

    def wait(self, seconds):
        assert self.events, "the supervisor waits for something that will never come"
        event = self.events.popleft()
        self.ready += isinstance(event, Ready)
        return [event]

    def observe(self, progress, result):
        """Nothing is exported."""

    def interrupt(self, seconds):
        self.interrupted = seconds

    def retire(self, worker):
        self.alive.discard(worker)

    def replace(self, worker, *, elsewhere):
        assert worker not in self.alive
        self._spawn()
        return self.workers - 1

    def stop(self):
        self.stopped = True


def units(count, samples=8):
    return [Unit(number, samples, number * samples, "part", number) for number in range(count)]


def supervise(pool, todo, said=None, **changes):
    arguments = {
        "min_workers": 1,
        "max_workers": 2,
        "max_reject_share": 1.0,
        "rejected_before": 0,
        "samples_before": 0,
        "report": lambda progress, result: None,
        "warn": (said if said is not None else []).append,
        "should_stop": lambda: "",
        "rest_seconds": 0.0,
    } | changes
    supervisor = Supervisor(pool, todo, **arguments)
    progress = supervisor.run()
    assert pool.stopped
    return progress


def test_every_unit_is_done_once():
    pool = Pool()
    progress = supervise(pool, units(9))
    assert Counter(order.unit.id for order in pool.orders) == Counter(range(9))
    assert (progress.done, progress.samples, progress.written) == (9, 72, 72)


def test_workers_that_are_let_go_are_not_missed():
    seen = []
    supervise(
        Pool(),
        units(6),
        max_workers=3,
        report=lambda progress, _: seen.append((progress.workers, progress.workers_wanted)),
    )
    assert seen[0] == (1, 3)
    assert seen[-1] == (2, 2)


@settings(max_examples=60)
@given(
    samples=st.integers(1, 40),
    killers=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 39)), max_size=4),
    workers=st.integers(1, 3),
)
def test_killers_are_found_and_nobody_else_is(samples, killers, workers):
    killers = {(unit, place) for unit, place in killers if place < samples}
    pool = Pool(killers)
    progress = supervise(pool, units(3, samples), max_workers=workers)
    final = {order.unit.id: order.poison for order in pool.orders if order.probe is None}
    assert {(unit, place) for unit, poison in final.items() for place in poison} == killers
    assert progress.rejects.get("kills-worker", 0) == len(killers)
    assert progress.written == 3 * samples - len(killers)


def test_a_unit_may_hold_many_killers():
    killers = {(0, place) for place in range(3, 100, 7)}
    assert supervise(Pool(killers), units(1, 100)).written == 100 - len(killers)


def test_a_bad_node_does_not_stop_those_that_are_well():
    said = []
    pool = Pool(setup=[None, lambda worker: Failed(worker, False, "no weights here")])
    assert supervise(pool, units(6), said).written == 48
    assert "no weights here" in said[0]
    pool = Pool(setup=[None, lambda worker: Failed(worker, False, "no weights here")])
    with pytest.raises(BuildError, match="no weights here"):
        supervise(pool, units(6), min_workers=2)


def test_trouble_while_workers_start_is_tried_again():
    trouble = [lambda worker: Failed(worker, True, "the store answers 503")]
    said = []
    progress = supervise(Pool(setup=trouble * 4), units(3), said, max_workers=1)
    assert (progress.written, progress.deaths, progress.workers_wanted) == (24, 0, 1)
    assert len(said) == 4
    with pytest.raises(BuildError, match="503"):
        supervise(Pool(setup=trouble * 5), units(3), max_workers=1)
    assert supervise(Pool(setup=trouble * 8), units(9), min_workers=2).written == 72
    accident = [lambda worker: Died(worker, False, "accident")]
    with pytest.raises(BuildError, match="503"):
        supervise(Pool(setup=[None, *trouble * 5], script=accident), units(3), max_workers=1)
    # the first gives up while the other is on its way
    assert supervise(Pool(setup=trouble * 9), units(9)).written == 72


def test_a_worker_that_never_starts_is_missed_and_said_to_be():
    class OneBad(Pool):
        """The second worker fails, and so do those in its place; the others need a moment for their orders."""

        def _spawn(self):
            self.setup.append((lambda worker: Failed(worker, True, "503")) if self.workers in self.bad else None)
            super()._spawn()

        def replace(self, worker, *, elsewhere):
            self.bad.add(self.workers)
            self.replaced.append(time.monotonic())
            return super().replace(worker, elsewhere=elsewhere)

        def wait(self, seconds):
            time.sleep(0.002)
            return super().wait(seconds) if self.events else []

    pool, said, seen = OneBad(), [], []
    pool.bad, pool.replaced = {1}, []
    progress = supervise(
        pool,
        units(100),
        said,
        max_workers=3,
        rest_seconds=0.01,
        report=lambda progress, _: seen.append((progress.workers, progress.workers_wanted)),
    )
    assert progress.done == 100
    assert pool.replaced[-1] - pool.replaced[0] >= 0.02 + 0.04 + 0.08
    assert [line.partition(" in ")[0] for line in said[:4]] == ["a worker failed to start, and is replaced"] * 4
    assert said[4:] == ["a worker failed to start; continuing without it: 503"]
    assert (2, 3) in seen


def test_trouble_in_a_row_stops_before_every_unit_has_been_tried():
    pool = Pool(script=[lambda worker: Failed(worker, True, "no space left")] * 1000)
    with pytest.raises(BuildError, match="no space left"):
        supervise(pool, units(500))
    assert len(pool.orders) <= 6


def test_an_accident_costs_one_more_try_and_no_sample():
    pool = Pool(script=[lambda worker: Died(worker, False, "somebody else's memory")])
    said = []
    progress = supervise(pool, units(2), said)
    assert progress.written == 16
    assert progress.deaths == 1
    assert all(order.probe is None for order in pool.orders)
    assert "tried again" in said[0]


def test_deaths_of_nodes_never_lead_to_a_hunt():
    pool = Pool(script=[lambda worker: Died(worker, True, "its node has died")] * 7)
    progress = supervise(pool, units(1), max_workers=1)
    assert progress.written == 8
    assert all(order.probe is None for order in pool.orders)


def test_two_accidents_lead_to_a_hunt_that_condemns_nobody():
    pool = Pool(script=[lambda worker: Died(worker, False, "accident")] * 2)
    progress = supervise(pool, units(1), max_workers=1)
    assert progress.written == 8
    assert any(order.probe is not None for order in pool.orders)


def test_storage_trouble_is_tried_again_and_then_told():
    trouble = [lambda worker: Failed(worker, True, "the store answers 503")]
    assert supervise(Pool(script=trouble * 4), units(1)).written == 8
    with pytest.raises(BuildError, match=r"5 tries in a row failed, over 0 s.*503"):
        supervise(Pool(script=trouble * 5), units(1))


def test_a_programming_error_stops_at_once():
    pool = Pool(script=[lambda worker: Failed(worker, False, "Traceback: ZeroDivisionError")])
    with pytest.raises(BuildError, match="ZeroDivisionError"):
        supervise(pool, units(5))
    assert pool.stopped
    assert len(pool.orders) <= 2


def test_a_worker_that_cannot_load_stops_the_build():
    with pytest.raises(BuildError, match="no weights"):
        supervise(Pool(setup=[lambda worker: Failed(worker, False, "no weights here")]), units(3))


def test_workers_that_die_while_loading_are_replaced_three_times():
    death = [lambda worker: Died(worker, False, "SIGKILL")]
    assert supervise(Pool(setup=death * 2), units(3), max_workers=1).written == 24
    with pytest.raises(BuildError, match="3 workers died one after another"):
        supervise(Pool(setup=death * 3), units(3), max_workers=1)
    accident = [lambda worker: Died(worker, False, "accident")]
    assert supervise(Pool(setup=[*death * 2, None, *death * 2], script=accident), units(3), max_workers=1).written == 24


def test_nothing_starts_before_there_are_enough_workers():
    handed = []
    pool = Pool()
    pool.submit = lambda worker, order: handed.append(pool.ready) or Pool.submit(pool, worker, order)
    supervise(pool, units(4), min_workers=2)
    assert handed[0] == 2


def test_rejects_stop_a_build_only_over_the_share_and_over_ten():
    killers = [(0, place) for place in range(3)]
    assert supervise(Pool(killers), units(2), max_reject_share=0.0).written == 13
    with pytest.raises(BuildError, match="max_reject_share"):
        supervise(Pool(killers), units(2), max_reject_share=0.1, rejected_before=9, samples_before=50)
    assert supervise(Pool(killers), units(2), max_reject_share=0.1, rejected_before=9, samples_before=500).done == 2


def test_a_wish_to_stop_is_heard():
    pool = Pool()
    wishes = iter(["", "", "stopped by SIGTERM"])
    with pytest.raises(BuildError, match="SIGTERM"):
        supervise(pool, units(50), should_stop=lambda: next(wishes))
    assert pool.stopped


class Slow(Pool):
    """Workers that work for ever, say how far they are, and at a wish to stop what the test says."""

    def __init__(self, *last):
        super().__init__()
        self.last = last

    def submit(self, worker, order):
        self.orders.append(order)

    def wait(self, seconds):
        if self.interrupted is not None:
            self.events.extend(self.last)
            self.last = ()
        elif not self.events:
            self.events.append(Working(0, 0, samples=5, saved=2, rejects={"image-missing": 1}, doing="annotate"))
        return [self.events.popleft()] if self.events else []


class Hanging(Pool):
    """A worker finishes its order in the next moment, or hangs at a batch of four with one of these places in it."""

    def __init__(self, *hanging, told=True):
        super().__init__()
        self.hanging = set(hanging)
        self.told = told
        self.killed = []

    def submit(self, worker, order):
        places = set(range(order.unit.samples)) - order.poison if order.probe is None else order.probe
        at = min(((order.unit.id, place) for place in places if (order.unit.id, place) in self.hanging), default=None)
        if at is None:
            super().submit(worker, order)
            return
        self.orders.append(order)
        batch = tuple(place for place in range(at[1] // 4 * 4, at[1] // 4 * 4 + 4) if place in places)
        if self.told:
            self.events.append(Working(worker, order.unit.id, 0, 0, {}, "annotate/detect", batch))

    def wait(self, seconds):
        if not self.events:
            time.sleep(0.02)
        return [self.events.popleft()] if self.events else []

    def kill(self, worker):
        self.killed.append(worker)
        self._end(worker, Died(worker, False, "killed"))


def test_a_sample_that_hangs_is_found_within_two_deadlines():
    pool, said = Hanging((1, 6)), []
    progress = supervise(pool, units(3), said, sample_timeout=0.3)
    assert (progress.done, progress.deaths) == (3, 2)
    final = [order for order in pool.orders if order.unit.id == 1 and order.probe is None][-1]
    assert final.poison == final.hanging == {6}
    probes = [order.probe for order in pool.orders if order.unit.id == 1 and order.probe]
    assert set().union(*probes) <= {4, 5, 6, 7}
    assert "hung: no sample was finished for 0 s in annotate/detect (limits.sample_timeout)" in said[0]


def test_several_samples_that_hang_and_one_of_which_nothing_was_heard():
    pool = Hanging((0, 1), (0, 2), (2, 7))
    assert supervise(pool, units(3), sample_timeout=0.2).done == 3
    assert {(order.unit.id, place) for order in pool.orders for place in order.hanging} == pool.hanging
    pool = Hanging((1, 3), told=False)
    assert supervise(pool, units(2), sample_timeout=0.1).done == 2
    assert {place for order in pool.orders for place in order.hanging} == {3}


def test_hangs_that_are_no_samples_fault_end_the_build():
    class Batches(Hanging):
        """Only whole units hang."""

        def submit(self, worker, order):
            hanging, self.hanging = self.hanging, self.hanging if order.probe is None else set()
            super().submit(worker, order)
            self.hanging = hanging

    with pytest.raises(BuildError, match="7 workers hung at unit 000000, and no single sample is to blame"):
        supervise(Batches((0, 1)), units(2), sample_timeout=0.05, max_workers=1)


def test_without_a_setting_the_time_follows_from_what_batches_take(monkeypatch):
    now = 0.0
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now))

    class Timed(Slow):
        def wait(self, seconds):
            nonlocal now
            now += 1
            samples = min(now // 100, 5)  # a batch takes 100 s, and the sixth hangs
            self.events.append(Working(0, 0, int(samples), 0, {}, "annotate"))
            return [self.events.popleft()]

        def kill(self, worker):
            raise KeyError(f"after {now - 500:.0f} s")

    with pytest.raises(KeyError, match=r"after 200\d s"):
        supervise(Timed(), units(1))


def stopped(pool, **changes):
    """How far a build had come when it was stopped, and what it said."""
    seen, wishes = [], chain([""] * 5, repeat("stopped by SIGINT"))
    with pytest.raises(BuildError) as told:
        supervise(
            pool,
            units(3),
            should_stop=lambda: next(wishes),
            report=lambda progress, _: seen.append((progress.through, progress.annotated, progress.all_rejects())),
            **changes,
        )
    return seen, str(told.value)


def test_what_units_in_work_have_is_counted_before_they_are_finished():
    seen, _ = stopped(Slow())
    assert (5, 3, {"image-missing": 1}) in seen
    with pytest.raises(BuildError, match=r"11 of 13 samples were rejected.*in this run 1 image-missing"):
        supervise(Slow(), units(3), max_reject_share=0.0, rejected_before=10, samples_before=8)


def test_workers_save_what_they_have_or_finish_it_when_a_build_is_stopped():
    done = Done(1, UnitResult(1, 8, 8, {}, 1))
    pool = Slow(Saved(0, 5), done)
    seen, said = stopped(pool, stop_seconds=30)
    assert pool.interrupted == 15
    assert seen[-1][0] == 13
    assert said == "stopped by SIGINT; 5 annotated samples are saved for it"
    # one that died, and one that says nothing within the time, save nothing
    assert stopped(Slow(Died(0, False, "killed")), stop_seconds=0.2)[1] == "stopped by SIGINT"
