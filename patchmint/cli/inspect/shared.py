"""What the commands of `patchmint inspect` have in common: arguments, JSON, tables, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchmint.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 200

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="A data set's folder, finished or not; s3://..., hf://...; or one tar.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
GridOption = Annotated[
    str | None,
    typer.Option("--grid", metavar="NAME", help="Of several grids of labels this one, not the first."),
]
CodesOption = Annotated[
    str | None,
    typer.Option("--codes", metavar="NAME", help="Of several tokenizers' codes these, not the first."),
]
PaddingOption = Annotated[
    bool, typer.Option("--padding", help="Count cells that show nothing but padding, which are left out otherwise.")
]


def print_json(document: object) -> None:
    """Print a document; what a data set holds can't reach the terminal as control characters: JSON escapes them."""
    typer.echo(json.dumps(document, indent=2))


def console_for_data() -> Console:
    """A console on stdout, wide where that is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr if that is a terminal; else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def check_output(path: Path | None, ending: str) -> None:
    """Check that a file can get this name.

    Args:
        path: where to; None = nothing is to be written.
        ending: that it must have, such as ".png".

    Raises:
        InputError: another ending, a folder, or no folder to write into.
    """
    if path is None:
        return
    if path.suffix.lower() != ending:
        raise InputError(f"can't write {path}: give it a name that ends with {ending}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"can't write {path}: " + ("it is a folder" if path.is_dir() else f"no folder {path.parent}"))


def write_output(path: Path, data: bytes) -> None:
    """Write a file, and say so on stderr.

    Raises:
        InputError: it can't be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
    typer.echo(f"wrote {path}", err=True)
