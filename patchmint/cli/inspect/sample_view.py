"""A sample in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import typer
from rich.console import Console
from rich.style import Style
from rich.text import Text

from patchmint.cli.inspect.shared import console_for_data
from patchmint.datasets.corrections import read_edits_of
from patchmint.datasets.dataset import Dataset
from patchmint.errors import ShardError
from patchmint.inspection.show.grids import draw_codes, draw_labels, legend
from patchmint.inspection.show.labels import (
    Kept,
    mark_phrases,
    parts_of,
    phrase_colours,
    phrases_of_text,
    text_labels,
    whole_view,
)
from patchmint.inspection.show.lookup import Found
from patchmint.jobs.printable import printable
from patchmint.pictures.labels import PALETTE, score_words
from patchmint.pictures.text import ink_on
from patchmint.samples import NO_NUMBER
from patchmint.shards.codec import Array
from patchmint.shards.endings import tokenizer_name, unnumbered
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.schema import PhraseDocument, TokensDocument

_MAX_CHARACTERS = 2000
_MAX_PHRASES = 40
_MAX_EDITS = 10
_MAX_TEXTS = 6
_MAX_IMAGES = 4
_MAX_LISTED = 40
_MAX_CODE_LINES = 32
_NUMBERS_WIDTH, _LEAST_WORDS = 42, 10


def print_sample(dataset: Dataset, found: Found, chosen: Sequence[tuple[StoredImage, Sequence[int]]]) -> None:
    """Print what a sample holds: where it is from, each text with its phrases and patches, codes, features.

    Args:
        dataset: the sample's.
        found: the sample; of a document its texts and images are printed in their order, too.
        chosen: images to print, with the numbers of their texts to print.

    Raises:
        ShardError: it is damaged.
    """
    console, sample = console_for_data(), found.sample
    typer.echo("\n".join(map(printable, _facts(dataset, found))))
    wrong, edits = read_edits_of(dataset, found.index)
    if wrong:
        typer.echo("marked wrong")
    for edit in edits[-_MAX_EDITS:]:
        counts = (("changed", edit.change), ("added", edit.add), ("deleted", edit.delete))
        did = [f"{len(own)} {name}" for name, own in counts if own] + ["undone"] * edit.undo
        did += ["marked wrong" if edit.wrong else "not wrong"] if edit.wrong is not None else []
        typer.echo(f"{edit.at:%Y-%m-%d %H:%M} {printable(edit.by)}: {', '.join(did)}")
    if sample.key_json.notice:
        console.print(Text(printable(sample.key_json.notice), "bold yellow"))
    if sample.parts:
        typer.echo()
        lines = _sequence(sample)
        for line in islice(lines, _MAX_LISTED):
            more = f"… (+{len(line) - _MAX_CHARACTERS:,} characters)" if len(line) > _MAX_CHARACTERS else ""
            console.print(Text(printable(line[:_MAX_CHARACTERS].strip()) + more), soft_wrap=not console.is_terminal)
        if any(lines):
            typer.echo("… more texts: --json has all")
    for image, texts in islice(chosen, _MAX_IMAGES):
        _print_image(console, image, texts)
    if len(chosen) > _MAX_IMAGES:
        typer.echo(f"\n{len(chosen) - _MAX_IMAGES} more images: --image N shows one, --json all")


def _facts(dataset: Dataset, found: Found) -> Iterator[str]:
    sample, (shard, _) = found.sample, dataset.place(found.index)
    yield f"{sample.key}  (#{found.index}, id {sample.key_json.id})"
    if sample.parts:
        yield f"images  {len(sample.images)}"
    else:
        yield from _image_facts(sample.images[0])
    listed = " ".join(dict.fromkeys(map(unnumbered, sample.members)) if sample.parts else sample.members)
    yield f"shard   {shard.tar}, {sample.size} bytes from {sample.offset} on: {listed}"
    if not sample.parts:
        yield from _grid(sample.images[0])


def _image_facts(image: StoredImage) -> Iterator[str]:
    info, source = image.info, image.source
    turned = f", EXIF orientation {info.orientation}" if info.orientation != 1 else ""
    within = f" at {source.start}" if source.start >= 0 else ""
    yield f"image   {info.width} x {info.height} {info.format} {info.mode}{turned}, {len(image.data)} bytes"
    if source.path:
        yield f"source  {f'{source.name}: ' if source.name else ''}{source.path}{within}"


def _grid(image: StoredImage) -> Iterator[str]:
    grid = image.grid
    views = f", {grid.views} views" if grid.views > 1 else ""
    if grid.fit:  # else nothing lies on it: another program wrote the tar
        yield f"grid    {grid.rows} x {grid.cols} patches of {grid.patch_px} px, {grid.fit}{views}"


def _sequence(sample: StoredSample) -> Iterator[str]:
    """A document as it is read: a line a text, with the images, by number, where they stand."""
    line, has_text = "", False
    for part in parts_of(sample):
        is_text = part.image == NO_NUMBER
        if part.role or (is_text and has_text):
            yield from filter(str.strip, line.splitlines())
            line, has_text = f"{part.role}:" if part.role else "", False
        line += f" {part.text}" if is_text else f" [image {part.image}]"
        has_text = has_text or bool(is_text and part.text.strip())
    yield from filter(str.strip, line.splitlines())


def _print_image(console: Console, image: StoredImage, texts: Sequence[int]) -> None:
    if image.name != image.key:
        console.print(Text(f"\nimage {image.number} of 0..{len(image.key_json.images) - 1}", "bold reverse"))
        typer.echo("\n".join(map(printable, (*_image_facts(image), *_grid(image)))))
    for text in islice(texts, _MAX_TEXTS):
        typer.echo()
        _print_text(console, image, text)
    if len(texts) > _MAX_TEXTS:
        typer.echo(f"\n{len(texts) - _MAX_TEXTS} more texts: --text N shows one, --json all")
    if image.selector is None:
        typer.echo("\nno labels: the data set has none")
    elif not texts:
        typer.echo("\nno text labels this image")
    typer.echo()
    _print_codes(console, image)
    console.print(Text(_features(image)))


def _print_text(console: Console, image: StoredImage, number: int) -> None:
    texts, phrases = image.key_json.texts, phrases_of_text(image, number)
    colours = _colours(phrases)
    console.print(Text(f"text {number} of 0..{len(texts) - 1}", "bold"))
    console.print(_marked(texts[number], phrases, colours, coloured=_is_coloured(console)))
    if phrases:
        _print_phrases(console, phrases, colours)
    elif image.selector is not None:
        typer.echo("no phrase found")
    if image.selector is not None:
        _print_labels(console, image, number)


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


def _print_labels(console: Console, image: StoredImage, number: int) -> None:
    grid = image.grid
    every, coverage = text_labels(image, number)
    view, cells = whole_view(image)
    kept, covered = every[cells], coverage[cells] if coverage is not None else None
    all_views = Kept.of(every)
    share = f"{all_views.patches} of {all_views.all} patches kept ({all_views.share})"
    which = f"the {'last' if view else 'first'} of {grid.views} views"
    first = f"; drawn: {which}, the whole image" if grid.views > 1 else ""
    typer.echo(f"{share}{first}")
    typer.echo("\n".join(draw_labels(kept, covered, console.width, titles=("selector", "coverage"))))
    console.print(Text(legend(covered is not None), "dim"))


def _print_codes(console: Console, image: StoredImage) -> None:
    for tokens in image.key_json.all_tokens:
        codes = image.array(f"{tokens.member}.npy")
        if codes is not None:
            _print_grid(console, image, tokens, codes)
    if not image.key_json.all_tokens:
        typer.echo("no codes: the data set has none")


def _print_grid(console: Console, image: StoredImage, tokens: TokensDocument, codes: Array) -> None:
    several = len(tokens.codebook_sizes) > 1
    if codes.ndim != len(tokens.grid) + several or codes.dtype.kind not in "ui" or not codes.size:
        raise ShardError(
            f"sample {image.name!r} has codes of another form than it says; run `patchmint inspect verify`"
        )
    drawn = codes[..., 0] if several else codes
    sizes = " + ".join(map(str, tokens.codebook_sizes))
    shape, first = " x ".join(map(str, drawn.shape)), "; drawn: those of the first codebook" if several else ""
    name = f"{named} " if (named := tokenizer_name(tokens.member)) else ""
    console.print(Text(printable(f"codes   {name}{shape} of {sizes}, {tokens.preprocessing}{first}")), soft_wrap=True)
    lines = draw_codes(drawn.reshape(len(drawn), -1) if drawn.ndim > 2 else drawn, console.width)
    typer.echo("\n".join(lines[:_MAX_CODE_LINES]))
    if len(lines) > _MAX_CODE_LINES:
        typer.echo(f"{len(lines) - _MAX_CODE_LINES} more lines; --json has all")


def _features(image: StoredImage) -> str:
    features, layout = image.features, image.key_json.features
    if features is None or layout is None:
        return "no features"
    shape = " x ".join(map(str, features.shape))
    return printable(f"features {shape} {features.dtype}: {layout.encoder}, connector {layout.connector}")
