"""`patchmint inspect show`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchmint.cli.inspect.shared import (
    DatasetArgument,
    GridOption,
    JsonOption,
    check_output,
    print_json,
    progress_bar,
    write_output,
)
from patchmint.errors import InputError

if TYPE_CHECKING:
    from patchmint.datasets.dataset import Dataset
    from patchmint.inspection.show.lookup import Found


def show_command(
    dataset: DatasetArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A sample's key, its position as '#17', or its source's id.")
    ],
    text: Annotated[int | None, typer.Option("--text", metavar="N", help="Only this text, counted from 0.")] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", metavar="FILE.png", help="Write the overlay; of several texts FILE-0.png, FILE-1.png, ..."
        ),
    ] = None,
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one sample: texts with their phrases, patch labels, codes.

    Phrases are marked in their text, in colour or in square brackets with their numbers. Only the sample's bytes are
    read.
    The first look into a data set of several shards makes an index of its keys, in the user's cache (PATCHMINT_CACHE).

    --json prints KEY.json with what is JSON in a string parsed, and the arrays as lists; of features only the shape.

    Ends with 0, or with 2 if there is no such sample.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.inspection.show.lookup import find_sample

    check_output(png, ".png")
    opened = open_dataset(dataset).on_grid(grid)
    with progress_bar("reading keys, once") as progress:
        found = find_sample(opened, key, progress)
    texts = _chosen_texts(found, text)
    written = {"png": _write_overlays(opened, found, texts, png)} if png is not None else {}
    if as_json:
        print_json(_document(opened, found, texts) | written)
        return
    from patchmint.cli.inspect.sample_view import print_sample

    print_sample(opened, found, texts)


def _chosen_texts(found: Found, text: int | None) -> Sequence[int]:
    count = len(found.sample.document.texts)
    if text is None:
        return range(count)
    if not 0 <= text < count:
        raise InputError(f"sample {found.sample.key!r} has {count} texts, 0 to {count - 1}, so no text {text}")
    return [text]


def _write_overlays(dataset: Dataset, found: Found, texts: Sequence[int], png: Path) -> list[str]:
    from PIL import Image

    from patchmint.inspection.show.overlays import sample_overlay

    paths = [png if len(texts) == 1 else png.with_name(f"{png.stem}-{text}{png.suffix}") for text in texts]
    for text, path in zip(texts, paths, strict=True):
        file = io.BytesIO()
        Image.fromarray(sample_overlay(dataset, found.sample, text)).save(file, "PNG")
        write_output(path, file.getvalue())
    return [str(path) for path in paths]


def _document(dataset: Dataset, found: Found, texts: Sequence[int]) -> dict[str, Any]:
    from patchmint.inspection.show.labels import text_labels

    sample, (shard, _) = found.sample, dataset.place(found.index)
    document = sample.document
    features = sample.features
    parsed = {
        "phrases": [phrase.model_dump() for phrase in document.phrases],
        "annotators": [annotator.model_dump() for annotator in document.annotators],
        "conversation": [turn.model_dump() for turn in document.conversation],
        "features": document.features.model_dump() if document.features is not None else None,
    }
    plain = {name: value for name, value in document.model_dump(mode="json").items() if not name.endswith("_json")}
    labels = [text_labels(sample, text) for text in texts]
    return {
        "index": found.index,
        "shard": shard.tar,
        "offset": sample.offset,
        "bytes": sample.size,
        "members": {ending: len(data) for ending, data in sample.members.items()},
        "document": plain | parsed,
        "shown_texts": list(texts),
        "selector": [kept.tolist() for kept, _ in labels] if sample.selector is not None else None,
        "coverage": [cover.tolist() for _, cover in labels if cover is not None]
        if sample.coverage is not None
        else None,
        "codes": sample.codes.tolist() if sample.codes is not None else None,
        "features_shape": list(features.shape) if features is not None else None,
    }
