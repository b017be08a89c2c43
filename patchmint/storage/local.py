"""A folder: whole files appear in one step and last; a killed process leaves at most a hidden temporary file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, TypeVar

from patchmint.errors import StorageError
from patchmint.storage.failures import explain
from patchmint.storage.interface import Entry, NewFile, checked, is_temporary, temporary_name
from patchmint.storage.patience import Patience
from patchmint.storage.ranges import LEAST

_Value = TypeVar("_Value")
_BUFFER = 1 << 20
_TRIES = 5
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine's file systems, as a `Storage`.

    Attributes:
        uri: as given.
        root: the folder, absolute. It is made by the first write.
        patience: with passing faults of a file system on another machine.
    """

    uri: str
    root: Path
    patience: Patience = field(default_factory=lambda: Patience(0.0, has_answered=True), compare=False)
    is_local = True

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        target = self._at(path)
        return self._tried("read", target, lambda: _read(target))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See `Storage.read_range`."""
        if start < 0 or length < 0:
            raise StorageError(
                f"{self._at(path)} has no bytes at {start}, {length}; ask for a range from 0 up",
                uri=str(self._at(path)),
            )
        target = self._at(path)
        data, size = self._tried("read", target, lambda: _read_range(target, start, length))
        if start + length > size or len(data) != length:
            raise StorageError(
                f"{target} ends before byte {start + length}; it was cut or replaced: bring it back whole",
                uri=str(target),
            )
        return data

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        target = self._at(path)
        found = self._tried("read", target, target.stat)
        with _explained("read", target):
            _must_be_file(target, found)
        return found.st_size

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        target = self._at(path)
        return self._tried("look for", target, lambda: _is_there(target))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`."""
        folder = checked(prefix, folder=True)
        for path, found in _files_below(self.root / folder, f"{folder}/" if folder else ""):
            if not is_temporary(path):
                yield Entry(path, found.st_size, str(found.st_mtime_ns))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Storage.folders`."""
        target = self._at(prefix)
        try:
            return sorted(entry.name for entry in target.iterdir() if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise explain("list", str(target), error) from error

    def open(self, path: str, *, skipping: bool = False) -> BinaryIO:
        """See `Storage.open`."""
        target = self._at(path)
        return self._tried("read", target, lambda: _open(target, buffering=LEAST if skipping else -1))

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        target = self._at(path)
        self._tried("write", target, lambda: _again_if_swept(lambda: _write(target, data)))

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`."""
        target = self._at(path)
        return self._tried("write", target, lambda: _again_if_swept(lambda: _create(target, data)))

    @contextmanager
    def new_file(self, path: str) -> Iterator[NewFile]:
        """See `Storage.new_file`."""
        target = self._at(path)
        sink = self._tried("write", target, lambda: _again_if_swept(lambda: _opened(target)))
        try:
            yield (file := NewFile(path, sink, str(target)))
            file.flush()
            with _explained("write", target):
                os.fsync(sink.fileno())
                sink.close()
                sync_folder(target.parent)
        except BaseException:
            # Closing flushes, and on a full disk that fails once more.
            with suppress(OSError):
                sink.close()
            with suppress(OSError):
                target.unlink()
            prune(target.parent, self.root)
            raise

    def move(self, source: str, target: str) -> None:
        """See `Storage.move`."""
        old, new = self._at(source), self._at(target)

        def move() -> None:
            old.stat()
            _again_if_swept(lambda: _rename(old, new))

        self._tried("move", old, move)
        prune(old.parent, self.root)

    def delete(self, paths: Iterable[str]) -> None:
        """See `Storage.delete`."""
        folders: dict[Path, None] = {}  # in order: a run leaves the same states of the disk each time
        for path in paths:
            target = self._at(path)
            folders[target.parent] = None
            self._tried("delete", target, partial(_unlink, target))
        for folder in folders:
            prune(folder, self.root)

    def delete_temporary(self) -> None:
        """See `Storage.delete_temporary`."""
        self.delete([path for path, _ in _files_below(self.root, "") if is_temporary(path)])

    def delete_empty_folders(self, folder: str) -> None:
        """See `Storage.delete_empty_folders`."""
        for found in sorted((found for found, _, _ in os.walk(self._at(folder))), reverse=True):
            prune(Path(found), self.root)

    def _at(self, path: str) -> Path:
        return self.root / checked(path)

    def _tried(self, action: str, target: Path, request: Callable[[], _Value]) -> _Value:
        """The result of something that may be done twice without harm."""
        with _explained(action, target):
            return self.patience.repeated(str(target), request)


def _read(target: Path) -> bytes:
    with _open(target) as file:
        return file.read()


def _read_range(target: Path, start: int, length: int) -> tuple[bytes, int]:
    """Some bytes of a file, fewer at its end, and its size."""
    with _open(target) as file:
        file.seek(start)
        return file.read(length), os.fstat(file.fileno()).st_size


def _open(target: Path, *, buffering: int = -1) -> BinaryIO:
    # A named pipe would block the opening.
    _must_be_file(target, target.stat())
    # Otherwise a buffer has the file system's block size: a megabyte on a network's.
    return target.open("rb", buffering=buffering)


def _is_there(target: Path) -> bool:
    try:
        return stat.S_ISREG(target.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _unlink(target: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        target.unlink()


def _opened(target: Path) -> BinaryIO:
    _make_folder(target.parent)
    return target.open("wb", buffering=_BUFFER)


def _rename(old: Path, new: Path) -> None:
    _make_folder(new.parent)
    old.rename(new)
    sync_folder(new.parent)


def _write(target: Path, data: bytes) -> None:
    with _temporary_beside(target, data) as temporary:
        temporary.rename(target)
        sync_folder(target.parent)


def _create(target: Path, data: bytes) -> bool:
    with _temporary_beside(target, data) as temporary:
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            # On a network file system the reply to a link that was made can get lost, and its retry finds this.
            if not temporary.samefile(target):
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StorageError(
                f"can't create {target}: this file system has no hard links ({error.strerror}), without which two "
                "writers could both win; choose a folder on another file system, or an object store",
                uri=str(target),
            ) from error
        sync_folder(target.parent)
        return True


@contextmanager
def _temporary_beside(target: Path, data: bytes) -> Iterator[Path]:
    """A synced file of these bytes in the target's folder, gone afterwards."""
    temporary = target.with_name(temporary_name())
    _make_folder(target.parent)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _again_if_swept(action: Callable[[], _Value]) -> _Value:
    """Do it again where somebody removes the temporary file, or the still empty folder, in the middle of it."""
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError):
            return action()
    return action()


