"""Workers as Ray actors. The one place of the pipeline that knows Ray.

Ray core and not Ray Data: here a pool of actors answered within a second where the same through Ray Data took 16 s to
start, and units are few and long, so Data's streaming of blocks between operators has nothing to stream.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from patchmint.config.build import RayRunner
from patchmint.errors import BuildError
from patchmint.pipeline.driver.contracts import PlaceTally, Progress
from patchmint.pipeline.orders import Died, Event, Failed, Order, Ready, UnitResult, WorkerSettings, Working
from patchmint.pipeline.pools.package import Package, package_here
from patchmint.pipeline.pools.serve import ServedWorker

_SAY_WAITING_SECONDS = 30
_PULSE_SECONDS = 5.0
_END_SECONDS = 10.0
_NEWS_SECONDS = 0.5
_BOARD_SECONDS = 10.0
_PING_SECONDS = 0.5
"""Between questions whether an unavailable actor lives: while its node, or the cluster, is gone each fails at once."""
_LOST_SECONDS = 45.0
"""Without an answer for so long the cluster counts as lost. After 60 s Ray ends the driver without a word to it."""
_CANNOT_START = "error raised in its creation task"
"""What Ray says of an actor whose class couldn't be imported, or its constructor run."""
_SHIP = (
    "install the same on all machines, or ship one to all: `ray job submit --working-dir` with a folder or zip that "
    "has patchmint/ at its top"
)


class PatchmintWorker(ServedWorker):
    """Runs on the cluster. Errors travel as values: Ray would wrap them, and needs their classes on both sides."""

    def __init__(self, worker: int, board: Any) -> None:
        self._board = board
        node = ray.get_runtime_context().get_node_id()
        # several nodes may run on one machine, and containers may share a name
        super().__init__(worker, self._say, host=f"{socket.gethostname()}/{node[:6]}")

    def package(self) -> Package:
        """Which patchmint this is; asked first, because another one may not understand the rest."""
        return package_here()

    def ping(self) -> None:
        """Show that it lives."""

    def _say(self, event: Event) -> None:
        with suppress(RayError):  # the board may be gone for a while; what it says is news, not answers
            seconds = ray.get(self._board.tell.remote(event), timeout=_BOARD_SECONDS)
            if seconds is not None and isinstance(event, Working):
                self.save(seconds)


class Board:
    """Carries what workers say while they do an order, on which a driver can't wait otherwise.

    An actor of its own: a second method of the workers would move their models into another thread than the main one.
    """

    def __init__(self) -> None:
        self._events: dict[tuple[type[Event], int], Event] = {}
        self._seconds: float | None = None

    def tell(self, event: Event) -> float | None:
        """Take over a worker's latest news; the answer is whether to stop, and within how many seconds."""
        self._events[type(event), event.worker] = event
        return self._seconds

    def take(self) -> list[Event]:
        """What is new since the last call."""
        events, self._events = self._events, {}
        return list(events.values())

    def interrupt(self, seconds: float) -> None:
        """Have every worker that says something save what it has annotated."""
        self._seconds = seconds


