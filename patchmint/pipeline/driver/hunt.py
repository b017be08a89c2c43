"""The search for the sample that kills or hangs its workers. Knows no workers: it is told of their ends, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from patchmint.errors import BuildError
from patchmint.pipeline.orders import Order
from patchmint.shards.plan import Unit

_DEATHS_BEFORE_SUSPICION = 2
_WITNESSES = 2
_MOST_DEATHS = 60
_MOST_HANGS = 6


@dataclass
class _Case:
    """What is suspected.

    Attributes:
        recent: the places where the whole unit has killed.
        suspects: positions in the unit.
        probed: of them, those in the last order; none in a whole unit.
        singly: whether they are probed one by one.
        is_hang: whether a worker hung, rather than died.
        witnesses: against the one suspect that is left: places where it killed alone, and whether something has
            survived there since.
        hung_at: the same against all samples of a batch.
        kills: how often that suspect has killed alone, by place; to have hung in a batch counts as well.
    """

    recent: list[str] = field(default_factory=list)
    suspects: list[int] = field(default_factory=list)
    probed: list[int] = field(default_factory=list)
    singly: bool = False
    is_hang: bool = False
    witnesses: dict[str, bool] = field(default_factory=dict)
    hung_at: dict[str, bool] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)


class Hunt:
    """One unit's worker has died: what to try next, and where.

    The first death may be an accident (somebody else's memory, a bad GPU), so the unit is tried once more, elsewhere if
    there is an elsewhere. After the second, halves of it are probed, each time the half that kills is halved again.

    A sample that killed a worker alone is condemned by two witnesses: places where it did so, and where samples known
    to be harmless survived afterwards. Where there is only one place to work at, it has to kill there twice. Then the
    unit is built without the sample. More than one killer: the hunt begins anew.

    A worker that hung has said at which samples: these are probed one by one, at once, because each further hang costs
    as much time as the first; and the place where it hung is a witness against each of them.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._deaths = self._hangs = 0
        self._last_place = ""
        self._poison: frozenset[int] = frozenset()
        self._hanging: frozenset[int] = frozenset()
        self._unexplained: list[str] = []
        self._case = _Case()

    @property
    def suspects(self) -> Sequence[int]:
        """Positions in the unit that are suspected, if not all are."""
        return self._case.suspects

    @property
    def lacks_witnesses(self) -> bool:
        """Whether what has happened so far has happened at one place."""
        return len(self._case.witnesses) < _WITNESSES

    def next_order(self, place: str, others: Set[str]) -> Order | None:
        """What to give a worker, or None where another place has to try first.

        Args:
            place: where the worker is, and where something has survived since the last death.
            others: places that work can go to besides.
        """
        if self._is_proven(place, others):
            self._condemn()
        if not self._case.suspects and len(self._case.recent) < _DEATHS_BEFORE_SUSPICION:
            if others and place == self._last_place:
                return None
            self._case.probed = []
            return Order(self.unit, self._poison, self._hanging)
        if self._case.witnesses:
            awaited = not self.lacks_witnesses and any(not self._case.witnesses.get(other, True) for other in others)
            if awaited or (others and place in self._case.witnesses):
                return None
        elif others and place in self._case.hung_at:
            return None
        if not self._case.suspects:
            self._case.suspects = [sample for sample in range(self.unit.samples) if sample not in self._poison]
        self._case.probed = self._case.suspects[: 1 if self._case.singly else max(1, len(self._case.suspects) // 2)]
        return Order(self.unit, self._poison, self._hanging, probe=frozenset(self._case.probed))

    def survived(self) -> list[str]:
        """A probe came back; as `built`, if that ends the suspicion."""
        if self._case.witnesses or self._case.probed == self._case.suspects:
            # the last suspect is innocent by itself: an accident, or several samples together; build again
            self._case = _Case()
            return self.built()
        self._case.suspects = self._case.suspects[len(self._case.probed) :]
        return []

    def built(self) -> list[str]:
        """The places where workers died, though no sample explains it."""
        unexplained, self._unexplained = self._unexplained, []
        return unexplained

    def hung(self, place: str, samples: Sequence[int]) -> None:
        """The worker hung at these samples, or anywhere if there are none.

        Raises:
            BuildError: too many workers hung at this unit.
        """
        self._hangs += 1
        if self._hangs > _MOST_HANGS:
            raise BuildError(
                f"{self._hangs} workers hung at unit {self.unit.name}, and no single sample is to blame; if batches "
                "take so long here, raise limits.sample_timeout"
            )
        if samples and not self._case.probed:
            self._case.singly, self._case.suspects, self._case.hung_at = True, sorted(samples), {place: False}
        elif len(self._case.probed) == 1:
            self._case.witnesses |= self._case.hung_at
            self._case.kills.update(self._case.hung_at.keys())
        self._case.is_hang = True
        self.died(place)

    def died(self, place: str) -> None:
        """The worker died of the last order.

        Raises:
            BuildError: too many workers died of this unit.
        """
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise BuildError(
                f"unit {self.unit.name} killed {self._deaths} workers, and no single sample is to blame; is there "
                "enough memory for a batch (runner.batch_size)?"
            )
        self._last_place = place
        self._unexplained.append(place)
        if not self._case.probed:
            self._case.recent.append(place)
        elif len(self._case.probed) == 1:
            self._case.suspects = self._case.probed
            self._case.witnesses[place] = False
            self._case.kills[place] += 1
        else:
            self._case.suspects = self._case.probed

    def vouch(self, place: str) -> None:
        """Something has survived at a place: what died there before did so by its own fault."""
        for witnesses in (self._case.witnesses, self._case.hung_at):
            if place in witnesses:
                witnesses[place] = True

    def distrust(self, place: str) -> None:
        """Harmless samples died at a place: what else died there did so by the place's fault."""
        self._unexplained = [each for each in self._unexplained if each != place]
        self._case.recent = [each for each in self._case.recent if each != place]
        self._case.witnesses.pop(place, None)
        self._case.hung_at.pop(place, None)

    def _is_proven(self, place: str, others: Set[str]) -> bool:
        vouched = [witness for witness, is_vouched in self._case.witnesses.items() if is_vouched]
        return len(vouched) >= _WITNESSES or (not others and place in vouched and self._case.kills[place] > 1)

    def _condemn(self) -> None:
        culprit = frozenset(self._case.suspects)
        self._poison |= culprit
        if self._case.is_hang:
            self._hanging |= culprit
        self._deaths = self._hangs = 0
        self._unexplained.clear()
        self._case = _Case()
