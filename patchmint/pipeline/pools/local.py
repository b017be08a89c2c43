"""Workers as child processes of the driver: no Ray, several GPUs if there are any.

A process of its own, even for one worker: a sample that crashes a library then kills a worker and not the build.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from patchmint.pipeline.orders import Died, Event, Order, WorkerSettings
from patchmint.pipeline.pools.serve import ServedWorker

_STOP_SECONDS = 5


@dataclass
class _Child:
    process: BaseProcess
    connection: Connection
    slot: int


class LocalPool:
    """A `Pool` of child processes."""

    def __init__(self, settings: WorkerSettings, *, device: str, threads: int) -> None:
        """Prepare; nothing starts yet.

        Args:
            settings: what each worker needs.
            device: "cpu", "cuda:N", or "cuda" = spread over the GPUs; "auto" = GPUs if there are any.
            threads: CPU threads of each worker.
        """
        self._settings = settings
        self._device = device
        self._threads = threads
        # spawn: a fork would inherit whatever threads and locks the driver holds at that moment
        self._context = multiprocessing.get_context("spawn")
        self._children: dict[int, _Child] = {}
        self._next = 0

    def start(self, workers: int) -> None:
        """Start that many processes."""
        for slot in range(workers):
            self._spawn(slot)

    def submit(self, worker: int, order: Order) -> None:
        """Send an order; that a worker is gone shows in `wait`."""
        try:
            self._children[worker].connection.send(order)
        except OSError:
            return

    def wait(self, seconds: float) -> list[Event]:
        """Messages and deaths."""
        by_connection = {child.connection: worker for worker, child in self._children.items()}
        events: list[Event] = []
        for connection in wait(list(by_connection), timeout=seconds):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                events.append(self._bury(worker))
                continue
            events.append(message)
        return events

    def retire(self, worker: int) -> None:
        """End an idle worker."""
        self._end(self._children.pop(worker))

    def stop(self) -> None:
        """Kill all workers; what they were writing is swept by the driver."""
        for child in self._children.values():
            child.process.kill()
        while self._children:
            self._end(self._children.popitem()[1])

    def _spawn(self, slot: int) -> None:
        worker, self._next = self._next, self._next + 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(worker, slot, theirs, self._settings, self._device, self._threads),
            name=f"patchmint-worker-{worker}",
            daemon=True,
        )
        # Ctrl-C reaches the whole group, and a child that is only just starting isn't yet deaf to it
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()  # or the end of the child would not close the pipe
        self._children[worker] = _Child(process, ours, slot)

    def _bury(self, worker: int) -> Died:
        child = self._children.pop(worker)
        child.process.join(_STOP_SECONDS)
        code = child.process.exitcode
        self._end(child)
        self._spawn(child.slot)
        return Died(worker, innocent=False, message=_cause(code))

    def _end(self, child: _Child) -> None:
        child.connection.close()
        child.process.join(_STOP_SECONDS)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.process.close()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; was it the kernel's out-of-memory killer?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"


def _serve(worker: int, slot: int, connection: Connection, settings: WorkerSettings, device: str, threads: int) -> None:
    """The child's main function: load, then do orders until the driver is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    served = ServedWorker(worker)
    try:
        connection.send(served.load(settings, device, threads, slot))
        while True:
            connection.send(served.do(connection.recv()))
    except (EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
