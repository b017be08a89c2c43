"""What the workers' spans say of a whole run: totals by stage, and a timeline for a trace viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from patchmint.compute.spans import DEVICE, MODELS, Event, Total
from patchmint.pipeline.orders import UnitResult, WorkerProfile

_MOST_EVENTS = 100_000
"""Some 12 MB of JSON; viewers take much more, a run's folder needn't."""
_KINDS = (MODELS, DEVICE, "decode", "write")


@dataclass
class WorkerSummary:
    """One worker process.

    Attributes:
        worker: number in this profile; the process id of its rows in the timeline.
        host, pid, device: which process, and what it computes on.
        wall: seconds from when it had its models to the end of its last unit.
        peak_bytes: the most memory that it has had resident.
        device_peak_bytes: the most that torch has had of the GPU's; 0 on a CPU.
    """

    worker: int
    host: str
    pid: int
    device: str
    wall: float = 0.0
    peak_bytes: int = 0
    device_peak_bytes: int = 0


@dataclass
class Profile:
    """Where a run's time went; filled with what the workers say.

    Attributes:
        workers: in order of their first results.
        samples: in the units that are counted.
        dropped: events that aren't in the timeline, though they count in the totals.
    """

    workers: dict[tuple[str, int], WorkerSummary] = field(default_factory=dict)
    samples: int = 0
    dropped: int = 0
    _totals: dict[tuple[str, str], Total] = field(default_factory=dict)
    _events: list[tuple[int, Event]] = field(default_factory=list)

    def add(self, result: UnitResult) -> None:
        """Take over what a worker says with a unit."""
        if result.profile is None:
            return
        worker = self._worker(result.profile)
        record = result.profile.record
        worker.wall += record.wall
        worker.peak_bytes, worker.device_peak_bytes = result.profile.peak_bytes, result.profile.device_peak_bytes
        self.samples += result.planned
        for key, total in record.totals.items():
            mine = self._totals.setdefault(key, Total())
            mine.seconds += total.seconds
            mine.calls += total.calls
        room = _MOST_EVENTS - len(self._events)
        self._events += [(worker.worker, event) for event in record.events[:room]]
        self.dropped += record.dropped + max(0, len(record.events) - room)

    def summary(self) -> dict[str, Any]:
        """The totals, as JSON values.

        `wall`: seconds of all workers together. `stages`: by thread and path ("annotate/detect"), the stages of a
        thread in order, each after the one around it; `share` of `wall`, which for several threads of one kind may be
        over 1. `device_side`, `wait`: shares of `wall` that the models were asked, and waited for images.
        """
        wall = sum(worker.wall for worker in self.workers.values())
        return {
            "wall": round(wall, 3),
            "samples": self.samples,
            "device_side": self._share("annotate", wall),
            "wait": self._share("wait", wall),
            "stages": list(self._stages(wall)),
            "workers": [vars(worker) | {"wall": round(worker.wall, 3)} for worker in self.workers.values()],
        }

    def trace(self) -> bytes:
        """The timeline, in the trace-event format of Chrome and Perfetto: https://ui.perfetto.dev opens it.

        A process is a worker, a thread one of its rows. Times are microseconds since the first event.
        """
        start = min((event.start for _, event in self._events), default=0.0)
        rows: dict[tuple[int, str], int] = {}
        spans = []
        for worker, event in self._events:
            row = rows.setdefault((worker, event.row), len(rows))
            spans.append(
                {
                    "name": event.path.rpartition("/")[2],
                    "cat": event.row,
                    "ph": "X",
                    "pid": worker,
                    "tid": row,
                    "ts": round((event.start - start) * 1e6, 1),
                    "dur": round(event.seconds * 1e6, 1),
                }
            )
        names = [
            _name(
                "process_name", worker.worker, 0, f"worker {worker.worker}: {worker.host} {worker.pid} {worker.device}"
            )
            for worker in self.workers.values()
        ] + [_name("thread_name", worker, row, name) for (worker, name), row in rows.items()]
        trace = {
            "traceEvents": names + spans,
            "displayTimeUnit": "ms",
            "otherData": {
                "began": start,
                "events": len(spans),
                "events_left_out": self.dropped,
                "note": f"the first {_MOST_EVENTS} events at most; `began` is in seconds since 1970",
            },
        }
        return json.dumps(trace, separators=(",", ":")).encode()

    def _worker(self, told: WorkerProfile) -> WorkerSummary:
        new = WorkerSummary(len(self.workers), told.host, told.pid, told.device)
        return self.workers.setdefault((told.host, told.pid), new)

    def _share(self, stage: str, wall: float) -> float:
        return round(self._totals.get((MODELS, stage), Total()).seconds / wall, 4) if wall else 0.0

    def _stages(self, wall: float) -> Iterator[dict[str, Any]]:
        starts: dict[str, float] = {}
        for _, event in self._events:
            starts.setdefault(event.path, event.start)

        def place(key: tuple[str, str]) -> tuple[Any, ...]:
            """Kinds of threads as they follow each other; stages as they first began, each after the one around it."""
            kind, path = key
            names = path.split("/")
            around = ["/".join(names[: depth + 1]) for depth in range(len(names))]
            rank = _KINDS.index(kind) if kind in _KINDS else len(_KINDS)
            return rank, kind, [(starts.get(part, 0.0), part) for part in around]

        for kind, path in sorted(self._totals, key=place):
            total = self._totals[kind, path]
            yield {
                "thread": kind,
                "stage": path,
                "seconds": round(total.seconds, 3),
                "share": round(total.seconds / wall, 4) if wall else 0.0,
                "calls": total.calls,
                "ms_per_sample": round(1000 * total.seconds / max(self.samples, 1), 3),
            }


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
