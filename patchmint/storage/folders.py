"""Folders of a local file system: made so that they last, listed in order, removed when empty."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from patchmint.storage.failures import explain


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each one synced into its parent.

    Raises:
        OSError: it can't be made.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)


def existing_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power cut.

    Raises:
        OSError: the folder is gone or can't be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, below the root, for as long as they are empty."""
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def files_below(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """The path and size of every file below a folder, in the order of the paths. Links are followed.

    Args:
        folder: where to look; one that doesn't exist has no files.
        prefix: put before the paths.

    Raises:
        StorageError: a folder can't be read, or links lead in a circle.
    """
    yield from _walk(folder, prefix, ())


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    try:
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        if here in above:
            # Without this a link to a folder above would go round until names get too long.
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        with os.scandir(folder) as entries:
            # With "/" at the end of folders this is the order of whole paths: "a-b" lies before "a/c".
            found_here = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise explain("list", str(folder), error) from error
    for name, entry in sorted(found_here, key=itemgetter(0)):
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name, (*above, here))
        elif (size := _size_of_file(entry)) is not None:
            yield prefix + name, size


def _size_of_file(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a regular file; None for anything else, such as a pipe, a dangling link, a file just deleted."""
    try:
        return entry.stat().st_size if entry.is_file() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain("list", entry.path, error) from error
