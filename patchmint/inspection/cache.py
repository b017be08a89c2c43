"""Indexes made on demand and kept in the user's cache, never in the data set: that may be shared, or read-only."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from patchmint.datasets.dataset import Dataset
from patchmint.errors import InputError
from patchmint.storage.cache import FOLDER_VARIABLE, cache_folder
from patchmint.storage.local import LocalStorage

_GROWING = ".growing-"
_KILLED_S = 24 * 3600
# A folder that has been growing for longer is of a process that was killed.

_Index = TypeVar("_Index")


def index_folder() -> Path:
    """The folder of all indexes, in the user's cache."""
    return cache_folder() / "indexes"


def open_index(
    dataset: Dataset,
    name: str,
    build: Callable[[Path], None],
    load: Callable[[Path], _Index],
    *,
    anew: bool = False,
) -> _Index:
    """An index of a data set; made if there is none, or none of the data set as it is now.

    What changed is told by dataset.json, the shards' counts and sizes and, of a folder, the times of their tables.

    Args:
        dataset: what it is an index of.
        name: which index, with the version of its form, such as "codes-1".
        build: fills an empty folder. Half an index is never seen: the folder gets its name when it is full.
        load: reads such a folder. Where it can't (OSError, ValueError, EOFError, LookupError, TypeError), the index is
            damaged, and is made anew, once.
        anew: make it in any case: it turned out to be of another data set.

    Raises:
        InputError: the cache's folder can't be written, or what was just made there can't be read.
        Whatever `build` raises.
    """
    own = index_folder() / _digest(_address(dataset))[:24]
    folder = own / f"{name}-{_state(dataset)[:24]}"
    seen = _identity(folder)
    if seen and not anew:
        with suppress(OSError, ValueError, EOFError, LookupError, TypeError):
            return load(folder)
    if seen and seen == _identity(folder):  # else another process has made it in the meantime
        shutil.rmtree(folder, ignore_errors=True)
    _make(folder, name, build)
    try:
        return load(folder)
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise InputError(
            f"the index in {folder} can't be read, although it was just made ({error}); check the disk, or set "
            f"{FOLDER_VARIABLE} to another folder"
        ) from error


def reserve(path: Path) -> None:
    """Give a file with holes its room on the disk: else writing into its memory map may end the process.

    Does nothing where the system or the file system can't (macOS, some of the network).

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise


def _make(folder: Path, name: str, build: Callable[[Path], None]) -> None:
    own = folder.parent
    try:
        own.mkdir(parents=True, exist_ok=True)
        _sweep(own)
        growing = Path(mkdtemp(prefix=_GROWING, dir=own))
    except OSError as error:
        raise _unwritable(own, error) from error
    try:
        build(growing)
        for stale in own.glob(f"{name}-*"):
            if stale != folder:
                shutil.rmtree(stale, ignore_errors=True)
        growing.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise _unwritable(own, error) from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _sweep(own: Path) -> None:
    for growing in own.parent.glob(f"*/{_GROWING}*"):
        with suppress(FileNotFoundError):
            if growing.stat().st_mtime < time.time() - _KILLED_S:
                shutil.rmtree(growing, ignore_errors=True)


def _address(dataset: Dataset) -> str:
    storage = dataset.storage
    place = str(storage.root) if isinstance(storage, LocalStorage) else storage.uri
    return f"{place}\n{dataset.uri.rpartition('/')[2] if dataset.uri.endswith('.tar') else ''}"


def _state(dataset: Dataset) -> str:
    """Changes when shards are added, built again or replaced.

    Sizes of tars alone don't tell: tars are padded. The list of shards has a checksum of each table.
    """
    manifest = hashlib.sha256(dataset.manifest_data or b"").hexdigest()
    shards = [
        f"{shard.unit} {shard.samples} {shard.rejected} {shard.size} {shard.sidecar_size}" for shard in dataset.shards
    ]
    columns = (f"{column.name} {_state(column.dataset)}" for column in dataset.columns)
    return _digest("\n".join((manifest, dataset.list_digest, *shards, *_times(dataset), *columns)))


def _times(dataset: Dataset) -> Iterator[str]:
    """Of the files that indexes are made of, in a folder."""
    if isinstance(dataset.storage, LocalStorage):
        root = str(dataset.storage.root)
        for shard in dataset.shards:
            with suppress(OSError):  # who reads it says what is wrong
                # A Path for each of ten thousand takes four times as long.
                yield str(os.stat(f"{root}/{shard.sidecar or shard.tar}").st_mtime_ns)  # noqa: PTH116


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write an index into {folder}: {error.strerror or error}; set {FOLDER_VARIABLE} to a folder that can be "
        "written and has room"
    )
