"""Where the time goes: named spans, of models and of everything around them.

    with span("mask"):
        with span("encode", device):
            ...

Without a recorder a span costs less than a microsecond. With one it is timed, added up by its path ("mask/encode"),
and kept as an event for a timeline. Work that is handed to a GPU is timed there, between two events on its stream,
which are read when they have passed: nothing is ever waited for. Not for code that is compiled or captured into a
graph; put the span around its call.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODELS = "models"
"""The row of the thread that the recorder was started in."""
DEVICE = "device"
"""The row of what was timed on a GPU."""

_MOST_EVENTS = 20_000
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Event:
    """A span that has ended.

    Attributes:
        path: its name after those of the spans around it: "annotate/mask/encode".
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
    """Spans of one path and kind of row together.

    Attributes:
        seconds: sum.
        calls: how many.
    """

    seconds: float = 0.0
    calls: int = 0


@dataclass
class Record:
    """What a recorder has seen for a while.

    Attributes:
        wall: seconds of that while.
        totals: by (kind of row, path); threads of one pool are one kind: "decode_0" and "decode_1" are "decode".
        events: in order of their ends; the first ones of a long run.
        dropped: how many more events there were.
    """

    wall: float
    totals: dict[tuple[str, str], Total] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    dropped: int = 0


def span(name: str, device: torch.device | None = None) -> AbstractContextManager[None]:
    """Time what is done within, if anybody wants to know.

    Args:
        name: of the stage; spans within this one get it before theirs.
        device: where the work runs, if it is a model's: on CUDA it is timed on the device's current stream.
    """
    recorder = _active
    return _NOTHING if recorder is None else recorder.span(name, device)


def start_recording(device: str = "cpu", most_events: int = _MOST_EVENTS) -> Recorder:
    """From now on spans of this process are recorded; what was recording before no longer does.

    Args:
        device: where the models run. If it is a GPU, this waits for it once, to set its clock by ours.
        most_events: so many are kept; totals go on.
    """
    global _active
    _active = Recorder(device, most_events)
    return _active


def stop_recording() -> None:
    """Spans cost nothing again."""
    global _active
    _active = None


class Recorder:
    """Takes the spans of all threads of a process; made by `start_recording`."""

    def __init__(self, device: str, most_events: int) -> None:
        self._room = most_events
        self._lock = threading.Lock()
        self._stack = threading.local()
        self._home = threading.get_ident()
        self._waiting: deque[tuple[str, Any, Any]] = deque()
        # perf_counter has the resolution, time.time is the same for all processes
        self._epoch = time.time() - time.perf_counter()
        self._clock = _DeviceClock(device) if device.startswith("cuda") else None
        self._since = time.perf_counter()
        self._record = _Growing()

    @contextmanager
    def span(self, name: str, device: torch.device | None) -> Iterator[None]:
        """See `patchmint.compute.spans.span`."""
        outer = getattr(self._stack, "path", "")
        path = self._stack.path = f"{outer}/{name}" if outer else name
        clock = self._clock if device is not None and device.type == "cuda" else None
        begun = clock.mark() if clock is not None else None
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stack.path = outer
            if clock is not None:
                self._waiting.append((path, begun, clock.mark()))
            else:
                self._add(path, self._row(), start, time.perf_counter() - start)

    def drain(self) -> Record:
        """What there was since the last call, and forget it. What a GPU hasn't reached yet comes with the next."""
        self._read_device()
        with self._lock:
            now = time.perf_counter()
            grown, self._record = self._record, _Growing()
            since, self._since = self._since, now
        return Record(now - since, dict(grown.totals), grown.events, grown.dropped)

    def _row(self) -> str:
        return MODELS if threading.get_ident() == self._home else threading.current_thread().name

    def _add(self, path: str, row: str, start: float, seconds: float) -> None:
        with self._lock:
            total = self._record.totals[row.partition("_")[0], path]
            total.seconds += seconds
            total.calls += 1
            if self._room > 0:
                self._room -= 1
                self._record.events.append(Event(path, row, self._epoch + start, seconds))
            else:
                self._record.dropped += 1

    def _read_device(self) -> None:
        while self._waiting and self._clock is not None and self._waiting[0][2].query():
            path, begun, ended = self._waiting.popleft()
            self._add(path, DEVICE, self._clock.seconds(begun), begun.elapsed_time(ended) / 1000)


_active: Recorder | None = None


@dataclass
class _Growing:
    totals: defaultdict[tuple[str, str], Total] = field(default_factory=lambda: defaultdict(Total))
    events: list[Event] = field(default_factory=list)
    dropped: int = 0


class _DeviceClock:
    """Events on a GPU's stream, and when they were by `time.perf_counter`."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._zero = self.mark()
        torch.cuda.synchronize(self._device)
        self._zero_at = time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        """An event that passes when all that was handed to the device before has been done."""
        event: torch.cuda.Event = self._torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def seconds(self, event: torch.cuda.Event) -> float:
        """When an event passed."""
        return self._zero_at + float(self._zero.elapsed_time(event)) / 1000
