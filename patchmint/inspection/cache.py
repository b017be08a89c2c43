"""Indexes made on demand and kept in the user's cache, never in the data set: that may be shared, or read-only."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import platformdirs

from patchmint.errors import InputError
from patchmint.inspection.dataset import Dataset
from patchmint.storage.local import LocalStorage

FOLDER_VARIABLE = "PATCHMINT_CACHE"


def index_folder() -> Path:
    """The folder of all indexes: below `PATCHMINT_CACHE` if set, else below the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("patchmint")) / "indexes"


def cached_index(dataset: Dataset, name: str, build: Callable[[Path], None]) -> Path:
    """The folder of an index of a data set; made if there is none, or none of the data set as it is now.

    Args:
        dataset: what it is an index of.
        name: which index, with the version of its form, such as "codes-1".
        build: fills an empty folder. Half an index is never seen: the folder gets its name when it is full.

    Raises:
        InputError: the cache's folder can't be written.
        Whatever `build` raises.
    """
    own = index_folder() / _digest(_address(dataset))[:24]
    folder = own / f"{name}-{_state(dataset)[:24]}"
    if folder.is_dir():
        return folder
    try:
        own.mkdir(parents=True, exist_ok=True)
        growing = Path(mkdtemp(prefix=".growing-", dir=own))
    except OSError as error:
        raise _unwritable(own, error) from error
    try:
        build(growing)
        for stale in own.glob(f"{name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        growing.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise _unwritable(own, error) from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return folder


def _address(dataset: Dataset) -> str:
    storage = dataset.storage
    place = str(storage.root) if isinstance(storage, LocalStorage) else storage.uri
    return f"{place}\n{dataset.uri.rpartition('/')[2] if dataset.uri.endswith('.tar') else ''}"


def _state(dataset: Dataset) -> str:
    """Changes when shards are added, or built of another plan or config."""
    digests = (dataset.manifest.plan_digest, dataset.manifest.config_digest) if dataset.manifest else ()
    shards = [f"{shard.unit} {shard.samples} {shard.rejected} {shard.size}" for shard in dataset.shards]
    return _digest("\n".join((*digests, *shards)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write an index into {folder}: {error.strerror or error}; set {FOLDER_VARIABLE} to a folder that can be "
        "written and has room"
    )
