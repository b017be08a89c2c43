"""`patchmint label`: annotate one image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmint.annotate.preflight import check_loadable
from patchmint.config import DEMO, MODEL_PRESETS, AnnotatorConfig
from patchmint.errors import ConfigError, InputError
from patchmint.geometry import grid_preset
from patchmint.images.decode import DecodedImage, decode_image
from patchmint.jobs.printable import printable
from patchmint.types import UNKNOWN_SCORE, Text, as_texts

if TYPE_CHECKING:
    from patchmint.api import Annotation

_SHADES = " ░▒▓█"


def label(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG, WebP, BMP or GIF.")],
    text: Annotated[list[str], typer.Option("--text", "-t", help="A text that goes with the image; may be repeated.")],
    models: Annotated[
        str,
        typer.Option(
            help=f"Models preset: {', '.join(MODEL_PRESETS)}. Without it {DEMO}; where single models are named, the "
            "official ones for the rest.",
            show_default=False,
        ),
    ] = "",
    detector: Annotated[str, typer.Option(help="Grounding DINO by name or path, in place of the preset's.")] = "",
    vocabulary: Annotated[str, typer.Option(help="The detector's vocab.txt by name or path.")] = "",
    masker: Annotated[str, typer.Option(help="SAM by name or path.")] = "",
    segmenter: Annotated[str, typer.Option(help="An outside segmenter by name, for detector and masker.")] = "",
    tokenizer: Annotated[str, typer.Option(help="VQGAN by name or path, or an outside tokenizer by name.")] = "",
    prompt: Annotated[str, typer.Option(help="caption = the whole text, phrases = what stands between its '.'")] = (
        "caption"
    ),
    box_threshold: Annotated[float, typer.Option(help="Score that a box's best word must pass.")] = 0.35,
    text_threshold: Annotated[float, typer.Option(help="Score that a phrase's words must pass.")] = 0.25,
    min_coverage: Annotated[float, typer.Option(help="Share of a patch that must be covered.")] = 0.0,
    coverage: Annotated[str, typer.Option(help="exact or fast.")] = "exact",
    grid: Annotated[str, typer.Option(help="Patch grid preset.")] = "llava-1.5-finetune",
    tokens_size: Annotated[int, typer.Option(help="Side of the tokenizer's input in pixels.")] = 256,
    tokens_fit: Annotated[str, typer.Option(help="pad, crop or squash.")] = "pad",
    max_megapixels: Annotated[float, typer.Option(help="Refuse larger images.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write an overlay picture here (.png; of further texts beside it, -1.png, ...)."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the annotation as JSON (docs/schemas/annotation.schema.json).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Label one image: which patches do its texts talk about, and what are its visual codes?"""
    single = {"detector": detector, "vocabulary": vocabulary, "masker": masker, "segmenter": segmenter}
    single |= {"tokenizer": tokenizer}
    settings: dict[str, Any] = {
        "models": _models(models, {role: name for role, name in single.items() if name}),
        "labels": {
            "prompt": prompt,
            "box_threshold": box_threshold,
            "text_threshold": text_threshold,
            "min_coverage": min_coverage,
            "coverage": coverage,
        },
        "grid": grid,
        "tokens": {"size": tokens_size, "fit": tokens_fit},
    }
    if out is not None:
        _check_out(out, image)
    # Loading the models takes far longer than finding out that there is nothing to look at or for.
    config = AnnotatorConfig.parse(settings)
    grid_preset(grid)
    texts = as_texts(text)
    decoded = decode_image(image, max_megapixels=max_megapixels)
    check_loadable(config)
    annotation = _annotate(decoded, texts, config, device)
    if annotation.notice:
        Console(stderr=True).print(f"[bold yellow]warning:[/] {annotation.notice}", highlight=False, soft_wrap=True)
    if out is not None:
        _save(annotation, out)
    if as_json:
        typer.echo(annotation.to_document().model_dump_json())
    else:
        _describe(annotation)


def _models(preset: str, single: dict[str, str]) -> str | dict[str, Any]:
    """What `models` would be in a config file."""
    if not preset:
        return single or DEMO
    if preset not in MODEL_PRESETS:
        raise ConfigError(f"no models preset {preset!r}; presets: {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[preset].model_dump() | single


def _check_out(out: Path, image: Path) -> None:
    if out.suffix.lower() != ".png":
        raise InputError(f"can't write {out}: the overlay is a PNG; give it a name that ends with .png")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"can't write {out}: " + ("it is a folder" if out.is_dir() else f"no folder {out.parent}"))
    if out.exists() and image.exists() and out.samefile(image):
        raise InputError(f"can't write {out}: that is the image itself; give the overlay another name")


def _annotate(image: DecodedImage, texts: list[Text], config: AnnotatorConfig, device: str) -> Annotation:
    from patchmint.api import Annotator, DemoWarning, UntrainedWarning

    with warnings.catch_warnings():
        for said in (DemoWarning, UntrainedWarning):  # once, on stderr, by the caller
            warnings.simplefilter("ignore", said)
        annotator = Annotator(config, device)
    return annotator.annotate(image, texts)


def _save(annotation: Annotation, out: Path) -> None:
    for index in range(len(annotation.texts)):
        path = out if index == 0 else out.with_stem(f"{out.stem}-{index}")
        try:
            annotation.overlay(index).save(path, "PNG")
        except OSError as error:
            raise InputError(f"can't write {path}: {error}") from error
        typer.echo(f"wrote {path}", err=True)


def _describe(annotation: Annotation) -> None:
    console = Console(highlight=False)
    for index, text in enumerate(annotation.texts):
        kept = int(annotation.selector[index].sum())
        console.print(f"[bold]{escape(printable(text.content))}[/]")
        table = Table("phrase", "score", "box (x0 y0 x1 y1)")
        for phrase in annotation.phrases:
            if phrase.text_index == index:
                box = " ".join(f"{side:.0f}" for side in phrase.box)
                score = "-" if phrase.score == UNKNOWN_SCORE else f"{phrase.score:.2f}"
                table.add_row(escape(printable(phrase.text)), score, box)
        if not table.row_count:
            console.print("nothing found: an empty label")
            continue
        console.print(table)
        # two characters a patch, where there is room: a terminal's cells are twice as high as wide
        wide = 2 if 2 * annotation.coverage.shape[-1] <= console.width else 1
        console.print(f"{kept} of {annotation.selector[index].size} patches kept")
        for row in annotation.coverage[index]:
            console.print("".join(_SHADES[-(-int(value) * 4 // 255)] * wide for value in row), markup=False)
    console.print(
        f"codes: {' x '.join(str(side) for side in annotation.codes.shape)}, "
        f"{len(set(annotation.codes.flat))} different"
    )
