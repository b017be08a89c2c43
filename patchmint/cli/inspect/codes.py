"""`patchmint inspect codes`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.drawing import dot_grid, heat_map
from patchmint.cli.inspect.shared import (
    CodesOption,
    DatasetArgument,
    JsonOption,
    PaddingOption,
    check_output,
    console_for_data,
    print_json,
    progress_bar,
    write_output,
)
from patchmint.errors import InputError
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from patchmint.datasets.dataset import Dataset
    from patchmint.inspection.codes.index import CodeIndex
    from patchmint.inspection.codes.query import CodeReport, RankedCode, Ranking
    from patchmint.shards.layout import TokensLayout
    from patchmint.types import RgbImage

_TEXT_CHARACTERS = 120
_PLACES = 6
_IMAGES = 3
# Of one document; --json has all.


def codes_command(
    dataset: DatasetArgument,
    code: Annotated[
        str | None,
        typer.Argument(metavar="CODE", help="A code; BOOK:CODE where there are several codebooks.", show_default=False),
    ] = None,
    top: Annotated[bool, typer.Option("--top", help="List the most frequent and the most concentrated codes.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Images to show; with --top: codes in each list.")] = 20,
    min_images: Annotated[int, typer.Option(min=1, help="With --top: minimum images of a concentrated code.")] = 3,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write a contact sheet: images with the code's cells outlined."),
    ] = None,
    padding: PaddingOption = False,
    columns: ColumnsOption = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which images contain a code, where and how often; and which codes are common, or concentrated.

    The first question makes an index in the user's cache (PATCHMINT_CACHE): a minute or two for a million images. Where
    images were padded to a square, codes of the padding don't count, and more is read: some minutes for a million.

    Concentrated codes are those that are there most often in each image that has them (occurrences / images).

    Ends with 0; with 1 if no image contains the code; with 2 if there is no such code, or no codes at all.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.codes.index import open_code_index, parse_code, tokens_layout

    if (code is None) != top:
        raise InputError("give one code, such as 17, or --top for the commonest; `patchmint inspect stats` has all")
    check_output(sheet, ".png")
    opened = open_dataset(dataset, columns=columns).with_codes(codes)
    tokens = tokens_layout(opened)
    chosen = None if code is None else parse_code(code, tokens)
    with progress_bar("index the codes") as progress:
        index = open_code_index(opened, tokens, progress, padding=padding)
    if chosen is None:
        _top(opened, index, tokens, limit, min_images, sheet, as_json)
        return
    from patchmint.datasets.reader import dataset_notice
    from patchmint.inspection.codes.query import report_code
    from patchmint.inspection.codes.sheet import draw_code

    notice = dataset_notice(opened)
    with progress_bar("read images") as progress:
        report = report_code(opened, index, tokens, chosen, limit, progress)
    if sheet is not None and report.shown:
        with progress_bar("draw") as progress:
            _write(sheet, draw_code(opened, index, tokens, chosen, report, progress))
    if as_json:
        print_json({"dataset": dataset, "notice": notice, **asdict(report)})
    else:
        _print_code(_console(notice), report, _samples(opened))
    if not report.images:
        raise typer.Exit(1)


def _top(
    opened: Dataset,
    index: CodeIndex,
    tokens: TokensLayout,
    limit: int,
    min_images: int,
    sheet: Path | None,
    as_json: bool,
) -> None:
    from patchmint.datasets.reader import dataset_notice
    from patchmint.inspection.codes.query import rank_codes
    from patchmint.inspection.codes.sheet import draw_ranking

    notice = dataset_notice(opened)
    with progress_bar("read texts") as progress:
        ranking = rank_codes(opened, index, tokens, limit, min_images, progress)
    if sheet is not None:
        with progress_bar("draw") as progress:
            _write(sheet, draw_ranking(opened, index, tokens, ranking, progress))
    if as_json:
        print_json({"dataset": opened.uri, "notice": notice, "samples": opened.samples, **asdict(ranking)})
    else:
        _print_ranking(_console(notice), ranking, _samples(opened))


def _write(path: Path, picture: RgbImage) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    write_output(path, file.getvalue())


def _samples(dataset: Dataset) -> str:
    """What its samples are called."""
    return "documents" if dataset.has_documents else "images"


def _console(notice: str) -> Console:
    console = console_for_data()
    if notice:
        console.print(f"[bold yellow]{escape(printable(notice))}[/]", highlight=False)
    return console


def _print_code(console: Console, report: CodeReport, samples: str) -> None:
    if not report.images:
        console.print(
            f"code {report.code} of {report.codebook_size}: in none of {report.samples:,} {samples}", highlight=False
        )
        return
    console.print(
        f"[bold]code {report.code}[/] of {report.codebook_size}: {report.occurrences:,} times "
        f"({report.share:.2%} of all codes) in {report.images:,} of {report.samples:,} {samples}, "
        f"{report.occurrences / report.images:.1f} in each",
        highlight=False,
    )
    _print_words(console, report, samples)
    drawn = len(report.grid) == 2
    table = Table("key", Column("times", justify="right"), Column("of all", justify="right"))
    table.add_column("where", no_wrap=drawn)
    table.add_column("first text", overflow="fold")
    by_sample = [list(images) for _, images in groupby(report.shown, key=lambda image: image.index)]
    for images in by_sample:
        for image in images[:_IMAGES]:
            text = image.text[:_TEXT_CHARACTERS] + ("…" if len(image.text) > _TEXT_CHARACTERS else "")
            where = "\n".join(dot_grid(image.cells, *image.grid)) if drawn else _places(image.cells)
            cells = (image.name, f"{image.count:,}", f"{image.share:.1%}", where, text)
            table.add_row(*(cell if cell is where else escape(printable(cell)) for cell in cells))
        if rest := images[_IMAGES:]:
            times = sum(image.count for image in rest)
            table.add_row(f"{len(rest)} more", f"{times:,}", f"{times / report.occurrences:.1%}", "", "images of it")
    console.print(table)
    of_all = "" if len(by_sample) == report.images else f" of {report.images:,}"
    images_of = "" if samples == "images" else f"{len(report.shown)} images of the "
    console.print(
        f"where it is on average, in the {images_of}{len(by_sample)}{of_all} {samples} above:", highlight=False
    )
    for line in heat_map(report.positions, console.width - 2):
        console.print(f"│{line}│", highlight=False, no_wrap=True, crop=True)


def _places(cells: Sequence[Sequence[int]]) -> str:
    named = [", ".join(map(str, cell)) for cell in cells[:_PLACES]]
    return "; ".join(named) + (f"; {len(cells) - _PLACES} more" if len(cells) > _PLACES else "")


def _print_words(console: Console, report: CodeReport, samples: str) -> None:
    words = report.words
    looked = f"texts of the {words.images:,} {samples} that have it most often, against {words.others:,} others"
    if not words.terms:
        console.print(f"no word goes with it more than chance explains ({looked})", highlight=False)
        return
    console.print(f"words that go with it ({looked}):", highlight=False)
    for term in words.terms:
        console.print(
            f"  [bold]{escape(printable(term.text))}[/]  in {term.share:.0%} of them, {term.share_of_others:.0%} "
            f"of the others ({term.lift:.1f}×)",
            highlight=False,
        )


def _print_ranking(console: Console, ranking: Ranking, samples: str) -> None:
    console.print("the commonest codes:", _table(ranking.commonest, samples))
    each = samples.removesuffix("s")
    title = (
        f"the most concentrated: most in each {each} that has them, of those in {ranking.min_images} {samples} or more:"
    )
    console.print(title, _table(ranking.concentrated, samples), highlight=False)


def _table(entries: Sequence[RankedCode], samples: str) -> Table:
    numbers = ("code", "times", "share", samples, "in each")
    table = Table(*(Column(name, justify="right") for name in numbers), "example", "goes with")
    for entry in entries:
        counts = (f"{entry.occurrences:,}", f"{entry.share:.2%}", f"{entry.images:,}", f"{entry.per_image:.1f}")
        words = (escape(printable(entry.example)), escape(printable(entry.word)))
        table.add_row(entry.code, *counts, *words)
    return table
