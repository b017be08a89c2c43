"""Which keys do two shards have? Held as hashes, so that ten million keys take 160 MB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError, StorageError
from patchmint.shards.findings import MAX_PER_SHARD, Finding
from patchmint.shards.reader import iter_members
from patchmint.shards.verify_tar import key_hash
from patchmint.storage import Storage


class KeyTable:
    """Collects the hashes of all keys, shard by shard."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._hashes: list[npt.NDArray[np.uint64]] = []

    def add(self, shard: str, hashes: Sequence[int]) -> None:
        """Add a shard's keys, each once."""
        self._shards.append(shard)
        self._hashes.append(np.array(hashes, dtype=np.uint64))

    def duplicates(self, storage: Storage) -> Iterator[Finding]:
        """A finding for each key of a shard that an earlier shard has too; the hundred first, if there are more."""
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        shards = np.repeat(np.arange(len(self._shards)), [len(part) for part in self._hashes])
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        names: dict[int, dict[int, str]] = {}
        for place in again[:MAX_PER_SHARD].tolist():
            first, second = int(shards[order[place - 1]]), int(shards[order[place]])
            if second not in names:
                names[second] = _names(storage, self._shards[second])
            key = names[second].get(int(hashes[order[place]]), "")
            message = f"{self._shards[first]} has a sample of the same key"
            yield Finding(self._shards[second], key[:120], "key-duplicate", message)
        if len(again) > MAX_PER_SHARD:
            yield Finding("", "", "more", f"{len(again) - MAX_PER_SHARD} more keys that two shards have")


def _names(storage: Storage, shard: str) -> dict[int, str]:
    names: dict[int, str] = {}
    try:
        with storage.open(shard) as file:
            for member in iter_members(file, shard):
                names[key_hash(member.key)] = member.key
    except (ShardError, StorageError):  # a finding of the shard itself
        pass
    return names
