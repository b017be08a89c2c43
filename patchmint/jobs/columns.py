"""The option by which commands choose columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer


def names_of(given: Sequence[str] | None) -> list[str] | None:
    """What `open_dataset` is told of such an option."""
    return [name for name in given if name != "none"] if given else None


ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME",
        callback=names_of,
        help="Read this column, and of the others only those named so as well. corrections: all of these; none: no "
        "column. Default: columns that add what nothing else has, and corrections.",
    ),
]
