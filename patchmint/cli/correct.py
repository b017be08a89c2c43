"""`patchmint correct`: what somebody changed by hand becomes corrections of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from patchmint.cli.inspect.shared import DatasetArgument, JsonOption, print_json, progress_bar
from patchmint.errors import InputError
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from patchmint.datasets.corrections import Corrected

_SHOWN = 20
_BOXES = ("yolo", "odvg")


def correct_command(
    dataset: DatasetArgument,
    edits: Annotated[
        Path, typer.Argument(metavar="EDITS", help="A file of edits, or what the tool exported: a file or its folder.")
    ],
    kind: Annotated[
        Literal["edits", "coco", "label-studio", "cvat", "fiftyone", "yolo", "odvg"],
        typer.Option("--from", help="What wrote EDITS: the gallery or a program (edits), or the tool that exported."),
    ] = "edits",
    by: Annotated[str, typer.Option(metavar="NAME", help="Who, where EDITS doesn't say; default: the user.")] = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the samples that EDITS names back to what the build made.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take corrections back: instances changed, added or deleted by hand, or whole samples marked wrong.

    The labels of the samples that this touches are made anew, without a model; everything else stays as it is. What a
    tool gives back is compared with the data set: what nobody changed is no edit.

    Nothing is overwritten: corrections are a column of the data set, and the last one that has a sample counts.
    """
    from patchmint.datasets.corrections import correct, write_corrections
    from patchmint.datasets.dataset import open_dataset
    from patchmint.datasets.edits import Edit, read_edits
    from patchmint.inspection.export.back import edits_of, read_back

    opened = open_dataset(dataset)
    try:
        changed_at = datetime.fromtimestamp(edits.stat().st_mtime, UTC)
        if kind == "edits":
            with edits.open("rb") as file:
                named = [(f"{edits}, line {line.number}", line.edit) for line in read_edits(file, str(edits))]
        elif undo:
            named = [(each.where, Edit(key=each.key, by=each.by)) for each in read_back(edits, kind)]
        else:
            with progress_bar("compare") as progress:
                named = list(edits_of(opened, read_back(edits, kind), progress))
    except OSError as error:
        raise InputError(f"can't read {edits}: {error.strerror or error}") from error
    if kind in _BOXES and any(each.box for _, edit in named for each in (*edit.change, *edit.add)):
        typer.echo(f"{kind} carries no masks: where a box was drawn or moved, it is the mask from now on", err=True)
    if undo:
        named = [(place, Edit(key=edit.key, undo=True, by=edit.by)) for place, edit in named]
    changed = correct(opened, named, by, changed_at)
    column = write_corrections(opened, changed) if changed and not dry_run else None
    if as_json:
        print_json({"column": column, "samples": list(map(_document, changed))})
        return
    if not changed:
        typer.echo("nothing to do: no edit changes anything", err=True)
        return
    _show(changed)
    if column is None:
        typer.echo("nothing was written (--dry-run)", err=True)
    else:
        typer.echo(f"written to {dataset}, column {column}; deleting that folder takes it back", err=True)


def _document(made: Corrected) -> dict[str, Any]:
    edits = made.edits[len(made.edits) - made.new :]
    counts = {name: sum(len(getattr(edit, name)) for edit in edits) for name in ("change", "add", "delete")}
    names = sorted({edit.by for edit in edits})
    return {"key": made.sample.key, **counts, "by": names, "wrong": made.wrong, "corrected": made.corrected}


def _show(changed: Sequence[Corrected]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from patchmint.cli.inspect.shared import console_for_data

    table = Table("sample", "changed", "added", "deleted", "by", "")
    for made in changed[:_SHOWN]:
        told = _document(made)
        state = "wrong" if made.wrong else "" if made.corrected else "as built"
        by = escape(printable(", ".join(told["by"])))
        table.add_row(made.sample.key, *(str(told[name]) for name in ("change", "add", "delete")), by, state)
    console_for_data().print(table)
    more = f", of which {_SHOWN} are shown" if len(changed) > _SHOWN else ""
    typer.echo(f"{len(changed)} {'sample changes' if len(changed) == 1 else 'samples change'}{more}", err=True)
