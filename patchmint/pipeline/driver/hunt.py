"""The search for the sample that kills or hangs its workers. Knows no workers: it is told of their ends."""

from __future__ import annotations

from collections.abc import Sequence

from patchmint.errors import BuildError
from patchmint.pipeline.orders import Order
from patchmint.shards.plan import Unit

_DEATHS_BEFORE_SUSPICION = 2
_MOST_DEATHS = 60
_MOST_HANGS = 6


class Hunt:
    """One unit's worker has died: what to try next.

    The first death may be an accident (somebody else's memory, a preemption), so the unit is tried once more. After the
    second, halves of it are probed, each time the half that kills is halved again. A sample is condemned only when it
    killed a worker alone; then the unit is built without it. More than one killer: the hunt begins anew.

    A worker that hung has said at which samples: these are probed one by one, at once, because each further hang costs
    as much time as the first.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._deaths = self._hangs = 0
        self._recent = 0
        self._singly = False
        self._poison: frozenset[int] = frozenset()
        self._hanging: frozenset[int] = frozenset()
        self._suspects: list[int] = []
        self._probed: list[int] = []

    def next_order(self) -> Order:
        """What to give the next worker."""
        if self._recent < _DEATHS_BEFORE_SUSPICION:
            return Order(self._unit, self._poison, self._hanging)
        if not self._suspects:
            self._suspects = [place for place in range(self._unit.samples) if place not in self._poison]
        self._probed = self._suspects[: 1 if self._singly else max(1, len(self._suspects) // 2)]
        return Order(self._unit, self._poison, self._hanging, probe=frozenset(self._probed))

    def survived(self) -> None:
        """A probe came back."""
        if self._probed == self._suspects:
            # the last suspect is innocent by itself: an accident, or several samples together; build again
            self._restart()
            return
        self._suspects = self._suspects[len(self._probed) :]

    def hung(self, places: Sequence[int]) -> None:
        """The worker hung at these places, or anywhere if there are none.

        Raises:
            BuildError: too many workers hung at this unit.
        """
        self._hangs += 1
        if self._hangs > _MOST_HANGS:
            raise BuildError(
                f"{self._hangs} workers hung at unit {self._unit.name}, and no single sample is to blame; if batches "
                "take so long here, raise limits.sample_timeout"
            )
        if len(self._probed) == 1:
            self._hanging |= frozenset(self._probed)
            self._hangs = 0
        elif places and not self._probed:
            self._recent, self._singly, self._suspects = _DEATHS_BEFORE_SUSPICION, True, sorted(places)
            return
        self.died()

    def died(self) -> None:
        """The worker died of the last order.

        Raises:
            BuildError: too many workers died of this unit.
        """
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise BuildError(
                f"unit {self._unit.name} killed {self._deaths} workers, and no single sample is to blame; is there "
                "enough memory for a batch (runner.batch_size)?"
            )
        if self._recent < _DEATHS_BEFORE_SUSPICION:
            self._recent += 1
        elif len(self._probed) == 1:
            self._poison |= frozenset(self._probed)
            self._deaths = 0
            self._restart()
        else:
            self._suspects = self._probed

    def _restart(self) -> None:
        self._recent = 0
        self._singly = False
        self._suspects = []
        self._probed = []
