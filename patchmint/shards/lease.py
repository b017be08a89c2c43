"""The lease: turns a second driver away from an output where one is at work.

It saves work and gives a clear message; that data is right never rests on it. Clocks of two machines decide nothing: a
holder counts, and who waits looks with its own clock whether the count goes on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from patchmint.errors import BusyError, NotFoundError, StorageError
from patchmint.storage import Storage, open_storage

LEASE = "lease.json"
INTERVAL = 5.0
"""Seconds between two beats."""
PATIENCE = 20.0
"""Seconds without a beat after which a holder counts as dead."""


class LeaseRecord(BaseModel):
    """`lease.json`.

    Attributes:
        run: id of the run that holds the lease.
        host: its machine's name, for people.
        pid: of the driver.
        machine: where that pid means something: the boot of a kernel and the namespace of its process ids, so that
            containers are told apart. Empty where the system doesn't tell.
        started: when the process started, in the kernel's ticks since boot; tells it from another with its pid.
        token: unlike that of any other lease.
        beat: counts up while the driver lives.
        at: when this beat was written, by the holder's clock; with a time zone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: str
    host: str
    pid: Annotated[int, Field(ge=0)]
    machine: str
    started: int
    token: str
    beat: int
    at: Annotated[AwareDatetime, Field(strict=False)]

    def holder_is_gone(self) -> bool:
        """Whether the holder ran on this machine and has ended. False where that can't be told."""
        return bool(self.machine) and self.machine == _machine() and _start_of(self.pid) != self.started


class Lease:
    """A lease that this process holds, until `release`, or until another driver takes it over.

    Attributes:
        record: as it was when acquired.
        lost: set when another driver has taken over; then stop.
    """

    def __init__(self, storage: Storage, record: LeaseRecord, interval: float) -> None:
        """Begin to beat. Callers use `acquire`."""
        self.record = record
        self.lost = threading.Event()
        self._storage = storage
        self._brief = open_storage(storage.uri)  # no beat, and no end of one, waits long for a storage that fails
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        run_id: str,
        *,
        patience: float = PATIENCE,
        interval: float = INTERVAL,
        warn: Callable[[str], None] = lambda _: None,
    ) -> Lease:
        """Take the lease of an output, at once if nobody has it or its holder is known to be dead.

        Otherwise wait and see whether the holder still counts.

        Args:
            storage: of the output.
            run_id: of this run.
            patience: seconds without a beat after which the holder counts as dead.
            interval: seconds between this holder's beats; well below the patience of others.
            warn: called with a line for people when it has to wait and when it takes over.

        Raises:
            BusyError: another driver is at work.
            StorageError: the storage failed.
        """
        record = _new_record(run_id)
        while not storage.create(LEASE, _to_json(record)):
            seen = _read(storage)
            if seen is None:
                continue
            holder = _parse(seen)
            if holder is None or not holder.holder_is_gone():
                warn(f"{_named(holder)} has {storage.uri}; watching for up to {patience:g} s whether it is alive")
                now = _next_state(storage, seen, patience)
                if now is None:
                    continue
                if now != seen:
                    raise _busy(storage, _parse(now))
            warn(f"{_named(holder)} is dead; taking over {storage.uri}")
            storage.write(LEASE, _to_json(record))
            # Of several that take over at once, the last to write has it.
            time.sleep(min(interval, patience) / 10)
            now = _read(storage)
            if now == _to_json(record):
                break
            raise _busy(storage, _parse(now or b""))
        return cls(storage, record, interval)

    def release(self) -> None:
        """Give the lease back, if it is still this process's. Never raises: nothing depends on it."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StorageError):
            if self._is_held(self._brief):
                self._brief.delete([LEASE])

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(self._interval):
            beat += 1
            # A storage that fails now may work at the next beat; what the driver itself writes there tells of faults.
            with contextlib.suppress(StorageError):
                if not self._is_held(self._brief):
                    self.lost.set()
                    return
                self._brief.write(
                    LEASE, _to_json(self.record.model_copy(update={"beat": beat, "at": datetime.now(UTC)}))
                )

    def is_held(self) -> bool:
        """Look whether the lease is still this process's.

        Raises:
            StorageError: the storage failed.
        """
        return self._is_held(self._storage)

    def _is_held(self, storage: Storage) -> bool:
        now = _parse(_read(storage) or b"")
        return now is not None and now.token == self.record.token


def read_lease(storage: Storage) -> LeaseRecord | None:
    """Who is at work in an output, so far as is known; None if nobody is.

    A holder elsewhere that died without a word is still named here.

    Raises:
        StorageError: the storage failed.
    """
    holder = _parse(_read(storage) or b"")
    return None if holder is None or holder.holder_is_gone() else holder


@dataclass(frozen=True)
class Silence:
    """How long a holder has given no sign of life.

    Attributes:
        seconds: since its last beat.
        is_long: whether it has missed several, so that a second driver would take it for dead.
    """

    seconds: float
    is_long: bool


def silence(storage: Storage, holder: LeaseRecord, *, look: float = 2 * INTERVAL) -> Silence:
    """How long the holder of a lease has been silent.

    A clock may be wrong: if the last beat seems old, or seems to come, the next one is waited for.

    Args:
        storage: of the output.
        holder: as `read_lease` found it.
        look: seconds to wait at most; longer than from one beat to the next.

    Raises:
        StorageError: the storage failed.
    """
    age = (datetime.now(UTC) - holder.at).total_seconds()
    if abs(age) <= PATIENCE:
        return Silence(max(0.0, age), is_long=False)
    seen = _read(storage)
    if seen is None or _parse(seen) != holder or _next_state(storage, seen, look) != seen:
        return Silence(0.0, is_long=False)
    return Silence(max(look, age), is_long=True)


def _next_state(storage: Storage, seen: bytes, patience: float) -> bytes | None:
    """Watch a lease until it changes, for so many seconds by this machine's clock; what it is then, None if gone."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(1.0, patience / 10))
        if (now := _read(storage)) != seen:
            return now
    return seen


def _busy(storage: Storage, holder: LeaseRecord | None) -> BusyError:
    return BusyError(
        f"{_named(holder)} is building into {storage.uri}; "
        f"`patchmint status {storage.uri}` shows how far it is. Wait for it, or stop it and run this again"
    )


def _named(holder: LeaseRecord | None) -> str:
    if holder is None:
        return "another driver"
    return f"the driver with pid {holder.pid} on {holder.host} (run {holder.run})"


def _new_record(run_id: str) -> LeaseRecord:
    return LeaseRecord(
        run=run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        started=_start_of(os.getpid()),
        token=secrets.token_hex(16),
        beat=0,
        at=datetime.now(UTC),
    )


def _to_json(record: LeaseRecord) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _read(storage: Storage) -> bytes | None:
    try:
        return storage.read(LEASE)
    except NotFoundError:
        return None


def _parse(data: bytes) -> LeaseRecord | None:
    """The record; None for what can't be read as one. Such a lease is held by nobody who counts."""
    try:
        return LeaseRecord.model_validate_json(data)
    except ValidationError:
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int:
    """When a process started, in ticks since boot; -1 for one that has ended, also if its parent hasn't noticed yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    # The second field, in brackets, is the program's name, with any character in it.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in ("Z", "X") else int(fields[19])
