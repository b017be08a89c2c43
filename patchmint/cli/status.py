"""`patchmint status`: how a build stands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from patchmint.jobs.printable import printable
from patchmint.jobs.progress import duration, speed_of
from patchmint.samples import describe_absent

if TYPE_CHECKING:
    from patchmint.jobs.status import BuildStatus

_WATCH_SECONDS = 2.0


def status(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The build's output: a folder, s3://, gs:// or az://.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch, one object per line.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every two seconds until the build ends.")
    ] = False,
) -> None:
    """Show how a build stands: done, left, rate, rejects by reason; also while another machine builds."""
    from patchmint.jobs.status import status as read_status  # pyarrow and the store's client, not needed for --help

    console = Console(highlight=False, soft_wrap=True)
    with Live(console=console, auto_refresh=False) if watch and not as_json else nullcontext() as live:
        while True:
            found = read_status(out)
            if as_json:
                typer.echo(json.dumps(asdict(found), indent=None if watch else 1))
            elif live is not None:
                live.update(_shown(out, found), refresh=True)
            else:
                console.print(_shown(out, found))
            if not watch or found.state in ("finished", "stopped", "stopped?"):
                return
            time.sleep(_WATCH_SECONDS)


def _troubled(places: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The hosts and devices at which workers died or hung, or that are put aside."""
    for place, tally in places.items():
        deaths, hangs = int(tally.get("deaths", 0)), int(tally.get("hangs", 0))
        found = [f"{deaths} deaths{f' ({hangs} hung)' if hangs else ''}"] if deaths else []
        found += ["put aside"] if tally.get("aside") else []
        if found:
            yield f"{place}: {', '.join(found)}"


def _shown(out: str, found: BuildStatus) -> Group:
    from patchmint.shards.records import describe_images  # pydantic, not needed for --help

    left = f", {found.left} left" if found.left else ""
    in_work = f" ({found.in_work} of them annotated, in units that aren't finished)" if found.in_work else ""
    lines = [
        f"[bold]{escape(printable(out))}[/]: {found.state}",
        f"units    {found.units_done} of {found.units} done",
        f"samples  {found.planned} planned = {found.written} written + {found.rejected} rejected{left}{in_work}",
    ]
    if found.images is not None:
        lines.append(f"images   {describe_images(found.images)}")
    if unconfirmed := (found.last_run.get("progress") or {}).get("unconfirmed", 0):
        lines.append(f"phrases  {unconfirmed} that a second look didn't confirm (labels.presence), in the last run")
    if absent := describe_absent(found.absent):
        lines.append(f"besides  {absent}")
    if found.state == "planning":
        lines.append(f"planning {found.last_run.get('read', 0)} samples of the source read so far")
    if found.driver:
        who = f"{found.driver['host']}, pid {found.driver['pid']}, run {found.driver['run']}"
        lines.append(f"driver   {escape(printable(who))}")
        sample = f", last sample {duration(found.result_age)} ago" if found.result_age >= 0 else ""
        lines.append(f"alive    last sign of life {duration(found.beat_age)} ago{sample}")
        counts = found.last_run.get("progress") or {}
        workers, wanted = int(counts.get("workers", 0)), int(counts.get("workers_wanted", 0))
        if workers < wanted:
            lines.append(f"workers  {workers} of {wanted} that were asked for")
        lines += [f"place    {escape(printable(line))}" for line in _troubled(counts.get("by_place") or {})]
    if (compiled := found.last_run.get("compiled")) is not None:
        lines.append(f"models   {'compiled' if compiled else 'not compiled'} on GPUs (runner.compile)")
    if found.state == "stopped?":
        lines += [
            "stopped? A driver gives one every 5 s. If this one isn't running any more,",
            "         run the build's command again: after 20 s without one it takes over",
        ]
    if found.rate:
        lines.append(f"rate     {speed_of(found.rate)}, {duration(found.seconds_left)} left")
    reason = str(found.last_run.get("reason") or "")
    if reason and not found.driver:
        lines.append(f"stopped  {escape(printable(reason))}")
    if not found.rejects:
        return Group(*lines)
    table = Table("rejected", "samples")
    for name, count in sorted(found.rejects.items(), key=lambda item: -item[1]):
        table.add_row(escape(printable(name)), str(count))
    return Group(*lines, table)
