"""Files that a command writes: the name is checked before the work begins.

They are written before anything is printed: `| head` ends a command early.
"""

from __future__ import annotations

from pathlib import Path

import typer

from patchmint.errors import InputError


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
