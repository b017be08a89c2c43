"""`patchmint doctor`: is everything here that a build needs?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from patchmint.errors import ConfigError
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from patchmint.jobs.doctor import Finding

_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "fail": "[red]FAIL[/]"}


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="Check this build's needs, too.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Check this output, too: folder or store.")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Only list, and abort, uploads to the output that were never ended (s3://).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --sweep: abort them without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at versions, GPU, Ray, models, the source's first samples and the output: what fails, and how to fix it.

    Ends with 1 if something fails.
    """
    if sweep:
        _sweep(config, out, yes=yes, as_json=as_json)
        return
    from patchmint.jobs.doctor import examine_file

    findings = examine_file(config, out)
    if as_json:
        found = list(findings)
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        found = [_shown(finding) for finding in findings]
    if any(finding.status == "fail" for finding in found):
        raise typer.Exit(1)


def _sweep(config: Path | None, out: str | None, *, yes: bool, as_json: bool) -> None:
    from patchmint.config.build import BuildConfig
    from patchmint.jobs.sweep import abort, find_leftovers

    if out is None and config is None:
        raise ConfigError("--sweep needs to know where: name the output (--out s3://BUCKET/PREFIX), or a config")
    found = find_leftovers(out or BuildConfig.load(config).output.uri)
    if as_json:
        if yes:
            abort(found)
        typer.echo(json.dumps(asdict(found) | {"aborted": yes}, indent=1))
        return
    for upload in found.uploads:
        typer.echo(f"{upload.begun}  {printable(upload.path)}")
    live = f"; {found.live} more may be of the driver that is at work there" if found.live else ""
    typer.echo(f"{len(found.uploads)} unfinished uploads in {found.uri}{live}")
    if found.uploads and (yes or typer.confirm("Abort them, which deletes their parts?")):
        abort(found)
        typer.echo("aborted")


def _shown(finding: Finding) -> Finding:
    """Printed at once: some things take long to look at."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{_MARKS[finding.status]} {finding.what}: {escape(printable(finding.detail))}")
    if finding.remedy:
        console.print(f"       {escape(printable(finding.remedy))}", style="dim")
    return finding
