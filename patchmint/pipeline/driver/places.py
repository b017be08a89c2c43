"""Where workers run, and what their deaths say about it.

A place is a host and a device. After a death there it is doubted: it gets nothing but a trial, samples that are known
to be harmless. If these kill too, it is put aside for a while, and no sample is blamed for what happened there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NoReturn

from patchmint.errors import BuildError
from patchmint.pipeline.driver.contracts import PlaceTally
from patchmint.pipeline.orders import Order
from patchmint.shards.plan import Unit

_ASIDE_SECONDS = 120.0
_LONGEST_ASIDE_SECONDS = 3600.0
_ASIDES_TO_STOP = 3
_STRIKES = 3
_STRIKE_UNITS = 10
_COMING_SECONDS = 600.0
_HARMLESS_SAMPLES = 8
_BARREN_SAMPLES = 8
_FEW = 3


@dataclass(eq=False)
class Place:
    """A host and a device.

    Attributes:
        name: "HOST DEVICE", for people too.
        tally: what became of the work there.
        workers: that are ready there.
        doubted: a worker died there, and nothing has survived since.
        asides: how many times in a row it was put aside.
        until: when it is tried again, by the monotonic clock.
        why: the last reason for which it was put aside.
        is_gone: whether the node was lost, or taken away; it may come back.
        strikes: for each death that nothing but the place explains, the units finished there by then.
    """

    name: str
    tally: PlaceTally
    workers: set[int] = field(default_factory=set)
    doubted: bool = False
    asides: int = 0
    until: float = 0.0
    why: str = ""
    is_gone: bool = False
    strikes: list[int] = field(default_factory=list)


@dataclass
class Coming:
    """A worker on its way.

    Attributes:
        since: when it was asked for, or when it will be, in the place of a dead one.
        place: where it is expected; None: anywhere.
        heard: when it was first heard of; None before.
    """

    since: float
    place: Place | None
    heard: float | None = None


class Places:
    """All of them, and the workers on their way.

    Attributes:
        all: by name.
        coming: workers that load their models, wait for room, or are dead and about to be replaced.
    """

    def __init__(self, tallies: dict[str, PlaceTally]) -> None:
        """Begin without any.

        Args:
            tallies: filled by name, for those who look from outside.
        """
        self.all: dict[str, Place] = {}
        self.coming: dict[int, Coming] = {}
        self._tallies = tallies
        self._of: dict[int, Place] = {}

    def of(self, worker: int) -> Place:
        """Where a worker is that has said so."""
        return self._of[worker]

    def expect(self, worker: int, place: Place | None = None, since: float | None = None) -> None:
        """A worker was asked for, or will be."""
        self.coming[worker] = Coming(time.monotonic() if since is None else since, place)

    def arrive(self, worker: int, name: str) -> None:
        """A worker is ready."""
        del self.coming[worker]
        if name not in self.all:
            self.all[name] = Place(name, self._tallies.setdefault(name, PlaceTally()))
        place = self._of[worker] = self.all[name]
        place.workers.add(worker)
        place.is_gone = False

    def leave(self, worker: int) -> Place | None:
        """A worker is gone; where it was or was expected, so far as is known."""
        coming = self.coming.pop(worker, None)
        place = coming.place if coming is not None else self._of.pop(worker, None)
        if place is not None:
            place.workers.discard(worker)
        return place

    def others(self, than: Place) -> set[str]:
        """Other places that work can go to, or soon; "" stands for one that isn't known yet."""
        now = time.monotonic()
        found = {place.name for place in self.all.values() if place.workers and not self.is_aside(place)}
        soon = [coming.place for coming in self.coming.values() if abs(now - coming.since) < _COMING_SECONDS]
        found |= {place.name if place is not None else "" for place in soon if place is None or not place.asides}
        return found - {than.name}

    def is_aside(self, place: Place) -> bool:
        """Whether it gets nothing for now."""
        place.tally.aside = place.tally.aside and time.monotonic() < place.until
        return place.tally.aside

    def put_aside(self, place: Place, why: str) -> float:
        """Give it nothing for a while, twice as long each further time; for how many seconds."""
        seconds = min(_LONGEST_ASIDE_SECONDS, _ASIDE_SECONDS * 2.0**place.asides)
        place.asides += 1
        place.until = time.monotonic() + seconds
        place.why = why
        place.doubted = True
        place.strikes.clear()
        place.tally.aside = True
        return seconds

    def strike(self, names: Iterable[str]) -> list[Place]:
        """A death at each of them that nothing but the place explains; those where there were too many lately."""
        bad = []
        for place in [self.all[name] for name in dict.fromkeys(names)]:
            recent = [units for units in place.strikes if place.tally.units - units < _STRIKE_UNITS]
            place.strikes = [*recent, place.tally.units]
            if len(place.strikes) >= _STRIKES and self.others(place) and not self.is_aside(place):
                bad.append(place)
        return bad

    def are_hopeless(self) -> bool:
        """Whether every place that there is was put aside again and again."""
        now = time.monotonic()
        if any(coming.place is None and now - coming.since < _COMING_SECONDS for coming in self.coming.values()):
            return False
        return all(place.asides >= _ASIDES_TO_STOP for place in self.all.values() if not place.is_gone)

    def __contains__(self, worker: int) -> bool:
        """Whether a worker is there, or on its way."""
        return worker in self.coming or worker in self._of


