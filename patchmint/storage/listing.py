"""Listings of object stores: in order, resumed where one breaks off, without what only marks folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions

from patchmint.errors import StorageError
from patchmint.storage.interface import Entry
from patchmint.storage.repeat import Repeats

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PAGE = 1000


def listed(store: ObjectStore, folder: str, *, in_order: bool, uri: str) -> Iterator[Entry]:
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
    repeats = Repeats()
    last: str | None = None
    while True:
        try:
            for page in obstore.list(store, folder or None, offset=last, chunk_size=_PAGE):
                for meta in page:
                    yield Entry(meta["path"], meta["size"])
                    last = meta["path"]
                repeats = Repeats()
        except exceptions.GenericError as error:
            if last is not None and not resume:
                raise
            repeats.wait(error)
        else:
            return
