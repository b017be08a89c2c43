"""Simulated workers and their pool. They annotate by letting time pass, and commit by the real protocol."""

from collections import deque
from itertools import count

from patchmint.errors import StorageError
from patchmint.pipeline.orders import Died, Done, Failed, Loading, Ready, Saved, UnitResult, WorkerInfo, Working
from patchmint.shards.commit import Attempt, find_record

_BATCH = 2
_LOAD_SECONDS = 20.0


class Place:
    """A host and a device.

    Attributes:
        pace: seconds a sample.
        bad: the chance that a sample kills its worker here, whatever it is.
        bad_from: since when.
        loading_fault: None, or what befalls a worker that loads here: "dies", "fails".
        share: the chance that loading meets it.
        is_gone: whether the node has left for good.
    """

    def __init__(self, name, *, pace=1.0, bad=0.0, bad_from=0.0, loading_fault=None, share=0.0):
        self.name = name
        self.pace = pace
        self.bad = bad
        self.bad_from = bad_from
        self.loading_fault = loading_fault
        self.share = share
        self.is_gone = False


class Pool:
    """See `patchmint.pipeline.driver.contracts.Pool`. Workers end some seconds after their driver, at the latest."""

    def __init__(self, scene, settings):
        self._scene = scene
        self._world = scene.world
        self._settings = settings
        self._events = deque()
        self._waiting = None
        self._workers = {}
        self._slots = {}
        self._free = deque(range(scene.workers))
        self._numbers = count()
        self._driver = self._world.current()
        self._driver.pools.append(self)

    def start(self, workers):
        for _ in range(workers):
            self._spawn()

    def submit(self, worker, order):
        if worker in self._workers:
            self._workers[worker].give(order)

    def wait(self, seconds):
        if not self._events:
            self._waiting = self._world.current()
            self._world.sleep(seconds)
            self._waiting = None
        events = list(self._events)
        self._events.clear()
        return events

    def observe(self, progress, result):
        """Nothing is exported."""

    def interrupt(self, seconds):
        for worker in list(self._workers.values()):
            worker.hand_over()

    def kill(self, worker):
        if worker in self._workers:
            self._workers[worker].die("killed", even_if_stuck=False)

    def retire(self, worker):
        self._end(worker)
        self._free.append(self._slots.pop(worker))

    def replace(self, worker, *, elsewhere):
        self._end(worker)
        (self._free.append if elsewhere else self._free.appendleft)(self._slots.pop(worker))
        return self._spawn()

    def stop(self):
        self._world.current()  # a dead driver stops nobody
        for worker in list(self._workers):
            self._end(worker)

    def driver_died(self):
        """The workers notice sooner or later; what they do until then counts."""
        for number in list(self._workers):
            self._world.start(
                "the end", lambda number=number: self._end(number), after=self._world.random.uniform(0, 8)
            )

    def tell(self, event):
        if not self._driver.is_dead:
            self._events.append(event)
            if self._waiting is not None:
                self._world.wake(self._waiting)

    def forget(self, number):
        self._workers.pop(number, None)

    def _spawn(self):
        number = next(self._numbers)
        slot = self._slots[number] = self._free.popleft()
        self._workers[number] = Worker(self, self._scene, self._settings, number, self._scene.place_of(slot))
        return number

    def _end(self, number):
        if (worker := self._workers.pop(number, None)) is not None:
            self._world.kill(worker.task)


class Worker:
    """One process: loads, then does orders."""

    def __init__(self, pool, scene, settings, number, place):
        self._pool = pool
        self._scene = scene
        self._settings = settings
        self._number = number
        self._place = place
        self._orders = deque()
        self._is_handing_over = self._is_stuck = False
        self.task = scene.world.start(f"worker {number} on {place.name}", self._run)

    def give(self, order):
        self._orders.append(order)
        self._scene.world.wake(self.task)

    def hand_over(self):
        self._is_handing_over = True

    def die(self, why, *, innocent=False, even_if_stuck=True):
        """The process ends; the driver learns of it a moment later."""
        if self._is_stuck and not even_if_stuck:
            return
        world, pool = self._scene.world, self._pool
        pool.forget(self._number)
        event = Died(self._number, innocent, why)
        world.start("news of a death", lambda: pool.tell(event), after=world.random.uniform(0, 2))
        world.say(f"worker {self._number} on {self._place.name} died: {why}")
        world.kill(self.task)

    def _run(self):
        world, place = self._scene.world, self._place
        while place.is_gone:  # nothing can place it
            world.sleep(50)
        world.sleep(1)
        self._pool.tell(Loading(self._number))
        world.sleep(_LOAD_SECONDS * world.random.uniform(0.5, 2))
        if place.loading_fault and world.random.random() < place.share:
            if place.loading_fault == "dies":
                self.die("it died while it loaded")
            self._pool.tell(Failed(self._number, True, "the store answers 503"))
            while True:
                world.sleep(1000)
        host, device = place.name.split()
        self._pool.tell(Ready(self._number, WorkerInfo(host, device)))
        while True:
            while not self._orders:
                world.sleep(1000)
            order = self._orders.popleft()
            try:
                event = Done(self._number, self._do(order))
            except StorageError as error:
                event = Failed(self._number, True, str(error))
            self._pool.tell(event)

    def _do(self, order):
        places = [sample for sample in range(order.unit.samples) if sample not in order.poison]
        if order.probe is not None:
            self._annotate(order, sorted(order.probe))
            return None
        storage = self._scene.storage
        attempt = Attempt(storage, order.unit.id, self._settings.run_id)
        try:
            return self._build(order, places, attempt)
        except StorageError:
            if find_record(storage, order.unit.id) is None:
                raise
            return UnitResult(order.unit.id, order.unit.samples, 0, {}, 0, won=False)
        finally:
            attempt.drop()

    def _build(self, order, places, attempt):
        unit = order.unit
        self._annotate(order, places)
        files, rejects = self._scene.files_of(unit, order.poison, order.hanging)
        for path, data in files.items():
            with attempt.new_file(path) as file:
                file.write(data)
        won = attempt.commit(unit.samples, len(places), rejects, self._settings.plan_digest)
        return UnitResult(unit.id, unit.samples, len(places), rejects, 1, won=won)

    def _annotate(self, order, places):
        world, scene = self._scene.world, self._scene
        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            self._pool.tell(Working(self._number, order.unit.id, start, 0, {}, "annotate", tuple(batch)))
            world.sleep(self._place.pace * len(batch) * world.random.uniform(0.8, 1.2))
            if self._is_handing_over:
                self._pool.tell(Saved(self._number, start))
                while True:
                    world.sleep(1000)
            for sample in batch:
                scene.asked += 1
                what = scene.nature.get((order.unit.id, sample))
                if what == "kills":
                    self.die(f"by sample {order.unit.id}/{sample}")
                if what == "hangs":
                    self._is_stuck = world.random.random() < scene.stuck
                    world.say(f"worker {self._number} hangs at {order.unit.id}/{sample}")
                    while True:
                        world.sleep(5000)
                if world.now >= self._place.bad_from and world.random.random() < self._place.bad:
                    self.die("by its place")
