"""What the supervisor makes of places: hosts and devices where workers die, hang, fail or are slow."""

import heapq
from itertools import count
from types import SimpleNamespace

import pytest

from patchmint.errors import BuildError
from patchmint.pipeline.driver import places, stragglers, supervise, trouble, watch
from patchmint.pipeline.driver.reject_limit import RejectLimit
from patchmint.pipeline.driver.supervise import Supervisor
from patchmint.pipeline.orders import Died, Done, Failed, Loading, Ready, UnitResult, WorkerInfo, Working
from patchmint.shards.plan import Unit

LOAD, SAMPLE = 30.0, 1.0


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    for module in (supervise, places, stragglers, trouble, watch):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Cluster:
    """A pool in simulated time: each worker at a place of its own, which may do as the test says with an order."""

    def __init__(self, clock, befalls=lambda place, order: None, pace=lambda place: SAMPLE):
        self.clock = clock
        self.befalls = befalls
        self.pace = pace
        self.coming = []
        self.numbers = count()
        self.turns = count()
        self.place = {}
        self.orders = []
        self.killed = []
        self.is_moved = False

    def start(self, workers):
        for place in range(workers):
            self.spawn(f"host{place}")

    def spawn(self, place):
        worker = next(self.numbers)
        self.place[worker] = place
        self.later(1, Loading(worker))
        if (event := self.befalls(place, None)) is None:
            event = Ready
        if event is not None and event != "hangs":
            self.later(LOAD, self.event_of(event, worker))
        return worker

    def event_of(self, event, worker):
        host = self.place[worker]
        return {
            Ready: lambda: Ready(worker, WorkerInfo(host, "cuda:0")),
            Died: lambda: Died(worker, False, "SIGKILL"),
            Failed: lambda: Failed(worker, True, "no room in TMPDIR", place=True),
        }[event]()

    def later(self, seconds, event):
        heapq.heappush(self.coming, (self.clock.now + seconds, next(self.turns), event))

    def submit(self, worker, order):
        self.orders.append((self.place[worker], order))
        event = self.befalls(self.place[worker], order)
        samples = order.probe if order.probe is not None else set(range(order.unit.samples)) - order.poison
        seconds = self.pace(self.place[worker]) * len(samples)
        if event == "hangs":
            self.later(1, Working(worker, order.unit.id, 0, 0, {}, "annotate", tuple(sorted(samples))[:2]))
        elif event is not None:
            self.later(seconds, self.event_of(event, worker))
        else:
            kills = len(order.poison)
            result = UnitResult(
                order.unit.id, order.unit.samples, order.unit.samples - kills, {"kills-worker": kills}, 1
            )
            self.later(seconds, Done(worker, result if order.probe is None else None))

    def wait(self, seconds):
        if not self.coming or self.coming[0][0] > self.clock.now + seconds:
            self.clock.now += seconds
            return []
        self.clock.now, _, event = heapq.heappop(self.coming)
        return [event]

    def observe(self, progress, result):
        """Nothing is exported."""

    def kill(self, worker):
        self.killed.append(worker)

    def replace(self, worker, *, elsewhere):
        return self.spawn("elsewhere" if elsewhere and self.is_moved else self.place[worker])

    def retire(self, worker):
        """It goes."""

    def stop(self):
        """All end."""


def run(pool, units, said=None, **changes):
    todo = [Unit(number, 16, 16 * number, "part", number) for number in range(units)]
    options = {"min_workers": 1, "max_workers": 4, "max_reject_share": 1.0, "rejected_before": 0, "samples_before": 0}
    supervisor = Supervisor(
        pool,
        todo,
        report=lambda *_: None,
        warn=(said if said is not None else []).append,
        should_stop=lambda: "",
        **options | changes,
    )
    return supervisor.run()


def poisoned(pool):
    return {order.unit.id: set(order.poison) for _, order in pool.orders if order.poison}


def test_one_bad_gpu_of_64_condemns_nobody_and_is_put_aside(clock):
    def befalls(place, order):
        return Died if place == "host5" and order is not None else None

    pool, said = Cluster(clock, befalls), []
    progress = run(pool, 64 * 60, said, max_workers=64)
    assert progress.done == 64 * 60
    assert clock.now < 1.3 * 60 * 16
    assert not poisoned(pool)
    assert progress.deaths <= 10
    bad = progress.by_place["host5 cuda:0"]
    assert (bad.units, bad.deaths, bad.aside) == (0, progress.deaths, True)
    assert sum(place.samples for place in progress.by_place.values()) == progress.samples
    assert any(line.startswith("host5 cuda:0 is put aside for 120 s: workers die there of samples") for line in said)


def test_a_place_that_recovers_gets_work_again(clock):
    pool = Cluster(clock, lambda place, order: Died if place == "host0" and order and clock.now < 200 else None)
    progress = run(pool, 200, max_workers=2)
    assert progress.by_place["host0 cuda:0"].units > 50


def test_a_place_that_is_bad_now_and_then_is_put_aside(clock):
    tries = count()

    def befalls(place, order):
        flaky = place == "host0" and order is not None and order.probe is None
        return Died if flaky and next(tries) % 2 else None

    pool, said = Cluster(clock, befalls), []
    assert run(pool, 100, said).done == 100
    assert not poisoned(pool)
    assert "host0 cuda:0 is put aside for 120 s: workers die there of units that others survive" in said


