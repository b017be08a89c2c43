"""Workers as Ray actors. The one place of the pipeline that knows Ray.

Ray core and not Ray Data: here a pool of actors answered within a second where the same through Ray Data took 16 s to
start, and units are few and long, so Data's streaming of blocks between operators has nothing to stream.
"""

from __future__ import annotations

import logging
import socket
import time
import traceback
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from patchmint.config.build import RayRunner
from patchmint.errors import BuildError, PatchmintError, StorageError
from patchmint.pipeline.orders import Died, Done, Event, Failed, Order, Ready, WorkerSettings

_SAY_WAITING_SECONDS = 30


class _Actor:
    """Runs on the cluster. Errors travel as values: Ray would wrap them, and needs their classes on both sides."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._busy: Any = None

    def load(self, settings: WorkerSettings, threads: int) -> Event:
        try:
            from patchmint.pipeline.devices import pick_device
            from patchmint.pipeline.work import Worker

            on_gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
            self._busy = Worker(settings, pick_device("cuda" if on_gpu else "cpu"), threads)
        except PatchmintError as error:
            return Failed(self._worker, transient=False, message=f"on {socket.gethostname()}: {error}")
        except Exception:
            return Failed(self._worker, transient=False, message=traceback.format_exc())
        return Ready(self._worker, self._busy.info)

    def do(self, order: Order) -> Event:
        try:
            return Done(self._worker, self._busy.do(order))
        except StorageError as error:
            return Failed(self._worker, transient=True, message=f"on {socket.gethostname()}: {error}")
        except PatchmintError as error:
            return Failed(self._worker, transient=False, message=f"on {socket.gethostname()}: {error}")
        except Exception:
            return Failed(self._worker, transient=False, message=traceback.format_exc())


class RayPool:
    """A `Pool` of Ray actors."""

    def __init__(self, settings: WorkerSettings, runner: RayRunner, warn: Any) -> None:
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
        self._loaded: set[int] = set()
        self._next = 0
        self._asked_at = time.monotonic()
        try:
            if not ray.is_initialized():
                ray.init(address=runner.address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BuildError(
                f"can't reach the Ray cluster: {error}\n`patchmint doctor` looks at Ray and its token; on one machine "
                "runner.kind: local needs no Ray"
            ) from error

    def start(self, workers: int) -> None:
        """Create all actors at once: an autoscaler sees those that nothing can place yet."""
        for _ in range(workers):
            self._create()

    def submit(self, worker: int, order: Order) -> None:
        """Send an order."""
        self._pending[self._actors[worker].do.remote(order)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Answers and deaths."""
        if not self._loaded and time.monotonic() - self._asked_at > _SAY_WAITING_SECONDS:
            self._asked_at = time.monotonic()
            self._warn(
                f"no worker yet: each asks for {self._runner.num_gpus:g} GPU and {self._runner.num_cpus:g} CPU; the "
                f"cluster has {_resources(ray.cluster_resources())}, free {_resources(ray.available_resources())}"
            )
        if not self._pending:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=seconds, fetch_local=True)
        more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0) if done else ([], [])
        return [self._answer(ref) for ref in {*done, *more}]

    def retire(self, worker: int) -> None:
        """End an idle actor: its GPU goes back, and an autoscaler can give the node back."""
        ray.kill(self._actors.pop(worker))
        self._loaded.discard(worker)

    def stop(self) -> None:
        """Kill all actors."""
        self._pending.clear()
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _create(self) -> None:
        worker, self._next = self._next, self._next + 1
        runner = self._runner
        # max_restarts 0: who replaces a dead worker is the supervisor, which wants to know of every death
        options = {"num_cpus": runner.num_cpus, "num_gpus": runner.num_gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(_Actor).options(name=f"patchmint-{self._settings.run_id}-{worker}", **options).remote(worker)
        self._actors[worker] = actor
        threads = max(1, int(runner.num_cpus))
        self._pending[actor.load.remote(self._settings, threads)] = worker

    def _answer(self, ref: Any) -> Event:
        worker = self._pending.pop(ref)
        try:
            event: Event = ray.get(ref)
        except ActorUnavailableError as error:
            return self._bury(worker, innocent=True, message=str(error))
        except ActorDiedError as error:
            return self._bury(worker, innocent=_node_went_away(error), message=str(error))
        except RayError as error:
            return self._bury(worker, innocent=False, message=str(error))
        self._loaded.add(worker)
        return event

    def _bury(self, worker: int, *, innocent: bool, message: str) -> Died:
        ray.kill(self._actors.pop(worker))
        self._loaded.discard(worker)
        self._create()
        return Died(worker, innocent=innocent, message=" ".join(message.split()))


def _node_went_away(error: ActorDiedError) -> bool:
    return error.preempted or "its node has died" in str(error)


def _resources(resources: dict[str, float]) -> str:
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"
