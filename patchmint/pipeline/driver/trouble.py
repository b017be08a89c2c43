"""Storage trouble that workers report: how long to rest, and when to give up."""

from __future__ import annotations

import time
from collections import Counter

from patchmint.errors import BuildError
from patchmint.pipeline.orders import Failed
from patchmint.shards.plan import Unit

TRIES = 5
LONGEST_REST_SECONDS = 60.0


class Trouble:
    """What failed since something last succeeded.

    Attributes:
        rests_until: nothing new is begun before, by the monotonic clock.
    """

    def __init__(self, outage_seconds: float, rest_seconds: float) -> None:
        """Begin without any.

        Args:
            outage_seconds: how long it may last; five tries in any case.
            rest_seconds: between two tries; twice as long each further time.
        """
        self.rests_until = 0.0
        self._outage_seconds = outage_seconds
        self._rest_seconds = rest_seconds
        self._since = 0.0
        self._in_a_row = 0
        self._units: set[int] = set()
        self._failures: Counter[int] = Counter()

    def rest(self, failures: int, longest: float = LONGEST_REST_SECONDS) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(longest, self._rest_seconds * 2.0 ** (failures - 1))

    def is_over(self, failures: int, longest: float = LONGEST_REST_SECONDS) -> bool:
        """Whether so many tries, with their rests, were enough."""
        waited = sum(self.rest(each, longest) for each in range(1, failures))
        return failures >= TRIES and waited >= self._outage_seconds

    def succeeded(self) -> None:
        """Something did."""
        self._in_a_row = 0
        self._units.clear()

    def failed(self, event: Failed, unit: Unit, workers: int) -> None:
        """Rest for a while.

        Raises:
            BuildError: it lasts too long, or this unit alone meets it again and again.
        """
        now = time.monotonic()
        if not self._in_a_row:
            self._since = now
        self._in_a_row += 1
        if unit.id not in self._units:  # while nothing succeeds, that says nothing of this unit
            self._units.add(unit.id)
            self._failures[unit.id] += 1
        if self._failures[unit.id] >= TRIES:
            raise BuildError(f"unit {unit.name} failed {TRIES} times, but others don't: {event.message}")
        seconds = now - self._since
        patience = 0.0 if event.place else self._outage_seconds
        if seconds >= patience and self._in_a_row >= max(TRIES, 2 * workers):
            raise BuildError(
                f"{self._in_a_row} tries in a row failed, over {seconds:.0f} s (limits.outage_seconds), the last at "
                f"unit {unit.name}: {event.message}"
            )
        self.rests_until = now + self.rest(self._in_a_row)
