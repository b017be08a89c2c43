"""`patchmint inspect stats`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.drawing import bar, heat_map, spark_line
from patchmint.cli.inspect.shared import (
    CodesOption,
    DatasetArgument,
    GridOption,
    JsonOption,
    PaddingOption,
    check_output,
    console_for_data,
    print_json,
    progress_bar,
    write_output,
)
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.printable import many, printable

if TYPE_CHECKING:
    from rich.console import Console

    from patchmint.inspection.stats.collect import BookUsage, Positions, Stats

_TOP_CODES = 8
_BAR = 24
_SHOWN_QUANTILES = ("0.05", "0.5", "0.95")


def stats_command(
    dataset: DatasetArgument,
    samples: Annotated[
        int, typer.Option(min=0, help="Number of samples, evenly spaced, whose labels make the map. 0: all.")
    ] = 20_000,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE.png", help="Write plots.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write a page with tables and plots.")
    ] = None,
    padding: PaddingOption = False,
    grid: GridOption = None,
    columns: ColumnsOption = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Samples, texts, sizes, labels, scores, rejects and codes in numbers; and where in the grid labels lie.

    Everything is counted from the sidecars, but for the map of labels, which reads arrays (of anyres, the first view),
    and for codes of images that were padded to a square, which come from the index of `inspect codes`.

    Cells that show nothing but padding don't count, unless --padding says so.

    Perplexity is 2 ** entropy: so many codes, all equally frequent, would be as hard to guess.

    Ends with 0; with 2 if there is nothing to count.
    """
    from patchmint.datasets.columns import without_wrong
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.stats.collect import collect_stats

    check_output(png, ".png")
    check_output(html, ".html")
    whole = open_dataset(dataset, columns=columns).on_grid(grid).with_codes(codes)
    opened = without_wrong(whole)
    if wrong := whole.samples - opened.samples:
        typer.echo(f"{wrong} samples are marked wrong and left out", err=True)
    with progress_bar("count") as progress:
        stats = collect_stats(opened, samples, progress, padding=padding)
    if png is not None:
        from patchmint.inspection.stats.plots import draw_png

        write_output(png, draw_png(stats))
    if html is not None:
        from patchmint.inspection.stats.plots import render_page

        write_output(html, render_page(stats).encode())
    if as_json:
        print_json(asdict(stats))
    else:
        _print(console_for_data(), stats)


def _print(console: Console, stats: Stats) -> None:
    rejected = sum(entry.count for entry in stats.rejects)
    facts = [
        f"{many(stats.samples, 'sample')} in {many(stats.shards, 'shard')}",
        *([many(stats.images, "image")] if stats.images_per_sample is not None else []),
        many(stats.texts, "text"),
        f"{rejected:,} rejected",
    ]
    facts += [f"{many(stats.unbuilt, 'unit')} not built yet"] if stats.unbuilt else []
    formats = ", ".join(f"{count:,} {escape(printable(name))}" for name, count in stats.formats.items())
    facts += [formats] if formats else []
    console.print(f"[bold]{escape(printable(stats.dataset))}[/]: {'; '.join(facts)}", highlight=False)
    if stats.notice:
        console.print(f"[bold yellow]{escape(printable(stats.notice))}[/]", highlight=False)
    if stats.samples:
        _print_distributions(console, stats)
    if stats.labels is not None:
        labels = stats.labels
        every = "texts" if stats.images_per_sample is None else "pairs of image and text"
        unscored = f"; {labels.unscored:,} of the phrases have no score" if labels.unscored else ""
        if labels.origins.keys() - {"model"}:
            unscored += "; " + ", ".join(
                f"{count:,} {escape(printable(origin))}" for origin, count in sorted(labels.origins.items())
            )
        console.print(
            f"labels: {labels.shares.mean:.1%} of the patches kept; {labels.empty_texts:,} of {labels.labels:,} "
            f"{every} ({labels.empty_texts / labels.labels:.1%}) keep none; {labels.phrases:,} phrases{unscored}",
            highlight=False,
        )
    for what, counts in (("rejected", stats.rejects), ("images dropped", stats.dropped)):
        if not counts:
            continue
        table = Table("stage", "reason", Column(what, justify="right"))
        for entry in counts:
            table.add_row(escape(printable(entry.stage)), escape(printable(entry.reason)), f"{entry.count:,}")
        console.print(table)
    for usage in stats.codes:
        _print_usage(console, usage, several=len(stats.codes) > 1)
    if stats.positions is not None:
        _print_positions(console, stats.positions)


def _print_distributions(console: Console, stats: Stats) -> None:
    from patchmint.inspection.stats.collect import named_distributions

    names = ("mean", "least", "5%", "median", "95%", "greatest")
    table = Table("", *(Column(name, justify="right") for name in names), "distribution")
    for name, distribution in named_distributions(stats):
        quantiles = [distribution.quantiles[share] for share in _SHOWN_QUANTILES]
        form = "{:,.0f}" if distribution.step == 1 else "{:.3f}"
        values = [form.format(value) for value in (distribution.minimum, *quantiles, distribution.maximum)]
        mean = f"{distribution.mean:,.1f}" if distribution.step == 1 else f"{distribution.mean:.3f}"
        table.add_row(name, mean, *values, spark_line(entry.count for entry in distribution.bins))
    console.print(table)


def _print_usage(console: Console, usage: BookUsage, *, several: bool) -> None:
    from patchmint.inspection.stats.collect import top_codes

    book = f" of book {usage.book}" if several else ""
    console.print(
        f"codes{book}: {usage.used:,} of {usage.size:,} used, {usage.dead:,} dead; perplexity {usage.perplexity:,.1f}; "
        "the commonest:",
        highlight=False,
    )
    top = top_codes(usage.counts, _TOP_CODES)
    for code, count in top:
        share = f"{count / usage.occurrences:.2%}"
        console.print(f"{code:>8} {count:>12,} {share:>7} {bar(count / top[0][1], _BAR)}", highlight=False)


def _print_positions(console: Console, positions: Positions) -> None:
    highest = max(max(row) for row in positions.selector)
    bias = (
        ""
        if positions.centre_bias is None
        else f"; the middle is kept {positions.centre_bias:.1f}× as often as the rest"
    )
    whole = " in the image" if positions.relative else ""
    console.print(
        f"where labels lie{whole}, from {many(positions.texts, 'text')} of {many(positions.samples, 'sample')} "
        f"(darkest: kept by {highest:.1%} of the texts{bias}):",
        highlight=False,
    )
    for line in heat_map(positions.selector, console.width - 2):
        console.print(f"│{line}│", highlight=False, no_wrap=True, crop=True)
