"""A worker as its pool calls it, in its own process: answers and errors alike come back as events."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from patchmint.compute.threads import wait_briefly
from patchmint.errors import BucketMissingError, DiskFullError, PatchmintError, PlaceError, StorageError
from patchmint.logs import know, start_logging
from patchmint.pipeline.orders import Done, Event, Failed, Loading, Order, Ready, Saved, WorkerInfo, WorkerSettings
from patchmint.storage.failures import is_full

if TYPE_CHECKING:
    from patchmint.pipeline.worker.work import Worker

_BEAT_SECONDS = 1.0


class ServedWorker:
    """Loads a worker, hands it orders, and says once a second how far it is.

    Args:
        number: the pool's name for it.
        tell: takes what isn't an answer, in another thread; None: nobody listens.
        host: where this is, put before the messages of errors; "" = on the driver's machine.
    """

    def __init__(self, number: int, tell: Callable[[Event], None] | None = None, host: str = "") -> None:
        self._number = number
        self._host = host
        self._prefix = f"on {host}: " if host else ""
        self._worker: Worker | None = None
        self._tell = tell
        if tell is not None:
            threading.Thread(target=self._beat, args=[tell], name="beat", daemon=True).start()

    def load(self, settings: WorkerSettings, device: str, threads: int, slot: int = 0) -> Event:
        """Load the models.

        Args:
            settings: what a worker needs.
            device: as for `pick_device`, with `slot`.
            threads: CPU threads.
            slot: which of several workers on this machine it is.
        """
        return self._answer(lambda: Ready(self._number, self._load(settings, device, threads, slot)))

    def do(self, order: Order) -> Event:
        """Do an order."""
        assert self._worker is not None
        worker = self._worker
        know(unit=order.unit.name)
        return self._answer(lambda: Done(self._number, worker.do(order)))

    def save(self, seconds: float) -> None:
        """Save what is annotated of the unit in work, and tell; in another thread. See `Worker.save`."""
        if self._worker is None or self._tell is None:
            return
        with suppress(Exception):  # then what is annotated is lost, as when the process is killed
            samples = self._worker.save(seconds)
            if samples is not None:
                self._tell(Saved(self._number, samples))

    def _beat(self, tell: Callable[[Event], None]) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            if self._worker is None:
                tell(Loading(self._number))
            elif (working := self._worker.working(self._number)) is not None:
                tell(working)

    def _load(self, settings: WorkerSettings, device: str, threads: int, slot: int) -> WorkerInfo:
        wait_briefly()
        os.environ.update(settings.logs)
        start_logging()
        know(run=settings.run_id, worker=self._number)
        # torch, which the driver does without
        from patchmint.compute.devices import machine_device, pick_device
        from patchmint.compute.memory import let_memory_grow
        from patchmint.pipeline.worker.work import Worker

        let_memory_grow()
        picked = pick_device(device, slot)
        know(place=f"{self._host or socket.gethostname()} {machine_device(picked)}")
        self._worker = Worker(settings, picked, threads)
        info = self._worker.info
        return replace(info, host=self._host) if self._host else info

    def _answer(self, act: Callable[[], Event]) -> Event:
        try:
            return act()
        except PatchmintError as error:
            transient = isinstance(error, StorageError) and not isinstance(error, DiskFullError | BucketMissingError)
            place = isinstance(error, PlaceError)
            return Failed(self._number, transient, f"{self._prefix}{error}", place)
        except Exception as error:
            # the output's full disk is a DiskFullError: this is of a library that writes for itself, on this machine
            place = isinstance(error, OSError) and is_full(error)
            message = f"{self._prefix}{traceback.format_exc()}"
            return Failed(self._number, transient=place, message=message, place=place)
