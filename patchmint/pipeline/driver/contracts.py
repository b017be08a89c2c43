"""What the driver's loop deals with: workers, how the run stands, and who is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from patchmint.pipeline.orders import Event, Order, UnitResult, Working
from patchmint.shards.plan import Plan


class Pool(Protocol):
    """Workers, wherever they run. Each does one order at a time; who replaces a dead one is the supervisor."""

    def start(self, workers: int) -> None:
        """Ask for that many workers at most, with numbers from 0 on; those that can't be placed yet may come later."""
        ...

    def submit(self, worker: int, order: Order) -> None:
        """Give an idle worker something to do."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """What happened, waiting at most so long for something to happen."""
        ...

    def observe(self, progress: Progress, result: UnitResult | None) -> None:
        """How the run stands, as often as it is reported: a pool may export the counts."""
        ...

    def interrupt(self, seconds: float) -> None:
        """Ask all workers to save what they have annotated; each that had something to save says `Saved`.

        Args:
            seconds: for each to wait for the end of its batch.
        """
        ...

    def kill(self, worker: int) -> None:
        """End a worker that hangs; `wait` tells of its death, unless even that hangs."""
        ...

    def retire(self, worker: int) -> None:
        """Let go of an idle worker that there is no work for."""
        ...

    def replace(self, worker: int, *, elsewhere: bool) -> int:
        """Start another instead of a worker that died or failed to set itself up, and say its number.

        Args:
            worker: that was.
            elsewhere: whether it should run on another host or device, if one is free.
        """
        ...

    def stop(self) -> None:
        """End all workers at once, whatever they do."""
        ...


@dataclass
class PlaceTally:
    """What became of the work at one place.

    Attributes:
        samples, units: finished there.
        deaths: of its workers, those by hanging included.
        hangs: of them, the workers that hung.
        aside: whether it gets no work for now, because nothing survived there lately.
    """

    samples: int = 0
    units: int = 0
    deaths: int = 0
    hangs: int = 0
    aside: bool = False


@dataclass
class Progress:
    """How a run stands.

    Attributes:
        units: units to do in this run.
        done: units finished in this run.
        samples, written: samples in the finished units, and those of them that were written.
        rejects: by reason.
        bytes: written into shards.
        workers: workers that are ready.
        deaths: workers that died.
        seconds: of all workers together, by stage.
        queue_wait: seconds that workers stood idle while units were left.
        planned: samples in all units of this run.
        batch_sizes: images that models took at once, in ascending order; workers may differ.
        saved: of `samples`, those that an earlier run had annotated.
        dark, unconfirmed: as in `UnitResult`.
        working: by worker, how far it is with a unit that isn't finished.
        workers_wanted: workers that were asked for, without those that were let go because no work was left for them.
        by_place: by place ("HOST DEVICE"), what became of the work there.
    """

    units: int
    planned: int
    done: int = 0
    samples: int = 0
    written: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    workers: int = 0
    deaths: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    queue_wait: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)
    saved: int = 0
    dark: int = 0
    unconfirmed: int = 0
    working: dict[int, Working] = field(default_factory=dict)
    workers_wanted: int = 0
    by_place: dict[str, PlaceTally] = field(default_factory=dict)

    @property
    def through(self) -> int:
        """Samples of this run that are annotated or rejected, also in units that aren't finished."""
        return self.samples + sum(working.samples for working in self.working.values())

    @property
    def annotated(self) -> int:
        """The same without those that an earlier run had annotated: what rates are told by."""
        return self.through - self.saved - sum(working.saved for working in self.working.values())

    def all_rejects(self) -> Counter[str]:
        """By reason, also of units that aren't finished."""
        found = Counter(self.rejects)
        for working in self.working.values():
            found.update(working.rejects)
        return found

    def add(self, result: UnitResult) -> None:
        """Count a finished unit."""
        self.done += 1
        self.saved += result.saved
        self.dark += result.dark
        self.unconfirmed += result.unconfirmed
        self.samples += result.planned
        self.written += result.written
        for reason, count in result.rejects.items():
            self.rejects[reason] = self.rejects.get(reason, 0) + count
        self.bytes += result.bytes
        self.batch_sizes = sorted({*self.batch_sizes, result.batch_size})
        for stage, seconds in result.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Reporter:
    """Is told how a build stands. This one does nothing: override what you want to hear."""

    def planned(self, samples: int) -> None:
        """The plan is being made, and has so many samples by now."""

    def started(self, plan: Plan, units: int, done: int) -> None:
        """The plan stands; so many units there are, and so many are done already."""

    def progress(self, progress: Progress, result: UnitResult | None) -> None:
        """A unit is finished; or, without a result, some time has passed. Half a second at most lies between calls."""

    def warn(self, line: str) -> None:
        """Something that people should know: a worker died, a unit is tried again."""
