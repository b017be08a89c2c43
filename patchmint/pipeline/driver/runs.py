"""What a run tells about itself while it goes on: `runs/RUN_ID.json`, for people and for `patchmint status`.

Everything here may differ from run to run; nothing depends on it.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from patchmint.errors import NotFoundError, StorageError
from patchmint.pipeline.driver.profile import Profile
from patchmint.pipeline.driver.supervise import Progress
from patchmint.pipeline.orders import UnitResult
from patchmint.storage import Storage
from patchmint.version import __version__

RUNS = "runs"
_WRITE_SECONDS = 10


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
        elapsed: seconds since it began to build.
        busy: seconds from when the first worker had loaded its models to the last finished unit.
        rate: samples a second of that time, of all workers together.
        progress: counts of this run.
        profile: as in `BuildReport`.
    """

    run: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    state: str = "planning"
    reason: str = ""
    elapsed: float = 0.0
    busy: float = 0.0
    rate: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] | None = None
    patchmint: str = __version__
    python: str = field(default_factory=platform.python_version)


class RunLog:
    """Writes a run's record now and then."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.record = RunRecord(run_id)
        self._storage = storage
        self._building_since = 0.0
        self._busy_since = 0.0
        self._done = 0
        self._written = 0.0
        self._profile = Profile()

    def building(self) -> None:
        """The plan stands; units are handed out from now on."""
        self._building_since = time.monotonic()
        self.record.state = "building"
        self.write()

    def update(self, progress: Progress, result: UnitResult | None = None) -> None:
        """Take over the counts, and of a finished unit its profile; written at most every 10 seconds."""
        self._count(progress)
        if result is not None:
            self._profile.add(result)
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self.write()

    def write_profile(self) -> None:
        """If units were profiled: keep the totals in the record, and write the timeline beside it."""
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
        self._written = time.monotonic()
        data = json.dumps(asdict(self.record), indent=1)
        with suppress(StorageError):  # nothing depends on it, least of all whether the build goes on
            self._storage.write(f"{RUNS}/{self.record.run}.json", data.encode())

    def _count(self, progress: Progress) -> None:
        self.record.elapsed = round(time.monotonic() - self._building_since, 3)
        if progress.workers and not self._busy_since:
            self._busy_since = time.monotonic()
        if progress.done != self._done:
            self._done = progress.done
            self.record.busy = round(time.monotonic() - self._busy_since, 3)
        self.record.rate = round(progress.samples / max(self.record.busy, 1e-9), 3)
        self.record.progress = asdict(progress)


def read_run(storage: Storage, run_id: str) -> dict[str, Any] | None:
    """The record of a run, or None if it has none (yet)."""
    try:
        record = json.loads(storage.read(f"{RUNS}/{run_id}.json"))
    except (NotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None
