"""Checkpoints in a store: each machine fetches one once, whoever on it asks for it first."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from pathlib import Path
from typing import BinaryIO

from patchmint.errors import NotFoundError, PlaceError, StorageError, WeightsMissingError
from patchmint.storage import open_storage
from patchmint.storage.ahead import done_ahead
from patchmint.storage.cache import cache_folder, claimed
from patchmint.storage.local import sync_folder
from patchmint.storage.objects import ObjectStorage
from patchmint.weights.checksums import record_sha256, sha256_of

_LOG = logging.getLogger(__name__)
_CHUNK = 16 << 20
_THREADS = 4
_BYTES_PER_SECOND = 1e9
_LONGEST_STAGGER = 5.0


def fetched(uri: str) -> Path:
    """The file of an object, in this machine's cache. Of several processes that ask, one fetches it.

    What has come before a process was killed is kept: the next one goes on from there. An object that has changed is
    fetched again, as another file.

    Args:
        uri: `s3://`, `gs://` or `az://`.

    Raises:
        WeightsMissingError: there is no such object.
        PlaceError: the cache can't be written, or another process that has begun brings nothing.
        StorageError: the store can't be read.
    """
    folder, _, name = uri.rpartition("/")
    storage = open_storage(folder)
    assert isinstance(storage, ObjectStorage)
    try:
        size, version = storage.version(name)
    except NotFoundError as error:
        raise WeightsMissingError(f"there are no weights at {uri}; check the path", names=[uri]) from error
    key = hashlib.sha256(f"{uri} {size} {version}".encode()).hexdigest()[:32]
    target = cache_folder() / "models" / key / name
    if target.is_file():
        return target
    part = target.with_name(f"{name}.part")
    # machines that start together don't ask the store in the same moment
    time.sleep(random.uniform(0, min(_LONGEST_STAGGER, size / _BYTES_PER_SECOND)))  # noqa: S311
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with claimed(part, _LOG.warning) as file:
            if target.is_file():  # while this one waited
                part.unlink()
                return target
            _receive(storage, name, file, size)
            if storage.version(name) != (size, version):
                part.unlink()
                raise StorageError(f"{uri} was replaced while it was read; run again", uri=uri)
            sha256 = sha256_of(part)
            part.replace(target)
            record_sha256(target, sha256, uri)
            sync_folder(target.parent)
    except TimeoutError as error:
        raise PlaceError(f"{uri} can't be fetched: {error}", uri=uri) from error
    except OSError as error:
        raise PlaceError(
            f"{uri} can't be fetched to {target.parent}: {error.strerror or error}; free some space, or choose another "
            "folder with the PATCHMINT_CACHE variable",
            uri=uri,
        ) from error
    return target


def _receive(storage: ObjectStorage, name: str, file: BinaryIO, size: int) -> None:
    """Append what is missing."""
    done = file.seek(0, os.SEEK_END)

    def read(start: int) -> bytes:
        return storage.read_range(name, start, min(_CHUNK, size - start))

    for _, data in done_ahead(read, range(done, size, _CHUNK), threads=_THREADS, ahead=_THREADS):
        file.write(data)
        file.flush()  # a process that waits sees that something comes
    os.fsync(file.fileno())
