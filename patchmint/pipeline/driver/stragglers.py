"""The tail of a build: which unit of a slow worker an idle one should build as well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from patchmint.pipeline.orders import Order, Working
from patchmint.shards.plan import Unit

_SLOW = 2.0
_SLOW_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class Stragglers:
    """Knows how long units take.

    Attributes:
        doubled: ids of units that a second worker was given.
    """

    def __init__(self) -> None:
        self.doubled: set[int] = set()
        self._begun: dict[int, float] = {}
        self._pace: float | None = None  # seconds a sample, of the units finished lately
        self._looked = 0.0

    def begin(self, worker: int) -> None:
        """It has an order."""
        self._begun[worker] = time.monotonic()

    def end(self, worker: int, built: Unit | None) -> None:
        """Its order is over; None unless it has built a unit."""
        begun = self._begun.pop(worker, 0.0)
        if built is not None:
            pace = (time.monotonic() - begun) / max(1, built.samples)
            self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace

    def next_unit(
        self, orders: Mapping[int, Order], working: Mapping[int, Working], is_plain: Callable[[Unit], bool]
    ) -> Unit | None:
        """The unit for which its worker needs much longer from now on than others do for a whole one.

        Args:
            orders: by worker.
            working: by worker, how far it is.
            is_plain: whether a unit may be given out twice.
        """
        now = time.monotonic()
        if self._pace is None or now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        copies = Counter(order.unit.id for order in orders.values())
        slow: list[tuple[float, int, Unit]] = []
        for worker, order in orders.items():
            unit = order.unit
            if order.probe is not None or copies[unit.id] > 1 or not is_plain(unit):
                continue
            passed = now - self._begun[worker]
            done = working[worker].samples if worker in working else 0
            left = passed * (unit.samples - done) / done if done else passed
            if left > _SLOW * self._pace * unit.samples + _SLOW_SECONDS:
                slow.append((left, worker, unit))
        if not slow:
            return None
        unit = max(slow)[2]
        self.doubled.add(unit.id)
        return unit
