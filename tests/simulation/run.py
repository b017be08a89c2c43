"""Whole builds in simulated time: `python -m simulation.run --seeds 10000`, or one again with `--seed N --verbose`.

The driver, its supervisor, hunts, lease, ledger and the commit protocol are the real ones. Workers, the store and time
are simulated, and everything that can go wrong does: workers and drivers are killed, freeze and hang, places are bad,
requests fail, are lost or come late, the power fails, two drivers run.
"""

import argparse
import io
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import ExitStack
from functools import lru_cache
from itertools import count
from unittest.mock import patch

import shard_data

from patchmint.config.build import BuildConfig
from patchmint.errors import BuildError, BusyError, PatchmintError
from patchmint.pipeline.driver import build as driver
from patchmint.pipeline.driver import places, runs, stragglers, supervise, trouble, watch
from patchmint.pipeline.driver.contracts import Reporter
from patchmint.pipeline.plan import make_plan, to_batches
from patchmint.samples import Fault, ImageRef, Reject, SourceSample, SourceText
from patchmint.shards import commit, lease
from patchmint.shards.paths import canonical_paths, record_path
from patchmint.shards.plan import load_plans
from patchmint.shards.records import CommitRecord
from patchmint.shards.rejects import write_rejects
from simulation.actors import Place, Pool
from simulation.storage import SimulatedStorage
from simulation.world import World

QUIET_AFTER = 20_000.0
"""From then on nothing new goes wrong: a run that can end does."""
_SAMPLES = 6


class ViolationError(AssertionError):
    """Something that must never happen."""


def config():
    return BuildConfig.model_validate(
        {
            "source": {"kind": "folder", "uri": "sim://in"},
            "output": {"uri": "sim://out", "samples_per_shard": _SAMPLES},
            "limits": {"max_reject_share": 1.0, "sample_timeout": 60},
        }
    )


@lru_cache
def planned(units):
    """The plan's files, which earlier runs have left."""
    world = World(0)
    storage = SimulatedStorage(world, {}, latency=1e-9)
    samples = (
        SourceSample(f"{number:04}", (ImageRef(f"{number:04}.jpg"),), (SourceText("a thing"),))
        for number in range(units * _SAMPLES)
    )
    task = world.start("plan", lambda: make_plan(to_batches(samples), config(), {}, storage))
    world.run(lambda: task.is_over)
    return storage.files


@lru_cache(maxsize=4096)
def unit_files(unit, first, samples, poison, hanging):
    rejects = [
        Reject(first + place, f"s{place}", f"{place}", Fault("worker", reason(place, hanging), "it did"))
        for place in sorted(poison)
    ]
    written = [shard_data.make_sample(first + place) for place in range(samples) if place not in poison]
    table, sidecar, tar = canonical_paths(unit)
    files = {}
    if written:
        files[tar], files[sidecar] = shard_data.write_shard(written)
    if rejects:
        file = io.BytesIO()
        write_rejects(file, rejects)
        files[table] = file.getvalue()
    counts = {}
    for reject in rejects:
        counts[reject.fault.reason] = counts.get(reject.fault.reason, 0) + 1
    return files, counts


def reason(place, hanging):
    return "hangs-worker" if place in hanging else "kills-worker"


