"""What every storage can do, which paths it takes, and the file that hashes what is written to it."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, BinaryIO, Protocol

from patchmint.errors import StorageError
from patchmint.storage.failures import explain

Explain = Callable[[str, str, OSError], StorageError]
"""From what was done, how messages call the file, and the operating system's error, to the one to raise."""

TEMPORARY = ".patchmint-tmp-"
"""First characters of the names of temporary files."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """A file in a listing.

    Attributes:
        path: relative to the storage's root, with "/" between its parts.
        size: bytes.
        state: differs once the file is written anew (a store's tag, a folder's time); "" where nothing tells.
    """

    path: str
    size: int
    state: str = field(default="", compare=False)


class NewFile(io.BufferedIOBase, BinaryIO):
    """A file being written from start to end; it counts and hashes what passes.

    Attributes:
        path: where in the storage the file goes.
    """

    def __init__(self, path: str, sink: IO[bytes], shown: str, explained: Explain = explain) -> None:
        """Wrap an open file.

        Args:
            path: where in the storage the file goes.
            sink: takes the bytes.
            shown: how error messages call it.
            explained: the error to raise for the operating system's.
        """
        self.path = path
        self._sink = sink
        self._shown = shown
        self._explained = explained
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Append bytes.

        Returns:
            How many: always all of them.

        Raises:
            StorageError: the disk is full, or another fault of the file system.
        """
        view = memoryview(data).cast("B")
        try:
            self._sink.write(view)
        except OSError as error:
            raise self._explained("write", self._shown, error) from error
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def flush(self) -> None:
        """Hand what is buffered to the operating system.

        Raises:
            StorageError: the disk is full, or another fault of the file system.
        """
        if self._sink.closed:
            return
        try:
            self._sink.flush()
        except OSError as error:
            raise self._explained("write", self._shown, error) from error

    def writable(self) -> bool:
        """True."""
        return True

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._size

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._hash.hexdigest()


def uri_of(storage: Storage, path: str) -> str:
    """The whole path or URI of a file in a storage.

    Args:
        storage: where it lies.
        path: relative to the storage's root.
    """
    return f"{storage.uri.removesuffix('/')}/{path}"


class Storage(Protocol):
    """A folder, or a prefix in a bucket.

    Paths are relative to it, with "/" between their parts; an absolute path, an empty part, "." and ".." are refused
    with a StorageError everywhere. Every method raises StorageError where the storage can't be used; passing faults
    (a 503, a cut connection, a timeout) are tried again first, for as long as `open_storage` was told.

    Objects can be pickled and sent to other processes, which find their own credentials.

    Attributes:
        uri: as given. It never holds credentials: a URI that does is refused.
        is_local: whether it is a folder of this machine's file systems.
    """

    @property
    def uri(self) -> str:
        """See above."""

    @property
    def is_local(self) -> bool:
        """See above."""

    def read(self, path: str) -> bytes:
        """A whole file.

        Raises:
            NotFoundError: there is no such file.
        """

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of a file, exactly as many as asked for.

        Raises:
            NotFoundError: there is no such file.
            StorageError: the file ends before.
        """

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            NotFoundError: there is no such file.
        """

    def exists(self, path: str) -> bool:
        """Whether there is such a file (a folder is none)."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file below a folder, at any depth, sorted by path (by code points), without temporary files.

        Args:
            prefix: the folder; one that doesn't exist holds no files. Locally, links are followed.
        """

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders in a folder, sorted; one that doesn't exist has none.

        Args:
            prefix: the folder.
        """

    def open(self, path: str, *, skipping: bool = False) -> BinaryIO:
        """A file for reading: seekable and buffered; from a store it comes in ranges.

        Args:
            path: the file.
            skipping: most of it won't be read, so little more comes than is asked for (`ranges.SkippingFile`).

        Raises:
            NotFoundError: there is no such file.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file in one step: a reader sees all of it or what was there before. It lasts on return."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a whole file in one step, if there is none of that name. It lasts on return.

        Of any number of callers at once, exactly one gets True.

        Returns:
            Whether this call made the file. False: it exists already. Where a reply was lost and the write was tried
            again, a file of exactly these bytes counts as made by this call.
        """

    def new_file(self, path: str) -> AbstractContextManager[NewFile]:
        """Write a big file as a stream; it lasts when the block ends, and on an exception in the block it is gone.

        Locally it grows at `path` itself, so take a name that nobody reads yet and `move` it afterwards. For a store it
        grows in a local temporary file without a name, and is uploaded at the end.

        Raises:
            PlaceError: that temporary file can't be written.
        """

    def move(self, source: str, target: str) -> None:
        """Rename a file over whatever is at `target`: in one step locally, as copy and delete on a store.

        Raises:
            NotFoundError: `source` is gone.
        """

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; absent ones are fine. Folders that this leaves empty go too."""

    def delete_temporary(self) -> None:
        """Delete the temporary files that killed writers left. Writers at work notice and begin their file again."""

    def delete_empty_folders(self, folder: str) -> None:
        """Delete empty folders below a folder, and itself if it is empty. A store has none."""


def checked(path: str, *, folder: bool = False) -> str:
    """A path that is safe to join to a root.

    Args:
        path: relative, with "/" between its parts.
        folder: whether it names a folder: then "" (the root) and one "/" at the end are fine, and the latter is cut.

    Raises:
        StorageError: it is absolute or empty, or has an empty part, ".", ".." or a NUL character in it.
    """
    if folder:
        path = path.removesuffix("/")
        if not path:
            return path
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise StorageError(
            f"{path!r} is not a path inside a storage: it must be relative, without empty parts, '.' and '..'; "
            "correct it where it comes from",
            uri=path,
        )
    return path


def temporary_name() -> str:
    """A name for a temporary file that nobody else has."""
    return TEMPORARY + secrets.token_hex(8)


def is_temporary(path: str) -> bool:
    """Whether a path names a temporary file."""
    return path.rpartition("/")[2].startswith(TEMPORARY)
