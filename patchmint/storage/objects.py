"""A prefix in a bucket of S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import obstore
from obstore import exceptions

from patchmint.errors import NotFoundError, StorageError
from patchmint.storage import stores
from patchmint.storage.failures import explain, explain_store, is_passing
from patchmint.storage.interface import Entry, NewFile, checked, is_temporary, uri_of
from patchmint.storage.ranges import open_ranges
from patchmint.storage.stores import Address, connect

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_Value = TypeVar("_Value")
_PAGE = 1000
_PART = 8 << 20
_MOST_PARTS = 9000
_BUFFER = 1 << 20


class ObjectStorage:
    """A prefix in a bucket, as a `Storage`.

    Attributes:
        uri: `s3://`, `gs://` or `az://`, checked.
    """

    is_local = False

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        """Only the URI travels: connections can't, and credentials mustn't."""
        return ObjectStorage, (self.uri,)

    def __repr__(self) -> str:
        return f"ObjectStorage({self.uri!r})"

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        with self._explained("read", path):
            return _repeated(lambda: bytes(obstore.get(self._store, checked(path)).bytes()))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See `Storage.read_range`."""
        if start < 0 or length < 0:
            raise StorageError(
                f"{self._shown(path)} has no bytes at {start}, {length}; ask for a range from 0 up",
                uri=self._shown(path),
            )
        if length == 0:
            # A store takes no empty range.
            data, enough = b"", start <= self.size(path)
        else:
            with self._explained("read", path):
                wanted = partial(obstore.get_range, self._store, checked(path), start=start, length=length)
                data = bytes(_repeated(wanted))
            enough = len(data) == length
        if not enough:
            raise StorageError(
                f"{self._shown(path)} ends before byte {start + length}; it was cut or replaced: bring it back whole",
                uri=self._shown(path),
            )
        return data

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        with self._explained("look for", path):
            return _repeated(lambda: obstore.head(self._store, checked(path)))["size"]

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.list`."""
        return (entry for entry in self._all(checked(prefix, folder=True)) if not is_temporary(entry.path))

    def open(self, path: str, *, skipping: bool = False) -> BinaryIO:
        """See `Storage.open`."""
        read, size = partial(self.read_range, path), self.size(path)
        return open_ranges(read, size, self._shown(path), buffer=0 if skipping else _BUFFER)

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        name, store = checked(path), self._patient if len(data) > _BUFFER else self._store
        with self._explained("write", path):
            _repeated(lambda: obstore.put(store, name, data, chunk_size=_PART))

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`."""
        repeats = _Repeats()
        lost_reply = False
        with self._explained("write", path):
            while True:
                try:
                    # Repeats inside obstore would hide whether "it exists already" speaks of this call's own object.
                    obstore.put(self._single, checked(path), data, mode="create")
                except exceptions.AlreadyExistsError as error:
                    found = self._bytes_or_none(path)
                    if found is not None:
                        return lost_reply and found == data
                    # Not 412, it exists, but 409: another write of the same name is under way, and may fail. Or it
                    # existed, and has been deleted since.
                    repeats.pause(error)
                except exceptions.GenericError as error:
                    repeats.wait(error)
                    lost_reply = True
                else:
                    return True

    @contextmanager
    def new_file(self, path: str) -> Iterator[NewFile]:
        """See `Storage.new_file`."""
        shown = self._shown(checked(path))
        note = f" (its temporary file in {tempfile.gettempdir()}; TMPDIR moves it)"
        try:
            spool = tempfile.NamedTemporaryFile(prefix="patchmint-", buffering=_BUFFER)  # noqa: SIM115
        except OSError as error:
            raise explain("write", shown, error, note=note) from error
        try:
            yield (file := NewFile(path, spool.file, shown, note))
            file.flush()
            self._upload(path, Path(spool.name), file.size)
        finally:
            try:
                spool.close()
            except OSError:
                # Closing flushes once more, onto a disk that is full already. Only the deleting matters now.
                Path(spool.name).unlink(missing_ok=True)

    def move(self, source: str, target: str) -> None:
        """See `Storage.move`."""
        size = self.size(source)
        with self._explained("move", source):
            _repeated(lambda: obstore.copy(self._patient, checked(source), checked(target)))
        self._check_size(target, size)
        self.delete([source])

    def delete(self, paths: Iterable[str]) -> None:
        """See `Storage.delete`."""
        names = [checked(path) for path in paths]
        if not names:
            return
        with self._explained("delete", names[0]):
            try:
                _repeated(lambda: obstore.delete(self._store, names))
            except FileNotFoundError:
                # Google and Azure stop at the first absent one.
                for name in names:
                    with suppress(FileNotFoundError):
                        _repeated(partial(obstore.delete, self._store, name))

    def delete_temporary(self) -> None:
        """See `Storage.delete_temporary`."""
        self.delete([entry.path for entry in self._all("") if is_temporary(entry.path)])

    def delete_empty_folders(self, folder: str) -> None:
        """See `Storage.delete_empty_folders`."""

    @cached_property
    def _store(self) -> ObjectStore:
        return connect(self.uri, silence=10, retries=30)

    @cached_property
    def _single(self) -> ObjectStore:
        """Never repeats a request by itself."""
        return connect(self.uri, silence=10, retries=0)

    @cached_property
    def _patient(self) -> ObjectStore:
        """For requests that keep a store busy or a line full before it answers: uploads, copies."""
        return connect(self.uri, silence=300, retries=30)

    def _all(self, folder: str) -> Iterator[Entry]:
        in_order = Address.parse(self.uri).lists_in_order
        with self._explained("list", folder):
            yield from _listed(self._store, folder, in_order=in_order, uri=self.uri)

    def _bytes_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except NotFoundError:
            return None

    def _upload(self, path: str, spool: Path, size: int) -> None:
        part = max(_PART, -(-size // _MOST_PARTS))
        with self._explained("write", path):
            _repeated(lambda: obstore.put(self._patient, checked(path), spool, chunk_size=part, max_concurrency=4))
        self._check_size(path, size)

    def _check_size(self, path: str, size: int) -> None:
        found = self.size(path)
        if found != size:
            raise StorageError(
                f"{self._shown(path)} has {found} bytes in the store, but {size} were sent; it was cut: run again",
                uri=self._shown(path),
            )

    def _shown(self, path: str) -> str:
        return uri_of(self, path)

    @contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise explain_store(action, self._shown(path), error) from error


def _listed(store: ObjectStore, folder: str, *, in_order: bool, uri: str) -> Iterator[Entry]:
    """Every object below a folder, sorted by path.

    Args:
        store: where.
        folder: "" is all of it.
        in_order: whether the store lists in order; otherwise everything is collected and sorted first.
        uri: how error messages call the store.

    Raises:
        StorageError: the store lists out of order although it shouldn't.
        BaseError: obstore's, for anything else.
    """
    found = _pages(store, folder, resume=in_order)
    waiting: Entry | None = None
    for entry in found if in_order else iter(sorted(found)):
        if waiting is not None:
            # "x/", an empty object by which web consoles mark a folder, comes as "x", before the files in it.
            if entry.path <= waiting.path and entry.size == 0:
                continue
            if entry.path <= waiting.path:
                raise StorageError(
                    f"{uri} lists its objects out of order ({entry.path!r} after {waiting.path!r}), so samples would "
                    "have no fixed order; copy them to a store that sorts, or to a folder",
                    uri=uri,
                )
            if waiting.size or not entry.path.startswith(waiting.path + "/"):
                yield waiting
        waiting = entry
    if waiting is not None:
        yield waiting


def _pages(store: ObjectStore, folder: str, *, resume: bool) -> Iterator[Entry]:
    """The objects as they come; after a broken reply, from behind the last one on."""
    repeats = _Repeats()
    last: str | None = None
    while True:
        try:
            for page in obstore.list(store, folder or None, offset=last, chunk_size=_PAGE):
                for meta in page:
                    yield Entry(meta["path"], meta["size"], meta["e_tag"] or str(meta["last_modified"]))
                    last = meta["path"]
                repeats = _Repeats()
        except exceptions.GenericError as error:
            if last is not None and not resume:
                raise
            repeats.wait(error)
        else:
            return


class _Repeats:
    """How long to go on with one request."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + stores.PATIENCE
        self._pause = 0.1

    def wait(self, error: Exception) -> None:
        """Wait a little before the next try.

        Raises:
            Exception: this error again, if it isn't a passing one or has lasted too long.
        """
        if not is_passing(error):
            raise error
        self.pause(error)

    def pause(self, error: Exception) -> None:
        """The same, whatever the error.

        Raises:
            Exception: this error again, if it has lasted too long.
        """
        if time.monotonic() > self._deadline:
            raise error
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, 2.0)


def _repeated(request: Callable[[], _Value]) -> _Value:
    """The result of a request that may be made twice without harm."""
    repeats = _Repeats()
    while True:
        try:
            return request()
        except (exceptions.BaseError, FileNotFoundError) as error:
            repeats.wait(error)
