"""Workers as child processes of the driver: no Ray, several GPUs if there are any.

A process of its own, even for one worker: a sample that crashes a library then kills a worker and not the build.

The children are started as commands, not through `multiprocessing`: that would run the caller's main script again in
each of them, and fail in a notebook. A fork would inherit whatever threads and locks the driver holds at that moment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from patchmint.pipeline.driver.contracts import Progress
from patchmint.pipeline.orders import Died, Event, Order, UnitResult, WorkerSettings
from patchmint.pipeline.pools.serve import ServedWorker

_STOP_SECONDS = 5
_START = "import sys; sys.path[:] = {path!r}; from patchmint.pipeline.pools.local import serve; serve({connection})"


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]


class LocalPool:
    """A `Pool` of child processes."""

    def __init__(self, settings: WorkerSettings, *, workers: int, device: str, threads: int) -> None:
        """Prepare; nothing starts yet.

        Args:
            settings: what each worker needs.
            workers: most at a time.
            device: "cpu", "cuda:N", or "cuda" = spread over the GPUs; "auto" = GPUs if there are any.
            threads: CPU threads of each worker.
        """
        self._settings = settings
        self._device = device
        self._threads = threads
        self._children: dict[int, _Child] = {}
        self._slots: dict[int, int] = {}
        self._free = deque(range(workers))
        self._next = 0

    def start(self, workers: int) -> None:
        """Start that many processes."""
        for _ in range(workers):
            self._spawn()

    def submit(self, worker: int, order: Order) -> None:
        """Send an order."""
        self._send(worker, order)

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

    def observe(self, progress: Progress, result: UnitResult | None) -> None:
        """Nothing is exported."""

    def interrupt(self, seconds: float) -> None:
        """Ask through the children's standard input."""
        for child in self._children.values():
            with suppress(OSError):
                assert child.process.stdin is not None
                child.process.stdin.write(bytes([min(255, round(seconds))]))
                child.process.stdin.flush()

    def kill(self, worker: int) -> None:
        """Kill the process."""
        self._children[worker].process.kill()

    def retire(self, worker: int) -> None:
        """End an idle worker."""
        self._end(self._children.pop(worker))
        self._free.append(self._slots.pop(worker))

    def replace(self, worker: int, *, elsewhere: bool) -> int:
        """Kill the process, if it isn't dead, and start another."""
        if (child := self._children.pop(worker, None)) is not None:
            child.process.kill()
            self._end(child)
        slot = self._slots.pop(worker)
        if elsewhere:
            self._free.append(slot)
        else:
            self._free.appendleft(slot)
        return self._spawn()

    def stop(self) -> None:
        """Kill all workers; what they were writing is swept by the driver."""
        for child in self._children.values():
            child.process.kill()
        while self._children:
            self._end(self._children.popitem()[1])

    def _spawn(self) -> int:
        worker, self._next = self._next, self._next + 1
        slot = self._slots[worker] = self._free.popleft()
        ours, theirs = Pipe()
        start = _START.format(path=sys.path, connection=theirs.fileno())
        with _deaf_to_interrupts():
            # by the end of its standard input the child knows that the driver is gone
            process = subprocess.Popen(  # noqa: S603 (this interpreter, with code from here)
                [sys.executable, "-c", start], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
            )
        theirs.close()  # or the end of the child would not close the pipe
        self._children[worker] = _Child(process, ours)
        self._send(worker, (worker, slot, self._settings, self._device, self._threads))
        return worker

    def _send(self, worker: int, message: object) -> None:
        """Send something; that a worker is gone shows in `wait`."""
        with suppress(OSError):
            self._children[worker].connection.send(message)

    def _bury(self, worker: int) -> Died:
        code = self._end(self._children.pop(worker))
        return Died(worker, innocent=False, message=_cause(code))

    def _end(self, child: _Child) -> int | None:
        """See a child end; its exit code, None if it had to be killed, or even so doesn't end: a disk that hangs."""
        child.connection.close()
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = child.process.wait(_STOP_SECONDS)
        child.process.kill()
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(_STOP_SECONDS)
        assert child.process.stdin is not None
        child.process.stdin.close()
        return code


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches the whole group: a child ignores it from its first moment on, as its parent does then."""
    if threading.current_thread() is not threading.main_thread():  # signals can be set in the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; was it the kernel's out-of-memory killer?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"


def serve(descriptor: int) -> None:
    """The child's main function: load, then do orders until the driver is gone.

    Args:
        descriptor: of its end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    one_at_a_time = threading.Lock()

    def send(event: Event) -> None:
        with one_at_a_time, suppress(BrokenPipeError):  # that the driver is gone is seen elsewhere
            connection.send(event)

    with suppress(EOFError):
        worker, slot, settings, device, threads = connection.recv()
        served = ServedWorker(worker, send)
        threading.Thread(target=_heed_parent, args=[served], name="heed-parent", daemon=True).start()
        send(served.load(settings, device, threads, slot))
        while True:
            send(served.do(connection.recv()))


def _heed_parent(served: ServedWorker) -> None:
    """A byte on standard input is a wish to stop, and says within how many seconds; its end is the driver's end."""
    while seconds := os.read(0, 1):  # unbuffered: a lock that a thread holds would stop the interpreter from ending
        served.save(seconds[0])
    os._exit(1)
