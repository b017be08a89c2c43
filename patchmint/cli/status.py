"""`patchmint status`: how a build stands."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmint.jobs.printable import printable
from patchmint.jobs.progress import duration


def status(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The build's output: a folder, s3://, gs:// or az://.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a build stands: done, left, rate, rejects by reason; also while another machine builds."""
    from patchmint.jobs.status import status as read_status  # pyarrow and the store's client, not needed for --help

    found = read_status(out)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    left = f", {found.left} left" if found.left else ""
    console.print(f"[bold]{escape(printable(out))}[/]: {found.state}")
    console.print(f"units    {found.units_done} of {found.units} done")
    console.print(f"samples  {found.planned} planned = {found.written} written + {found.rejected} rejected{left}")
    if found.driver:
        who = f"{found.driver['host']}, pid {found.driver['pid']}, run {found.driver['run']}"
        console.print(f"driver   {escape(printable(who))}")
    if found.rate:
        console.print(f"rate     {found.rate:.1f} samples/s, {duration(found.seconds_left)} left")
    reason = str(found.last_run.get("reason") or "")
    if reason and not found.driver:
        console.print(f"stopped  {escape(printable(reason))}")
    if found.rejects:
        table = Table("rejected", "samples")
        for name, count in sorted(found.rejects.items(), key=lambda item: -item[1]):
            table.add_row(escape(printable(name)), str(count))
        console.print(table)
