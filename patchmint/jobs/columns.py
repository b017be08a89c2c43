"""The option by which commands choose columns."""

from __future__ import annotations

from typing import Annotated

import typer

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME",
        help="Read this column, and of the others only those named so as well. corrections: all of these; none: no "
        "column. Default: columns that add what nothing else has, and corrections.",
    ),
]
