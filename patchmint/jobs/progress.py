"""How a build shows that it goes on: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from patchmint.jobs.printable import many, printable
from patchmint.logs import in_json, json_line
from patchmint.pipeline.driver.contracts import Progress, Reporter
from patchmint.pipeline.orders import UnitResult
from patchmint.shards.paths import unit_name
from patchmint.shards.plan import Plan

_LINE_SECONDS = (1.0, 60.0)
"""Between two lines of a log: a tenth of the time so far, within these limits."""


class Display(Reporter):
    """Base of both."""

    def __init__(self) -> None:
        self._start = 0.0

    def progress(self, progress: Progress, result: UnitResult | None) -> None:
        """A unit is finished; or, without a result, some time has passed."""
        if progress.workers and not self._start:
            self._start = time.monotonic()  # a rate that counts the loading of models promises too long an end
        self.show(progress, result)

    def started(self, plan: Plan, units: int, done: int) -> None:
        """The plan stands."""
        already = f", {done} of them done already" if done else ""
        numbers: dict[str, Any] = {"plan": plan.digest, "samples": plan.total, "units": units, "units_done": done}
        self.say(
            f"plan {plan.digest[:12]}: {many(plan.total, 'sample')} in {many(units, 'unit')}{already}",
            "planned",
            **numbers,
        )

    def warn(self, line: str) -> None:
        """Something that people should know."""
        self.say(line, "warning", logging.WARNING)

    def show(self, progress: Progress, result: UnitResult | None) -> None:
        """Show it."""
        raise NotImplementedError

    def say(self, line: str, event: str, level: int = logging.INFO, **fields: Any) -> None:
        """Show a line, as `say` does."""
        raise NotImplementedError

    def rate(self, progress: Progress) -> float:
        """Samples a second since the first worker was ready."""
        seconds = time.monotonic() - self._start if self._start else 0.0
        return progress.annotated / seconds if seconds else 0.0

    def note(self, progress: Progress) -> str:
        """Rate, time left, rejects, workers, and what these wait for."""
        rate = self.rate(progress)
        speed = f"{speed_of(rate)}, {duration((progress.planned - progress.through) / rate)} left" if rate else ""
        found = progress.all_rejects().total()
        rejects = f", {found} rejected" if found else ""
        return f"{speed or 'first batch'}{rejects}, {_workers(progress)}{_waits(progress)}"


def _workers(progress: Progress) -> str:
    """How many there are, and were asked for if these are more; of a single one, what it does."""
    if progress.workers < progress.workers_wanted:
        return f"{progress.workers} of {progress.workers_wanted} workers"
    if progress.workers != 1:
        return f"{progress.workers} workers"
    doing = next((working.doing.rpartition("/")[2] for working in progress.working.values()), "")
    return f"1 worker{f' ({doing})' if doing else ''}"


def _waits(progress: Progress) -> str:
    waits = [working.waits_for for working in progress.working.values() if working.waits_for]
    return f"; {len(waits)} waiting: {waits[0]}" if waits else ""


@contextmanager
def display() -> Iterator[Display]:
    """What tells people on stderr how a build stands."""
    console = Console(stderr=True, highlight=False)
    if in_json() or not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        yield _Bar(bar, console)


class _Bar(Display):
    def __init__(self, bar: Bar, console: Console) -> None:
        super().__init__()
        self._bar = bar
        self._console = console
        self._task = bar.add_task("planning", total=None, note="")
        self._begun = time.monotonic()

    def planned(self, samples: int) -> None:
        rate = samples / (time.monotonic() - self._begun)
        self._bar.update(self._task, completed=samples, note=speed_of(rate))

    def show(self, progress: Progress, result: UnitResult | None) -> None:  # noqa: ARG002
        if not progress.workers and not progress.done:
            self._bar.update(
                self._task, description="loading models, workers ready", total=progress.workers_wanted, completed=0
            )
            return
        self._bar.update(
            self._task,
            description="building",
            total=progress.planned,
            completed=progress.through,
            note=self.note(progress),
        )

    def say(self, line: str, event: str, level: int = logging.INFO, **fields: Any) -> None:  # noqa: ARG002
        self._console.print(escape(printable(line)), soft_wrap=True)


class _Lines(Display):
    def __init__(self) -> None:
        super().__init__()
        self._said = self._begun = time.monotonic()
        self._planned: tuple[float, int] | None = None  # when the last line came, and its number

    def planned(self, samples: int) -> None:
        now = time.monotonic()
        since, before = self._planned or (now, samples)
        if now - since >= self._rest(now):
            # the rate of late: what an earlier run has read is there at once
            rate = (samples - before) / (now - since)
            line = f"planning: {samples} samples, {speed_of(rate)}"
            self.say(line, "planning", samples=samples, samples_per_second=round(rate, 3))
            since, before = now, samples
        self._planned = since, before

    def show(self, progress: Progress, result: UnitResult | None) -> None:
        if result is not None and in_json():
            numbers = asdict(replace(result, profile=None))
            del numbers["unit"], numbers["profile"]
            self.say("a unit is finished", "unit", unit=unit_name(result.unit), **numbers)
        finished = result is not None and progress.done == progress.units
        now = time.monotonic()
        if now - self._said < self._rest(now) and not finished:
            return
        self._said = now
        if not progress.workers and not progress.done:
            self.say(
                f"loading models: 0 of {progress.workers_wanted} workers ready",
                "loading",
                workers=0,
                workers_wanted=progress.workers_wanted,
            )
            return
        self.say(
            f"{progress.through} of {progress.planned} samples, {progress.done} of {progress.units} units: "
            f"{self.note(progress)}",
            "progress",
            samples=progress.through,
            samples_planned=progress.planned,
            units_done=progress.done,
            units=progress.units,
            samples_per_second=round(self.rate(progress), 3),
            rejects=dict(progress.all_rejects()),
            workers=progress.workers,
            workers_wanted=progress.workers_wanted,
            deaths=progress.deaths,
            places={place: asdict(tally) for place, tally in progress.by_place.items()},
        )

    def _rest(self, now: float) -> float:
        least, most = _LINE_SECONDS
        return min(most, max(least, (now - self._begun) / 10))

    def say(self, line: str, event: str, level: int = logging.INFO, **fields: Any) -> None:
        say(line, event, level, **fields)


def speed_of(rate: float) -> str:
    """Samples a second as people say them: "4.9 samples/s", "6.2 samples/min"."""
    return f"{rate:.1f} samples/s" if rate >= 1 else f"{60 * rate:.2g} samples/min"


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def say(line: str, event: str = "note", level: int = logging.INFO, **fields: Any) -> None:
    """A line on stderr, at once: job logs are read while the job runs. What it quotes may come from hostile files.

    Args:
        line: for people; one that begins with "error: " or "warning: " is that event.
        event: in a JSON line, what happened.
        level: in a JSON line, how important it is, as `logging` counts.
        **fields: of a JSON line besides.
    """
    shown = "\n".join(printable(part) for part in line.split("\n"))
    if in_json():
        told = next((word for word in ("error", "warning") if shown.startswith(f"{word}: ")), "")
        shown = shown.removeprefix(f"{told}: ")
        level = logging.getLevelNamesMapping()[told.upper()] if told else level
        shown = json_line(told or event, shown, level, **fields)
    print(shown, file=sys.stderr, flush=True)
