"""README.md of a data set: by its `configs`, Hugging Face `datasets` finds the samples.

Without them, `load_dataset(FOLDER)` takes the sidecars for the data. `shards/` needs none: it has nothing but tars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from patchmint.errors import NotFoundError
from patchmint.shards.endings import CAPTION, DOCUMENT, FEATURES, IMAGE, INSTANCES, unnumbered
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import Manifest, Totals
from patchmint.shards.paths import SHARDS
from patchmint.storage import Storage

README = "README.md"
MARK = "<!-- Written by patchmint, which replaces it. Without this line it is kept as it is. -->"

_MARK = b"<!-- Written by patchmint"
_CONFIG = "default"
_TEXT, _NUMBER = "string", "int64"

_Feature = Any
"""A type as a string, [what a list is of], or {field: what it is}."""


def metadata(manifest: Manifest) -> dict[str, Any]:
    """The metadata by which `datasets` reads the folder: one split, of all tars; of documents with its columns.

    `datasets` takes its columns from the first five samples. Of documents it would leave out the images that these
    don't have.
    """
    configs = [{"config_name": _CONFIG, "data_files": [{"split": "train", "path": f"{SHARDS}/*.tar"}]}]
    if not manifest.layout.documents:
        return {"configs": configs}
    images = manifest.totals.images.most if manifest.totals.images is not None else 0
    return {
        "configs": configs,
        "dataset_info": {"config_name": _CONFIG, "features": _columns(_features(manifest.layout, images))},
    }


def _tokens(*tokens: TokensLayout) -> dict[str, _Feature]:
    grids: dict[str, _Feature] = {"grids": [[_NUMBER]]} if any(each.varies for each in tokens) else {}
    return {"member": _TEXT, "grid": [_NUMBER], "codebook_sizes": [_NUMBER], "preprocessing": _TEXT} | grids


def _features(layout: Layout, images: int) -> dict[str, _Feature]:
    """Columns of documents of at most so many images."""
    labels: _Feature = [[["uint8"]]]
    made: dict[str, _Feature] = dict.fromkeys(layout.arrays, labels)
    made |= {INSTANCES: {"instances_json": _TEXT}, FEATURES: [["float16"]]}
    for tokens in layout.all_tokens:
        codes: _Feature = tokens.dtype.name
        for _ in tokens.shape:
            codes = [codes]
        made[f"{tokens.member}.npy"] = codes
    grid = _grid(layout.grid)
    entry = {"width": _NUMBER, "height": _NUMBER, "format": _TEXT, "mode": _TEXT, "orientation": _NUMBER, "grid": grid}
    others = layout.further_grids
    further: dict[str, _Feature] = {"further_grids": [_grid(*others) | {"name": _TEXT}]} if others else {}
    told: dict[str, _Feature] = {
        **dict.fromkeys(("schema", "key", "id", "notice"), _TEXT),
        "texts": [_TEXT],
        **dict.fromkeys(("phrases_json", "annotators_json"), _TEXT),
        "tokens": _tokens(*layout.all_tokens[:1]),
        **({"further_tokens": [_tokens(*layout.further_tokens)]} if layout.further_tokens else {}),
        "features_json": _TEXT,
        "images": [entry | {"source": {"name": _TEXT, "path": _TEXT, "start": _NUMBER}} | further],
        "sequence": [{"text": _TEXT, "image": _NUMBER, "role": _TEXT}],
        "image_texts_json": _TEXT,
    }
    forms = {IMAGE: "image", DOCUMENT: told, CAPTION: _TEXT} | made
    columns = {ending: forms[unnumbered(ending)] for ending in layout.members_of(images)}
    return columns | {"__key__": _TEXT, "__url__": _TEXT}


def _grid(*grids: GridLayout) -> dict[str, _Feature]:
    found: dict[str, _Feature] = dict.fromkeys(("rows", "cols", "patch_px"), _NUMBER) | {"fit": _TEXT, "views": _NUMBER}
    return found | ({"placement_json": _TEXT} if any(grid.settings for grid in grids) else {})


def _columns(features: Mapping[str, _Feature]) -> list[dict[str, Any]]:
    """In the form of `datasets.Features._to_yaml_list`."""
    return [{"name": name} | _form(feature) for name, feature in features.items()]


def _form(feature: _Feature) -> dict[str, Any]:
    match feature:
        case str():
            return {"dtype": feature}
        case [inner]:
            form = _form(inner)
            return {"list": form.get("dtype") or form.get("struct") or form}
        case _:
            return {"struct": _columns(feature)}


def front_matter(metadata: dict[str, Any]) -> str:
    """Metadata as they begin a README.md."""
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def describe(totals: Totals) -> str:
    """How much there is, for people."""
    texts = f"{totals.texts:,} texts"
    if totals.images is None:
        return f"{totals.written:,} images with {texts}"
    return f"{totals.written:,} documents of {totals.images.written:,} images with {texts}"


def is_ours(readme: bytes) -> bool:
    """Whether nobody has made it their own."""
    return not readme or _MARK in readme


def read_readme(storage: Storage) -> bytes:
    """README.md; empty where there is none.

    Raises:
        StorageError: it can't be read.
    """
    try:
        return storage.read(README)
    except NotFoundError:
        return b""


def write_readme(storage: Storage, manifest: Manifest) -> None:
    """Write it, unless somebody has written their own.

    Raises:
        StorageError: it can't be read or written.
    """
    if not is_ours(read_readme(storage)):
        return
    totals = manifest.totals
    lines = [
        front_matter(metadata(manifest)),
        MARK,
        "# A patchmint data set",
        f"{describe(totals)}, in {totals.shards:,} WebDataset shards; in "
        "`sidecars/` a Parquet table of each shard's samples. `dataset.json` says what every sample holds.",
        *([f"**{manifest.notice}**"] if manifest.notice else []),
    ]
    storage.write(README, ("\n\n".join(lines) + "\n").encode())
