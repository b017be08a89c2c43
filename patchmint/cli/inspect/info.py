"""`patchmint inspect info`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from patchmint.cli.inspect.shared import DatasetArgument, JsonOption, console_for_data, print_json
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import many, printable
from patchmint.samples import describe_absent

if TYPE_CHECKING:
    from rich.console import Console

    from patchmint.inspection.summary import Summary

_SECTIONS = ("source", "labels", "grid", "grids", "tokens", "features")


def info_command(dataset: DatasetArgument, columns: ColumnsOption = None, as_json: JsonOption = False) -> None:
    """Say what a data set is: versions, models, config, layout, totals.

    Of an unfinished build how far it is, and what its first sample says; of one tar only the latter.

    Ends with 0, or with 2 if there is nothing to tell about.
    """
    from dataclasses import asdict

    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.summary import summarise

    summary = summarise(open_dataset(dataset, columns=columns, check_files=False))
    if as_json:
        print_json(asdict(summary))
        return
    console = console_for_data()
    _print_lines(console, summary)
    if summary.models:
        _print_models(console, summary.models)
    if summary.members:
        _print_members(console, summary)


def _print_lines(console: Console, summary: Summary) -> None:
    from rich.text import Text

    for name, value in _lines(summary):
        console.print(Text.assemble((f"{name:<10}", "bold"), printable(value)), soft_wrap=not console.is_terminal)
    if summary.notice:
        console.print(Text(printable(summary.notice), "bold yellow"))


def _lines(summary: Summary) -> Iterator[tuple[str, str]]:
    totals = summary.totals
    yield "data set", f"{summary.dataset} ({summary.state})"
    if summary.state == "unfinished":
        yield "built", f"{totals['units_done']} of {totals['units']} units; more: patchmint status {summary.dataset}"
    yield "samples", _samples(totals)
    if absent := describe_absent(totals["absent"] or {}):
        yield "besides", absent
    if (images := totals.get("images")) is not None:
        yield "images", _images(images)
    yield "texts", _texts(totals)
    yield "size", f"{many(totals['shards'], 'shard')}, {_size(totals['bytes'])} ({totals['bytes']} bytes)"
    known = summary.held or {name: summary.layout.get(name) for name in ("grid", "tokens", "features")}
    for section in _SECTIONS if summary.layout else ():
        if section in known:
            # Settings that aren't known are empty; the layout tells at least what there is.
            told = known[section] if known[section] != {} else _form(section, summary.layout)
            yield section, ", ".join(map(_flat, told)) if section == "grids" else _flat(told)
    for column in summary.columns:
        read = "" if column["read"] else "; not read here"
        size = f"{many(column['samples'], 'sample')}, {_size(column['bytes'])}"
        yield "column", f"{column['name']}: {', '.join(column['holds'])}, {size}{read}"
    if summary.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())


def _form(section: str, layout: Mapping[str, Any]) -> Any:
    return {"min_coverage": layout["min_coverage"]} if section == "labels" else layout[section]


def _samples(totals: Mapping[str, Any]) -> str:
    written = f"{totals['written']} written"
    if totals["planned"] is None:
        return written
    rejected = totals["rejected"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    return f"{totals['planned']} planned, {written}, {sum(rejected.values())} rejected" + (
        f" ({reasons})" if reasons else ""
    )


def _images(images: Mapping[str, Any]) -> str:
    """Of documents."""
    from patchmint.shards.records import ImageCounts, describe_images

    return describe_images(ImageCounts(**images)) if "planned" in images else f"{images['written']} written"


def _texts(totals: Mapping[str, Any]) -> str:
    share = totals["label_share"]
    return f"{totals['texts']}, " + ("no labels" if share is None else f"on average {share:.1%} of the patches kept")


def _flat(value: Any) -> str:
    """A section of the settings on one line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping) and any(isinstance(part, Mapping) for part in value.values()):
        return "; ".join(f"{name}: {_flat(part)}" for name, part in value.items())  # several tokenizers
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(part)}" for name, part in value.items() if part not in (None, [], ""))
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "; ".join(map(_flat, value))
    if isinstance(value, list | tuple):
        return " x ".join(map(_flat, value))
    return str(value)


def _size(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} TB"


def _print_models(console: Console, models: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    name = Column("name", overflow="fold")
    table = Table("role", name, Column("sha256", no_wrap=True), "size", "licence", title="models", title_justify="left")
    for role, model in models.items():
        cells = (role, model["name"], model["sha256"][:12], _size(model["size"]), model["licence"] or "not known")
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console.print(table)


def _print_members(console: Console, summary: Summary) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    title = "members of a sample" if summary.versions else "members of the first sample"
    table = Table(Column("member", no_wrap=True), "type", "shape", title=title, title_justify="left")
    documents = bool(summary.totals.get("images"))
    for member in summary.members:
        number = "IMAGE." if documents and member["ending"] not in ("json", "txt") else ""
        cells = (f"KEY.{number}{member['ending']}", member["dtype"], " x ".join(member["shape"]))
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console.print(table)
    if summary.versions:
        texts = "texts that label the image" if documents else "texts of the sample"
        console.print(f"T: {texts}; views: inputs of the encoder", highlight=False)
