"""What one tar holds, sample by sample: of anybody's tars too, from their headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from patchmint.datasets.dataset import open_tar, sidecar_of
from patchmint.shards.reader import Member, iter_members, read_sample
from patchmint.shards.sidecar import SCHEMA, read_table
from patchmint.storage import Storage


@dataclass(frozen=True)
class ListedSample:
    """Members that stand together in a tar and share what is before the first dot of their names.

    Attributes:
        key: that.
        offset: first byte of the first member's header.
        size: bytes of all members, headers and padding included.
        members: what follows the key; with what it is in brackets where that is no file.
    """

    key: str
    offset: int
    size: int
    members: tuple[str, ...]


def list_tar(uri: str) -> Iterator[ListedSample]:
    """List a tar: one of ours from the table beside it (its samples have the same members), others from their headers.

    Raises:
        InputError: there is no such tar.
        ShardError: it is no tar, or it is cut; or the table is damaged.
        StorageError: it can't be read.
    """
    storage, name = open_tar(uri)
    sidecar = sidecar_of(name)
    return _from_sidecar(storage, name, sidecar) if storage.exists(sidecar) else _from_headers(storage, name)


def _from_sidecar(storage: Storage, name: str, sidecar: str) -> Iterator[ListedSample]:
    rows = read_table(storage, sidecar, SCHEMA, ["key", "offset", "size"]).to_pydict()
    members: tuple[str, ...] = ()
    for key, offset, size in zip(rows["key"], rows["offset"], rows["size"], strict=True):
        members = members or tuple(read_sample(storage, name, offset, size).members)
        yield ListedSample(key, offset, size, members)


def _from_headers(storage: Storage, name: str) -> Iterator[ListedSample]:
    with storage.open(name) as file:
        for key, group in groupby(iter_members(file, name, headers_only=True), key=lambda member: member.key):
            members = list(group)
            offset = members[0].offset
            yield ListedSample(key, offset, members[-1].end - offset, tuple(map(_shown, members)))


def _shown(member: Member) -> str:
    return member.ending if member.kind == "file" else f"{member.ending} ({member.kind})".lstrip()
