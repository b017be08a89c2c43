"""A prefix in a bucket of S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore import exceptions

from patchmint.errors import NotFoundError, StorageError
from patchmint.storage.failures import explain, explain_store
from patchmint.storage.interface import Entry, NewFile, uri_of
from patchmint.storage.listing import listed
from patchmint.storage.paths import checked, is_temporary
from patchmint.storage.ranges import RangeFile
from patchmint.storage.repeat import Repeats, repeated
from patchmint.storage.stores import Address, connect

if TYPE_CHECKING:
    from obstore.store import ObjectStore

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
            return repeated(lambda: bytes(obstore.get(self._store, checked(path)).bytes()))

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
                data = bytes(repeated(wanted))
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
            return repeated(lambda: obstore.head(self._store, checked(path)))["size"]

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

    def open(self, path: str) -> BinaryIO:
        """See `Storage.open`."""
        size = self.size(path)
        return io.BufferedReader(RangeFile(partial(self.read_range, path), size, self._shown(path)), _BUFFER)

    def write(self, path: str, data: bytes) -> None:
        """See `Storage.write`."""
        name, store = checked(path), self._patient if len(data) > _BUFFER else self._store
        with self._explained("write", path):
            repeated(lambda: obstore.put(store, name, data, chunk_size=_PART))

    def create(self, path: str, data: bytes) -> bool:
        """See `Storage.create`."""
        repeats = Repeats()
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
                    # S3 says so too while another write of the same name is under way, and that may fail.
                    repeats.wait(error)
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
            repeated(lambda: obstore.copy(self._patient, checked(source), checked(target)))
        self._check_size(target, size)
        self.delete([source])

    def delete(self, paths: Iterable[str]) -> None:
        """See `Storage.delete`."""
        names = [checked(path) for path in paths]
        if not names:
            return
        with self._explained("delete", names[0]):
            try:
                repeated(lambda: obstore.delete(self._store, names))
            except FileNotFoundError:
                # Google and Azure stop at the first absent one.
                for name in names:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, name)

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
            yield from listed(self._store, folder, in_order=in_order, uri=self.uri)

    def _bytes_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except NotFoundError:
            return None

    def _upload(self, path: str, spool: Path, size: int) -> None:
        part = max(_PART, -(-size // _MOST_PARTS))
        with self._explained("write", path):
            repeated(lambda: obstore.put(self._patient, checked(path), spool, chunk_size=part, max_concurrency=4))
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
