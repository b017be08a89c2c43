"""`patchmint label`: annotate an image, or the images of a document."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmint.annotate.preflight import check_explained, check_loadable
from patchmint.config import AnnotatorConfig, BuildConfig
from patchmint.config.build import apply_overrides
from patchmint.config.grids import resolve_grid
from patchmint.config.parsing import read_yaml
from patchmint.errors import InputError
from patchmint.images.decode import decode_image
from patchmint.interfaces import REASONS, Explanation
from patchmint.jobs.options import with_settings
from patchmint.jobs.printable import printable
from patchmint.types import UNKNOWN_SCORE, as_texts

if TYPE_CHECKING:
    from patchmint.api import Annotation, Annotator

_SHADES = " ░▒▓█"
_ONLY_BUILDS = BuildConfig.model_fields.keys() - AnnotatorConfig.model_fields.keys()


@with_settings(
    AnnotatorConfig,
    former={
        "--detector": "models.detector",
        "--vocabulary": "models.vocabulary",
        "--masker": "models.masker",
        "--segmenter": "models.segmenter",
        "--tokenizer": "models.tokenizer",
        "--prompt": "labels.prompt",
        "--box-threshold": "labels.box_threshold",
        "--text-threshold": "labels.text_threshold",
        "--min-coverage": "labels.min_coverage",
        "--coverage": "labels.coverage",
        "--tokens-size": "tokens.size",
        "--tokens-fit": "tokens.fit",
    },
)
def label(
    *,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF; several are one document."),
    ],
    text: Annotated[list[str], typer.Option("--text", "-t", help="A text for all images; may be repeated.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.yaml", help="Settings, also those of a build; the options below override them."),
    ] = None,
    settings: dict[str, Any],
    max_megapixels: Annotated[float, typer.Option(help="Refuse larger images.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write an overlay picture here (.png; of further texts beside it, -1.png, ...; of several images "
            ".0.png, .1.png, ...).",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the annotation as JSON, a line an image (docs/schemas/annotation.schema.json)."
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each phrase has boxes, or none; the models look once more.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Label an image, or those of a document: which patches show what texts name, and what are the visual codes?"""
    from_file = {key: value for key, value in read_yaml(config).items() if key not in _ONLY_BUILDS} if config else {}
    chosen = AnnotatorConfig.parse(apply_overrides(AnnotatorConfig, from_file, settings))
    # Loading the models takes far longer than finding out that there is nothing to look at or for.
    if out is not None:
        _check_out(out, images, chosen)
    resolve_grid(chosen.grid)
    texts = as_texts(text)
    decoded = [decode_image(image, max_megapixels=max_megapixels) for image in images]
    check_loadable(chosen)
    if explain:
        check_explained(chosen)
    annotator = _annotator(chosen, device)
    annotations = annotator.annotate_document([*decoded, *texts]).images
    if chosen.notice:
        Console(stderr=True).print(f"[bold yellow]warning:[/] {chosen.notice}", highlight=False, soft_wrap=True)
    for number, (image, annotation) in enumerate(zip(images, annotations, strict=True)):
        several = len(images) > 1
        explanations = annotator.explain(decoded[number], texts) if explain else []
        if out is not None:
            _save(annotation, out.with_stem(f"{out.stem}.{number}") if several else out)
        if as_json:
            typer.echo(annotation.to_document(explanations).model_dump_json())
            continue
        if several:
            Console(highlight=False).print(f"[bold]{escape(printable(str(image)))}[/]")
        _describe(annotation, chosen)
        _print_explanations(explanations)


def _check_out(out: Path, images: list[Path], config: AnnotatorConfig) -> None:
    if config.labels is None:
        raise InputError(f"can't write {out}: the overlay shows patch labels, and `labels` is null; drop one of them")
    if out.suffix.lower() != ".png":
        raise InputError(f"can't write {out}: the overlay is a PNG; give it a name that ends with .png")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"can't write {out}: " + ("it is a folder" if out.is_dir() else f"no folder {out.parent}"))
    if out.exists() and any(image.exists() and out.samefile(image) for image in images):
        raise InputError(f"can't write {out}: that is the image itself; give the overlay another name")


def _annotator(config: AnnotatorConfig, device: str) -> Annotator:
    from patchmint.api import Annotator, DemoWarning, UntrainedWarning

    with warnings.catch_warnings():
        for said in (DemoWarning, UntrainedWarning):  # once, on stderr, by the caller
            warnings.simplefilter("ignore", said)
        return Annotator(config, device)


def _save(annotation: Annotation, out: Path) -> None:
    for index in range(len(annotation.texts)):
        path = out if index == 0 else out.with_stem(f"{out.stem}-{index}")
        try:
            annotation.overlay(index).save(path, "PNG")
        except OSError as error:
            raise InputError(f"can't write {path}: {error}") from error
        typer.echo(f"wrote {path}", err=True)


def _describe(annotation: Annotation, config: AnnotatorConfig) -> None:
    console = Console(highlight=False)
    if config.labels is not None:
        for index in range(len(annotation.texts)):
            _describe_text(console, annotation, index)
        for name in config.further_grids:
            other = annotation.on_grid(name)
            cells = sum(view.rows * view.cols for view in other.placement.views)
            kept = ", ".join(str(int(selector.sum())) for selector in other.selector)
            console.print(f"on the grid {name}: {kept} of {cells} patches kept")
    for name, codes in annotation.all_codes.items():
        which = f" {name}" if name in config.tokenizers else ""
        console.print(f"codes{which}: {' x '.join(map(str, codes.shape))}, {len(set(codes.flat))} different")
    if config.features is not None:
        console.print(f"features: {' x '.join(map(str, annotation.features.shape))}")


def _print_explanations(explanations: Sequence[Explanation]) -> None:
    for told in explanations:
        facts = [
            f"{told.boxes} box{'es' if told.boxes != 1 else ''}" if told.boxes else f"no box: {REASONS[told.reason]}"
        ]
        if told.best != UNKNOWN_SCORE:
            place = " ".join(f"{side:.0f}" for side in told.box)
            facts.append(f"best score {told.best:.2f} at {place}, threshold {told.threshold:g}")
        facts += [f"{count} lost to {reason}" for reason, count in told.lost.items()]
        typer.echo(f"{printable(told.text)}: {'; '.join(facts)}")


def _describe_text(console: Console, annotation: Annotation, index: int) -> None:
    placement = annotation.placement
    coverage = annotation.coverage[index][placement.cells_of(placement.overview)]
    console.print(f"[bold]{escape(printable(annotation.texts[index].content))}[/]")
    table = Table("phrase", "score", "box (x0 y0 x1 y1)")
    for phrase in annotation.phrases:
        if phrase.text_index == index:
            box = " ".join(f"{side:.0f}" for side in phrase.box)
            score = "-" if phrase.score == UNKNOWN_SCORE else f"{phrase.score:.2f}"
            table.add_row(escape(printable(phrase.text)), score, box)
    if not table.row_count:
        console.print("nothing found: an empty label")
        return
    console.print(table)
    # two characters a patch, where there is room: a terminal's cells are twice as high as wide
    wide = 2 if 2 * coverage.shape[-1] <= console.width else 1
    cells = sum(view.rows * view.cols for view in placement.views)
    drawn = f" in {len(placement.views)} views; drawn: the whole image" if len(placement.views) > 1 else ""
    console.print(f"{int(annotation.selector[index].sum())} of {cells} patches kept{drawn}")
    for row in coverage:
        console.print("".join(_SHADES[-(-int(value) * 4 // 255)] * wide for value in row), markup=False)