class Trials:
    """Samples given to doubted places: do they survive?

    These have survived before, elsewhere or in an earlier run. As long as there are none, any single one will do: if it
    kills, that proves nothing, but they can't all do so.
    """

    def __init__(self, harmless: Unit | None) -> None:
        """Begin.

        Args:
            harmless: a unit that was built without killing anybody; None if none was.
        """
        self._harmless = _samples_of(harmless) if harmless is not None else None
        self._running: dict[int, tuple[Place, bool]] = {}  # by worker: where, and whether its samples are harmless
        self._tried: dict[tuple[int, int], set[str]] = {}  # by unit and sample: places

    def begin(
        self,
        worker: int,
        place: Place,
        units: Callable[[], Sequence[Unit]],
        suspects: Callable[[], Set[tuple[int, int]]],
    ) -> Order | None:
        """What to give a worker at a doubted place; None while another one there is at it.

        Args:
            worker: which.
            place: where it is.
            units: units that aren't built, of which there is at least one.
            suspects: unit and position of samples that are suspected, and better not tried.

        Raises:
            BuildError: there is nothing left to try.
        """
        if any(place is other for other, _ in self._running.values()):
            return None
        self._running[worker] = place, self._harmless is not None
        return self._harmless or self._untried(place.name, units(), suspects())

    def end(self, worker: int) -> bool | None:
        """A worker's order is over: whether its samples were known to be harmless, None if it was no trial."""
        _, is_harmless = self._running.pop(worker, (None, None))
        return is_harmless

    def __contains__(self, worker: int) -> bool:
        """Whether a worker is at one."""
        return worker in self._running

    def survived(self, order: Order) -> None:
        """Samples were probed without killing."""
        if order.probe and self._harmless is None:
            self._harmless = order

    def built(self, order: Order) -> None:
        """A unit was built, and something written."""
        self._harmless = _samples_of(order.unit, order.poison)

    def killed(self, place: Place, cause: str) -> None:
        """A trial whose samples weren't known to be harmless has killed.

        Raises:
            BuildError: too many have, and none has survived.
        """
        if self._harmless is None and len(self._tried) >= _BARREN_SAMPLES:
            self._give_up(f"{len(self._tried)} different samples, on {place.name} of the last: {cause}")

    def _untried(self, place: str, units: Sequence[Unit], suspects: Set[tuple[int, int]]) -> Order:
        """Any sample that wasn't tried at a place; first those that weren't tried elsewhere, where all may die."""
        samples = ((unit, sample) for sample in range(max(unit.samples for unit in units)) for unit in units)
        untried = [
            ((unit.id, sample) in suspects, len(tried), unit, sample)
            for unit, sample in samples
            if sample < unit.samples and place not in (tried := self._tried.get((unit.id, sample), set()))
        ]
        if untried:
            *_, unit, sample = min(untried, key=itemgetter(0, 1))
            self._tried.setdefault((unit.id, sample), set()).add(place)
            return Order(unit, probe=frozenset([sample]))
        if len(self._tried) >= _FEW:
            self._give_up("every sample that there is")
        return Order(units[0], probe=frozenset())  # at one or two images nobody can tell whose fault it is

    def _give_up(self, samples: str) -> NoReturn:
        raise BuildError(
            f"workers died of {samples}, and none has survived any. That isn't the samples' fault: look at the "
            "machine's memory, its GPU, and the models' libraries"
        )


def _samples_of(unit: Unit, poison: frozenset[int] = frozenset()) -> Order:
    """Some samples of a unit that was built without killing anybody, to be looked at again."""
    step = -(-unit.samples // _HARMLESS_SAMPLES)
    return Order(unit, probe=frozenset(range(0, unit.samples, step)) - poison)
