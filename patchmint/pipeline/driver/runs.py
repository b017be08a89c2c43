"""What a run tells about itself while it goes on: `runs/RUN_ID.json`, and a timeline for a trace viewer.

For people and for `patchmint status`. Everything here may differ from run to run; nothing depends on it.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from patchmint.compute.stages import DEVICE, MODELS, TimedStage, Total
from patchmint.errors import NotFoundError, StorageError
from patchmint.pipeline.driver.contracts import Progress
from patchmint.pipeline.orders import UnitResult, WorkerProfile
from patchmint.storage import Storage, open_storage
from patchmint.version import __version__

RUNS = "runs"
_WRITE_SECONDS = (1.0, 10.0)
"""Between two records of a run: a tenth of the time so far, within these limits."""
_MOST_EVENTS = 100_000
"""Some 12 MB of JSON; viewers take much more, a run's folder needn't."""
_KINDS = (MODELS, DEVICE, "decode", "write")


def new_run_id() -> str:
    """A name for a run: sorts by time, and no two are the same."""
    return f"{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(4)}"


@dataclass
class RunRecord:
    """A run, as it stands.

    Attributes:
        run: its id.
        host, pid: where the driver runs.
        started: ISO 8601, UTC.
        state: planning, building, finished, stopped.
        reason: why it stopped; empty unless it did.
        read: samples of the source that the plan has, while it is made.
        elapsed: seconds since it began to build.
        busy: seconds since the first worker had loaded its models.
        rate: samples a second of that time, of all workers together.
        through: samples annotated or rejected, also in units that aren't finished.
        advanced: when that was last seen to grow; empty before. ISO 8601, UTC.
        progress: counts of this run.
        compiled: whether its workers compile their models; None before that is known, and where they run on no GPU.
        profile: as in `BuildReport`.
    """

    run: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _utc_now())
    state: str = "planning"
    reason: str = ""
    read: int = 0
    elapsed: float = 0.0
    busy: float = 0.0
    rate: float = 0.0
    through: int = 0
    advanced: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    compiled: bool | None = None
    profile: dict[str, Any] | None = None
    patchmint: str = __version__
    python: str = field(default_factory=platform.python_version)


class RunLog:
    """Writes a run's record now and then. Nothing depends on it, so a storage that fails isn't waited for."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.record = RunRecord(run_id)
        self._storage = open_storage(storage.uri)
        self._at_once = open_storage(storage.uri, outage_seconds=0)
        self._building_since = 0.0
        self._busy_since = 0.0
        self._written = 0.0
        self._profile = Profile()

    def planned(self, samples: int) -> None:
        """The plan has so many samples by now; written now and then."""
        self.record.read = samples
        if time.monotonic() - self._written > max(_WRITE_SECONDS):
            self.write()

    def building(self, *, compiled: bool | None = None) -> None:
        """The plan stands; units are handed out from now on, to workers that compile their models or don't."""
        self._building_since = time.monotonic()
        self.record.state, self.record.compiled = "building", compiled
        self.write()

    def update(self, progress: Progress, result: UnitResult | None = None) -> None:
        """Take over the counts, and of a finished unit its profile; written now and then.

        Called for whatever any worker says: what takes long is done only before a write.
        """
        now, (least, most) = time.monotonic(), _WRITE_SECONDS
        if progress.workers and not self._busy_since:
            self._busy_since = now
        if result is not None:
            self._profile.add(result)
        if now - self._written > min(most, max(least, (now - self._building_since) / 10)):
            self._count(progress)
            self._write_to(self._at_once)

    def work_ended(self, progress: Progress) -> None:
        """Take over the last counts; if units were profiled, also the totals, and write the timeline."""
        self._count(progress)
        if not self._profile.workers:
            return
        # sorts before the record: the last of a listing is the last run's record
        path = f"{RUNS}/{self.record.run}-trace.json"
        self.record.profile = self._profile.summary() | {"trace": f"{self._storage.uri}/{path}"}
        with suppress(StorageError):
            self._storage.write(path, self._profile.trace())

    def end(self, state: str, reason: str = "") -> None:
        """The run is over."""
        self.record.state, self.record.reason = state, reason
        self.write()

    def write(self) -> None:
        """Write the record."""
        self._write_to(self._storage)

    def _write_to(self, storage: Storage) -> None:
        data = json.dumps(asdict(self.record), indent=1)
        with suppress(StorageError):  # least of all whether the build goes on
            storage.write(f"{RUNS}/{self.record.run}.json", data.encode())
        self._written = time.monotonic()

    def _count(self, progress: Progress) -> None:
        now = time.monotonic()
        self.record.elapsed = round(now - self._building_since, 3)
        self.record.busy = round(now - self._busy_since, 3) if self._busy_since else 0.0
        self.record.rate = round(progress.annotated / max(self.record.busy, 1e-9), 3)
        if progress.through > self.record.through:
            self.record.advanced = _utc_now()
        self.record.through = progress.through
        self.record.progress = asdict(progress)


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_run(storage: Storage, run_id: str) -> dict[str, Any] | None:
    """The record of a run, or None if it has none (yet)."""
    try:
        record = json.loads(storage.read(f"{RUNS}/{run_id}.json"))
    except (NotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


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
    _events: list[tuple[int, TimedStage]] = field(default_factory=list)

    def add(self, result: UnitResult) -> None:
        """Take over what a worker says with a unit."""
        if result.profile is None:
            return
        worker = self._worker(result.profile)
        timing = result.profile.timing
        worker.wall += timing.wall
        worker.peak_bytes, worker.device_peak_bytes = result.profile.peak_bytes, result.profile.device_peak_bytes
        self.samples += result.planned
        for key, total in timing.totals.items():
            mine = self._totals.setdefault(key, Total())
            mine.seconds += total.seconds
            mine.calls += total.calls
        room = _MOST_EVENTS - len(self._events)
        self._events += [(worker.worker, event) for event in timing.events[:room]]
        self.dropped += timing.dropped + max(0, len(timing.events) - room)

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
