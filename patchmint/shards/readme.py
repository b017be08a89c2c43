"""README.md, in a data set and in its `shards/`: by its `configs`, Hugging Face `datasets` finds the samples.

Without them, `load_dataset(FOLDER)` takes the sidecars for the data.
"""

from __future__ import annotations

from typing import Any

import yaml

from patchmint.errors import NotFoundError
from patchmint.shards.manifest import Manifest
from patchmint.storage import Storage

README = "README.md"
MARK = "<!-- Written by patchmint, which replaces it. Without this line it is kept as it is. -->"

_MARK = b"<!-- Written by patchmint"


def configs(tars: str = "shards/*.tar") -> list[dict[str, Any]]:
    """The metadata `configs` of a README.md: one split, of these tars."""
    return [{"config_name": "default", "data_files": [{"split": "train", "path": tars}]}]


def front_matter(metadata: dict[str, Any]) -> str:
    """Metadata as they begin a README.md."""
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def is_ours(readme: bytes) -> bool:
    """Whether nobody has made it their own."""
    return not readme or _MARK in readme


def read_readme(storage: Storage, path: str = README) -> bytes:
    """README.md; empty where there is none.

    Raises:
        StorageError: it can't be read.
    """
    try:
        return storage.read(path)
    except NotFoundError:
        return b""


def write_readmes(storage: Storage, manifest: Manifest) -> None:
    """Write both, unless somebody has written their own.

    Raises:
        StorageError: one can't be read or written.
    """
    totals = manifest.totals
    lines = [
        MARK,
        "# A patchmint data set",
        f"{totals.written:,} images with {totals.texts:,} texts, in {totals.shards:,} WebDataset shards; beside each "
        "tar a Parquet table of its samples. `dataset.json` says what every sample holds.",
        *([f"**{manifest.notice}**"] if manifest.notice else []),
    ]
    for path, tars in ((README, "shards/*.tar"), (f"shards/{README}", "*.tar")):
        if is_ours(read_readme(storage, path)):
            text = "\n\n".join([front_matter({"configs": configs(tars)}), *lines])
            storage.write(path, f"{text}\n".encode())
