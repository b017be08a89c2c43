"""`patchmint inspect show`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchmint.cli.inspect.shared import (
    CodesOption,
    DatasetArgument,
    GridOption,
    JsonOption,
    check_output,
    print_json,
    progress_bar,
    write_output,
)
from patchmint.errors import InputError
from patchmint.jobs.columns import ColumnsOption

if TYPE_CHECKING:
    from patchmint.datasets.dataset import Dataset
    from patchmint.inspection.show.lookup import Found
    from patchmint.shards.reader import StoredImage

    Chosen = Sequence[tuple[StoredImage, Sequence[int]]]


def show_command(
    dataset: DatasetArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A sample's key, its position as '#17', or its source's id.")
    ],
    text: Annotated[int | None, typer.Option("--text", metavar="N", help="Only this text, counted from 0.")] = None,
    image: Annotated[
        int | None, typer.Option("--image", metavar="N", help="Of a document only this image, counted from 0.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE.png",
            help="Write the overlay; of several texts FILE-0.png, FILE-1.png, ..., of a document FILE-IMAGE-TEXT.png.",
        ),
    ] = None,
    grid: GridOption = None,
    columns: ColumnsOption = None,
    codes: CodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one sample: texts with their phrases, patch labels, codes; a document image by image.

    Phrases are marked in their text, in colour or in square brackets with their numbers. Only the sample's bytes are
    read.
    The first look into a data set of several shards makes an index of its keys, in the user's cache (PATCHMINT_CACHE).

    --json prints KEY.json with what is JSON in a string parsed, and the arrays as lists; of features only the shape.

    Ends with 0, or with 2 if there is no such sample.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.show.lookup import find_sample

    check_output(png, ".png")
    opened = open_dataset(dataset, columns=columns).on_grid(grid).with_codes(codes)
    with progress_bar("reading keys, once") as progress:
        found = find_sample(opened, key, progress)
    chosen = _chosen(found, image, text)
    written = {"png": _write_overlays(opened, chosen, png)} if png is not None else {}
    if as_json:
        print_json(_document(opened, found, chosen) | written)
        return
    from patchmint.cli.inspect.sample_view import print_sample

    print_sample(opened, found, chosen)


def _chosen(found: Found, image: int | None, text: int | None) -> Chosen:
    """Images to show, each with the numbers of its texts to show."""
    from patchmint.inspection.show.labels import texts_of

    sample = found.sample
    for name, number, count in (("text", text, len(sample.key_json.texts)), ("image", image, len(sample.images))):
        if number is not None and not 0 <= number < count:
            raise InputError(f"sample {sample.key!r} has {count} {name}s, 0 to {count - 1}, so no {name} {number}")
    shown = [one for one in sample.images if image in (None, one.number)]
    chosen = [(one, [number for number in texts_of(one) if text in (None, number)]) for one in shown]
    if text is None:
        return chosen
    if not any(texts for _, texts in chosen):
        where = "no image" if image is None else f"other images than {image}"
        raise InputError(f"text {text} of sample {sample.key!r} labels {where}; leave --text out")
    return [(one, texts) for one, texts in chosen if texts]


def _write_overlays(dataset: Dataset, chosen: Chosen, png: Path) -> list[str]:
    from PIL import Image

    from patchmint.inspection.show.overlays import image_overlay

    pairs = [(image, text) for image, texts in chosen for text in texts]
    paths = []
    for image, text in pairs:
        numbers = (image.number, text) if image.name != image.key else (text,)
        name = "-".join(map(str, (png.stem, *numbers))) + png.suffix
        path = png if len(pairs) == 1 else png.with_name(name)
        file = io.BytesIO()
        Image.fromarray(image_overlay(dataset, image, text)).save(file, "PNG")
        write_output(path, file.getvalue())
        paths.append(str(path))
    return paths


def _document(dataset: Dataset, found: Found, chosen: Chosen) -> dict[str, Any]:
    from patchmint.datasets.corrections import read_edits_of
    from patchmint.shards.schema import SampleDocument

    sample, (shard, _) = found.sample, dataset.place(found.index)
    told = sample.key_json
    parsed: dict[str, Any] = {
        "phrases": [phrase.model_dump() for phrase in told.phrases],
        "annotators": [annotator.model_dump() for annotator in told.annotators],
        "features": told.features.model_dump() if told.features is not None else None,
    }
    shown: dict[str, Any]
    if isinstance(told, SampleDocument):
        parsed["conversation"] = [turn.model_dump() for turn in told.conversation]
        ((image, texts),) = chosen
        shown = _arrays(image, texts)
    else:
        parsed["phrases"] = [phrase.model_dump() | {"image": phrase.image} for phrase in told.phrases]
        parsed["image_texts"] = told.image_texts
        shown = {"images": [{"number": image.number} | _arrays(image, texts) for image, texts in chosen]}
    wrong, edits = read_edits_of(dataset, found.index)
    made = [edit.model_dump(mode="json", exclude_defaults=True) for edit in edits]
    plain = {name: value for name, value in told.model_dump(mode="json").items() if not name.endswith("_json")}
    return {
        "index": found.index,
        "shard": shard.tar,
        "offset": sample.offset,
        "bytes": sample.size,
        "members": {ending: len(data) for ending, data in sample.members.items()},
        **({"wrong": wrong, "edits": made} if dataset.has_edits else {}),
        "document": plain | parsed,
        **shown,
    }


def _arrays(image: StoredImage, texts: Sequence[int]) -> dict[str, Any]:
    from patchmint.inspection.show.labels import text_labels
    from patchmint.shards.endings import tokenizer_name

    labels, codes, features = [text_labels(image, text) for text in texts], image.codes, image.features
    others = {tokens.member: image.array(f"{tokens.member}.npy") for tokens in image.key_json.further_tokens}
    further = {tokenizer_name(member): grid.tolist() for member, grid in others.items() if grid is not None}
    covered = [coverage.tolist() for _, coverage in labels if coverage is not None]
    return {
        "shown_texts": list(texts),
        "selector": [kept.tolist() for kept, _ in labels] if image.selector is not None else None,
        "coverage": covered if image.coverage is not None else None,
        "codes": codes.tolist() if codes is not None else None,
        **({"further_codes": further} if further else {}),
        "features_shape": list(features.shape) if features is not None else None,
    }
