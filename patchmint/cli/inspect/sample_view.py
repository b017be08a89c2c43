"""A sample in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import typer
from rich.console import Console
from rich.style import Style
from rich.text import Text

from patchmint.cli.inspect.shared import console_for_data
from patchmint.datasets.dataset import Dataset
from patchmint.errors import ShardError
from patchmint.inspection.show.grids import draw_codes, draw_labels, legend
from patchmint.inspection.show.labels import (
    Kept,
    mark_phrases,
    phrase_colours,
    phrases_of_text,
    text_labels,
    whole_view,
)
from patchmint.inspection.show.lookup import Found
from patchmint.jobs.printable import printable
from patchmint.pictures.labels import PALETTE, score_words
from patchmint.pictures.text import ink_on
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import PhraseDocument

_MAX_CHARACTERS = 2000
_MAX_PHRASES = 40
_MAX_TEXTS = 6
_MAX_CODE_LINES = 32
_NUMBERS_WIDTH, _LEAST_WORDS = 42, 10


def print_sample(dataset: Dataset, found: Found, texts: Sequence[int]) -> None:
    """Print what a sample holds: where it is from, each text with its phrases and patches, codes, features.

    Raises:
        ShardError: it is damaged.
    """
    console, sample = console_for_data(), found.sample
    typer.echo("\n".join(map(printable, _facts(dataset, found))))
    if sample.document.notice:
        console.print(Text(printable(sample.document.notice), "bold yellow"))
    for text in islice(texts, _MAX_TEXTS):
        typer.echo()
        _print_text(console, sample, text)
    if len(texts) > _MAX_TEXTS:
        typer.echo(f"\n{len(texts) - _MAX_TEXTS} more texts: --text N shows one, --json all")
    if sample.selector is None:
        typer.echo("\nno labels: the data set has none")
    typer.echo()
    _print_codes(console, sample)
    console.print(Text(_features(sample)))


def _facts(dataset: Dataset, found: Found) -> Iterator[str]:
    sample, document, (shard, _) = found.sample, found.sample.document, dataset.place(found.index)
    image, grid, source = document.image, document.grid, document.source
    turned = f", EXIF orientation {image.orientation}" if image.orientation != 1 else ""
    within = f" at {source.start}" if source.start >= 0 else ""
    yield f"{sample.key}  (#{found.index}, id {document.id})"
    yield f"image   {image.width} x {image.height} {image.format} {image.mode}{turned}, {len(sample.image)} bytes"
    if source.path:
        yield f"source  {f'{source.name}: ' if source.name else ''}{source.path}{within}"
    yield f"shard   {shard.tar}, {sample.size} bytes from {sample.offset} on: {' '.join(sample.members)}"
    if dataset.foreign:
        return
    views = f", {grid.views} views" if grid.views > 1 else ""
    yield f"grid    {grid.rows} x {grid.cols} patches of {grid.patch_px} px, {grid.fit}{views}"


def _print_text(console: Console, sample: StoredSample, number: int) -> None:
    document = sample.document
    phrases = phrases_of_text(document, number)
    colours = _colours(phrases)
    console.print(Text(f"text {number} of 0..{len(document.texts) - 1}", "bold"))
    console.print(_marked(document.texts[number], phrases, colours, coloured=_is_coloured(console)))
    if phrases:
        _print_phrases(console, phrases, colours)
    elif sample.selector is not None:
        typer.echo("no phrase found")
    if sample.selector is not None:
        _print_labels(console, sample, number)


def _colours(phrases: Sequence[PhraseDocument]) -> dict[str, Style]:
    styles = {}
    for words, number in phrase_colours(phrase.text for phrase in phrases).items():
        paper = PALETTE[number]
        styles[words] = Style(color="rgb({},{},{})".format(*ink_on(paper)), bgcolor="rgb({},{},{})".format(*paper))
    return styles


def _is_coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _marked(text: str, phrases: Sequence[PhraseDocument], colours: dict[str, Style], *, coloured: bool) -> Text:
    """The text with its phrases coloured, or in brackets with their numbers."""
    shown = printable(text[:_MAX_CHARACTERS])
    marked = Text()
    for run in mark_phrases(shown, [(phrase.start, phrase.end) for phrase in phrases]):
        if not run.numbers:
            marked.append(run.text)
        elif coloured:
            marked.append(run.text, colours[phrases[run.numbers[0] - 1].text])
        else:
            marked.append(f"[{run.text}]{','.join(map(str, run.numbers))}")
    if len(text) > _MAX_CHARACTERS:
        marked.append(f"… (+{len(text) - _MAX_CHARACTERS:,} characters; --json has all)", "dim")
    return marked


def _print_phrases(console: Console, phrases: Sequence[PhraseDocument], colours: dict[str, Style]) -> None:
    """By hand: a table of rich takes longer than all the rest."""
    shown = phrases[:_MAX_PHRASES]
    words = [Text(printable(phrase.text), colours[phrase.text]) for phrase in shown]
    wide = min(
        max(len("phrase"), *(text.cell_len for text in words)), max(console.width - _NUMBERS_WIDTH, _LEAST_WORDS)
    )
    lines = [Text(f" #  {'phrase':<{wide}}  score  box (x0 y0 x1 y1)", "bold")]
    for number, (phrase, text) in enumerate(zip(shown, words, strict=True), start=1):
        text.truncate(wide, overflow="ellipsis")
        score = score_words(phrase.score, phrase.origin) or "none"
        box = " ".join(f"{value:g}" for value in phrase.box)
        lines.append(Text.assemble(f"{number:>2}  ", text, f"{' ' * (wide - text.cell_len)}  {score:>5}  {box}"))
    console.print(Text("\n").join(lines), no_wrap=True, crop=console.is_terminal)
    if len(phrases) > _MAX_PHRASES:
        typer.echo(f"{len(phrases) - _MAX_PHRASES} more phrases; --json has all")


def _print_labels(console: Console, sample: StoredSample, number: int) -> None:
    grid = sample.document.grid
    every, coverage = text_labels(sample, number)
    view, cells = whole_view(sample.document)
    kept, covered = every[cells], coverage[cells] if coverage is not None else None
    all_views = Kept.of(every)
    share = f"{all_views.patches} of {all_views.all} patches kept ({all_views.share})"
    which = f"the {'last' if view else 'first'} of {grid.views} views"
    first = f"; drawn: {which}, the whole image" if grid.views > 1 else ""
    typer.echo(f"{share}{first}")
    typer.echo("\n".join(draw_labels(kept, covered, console.width, titles=("selector", "coverage"))))
    console.print(Text(legend(covered is not None), "dim"))


def _print_codes(console: Console, sample: StoredSample) -> None:
    codes, tokens = sample.codes, sample.document.tokens
    if codes is None:
        typer.echo("no codes: the data set has none")
        return
    several = len(tokens.codebook_sizes) > 1
    if codes.ndim != len(tokens.grid) + several or codes.dtype.kind not in "ui" or not codes.size:
        raise ShardError(
            f"sample {sample.key!r} has codes of another form than it says; run `patchmint inspect verify`"
        )
    drawn = codes[..., 0] if several else codes
    sizes = " + ".join(map(str, tokens.codebook_sizes))
    shape, first = " x ".join(map(str, tokens.grid)), "; drawn: those of the first codebook" if several else ""
    console.print(Text(printable(f"codes   {shape} of {sizes}, {tokens.preprocessing}{first}")), soft_wrap=True)
    lines = draw_codes(drawn.reshape(len(drawn), -1) if drawn.ndim > 2 else drawn, console.width)
    typer.echo("\n".join(lines[:_MAX_CODE_LINES]))
    if len(lines) > _MAX_CODE_LINES:
        typer.echo(f"{len(lines) - _MAX_CODE_LINES} more lines; --json has all")


def _features(sample: StoredSample) -> str:
    features, layout = sample.features, sample.document.features
    if features is None or layout is None:
        return "no features"
    shape = " x ".join(map(str, features.shape))
    return printable(f"features {shape} {features.dtype}: {layout.encoder}, connector {layout.connector}")
