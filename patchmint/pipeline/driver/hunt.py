"""Finding the sample that kills its worker."""

from __future__ import annotations

from patchmint.errors import BuildError
from patchmint.pipeline.orders import Order
from patchmint.shards.plan import Unit

_DEATHS_BEFORE_SUSPICION = 2
_MOST_DEATHS = 60


class Hunt:
    """One unit's worker has died: what to try next.

    The first death may be an accident (somebody else's memory, a preemption), so the unit is tried once more. After the
    second, halves of it are probed, each time the half that kills is halved again. A sample is condemned only when it
    killed a worker alone; then the unit is built without it. More than one killer: the hunt begins anew.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._deaths = 0
        self._recent = 0
        self._poison: frozenset[int] = frozenset()
        self._suspects: list[int] = []
        self._probed: list[int] = []

    def next_order(self) -> Order:
        """What to give the next worker."""
        if self._recent < _DEATHS_BEFORE_SUSPICION:
            return Order(self._unit, self._poison)
        if not self._suspects:
            self._suspects = [place for place in range(self._unit.samples) if place not in self._poison]
        self._probed = self._suspects[: max(1, len(self._suspects) // 2)]
        return Order(self._unit, self._poison, probe=frozenset(self._probed))

    def survived(self) -> None:
        """A probe came back."""
        if self._probed == self._suspects:
            # the last suspect is innocent by itself: an accident, or several samples together; build again
            self._restart()
            return
        self._suspects = self._suspects[len(self._probed) :]

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
        self._suspects = []
        self._probed = []
