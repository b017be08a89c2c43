"""`patchmint doctor`: is everything here that a build needs?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from patchmint.jobs.doctor import Finding

_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "fail": "[red]FAIL[/]"}


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="Check this build's needs, too.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Check this output, too: folder or store.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at versions, GPU, Ray, models, the source's first samples and the output: what fails, and how to fix it.

    Ends with 1 if something fails.
    """
    from patchmint.jobs.doctor import examine_file

    findings = examine_file(config, out)
    if as_json:
        found = list(findings)
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        found = [_shown(finding) for finding in findings]
    if any(finding.status == "fail" for finding in found):
        raise typer.Exit(1)


def _shown(finding: Finding) -> Finding:
    """Printed at once: some things take long to look at."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{_MARKS[finding.status]} {finding.what}: {escape(printable(finding.detail))}")
    if finding.remedy:
        console.print(f"       {escape(printable(finding.remedy))}", style="dim")
    return finding
