"""A worker as its pool calls it, in its own process: answers and errors alike come back as events."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from patchmint.compute.threads import wait_briefly
from patchmint.errors import DiskFullError, PatchmintError, StorageError
from patchmint.pipeline.orders import Done, Event, Failed, Order, Ready, WorkerInfo, WorkerSettings

if TYPE_CHECKING:
    from patchmint.pipeline.worker.work import Worker


class ServedWorker:
    """Loads a worker, and hands it orders.

    Args:
        number: the pool's name for it.
        where: put before the messages of errors.
    """

    def __init__(self, number: int, where: str = "") -> None:
        self._number = number
        self._where = where
        self._worker: Worker | None = None

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
        return self._answer(lambda: Done(self._number, worker.do(order)))

    def _load(self, settings: WorkerSettings, device: str, threads: int, slot: int) -> WorkerInfo:
        wait_briefly()
        # torch, which the driver does without
        from patchmint.compute.devices import pick_device
        from patchmint.pipeline.worker.work import Worker

        self._worker = Worker(settings, pick_device(device, slot), threads)
        return self._worker.info

    def _answer(self, act: Callable[[], Event]) -> Event:
        try:
            return act()
        except PatchmintError as error:
            transient = isinstance(error, StorageError) and not isinstance(error, DiskFullError)
            return Failed(self._number, transient, f"{self._where}{error}")
        except Exception:
            return Failed(self._number, transient=False, message=traceback.format_exc())