class RayPool:
    """A `Pool` of Ray actors."""

    def __init__(self, settings: WorkerSettings, runner: RayRunner, warn: Callable[[str], None]) -> None:
        """Connect to the cluster, or start one on this machine if there is none.

        Args:
            settings: what each worker needs.
            runner: resources of an actor.
            warn: takes a line for people.

        Raises:
            BuildError: the cluster can't be reached.
        """
        self._settings = settings
        self._runner = runner
        self._warn = warn
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}
        self._unavailable: dict[int, float] = {}  # since when
        self._news: Any = None
        self._news_at = 0.0
        self._loaded: set[int] = set()
        self._needed = 1
        self._next = 0
        self._package = package_here()
        self._enough_at = time.monotonic()
        _connect(runner)
        # needs no room of its own; beside the driver, where this patchmint surely is
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(Board).options(
            num_cpus=0, max_restarts=-1, name=f"patchmint-{settings.run_id}-board", scheduling_strategy=here
        )
        self._board = board.remote()
        self._pulse = _Pulse()
        self._metrics = _Metrics()

    def start(self, workers: int) -> None:
        """Create all actors at once: an autoscaler sees those that nothing can place yet."""
        self._needed = min(self._runner.min_actors, workers)
        for _ in range(workers):
            self._create()

    def submit(self, worker: int, order: Order) -> None:
        """Send an order."""
        self._pending[self._actors[worker].do.remote(order)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Answers and deaths.

        Raises:
            BuildError: the cluster has been silent for too long.
        """
        self._pulse.check()
        self._say_waiting()
        self._ping()
        news = self._take_news()
        if news or not self._pending:
            time.sleep(0 if news else seconds)
            return news
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0) if done else ([], [])
        events = [self._answer(ref) for ref in more]
        return [event for event in events if event is not None]

    def interrupt(self, seconds: float) -> None:
        """Ask through the board: workers see it with their next news."""
        self._board.interrupt.remote(seconds)

    def observe(self, progress: Progress, result: UnitResult | None) -> None:
        """Export the counts."""
        self._metrics.update(progress, result)

    def kill(self, worker: int) -> None:
        """Kill the actor; that it is dead its order's answer tells."""
        with suppress(RayError, KeyError):
            ray.kill(self._actors[worker])

    def retire(self, worker: int) -> None:
        """End an idle actor: its GPU goes back, and an autoscaler can give the node back."""
        self._kill(worker)

    def replace(self, worker: int, *, elsewhere: bool) -> int:  # noqa: ARG002 (Ray chooses)
        """End an actor, if it isn't dead, and create another."""
        self._kill(worker)
        return self._create()

    def stop(self) -> None:
        """Kill all actors, and wait until they are dead: the driver sweeps next what they were writing."""
        in_work = list(self._pending)
        self._pending.clear()
        self._pulse.stop()
        for worker in list(self._actors):
            self._kill(worker)
        if not self._pulse.lost:
            with suppress(RayError):
                ray.kill(self._board)
        if in_work and not self._pulse.lost:
            ray.wait(in_work, num_returns=len(in_work), timeout=_END_SECONDS)

    def _take_news(self) -> list[Event]:
        """What the board has, asked for at most twice a second and never waited for."""
        news: list[Event] = []
        if self._news is None and time.monotonic() - self._news_at > _NEWS_SECONDS:
            self._news, self._news_at = self._board.take.remote(), time.monotonic()
        elif self._news is not None and ray.wait([self._news], timeout=0)[0]:
            with suppress(RayError):
                news = ray.get(self._news)
            self._news = None
        return news

    def _create(self) -> int:
        worker, self._next = self._next, self._next + 1
        runner = self._runner
        # max_restarts 0: who replaces a dead worker is the supervisor, which wants to know of every death
        options = {"num_cpus": runner.num_cpus, "num_gpus": runner.num_gpus, "max_restarts": 0, "max_task_retries": 0}
        name = f"patchmint-{self._settings.run_id}-{worker}"
        actor = ray.remote(PatchmintWorker).options(name=name, **options).remote(worker, self._board)
        self._actors[worker] = actor
        self._pending[actor.package.remote()] = worker
        return worker

    def _load(self, worker: int, package: Package) -> Failed | None:
        """Have a worker load its models, if its patchmint is the driver's."""
        host, version, folder, digest = package
        _, our_version, our_folder, our_digest = self._package
        if digest != our_digest:
            message = (
                f"on {host}: patchmint {version} in {folder} differs from the driver's, {our_version} in {our_folder}; "
                f"{_SHIP}"
            )
            return Failed(worker, transient=False, message=message)
        device = "cuda" if self._runner.num_gpus else "cpu"
        actor = self._actors[worker]
        self._pending[actor.load.remote(self._settings, device, self._runner.num_cpus)] = worker
        return None

    def _answer(self, ref: Any) -> Event | None:
        worker = self._pending.pop(ref)
        try:
            event: Event | Package | None = ray.get(ref)
        except ActorUnavailableError:
            # The connection broke. Whether the process died, its node, or neither, is known some seconds later; to take
            # it for an accident would let a sample kill for ever.
            self._unavailable[worker] = time.monotonic()
            return None
        except RayError as error:
            raised = isinstance(error, RayTaskError) and worker not in self._loaded
            if raised or _CANNOT_START in str(error):
                said = f"{_last_line(error)}; is its patchmint the driver's? {_SHIP}"
                return Failed(worker, transient=False, message=said)
            away = isinstance(error, ActorDiedError) and (error.preempted or "its node has died" in str(error))
            return self._bury(
                worker, innocent=away, message=f"its node went away: {_short(error)}" if away else _short(error)
            )
        if isinstance(event, tuple):
            return self._load(worker, event)
        if event is None:
            return self._bury(worker, innocent=True, message="the connection to it broke, and its answer is lost")
        if isinstance(event, Ready):
            self._loaded.add(worker)
        return event

    def _ping(self) -> None:
        due = [worker for worker, since in self._unavailable.items() if time.monotonic() - since > _PING_SECONDS]
        for worker in due:
            del self._unavailable[worker]
            self._pending[self._actors[worker].ping.remote()] = worker

    def _bury(self, worker: int, *, innocent: bool, message: str) -> Died:
        self._kill(worker)
        return Died(worker, innocent=innocent, message=message)

    def _kill(self, worker: int) -> None:
        self._loaded.discard(worker)
        self._unavailable.pop(worker, None)
        actor = self._actors.pop(worker, None)
        self._pending = {ref: asked for ref, asked in self._pending.items() if asked != worker}
        if actor is not None and not self._pulse.lost:  # or each call would wait for an answer
            with suppress(RayError):
                ray.kill(actor)

    def _say_waiting(self) -> None:
        now = time.monotonic()
        if len(self._loaded) >= self._needed:
            self._needed, self._enough_at = 1, now
        elif now - self._enough_at > _SAY_WAITING_SECONDS:
            self._enough_at = now
            asked = {"GPU": self._runner.num_gpus, "CPU": self._runner.num_cpus}
            self._warn(
                f"{len(self._loaded)} workers are ready, waiting for {self._needed}: each asks for {_shown(asked)}; "
                f"the cluster has {self._pulse.resources}"
            )


class _Metrics:
    """What Ray's dashboard and Prometheus see: Ray exports it as `ray_patchmint_...` on each node's metrics port.

    Counters count finished units, so a unit tried twice counts once. A place is a host and a device.
    """

    def __init__(self) -> None:
        self._planned = Gauge("patchmint_samples_planned", "Samples in all units of the run.")
        self._through = Gauge("patchmint_samples_through", "Samples annotated or rejected, also in unfinished units.")
        self._samples = Counter("patchmint_samples_written", "Samples written into shards.")
        self._rejects = Counter("patchmint_samples_rejected", "Samples rejected.", tag_keys=("reason",))
        self._units = Counter("patchmint_units", "Units finished.")
        self._bytes = Counter("patchmint_bytes_written", "Bytes of shards written.")
        self._stages = Counter("patchmint_stage_seconds", "Seconds of all workers, by stage.", tag_keys=("stage",))
        self._queue = Counter("patchmint_queue_wait_seconds", "Seconds that workers waited for a unit.")
        self._deaths = Counter("patchmint_worker_deaths", "Workers that died and were replaced.")
        self._workers = Gauge("patchmint_workers", "Workers that are ready.")
        self._wanted = Gauge("patchmint_workers_wanted", "Workers that were asked for.")
        self._aside = Gauge("patchmint_place_aside", "Whether a place gets no units for now.", tag_keys=("place",))
        self._by_place = {
            name: Counter(f"patchmint_place_{name}", description, tag_keys=("place",))
            for name, description in (
                ("samples", "Samples in the units finished at a place."),
                ("units", "Units finished at a place."),
                ("deaths", "Workers that died at a place, hanging ones included."),
                ("hangs", "Workers that hung at a place."),
            )
        }
        self._seen_queue = 0.0
        self._seen_deaths = 0
        self._seen_places: dict[str, PlaceTally] = {}

    def update(self, progress: Progress, result: UnitResult | None) -> None:
        """Take over what has happened since the last call."""
        # Ray shows a driver's last values for a while after it has ended
        ended = progress.done == progress.units
        self._workers.set(0 if ended else progress.workers)
        self._wanted.set(0 if ended else progress.workers_wanted)
        self._planned.set(progress.planned)
        self._through.set(progress.through)
        if progress.queue_wait > self._seen_queue:
            self._queue.inc(progress.queue_wait - self._seen_queue)
            self._seen_queue = progress.queue_wait
        if progress.deaths > self._seen_deaths:
            self._deaths.inc(progress.deaths - self._seen_deaths)
            self._seen_deaths = progress.deaths
        for place, tally in progress.by_place.items():
            self._aside.set(tally.aside, tags={"place": place})  # Ray forgets gauges that nobody sets again
            if tally != self._seen_places.get(place):
                self._count_place(place, tally)
        if result is None:
            return
        counts = [(self._samples, result.written), (self._bytes, result.bytes), (self._units, 1)]
        for counter, count in counts:
            if count:
                counter.inc(count)
        for reason, count in result.rejects.items():
            self._rejects.inc(count, tags={"reason": reason})
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._stages.inc(seconds, tags={"stage": stage})

    def _count_place(self, place: str, tally: PlaceTally) -> None:
        seen, tags = self._seen_places.get(place, PlaceTally()), {"place": place}
        for name, counter in self._by_place.items():
            if (more := getattr(tally, name) - getattr(seen, name)) > 0:
                counter.inc(more, tags=tags)
        self._seen_places[place] = replace(tally)


class _Pulse:
    """Asks the cluster all the time, in a thread, because the question itself may take a minute.

    Attributes:
        lost: whether the cluster has been silent for too long.
        resources: what the cluster has and what is free, for people.
    """

    def __init__(self) -> None:
        self.lost = False
        self.resources = ""
        self._seen = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="ray-pulse", daemon=True).start()

    def check(self) -> None:
        """Raises BuildError if the cluster is lost."""
        silent = time.monotonic() - self._seen
        self.lost = silent > _LOST_SECONDS
        if self.lost:
            raise BuildError(
                f"the Ray cluster hasn't answered for {silent:.0f} s: its head node is gone, or can't be reached from "
                f"{socket.gethostname()}. What is finished stays; once a cluster is up, run the same command to resume"
            )

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with suppress(Exception):  # whatever Ray raises: silence is what counts
                has, free = ray.cluster_resources(), ray.available_resources()
                self.resources = f"{_shown(has)}, free {_shown(free)}"
                self._seen = time.monotonic()
            self._stopped.wait(_PULSE_SECONDS)