@contextmanager
def _explained(action: str, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(action, str(target), error) from error


def _must_be_file(target: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"can't read {target}: it is a pipe or a device, not a file; name a file", uri=str(target))


def _make_folder(folder: Path) -> None:
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


def sync_folder(folder: Path) -> bool:
    """Make names in a folder last through a power cut.

    Returns:
        Whether the file system does that. Those which don't are of other machines (CIFS, some of FUSE): they hand a
        name on before the call that made it returns, and this machine holds nothing back that could be synced.

    Raises:
        OSError: the folder is gone, or syncing it failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def prune(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, below the root, for as long as they are empty."""
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _files_below(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """The path and facts of every file below a folder, in the order of the paths. Links are followed.

    Args:
        folder: where to look; one that doesn't exist has no files.
        prefix: put before the paths.

    Raises:
        StorageError: a folder can't be read, or links lead in a circle.
    """
    yield from _walk(folder, prefix, ())


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.stat_result]]:
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
        elif (facts := _facts_of_file(entry)) is not None:
            yield prefix + name, facts


def _facts_of_file(entry: os.DirEntry[str]) -> os.stat_result | None:
    """A regular file's; None for anything else, such as a pipe, a dangling link, a file just deleted."""
    try:
        return entry.stat() if entry.is_file() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain("list", entry.path, error) from error