class Scene:
    """What goes wrong in one run, by its seed."""

    def __init__(self, seed, *, syncs=True, end=200_000.0):
        self.world = world = World(seed, end=end)
        chance = world.random
        units = chance.randint(1, 8)
        self.workers = chance.randint(1, 6)
        places_wanted = min(self.workers, chance.choice([1, 1, 2, 3, 4, 6]))
        self.asked = 0
        self.stuck = chance.choice([0, 0, 0.5])
        self.places = [Place(f"host{number} gpu") for number in range(places_wanted)]
        self.nature = {}
        for _ in range(chance.choice([0, 0, 1, 1, 2, 4])):
            sample = (chance.randrange(units), chance.randrange(_SAMPLES))
            self.nature[sample] = chance.choice(["kills", "kills", "hangs"])
        if places_wanted > 1:
            for place in chance.sample(self.places, chance.choice([0, 0, 1, 1, places_wanted // 2])):
                place.bad = chance.choice([1.0, 1.0, 0.3])
                place.bad_from = chance.choice([0, chance.uniform(0, 300)])
            slow = chance.choice(self.places)
            slow.pace = chance.choice([1, 1, 20])
        unlucky = chance.choice(self.places)
        unlucky.loading_fault, unlucky.share = chance.choice([(None, 0), ("dies", 0.4), ("fails", 0.4)])
        outages = [
            (start, start + chance.choice([20, 400])) for start in chance.choice([[], [], [chance.uniform(0, 400)]])
        ]
        trouble = chance.choice([0, 0, 0.005, 0.03])
        self.storage = SimulatedStorage(
            world,
            planned(units),
            trouble=trouble,
            latency=chance.choice([0.01, 0.01, 2.0]),
            outages=outages,
            syncs=syncs,
        )
        self.units = units
        self.drivers = []
        self.said = []
        self._slots = 0

    def place_of(self, slot):
        return self.places[slot % len(self.places)]

    def files_of(self, unit, poison, hanging):
        return unit_files(unit.id, unit.first_ordinal, unit.samples, poison, hanging)

    def run(self):
        """Let everything happen; raises ViolationError or StuckError."""
        chance = self.world.random
        people = [self.world.start("a person", self._person)]
        if chance.random() < 0.3:
            people.append(self.world.start("another person", self._person, after=chance.uniform(0, 200)))
        if chance.random() < 0.7:
            self.world.start("fate", self._fate)
        self.world.start("peace", self._peace, after=QUIET_AFTER)
        self.world.run(lambda: all(person.is_over for person in people))
        self.check()

    def _person(self):
        """Starts the build again and again, until it is finished."""
        while True:
            ended = []
            task = self.world.start("driver", lambda ended=ended: ended.append(self._drive()))
            task.pools, task.threads = [], []
            self.drivers.append(task)
            while not (task.is_over or task.is_dead):
                self.world.sleep(5)
            if ended == ["finished"]:
                return
            self.world.sleep(self.world.random.uniform(1, 60))

    def _drive(self):
        reporter = Reporter()
        reporter.warn = lambda line: self.world.say(f"driver: {line}")
        try:
            report = driver.build(
                config(),
                lambda settings: Pool(self, settings),
                min_workers=1,
                max_workers=self.workers,
                reporter=reporter,
            )
        except (BuildError, BusyError, PatchmintError) as error:
            self.world.say(f"driver: ended: {type(error).__name__}: {error}")
            return "stopped"
        if report.missing:
            raise ViolationError(f"{report.missing} samples are neither written nor rejected")
        return "finished"

    def _fate(self):
        world = self.world
        while world.now < QUIET_AFTER:
            world.sleep(world.random.expovariate(1 / world.random.choice([15, 60, 600])))
            befalls = world.random.choice(["driver", "freeze", "worker", "preempted", "power"])
            drivers = [task for task in self.drivers if not (task.is_over or task.is_dead)]
            workers = [worker for task in drivers for pool in task.pools for worker in pool._workers.values()]
            if befalls in ("driver", "power") and drivers:
                self._kill_driver(world.random.choice(drivers))
                if befalls == "power":
                    self.storage.lose_power()
            elif befalls == "freeze" and drivers:
                task, until = world.random.choice(drivers), world.now + world.random.choice([10, 60])
                world.say(f"a driver freezes until {until:.0f}")
                for each in [task, *task.threads]:
                    each.frozen_until = until
            elif befalls in ("worker", "preempted") and workers:
                worker = world.random.choice(workers)
                # an accident of its own, twice at one sample, can't be told from the sample's fault where there is
                # only one place: there, workers end only with their nodes
                is_preempted = befalls == "preempted" or len(self.places) == 1
                worker.die(befalls, innocent=is_preempted)

    def _kill_driver(self, task):
        self.world.say("a driver is killed")
        pools = list(task.pools)
        for thread in task.threads:
            self.world.kill(thread)
        self.world.kill(task)
        for pool in pools:
            pool.driver_died()

    def _peace(self):
        self.storage.trouble, self.storage.outages = 0.0, ()
        for place in self.places[:1]:
            place.bad, place.loading_fault = 0.0, None
        if not any(place.bad == 0 for place in self.places):
            raise ViolationError("no place is well")

    def check(self):
        """What must hold at the end."""
        files = self.storage.files
        (plan,) = in_world(load_plans, files)
        for unit in plan.units:
            if record_path(unit.id) not in files:
                raise ViolationError(f"unit {unit.id} has no record")
            record = CommitRecord.parse(files[record_path(unit.id)], unit.id, "record")
            if record.planned != record.written + sum(record.rejects.values()):
                raise ViolationError(f"unit {unit.id}: planned isn't written + rejected")
            natures = {place: what for (number, place), what in self.nature.items() if number == unit.id}
            hanging = frozenset(place for place, what in natures.items() if what == "hangs")
            wanted, counts = self.files_of(unit, frozenset(natures), hanging)
            if record.rejects != counts:
                raise ViolationError(f"unit {unit.id}: {record.rejects} were rejected, {counts} are to blame")
            for path in canonical_paths(unit.id):
                if files.get(path) != wanted.get(path):
                    raise ViolationError(f"{path} isn't what it should be")
        if {unit: times for unit, times in self.storage.records.items() if times != 1}:
            raise ViolationError(f"records were made more than once: {self.storage.records}")
        if left := [path for path in files if path.startswith(("attempts/", "saved/"))]:
            raise ViolationError(f"left over: {left}")
        if "dataset.json" not in files:
            raise ViolationError("there is no dataset.json")


def in_world(act, files):
    world, answers = World(0), []
    storage = SimulatedStorage(world, files, latency=1e-9)
    task = world.start("look", lambda: answers.append(act(storage)))
    world.run(lambda: task.is_over)
    return answers[0]


class _InTurn:
    """A `ThreadPoolExecutor` that does one after another."""

    def __init__(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, act, values):
        return [act(value) for value in values]


def simulate(seed, *, syncs=True, end=200_000.0):
    """One whole build.

    Args:
        seed: of all chance.
        syncs: False: files are lost when the power fails.
        end: seconds after which it counts as stuck.

    Returns:
        The scene, after its end; raises what was violated, with the seed.
    """
    scene = Scene(seed, syncs=syncs, end=end)
    world = scene.world
    (plan,) = in_world(load_plans, scene.storage.files)
    runs_so_far = count(1)
    with ExitStack() as patches:
        for module in (supervise, places, stragglers, trouble, watch, runs, lease, commit):
            patches.enter_context(patch.object(module, "time", world.time))
        for module in (lease, commit, runs):
            patches.enter_context(patch.object(module, "secrets", world.secrets))
        for module, name, value in (
            (lease, "threading", world.threading),
            (commit, "ThreadPoolExecutor", _InTurn),
            (driver, "open_storage", lambda *_, **__: scene.storage),
            (runs, "open_storage", lambda *_, **__: scene.storage),
            (lease, "open_storage", lambda *_, **__: scene.storage),
            (driver, "check_buildable", lambda _: None),
            (driver, "record_models", lambda _: {}),
            (driver, "creates_conditionally", lambda _: True),
            (driver, "new_run_id", lambda: f"run-{next(runs_so_far)}"),
            (driver, "library_versions", lambda: dict(plan.versions)),
            (runs, "_WRITE_SECONDS", (20.0, 100.0)),
        ):
            patches.enter_context(patch.object(module, name, value))
        scene.run()
    return scene


def tried(seed):
    """What was violated, or "", and how much happened."""
    try:
        scene = simulate(seed)
    except Exception:
        return seed, traceback.format_exc(limit=-4), 0
    return seed, "", scene.asked


def main():
    """Simulate many seeds, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="only this one, with all that happens in it")
    options = parser.parse_args()
    if options.seed is not None:
        scene = Scene(options.seed)
        print(
            f"{scene.units} units of {_SAMPLES}, {scene.workers} workers on {[vars(place) for place in scene.places]}"
        )
        print(f"bad samples: {scene.nature}")
        with patch.object(World, "say", lambda self, line: print(f"{self.now:10.2f} {line}")):
            simulate(options.seed)
        print("nothing was violated")
        return
    start, violated = time.monotonic(), 0
    seeds = range(options.first, options.first + options.seeds)
    with multiprocessing.get_context("forkserver").Pool(os.cpu_count()) as pool:
        for number, (seed, violation, _) in enumerate(pool.imap(tried, seeds, chunksize=20), start=1):
            if violation:
                violated += 1
                print(f"seed {seed}:\n{violation}", flush=True)
            if number % 1000 == 0:
                print(f"{number} seeds, {violated} violations, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{len(seeds)} seeds, {violated} violations, {time.monotonic() - start:.0f} s")
    sys.exit(bool(violated))


if __name__ == "__main__":
    main()