def test_where_nothing_survives_the_build_stops(clock):
    pool = Cluster(clock, lambda place, order: Died if order is not None else None)
    with pytest.raises(BuildError, match=r"workers died of 8 different samples.*none has survived any"):
        run(pool, 20)
    assert not poisoned(pool)
    # where something has survived before, all places are tried three times each
    pool = Cluster(clock, lambda place, order: Died if order is not None and clock.now > start + 100 else None)
    start = clock.now
    with pytest.raises(BuildError, match=r"no place left where workers survive.*host0 cuda:0: workers die.*host1 cuda"):
        run(pool, 100, max_workers=2)
    assert not poisoned(pool)
    assert clock.now > start + 100 + 120 + 240


def test_a_killer_is_condemned_by_two_places_or_by_the_only_one(clock):
    def befalls(place, order):
        if order is None or order.unit.id != 3:
            return None
        return Died if 7 in (order.probe if order.probe is not None else {*range(16)} - order.poison) else None

    for workers in (1, 3):
        pool = Cluster(clock, befalls)
        assert run(pool, 12, max_workers=workers).written == 12 * 16 - 1
        assert poisoned(pool) == {3: {7}}
        alone = [place for place, order in pool.orders if order.unit.id == 3 and order.probe == {7}]
        assert (len(alone), len(set(alone))) == (2, min(workers, 2))


def test_the_last_unit_does_not_stay_on_a_bad_gpu(clock):
    pool = Cluster(clock, lambda place, order: Died if place == "host0" and order is not None else None)
    pool.is_moved = True
    assert run(pool, 1, max_workers=1).done == 1
    assert not poisoned(pool)


def test_a_worker_that_waits_for_a_store_does_not_hang(clock):
    """It says so; a worker that says nothing else for as long is killed."""

    class Outage(Cluster):
        def submit(self, worker, order):
            for second in range(1, 500):
                self.later(second, Working(worker, order.unit.id, 0, 0, {}, "commit", (), waits_for))
            super().submit(worker, order)

    pool = Outage(clock, pace=lambda place: 500 / 16)
    waits_for = "s3://out can't be used (503)"
    assert run(pool, 2, sample_timeout=100, max_workers=1).done == 2
    assert not pool.killed
    pool, waits_for = Outage(clock, pace=lambda place: 500 / 16), ""
    with pytest.raises(BuildError, match="7 workers hung at unit 000000"):
        run(pool, 2, sample_timeout=100, max_workers=1)


def test_a_hang_is_killed_and_one_that_cannot_be_is_given_up(clock):
    pool, said = Cluster(clock, lambda place, order: "hangs" if place == "host0" and order is not None else None), []
    progress = run(pool, 40, said, sample_timeout=100, max_workers=2)
    assert progress.done == 40
    assert progress.by_place["host0 cuda:0"].hangs >= 1
    assert any("it hung" in line and "and can't be ended" in line for line in said)
    assert not poisoned(pool)


def test_a_worker_that_hangs_while_it_loads_is_replaced(clock):
    loads = count()
    pool, said = Cluster(clock, lambda _, order: "hangs" if order is None and next(loads) == 0 else None), []
    assert run(pool, 2, said, max_workers=1).done == 2
    assert any("it hung: its models weren't loaded after 3600 s" in line for line in said)


def test_loading_deaths_at_one_place_come_ever_more_rarely(clock):
    pool = Cluster(clock, lambda place, order: Died if place == "host1" and order is None else None)
    progress = run(pool, 500, max_workers=2)
    assert progress.done == 500
    assert progress.deaths <= 14


def test_a_fault_of_its_host_puts_a_place_aside(clock):
    pool, said = Cluster(clock, lambda place, order: Failed if place == "host0" and order else None), []
    progress = run(pool, 60, said, max_workers=2)
    assert (progress.done, progress.deaths, progress.by_place["host0 cuda:0"].units) == (60, 0, 0)
    assert "host0 cuda:0 is put aside for 120 s: no room in TMPDIR" in said
    with pytest.raises(BuildError, match="no room in TMPDIR"):
        run(Cluster(clock, lambda _, order: Failed if order else None), 4, max_workers=1)


def test_the_tail_does_not_wait_for_a_slow_worker(clock):
    pool, said = Cluster(clock, pace=lambda place: 100 if place == "host0" else SAMPLE), []
    progress = run(pool, 40, said, max_workers=4)
    assert (progress.done, progress.written) == (40, 40 * 16)
    assert clock.now < 40 * 16 / 3 + 150
    assert sum("is slow; an idle worker builds it too" in line for line in said) == 1
    assert progress.through == 40 * 16


def test_the_recent_past_counts_as_well():
    limit, progress = RejectLimit(0.05, 0, 0), SimpleNamespace(all_rejects=lambda: SimpleNamespace(most_common=list))
    for unit in range(50_000):
        limit.add(UnitResult(unit, 1000, 1000, {}, 1))
    limit.add(UnitResult(50_000, 1000, 0, {"image-unreadable": 1000}, 1))
    limit.check(progress)
    limit.add(UnitResult(50_001, 1000, 0, {"image-unreadable": 1000}, 1))
    with pytest.raises(BuildError, match=r"2000 of \d+ samples were rejected lately"):
        limit.check(progress)
    # what the source's records lack may lie in a heap at its end
    limit = RejectLimit(0.05, 0, 100_000)
    for unit in range(20):
        limit.add(UnitResult(unit, 1000, 1000, {}, 1))
    for unit in range(5):
        limit.add(UnitResult(unit, 1000, 0, {"no-image": 1000}, 1))
        limit.check(progress)
