"""A prefix in a bucket of S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar

import obstore
from obstore import exceptions

from patchmint.errors import NotFoundError, StorageError
from patchmint.storage.failures import explain_place, explain_store
from patchmint.storage.interface import Entry, NewFile, checked, is_temporary, uri_of
from patchmint.storage.patience import Patience
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

    def __init__(self, uri: str, outage_seconds: float | None = None) -> None:
        """Touches nothing yet.

        Args:
            uri: checked.
            outage_seconds: as for `open_storage`.
        """
        self.uri = uri
        self._patience = Patience(outage_seconds)

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str, float | None]]:
        """Connections can't travel, and credentials mustn't."""
        return ObjectStorage, (self.uri, self._patience.seconds)

    def __repr__(self) -> str:
        return f"ObjectStorage({self.uri!r})"

    def read(self, path: str) -> bytes:
        """See `Storage.read`."""
        return self._asked("read", path, lambda: bytes(obstore.get(self._store, checked(path)).bytes()))

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
            wanted = partial(obstore.get_range, self._store, checked(path), start=start, length=length)
            data = bytes(self._asked("read", path, wanted))
            enough = len(data) == length
        if not enough:
            raise StorageError(
                f"{self._shown(path)} ends before byte {start + length}; it was cut or replaced: bring it back whole",
                uri=self._shown(path),
            )
        return data

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return self._asked("look for", path, lambda: obstore.head(self._store, checked(path)))["size"]

    def version(self, path: str) -> tuple[int, str]:
        """Bytes of an object, and what tells its content from that of another with the same path.

        Raises:
            NotFoundError: there is no such object.
        """
        found = self._asked("look for", path, lambda: obstore.head(self._store, checked(path)))
        return found["size"], found["e_tag"] or found["last_modified"].isoformat()

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

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Storage.folders`."""
        folder = checked(prefix)
        found = self._asked("list", prefix, lambda: obstore.list_with_delimiter(self._store, folder))
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

    def open(self, path: str, *, skipping: bool = False) -> BinaryIO:
        """See `Storage.open`."""
        read, size = partial(self.read_range, path), self.size(path)
        return open_ranges(read, size, self._shown(path), buffer=0 if skipping else _BUFFER)

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        name, store = checked(path), self._patient if len(data) > _BUFFER else self._store
        self._asked("write", path, lambda: obstore.put(store, name, data, chunk_size=_PART))

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`."""
        lost_reply = False
        with self._explained("write", path), self._patience.repeats(self._shown(path)) as repeats:
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
        try:
            # without a name: whatever ends this process leaves nothing there
            spool = tempfile.TemporaryFile(buffering=_BUFFER)  # noqa: SIM115
        except OSError as error:
            raise explain_place("write", shown, error) from error
        try:
            yield (file := NewFile(path, spool, shown, explain_place))
            file.flush()
            self._upload(path, spool, file.size)
        finally:
            with suppress(OSError):  # closing flushes once more, onto a disk that is full already
                spool.close()

    def move(self, source: str, target: str) -> None:
        """See `Storage.move`."""
        size = self.size(source)
        self._asked("move", source, lambda: obstore.copy(self._patient, checked(source), checked(target)))
        self._check_size(target, size)
        self.delete([source])

    def delete(self, paths: Iterable[str]) -> None:
        """See `Storage.delete`."""
        names = [checked(path) for path in paths]
        if not names:
            return
        try:
            self._asked("delete", names[0], lambda: obstore.delete(self._store, names))
        except NotFoundError:
            # Google and Azure stop at the first absent one.
            for name in names:
                with suppress(NotFoundError):
                    self._asked("delete", name, partial(obstore.delete, self._store, name))

    def delete_temporary(self) -> None:
        """See `Storage.delete_temporary`."""
        self.delete([entry.path for entry in self._all("") if is_temporary(entry.path)])

    def delete_empty_folders(self, folder: str) -> None:
        """See `Storage.delete_empty_folders`."""

    @cached_property
    def _store(self) -> ObjectStore:
        return connect(self.uri, silence=10, patience=self._patience.brief)

    @cached_property
    def _single(self) -> ObjectStore:
        """Never repeats a request by itself."""
        return connect(self.uri, silence=10, patience=0)

    @cached_property
    def _patient(self) -> ObjectStore:
        """For requests that keep a store busy or a line full before it answers: uploads, copies."""
        return connect(self.uri, silence=300, patience=self._patience.brief)

    def _asked(self, action: str, path: str, request: Callable[[], _Value]) -> _Value:
        """The result of a request that may be made twice without harm."""
        with self._explained(action, path):
            return self._patience.repeated(self._shown(path), request)

    def _all(self, folder: str) -> Iterator[Entry]:
        in_order = Address.parse(self.uri).lists_in_order
        with self._explained("list", folder):
            yield from _listed(self._pages(folder, resume=in_order), in_order=in_order, uri=self.uri)

    def _pages(self, folder: str, *, resume: bool) -> Iterator[Entry]:
        """The objects as they come; after a broken reply, from behind the last one on."""
        last: str | None = None
        pages = None
        while True:
            with self._patience.repeats(self._shown(folder)) as repeats:
                while True:
                    try:
                        pages = pages or obstore.list(self._store, folder or None, offset=last, chunk_size=_PAGE)
                        page = next(pages, None)
                        break
                    except exceptions.GenericError as error:
                        if last is not None and not resume:
                            raise
                        repeats.wait(error)
                        pages = None
            if page is None:
                return
            for meta in page:
                yield Entry(meta["path"], meta["size"], meta["e_tag"] or str(meta["last_modified"]))
                last = meta["path"]

    def _bytes_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except NotFoundError:
            return None

    def _upload(self, path: str, spool: IO[bytes], size: int) -> None:
        part = max(_PART, -(-size // _MOST_PARTS))

        def put() -> None:
            spool.seek(0)
            obstore.put(self._patient, checked(path), spool, chunk_size=part, max_concurrency=4)

        self._asked("write", path, put)
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


def _listed(found: Iterator[Entry], *, in_order: bool, uri: str) -> Iterator[Entry]:
    """Every object of a listing, sorted by path.

    Args:
        found: the objects.
        in_order: whether the store lists in order; otherwise everything is collected and sorted first.
        uri: how error messages call the store.

    Raises:
        StorageError: the store lists out of order although it shouldn't.
        BaseError: obstore's, for anything else.
    """
    waiting: Entry | None = None
    for entry in found if in_order else sorted(found):
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
