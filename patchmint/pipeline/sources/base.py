"""What a source is, and how most of them read their images."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Protocol

from patchmint.errors import ImageMissingError, ImageUnreadableError, NotFoundError, StorageError
from patchmint.samples import WHOLE_FILE, ImageRef, SourceSample
from patchmint.storage import Storage
from patchmint.storage.local import LocalStorage


class Source(Protocol):
    """A data set to take samples from.

    Making one is cheap: annotation files are read by `samples` only, so a worker, which only reads images, never parses
    them.
    """

    def samples(self) -> Iterator[SourceSample]:
        """Every sample, in an order that depends on the data set's files only.

        What is wrong with a single record becomes a sample with a fault.

        Raises:
            ConfigError: a file that the settings name isn't there, or isn't what it should be.
            StorageError: reading failed.
        """
        ...

    def read_image(self, ref: ImageRef) -> bytes:
        """The bytes of an image file, as stored. Several threads may call this at once.

        Raises:
            ImageMissingError: the image isn't there; the sample can't be written.
            StorageError: reading failed; another try may do.
        """
        ...


class StoredImages:
    """Images that are files of their own, or ranges of bytes in bigger ones. Base of the sources."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        if ref.start != WHOLE_FILE:
            # a container that has gone since the plan was made is trouble with the storage, not with one image
            return self._storage.read_range(ref.path, ref.start, ref.length)
        try:
            return self._storage.read(ref.path)
        except StorageError as error:
            # a folder of that name, or a file where a folder should be, is as good as nothing
            if _is_of_this_file(error):
                raise ImageUnreadableError(
                    f"{error}; mend its permissions, or leave the sample among the rejects", path=ref.path
                ) from error
            if not isinstance(error, NotFoundError) and self._storage.exists(ref.path):
                raise
            check_root(self._storage)
            raise ImageMissingError(
                f"there is no image {ref.path!a} in {self._storage.uri}, although the data set names it; add the file, "
                "or leave the sample among the rejects",
                path=ref.path,
            ) from error


def _is_of_this_file(error: StorageError) -> bool:
    """Whether it is one file that can't be read, now and later, and not the storage."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EPERM, errno.EIO)


def check_root(storage: Storage) -> None:
    """Make sure that a local source is mounted at all, lest each of its images be taken for a missing one.

    Raises:
        StorageError: the folder isn't there.
    """
    if isinstance(storage, LocalStorage) and not storage.root.is_dir():
        raise StorageError(
            f"there is no folder {storage.root} on {socket.gethostname()} to read the source from; check source.uri, "
            "and that each machine mounts it at the same path",
            uri=storage.uri,
        )
