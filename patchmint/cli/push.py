"""`patchmint push`: a finished data set to the Hugging Face Hub."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from patchmint.jobs.printable import many


def push_command(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A finished data set: folder or store.")],
    target: Annotated[str, typer.Argument(metavar="hf://datasets/ORG/NAME", help="The repository; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    licence: Annotated[
        str, typer.Option("--license", metavar="ID", help="Licence for the card, as the Hub names it: cc-by-4.0.")
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of another data set in the repository.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Bring a finished data set to the Hugging Face Hub, with a card. The same command resumes.

    Files that are there already aren't sent again. The token comes from HF_TOKEN or `hf auth login`.
    """
    from patchmint.jobs.push import push  # pyarrow and the Hub's client, not needed for --help

    done = push(dataset, target, private=private, licence=licence, replace=replace, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=1))
        return
    verb = "would be sent" if dry_run else "sent"
    typer.echo(f"{many(done.files, 'file')} ({done.bytes / 1e6:.1f} MB) {verb}, {done.present} there already")
    if done.deleted:
        typer.echo(f"{many(len(done.deleted), 'file')} of an earlier state {'would be ' if dry_run else ''}deleted")
    if not done.card:
        typer.echo("README.md there was edited, and is kept")
    typer.echo(done.url)
