"""`patchmint inspect diff`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.shared import CodesOption, JsonOption, console_for_data, print_json, progress_bar
from patchmint.jobs.printable import many, printable

if TYPE_CHECKING:
    from patchmint.inspection.diff.compare import Difference, Some

_VALUE = 200
_ABSENT = "-"
_COLUMNS_HELP = "columns to read with it, as --columns of other commands."
_ColumnsA = Annotated[list[str] | None, typer.Option("--columns-a", metavar="NAME", help=f"Of A: {_COLUMNS_HELP}")]
_ColumnsB = Annotated[list[str] | None, typer.Option("--columns-b", metavar="NAME", help=f"Of B: {_COLUMNS_HELP}")]


def diff_command(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A data set's folder, finished or not; s3://..., hf://...; or one tar.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The data set to compare with.")],
    samples: Annotated[
        int, typer.Option(min=0, help="Number of samples, evenly spaced, whose arrays are compared. 0: all.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Number of keys to list for each kind of difference.")] = 20,
    columns_a: _ColumnsA = None,
    columns_b: _ColumnsB = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed from build A to build B: settings, keys, texts, phrases, labels, codes, features.

    Samples are the same if their keys are. Images, boxes and coverage aren't compared. Two columns of a data set are
    compared by --columns-a and --columns-b, with A and B the same.

    Ends with 0 if nothing differs, 1 if something does, 2 if one can't be read.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.diff.compare import compare

    with progress_bar("diff") as progress:
        before = open_dataset(a, columns=columns_a).with_codes(codes)
        after = open_dataset(b, columns=columns_b).with_codes(codes)
        difference = compare(before, after, samples=samples, top=limit, progress=progress)
    if as_json:
        print_json({"a": a, "b": b, **_document(difference)})
    else:
        _print(difference)
    if not difference.is_same:
        raise typer.Exit(1)


def _document(difference: Difference) -> dict[str, object]:
    labels, codes = difference.labels, difference.codes
    before, after, common = difference.samples
    return {
        "same": difference.is_same,
        "gaps": difference.gaps,
        "settings": [{"field": change.field, **change.values} for change in difference.settings],
        "samples": {"a": before, "b": after, "both": common},
        "only_a": asdict(difference.only_a),
        "only_b": asdict(difference.only_b),
        "images": asdict(difference.images),
        "texts": asdict(difference.texts),
        "phrases": {
            "a": difference.phrase_counts[0],
            "b": difference.phrase_counts[1],
            **asdict(difference.phrases),
        },
        "labels": {
            "obstacle": labels.obstacle,
            "share": {"a": difference.label_shares[0], "b": difference.label_shares[1]},
            "compared": labels.compared,
            "other_shape": labels.other_shape,
            "patches": labels.patches,
            "agreement": labels.agreement,
            "iou": labels.iou,
            "on": labels.on,
            "off": labels.off,
            "changed": labels.changed,
            "most": [asdict(flips) for flips in labels.most],
        },
        "codes": {**asdict(codes), "agreement": codes.agreement},
        "features": asdict(difference.features),
    }


def _print(difference: Difference) -> None:
    console = console_for_data()
    if difference.settings:
        table = Table("setting", Column("A", overflow="fold"), Column("B", overflow="fold"))
        for change in difference.settings:
            values = [_value(change.values[side]) if side in change.values else _ABSENT for side in ("a", "b")]
            table.add_row(escape(printable(change.field)), *values)
        console.print(table)
    for line in (*_lines(difference), *difference.gaps):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)
    _print_flips(difference, console)
    if difference.is_same:
        console.print("no difference")


def _lines(difference: Difference) -> list[str]:
    before, after, common = difference.samples
    return [
        f"samples: {before} in A, {after} in B, {common} in both",
        *_named("only in A", difference.only_a),
        *_named("only in B", difference.only_b),
        *_named("another number of images", difference.images),
        *_named("other texts", difference.texts),
        "phrases: {} -> {}".format(*difference.phrase_counts),
        *_named("other phrases or scores", difference.phrases),
        *_label_lines(difference),
        *_code_lines(difference),
        *_feature_lines(difference),
    ]


def _named(what: str, some: Some) -> list[str]:
    if not some.count:
        return []
    more = f", and {some.count - len(some.first)} more" if some.count > len(some.first) else ""
    return [f"{what}: {some.count} ({', '.join(some.first)}{more})"]


def _label_lines(difference: Difference) -> list[str]:
    labels = difference.labels
    shares = ["none" if share is None else f"{share:.4f}" for share in difference.label_shares]
    lines = [] if shares == ["none", "none"] else [f"mean label share: {shares[0]} -> {shares[1]}"]
    if labels.obstacle:
        lines.append(f"labels aren't compared: {labels.obstacle}")
    if labels.other_shape:
        lines.append(f"labels of another shape: {many(labels.other_shape, 'sample')}, not compared")
    if labels.compared:
        flips = f"0 -> 1: {labels.on}, 1 -> 0: {labels.off}, in {many(labels.changed, 'sample')}"
        agree = f"{_percent(labels.agreement)} of {labels.patches} patches agree, IoU {_percent(labels.iou)}"
        lines.append(f"labels of {many(labels.compared, 'sample')}: {agree}; {flips}")
    return lines


def _code_lines(difference: Difference) -> list[str]:
    codes = difference.codes
    lines = [f"codes aren't compared: {codes.obstacle}"] if codes.obstacle else []
    if codes.other_shape:
        lines.append(f"codes of another shape: {many(codes.other_shape, 'sample')}, not compared")
    if codes.compared:
        lines.append(
            f"codes of {many(codes.compared, 'sample')}: {_percent(codes.agreement)} of {codes.cells} cells agree; "
            f"{many(codes.changed, 'sample')} changed"
        )
    return lines


def _feature_lines(difference: Difference) -> list[str]:
    features = difference.features
    lines = [f"features aren't compared: {features.obstacle}"] if features.obstacle else []
    if features.other_shape:
        lines.append(f"features of another shape: {many(features.other_shape, 'sample')}, not compared")
    if features.compared:
        most = f", by {features.largest:g} at most" if features.changed else ""
        lines.append(
            f"features of {many(features.compared, 'sample')}: {many(features.changed, 'sample')} changed{most}"
        )
    return lines


def _print_flips(difference: Difference, console: Console) -> None:
    if not difference.labels.most:
        return
    numbers = (Column(name, justify="right") for name in ("0 -> 1", "1 -> 0", "patches"))
    table = Table(Column("most flips", overflow="fold"), *numbers)
    for flips in difference.labels.most:
        table.add_row(escape(printable(flips.key)), str(flips.on), str(flips.off), str(flips.patches))
    console.print(table)


def _percent(share: float | None) -> str:
    """Cut, not rounded: nothing that differs is shown as 100 %."""
    return "none" if share is None else f"{int(share * 10_000) / 100:.2f} %"


def _value(value: object) -> str:
    shown = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return escape(printable(shown if len(shown) <= _VALUE else f"{shown[: _VALUE - 1]}…"))