def _connect(runner: RayRunner) -> None:
    if ray.is_initialized():
        return
    try:
        if not sys.stderr.isatty():
            os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # or escape sequences stand in the job's log
        with _own_sigterm():
            ray.init(address=runner.address, log_to_driver=True, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise BuildError(
                f"there is no Ray cluster, and none can be started here, because its token can't be kept: {error}\n"
                "set HOME to a folder that can be written, or RAY_AUTH_TOKEN to a secret; on one machine runner.kind: "
                "local needs no Ray"
            ) from error
        raise BuildError(
            f"can't reach the Ray cluster: {error}\n`patchmint doctor` looks at Ray and its token; on one machine "
            "runner.kind: local needs no Ray"
        ) from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """`ray.init` puts a handler of its own on SIGTERM, with which `ray job stop` would cut a build short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _short(error: RayError) -> str:
    """Ray's message in one line: which process and where, then the cause; not its ids, nor its hints for debugging."""
    lines = str(error).splitlines()
    where = [line.strip() for line in lines if line.startswith(("\tpid:", "\tip:"))]
    cause = " ".join(line.strip() for line in lines if not line.startswith("\t"))
    cause = cause.removeprefix(ActorDiedError.BASE_ERROR_MSG).partition("Some common causes")[0].strip()
    return ", ".join([*where, cause])


def _last_line(error: RayError) -> str:
    """Of the traceback in Ray's message, and where it was."""
    ip = re.search(r"\bip=([^,\s]+)", str(error))
    return f"on {ip[1] if ip else 'a machine'}: a worker can't start: {str(error).strip().splitlines()[-1].strip()}"


def _shown(resources: Mapping[str, float]) -> str:
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"
