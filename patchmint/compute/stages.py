"""Where the time goes: named stages, of models and of everything around them.

    with stage("mask"):
        with stage("encode", device):
            ...

Without a stopwatch a stage costs less than a microsecond. With one it is timed, added up by its path ("mask/encode"),
and kept as an event for a timeline. Work that is handed to a GPU is timed there, between two events on its stream,
which are read when they have passed: nothing is ever waited for. Not for code that is compiled or captured into a
graph; put the stage around its call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODELS = "models"
"""The row of the thread that the stopwatch was started in."""
DEVICE = "device"
"""The row of what was timed on a GPU."""

_MOST_EVENTS = 20_000
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class TimedStage:
    """A stage that has ended.

    Attributes:
        path: its name after those of the stages around it: "annotate/mask/encode".
        row: the thread it ran in, or `DEVICE`.
        start: seconds since 1970.
        seconds: how long it took.
    """

    path: str
    row: str
    start: float
    seconds: float


@dataclass
class Total:
    """Stages of one path and kind of row together.

    Attributes:
        seconds: sum.
        calls: how many.
    """

    seconds: float = 0.0
    calls: int = 0


@dataclass
class Timing:
    """What a stopwatch has seen for a while.

    Attributes:
        wall: seconds of that while.
        totals: by (kind of row, path); threads of one pool are one kind: "decode_0" and "decode_1" are "decode".
        events: in order of their ends; the first ones of a long run.
        dropped: how many more events there were.
    """

    wall: float
    totals: dict[tuple[str, str], Total] = field(default_factory=dict)
    events: list[TimedStage] = field(default_factory=list)
    dropped: int = 0


def stage(name: str, device: torch.device | None = None) -> AbstractContextManager[None]:
    """Time what is done within, if anybody wants to know.

    Args:
        name: of the stage; stages within this one get it before theirs.
        device: where the work runs, if it is a model's: on CUDA it is timed on the device's current stream.
    """
    stopwatch = _active
    return _NOTHING if stopwatch is None else stopwatch.stage(name, device)


def start_timing(
    device: str = "cpu", most_events: int = _MOST_EVENTS, only: Collection[str] | None = None
) -> Stopwatch:
    """From now on stages of this process are timed; the stopwatch before gets no more.

    Args:
        device: where the models run. If it is a GPU, this waits for it once, to set its clock by ours.
        most_events: so many are kept; totals go on.
        only: names of the stages to time; of the others only the path is known while they last. None = all.
    """
    global _active
    _active = Stopwatch(device, most_events, only)
    return _active


class Stopwatch:
    """Times the stages of all threads of a process; made by `start_timing`.

    Attributes:
        paths: the path of the stages around, by thread.
        waiting: stages between two events on the device that haven't been read.
    """

    def __init__(self, device: str, most_events: int, only: Collection[str] | None) -> None:
        self._room = most_events
        self._only = only
        self._lock = threading.Lock()
        self.paths: dict[int, str] = {}
        self._home = threading.get_ident()
        self.waiting: deque[tuple[str, Any, Any]] = deque()
        # perf_counter has the resolution, time.time is the same for all processes
        self._epoch = time.time() - time.perf_counter()
        self._clock = _DeviceClock(device) if device.startswith("cuda") else None
        self._since = time.perf_counter()
        self._timing = Timing(0.0)

    def stage(self, name: str, device: torch.device | None) -> AbstractContextManager[None]:
        """See `patchmint.compute.stages.stage`."""
        if self._only is not None and name not in self._only:
            return _Place(self, name)
        return _Stage(self, name, self._clock if device is not None and device.type == "cuda" else None)

    @property
    def doing(self) -> str:
        """The path of the stage that the models' thread is in; "" between stages."""
        return self.paths.get(self._home, "")

    def drain(self) -> Timing:
        """What there was since the last call, and forget it. What a GPU hasn't reached yet comes with the next."""
        self._read_device()
        with self._lock:
            now = time.perf_counter()
            timing, self._timing = self._timing, Timing(0.0)
            timing.wall, self._since = now - self._since, now
        return timing

    def add(self, path: str, start: float, seconds: float, row: str = "") -> None:
        """Count a stage that has ended, of this thread unless another row is named."""
        if self._only is not None:
            path = "/".join(name for name in path.split("/") if name in self._only)
        if not row:
            row = MODELS if threading.get_ident() == self._home else threading.current_thread().name
        with self._lock:
            total = self._timing.totals.setdefault((row.partition("_")[0], path), Total())
            total.seconds += seconds
            total.calls += 1
            if self._room > 0:
                self._room -= 1
                self._timing.events.append(TimedStage(path, row, self._epoch + start, seconds))
            else:
                self._timing.dropped += 1

    def _read_device(self) -> None:
        while self.waiting and self._clock is not None and self.waiting[0][2].query():
            path, begun, ended = self.waiting.popleft()
            self.add(path, self._clock.seconds(begun), begun.elapsed_time(ended) / 1000, DEVICE)


class _Place:
    """Says where a thread is. A class and not a generator, which would take twice as long."""

    __slots__ = ("_name", "_outer", "_path", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, name: str) -> None:
        self._stopwatch, self._name = stopwatch, name

    def __enter__(self) -> None:
        paths, thread = self._stopwatch.paths, threading.get_ident()
        self._outer = paths.get(thread, "")
        self._path = paths[thread] = f"{self._outer}/{self._name}" if self._outer else self._name

    def __exit__(self, *_: object) -> None:
        self._stopwatch.paths[threading.get_ident()] = self._outer


class _Stage(_Place):
    """Times it as well."""

    __slots__ = ("_begun", "_clock", "_start")

    def __init__(self, stopwatch: Stopwatch, name: str, clock: _DeviceClock | None) -> None:
        super().__init__(stopwatch, name)
        self._clock = clock

    def __enter__(self) -> None:
        super().__enter__()
        self._begun = self._clock.mark() if self._clock is not None else None
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        super().__exit__()
        if self._clock is not None:
            self._stopwatch.waiting.append((self._path, self._begun, self._clock.mark()))
        else:
            self._stopwatch.add(self._path, self._start, seconds)


_active: Stopwatch | None = None


class _DeviceClock:
    """Events on a GPU's stream, and when they were by `time.perf_counter`."""

    def __init__(self, device: str, cuda: Any = None) -> None:
        import torch

        self._cuda = torch.cuda if cuda is None else cuda
        self._device = torch.device(device)
        self._zero = self.mark()
        self._cuda.synchronize(self._device)
        self._zero_at = time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        """An event that passes when all that was handed to the device before has been done."""
        event: torch.cuda.Event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def seconds(self, event: torch.cuda.Event) -> float:
        """When an event passed."""
        return self._zero_at + float(self._zero.elapsed_time(event)) / 1000
