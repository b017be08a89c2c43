"""README.md of a data set: by its `configs`, Hugging Face `datasets` finds the samples.

Without them, `load_dataset(FOLDER)` takes the sidecars for the data. `shards/` needs none: it has nothing but tars.
"""

from __future__ import annotations

from typing import Any

import yaml

from patchmint.errors import NotFoundError
from patchmint.shards.manifest import Manifest
from patchmint.shards.paths import SHARDS
from patchmint.storage import Storage

README = "README.md"
MARK = "<!-- Written by patchmint, which replaces it. Without this line it is kept as it is. -->"

_MARK = b"<!-- Written by patchmint"


CONFIGS = [{"config_name": "default", "data_files": [{"split": "train", "path": f"{SHARDS}/*.tar"}]}]
"""The metadata `configs`: one split, of all tars."""


def front_matter(metadata: dict[str, Any]) -> str:
    """Metadata as they begin a README.md."""
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


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
        front_matter({"configs": CONFIGS}),
        MARK,
        "# A patchmint data set",
        f"{totals.written:,} images with {totals.texts:,} texts, in {totals.shards:,} WebDataset shards; in "
        "`sidecars/` a Parquet table of each shard's samples. `dataset.json` says what every sample holds.",
        *([f"**{manifest.notice}**"] if manifest.notice else []),
    ]
    storage.write(README, ("\n\n".join(lines) + "\n").encode())
