"""Samples at given positions, whole or only some of their members."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO

import pyarrow as pa

from patchmint.datasets.arrays import Integers
from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.rows import Progress, read_table
from patchmint.errors import ShardError
from patchmint.shards.reader import StoredSample, parse_sample, read_header, read_sample
from patchmint.storage import uri_of
from patchmint.storage.ahead import done_ahead

_BLOCK = 512
_THREADS = 16
_AHEAD = 32


def sample_at(dataset: Dataset, index: int) -> StoredSample:
    """One sample, by its position; reads the shard's table for the place, and then only the sample's bytes.

    Raises:
        InputError: there are fewer samples.
        ShardError: the sidecar belongs to another tar, or the sample is damaged.
        StorageError: it can't be read.
    """
    shard, row = dataset.place(index)
    places = read_table(dataset, shard, ["offset", "size"])
    return read_sample(dataset.storage, shard.tar, places["offset"][row].as_py(), places["size"][row].as_py())


def iter_stored(
    dataset: Dataset,
    indices: Sequence[int] | Integers,
    endings: Collection[str],
    progress: Progress | None = None,
) -> Iterator[tuple[int, StoredSample]]:
    """Samples at ascending positions, with only the members asked for.

    From a folder only those members' bytes are read, images are passed over; from a store a sample comes whole.

    Args:
        dataset: whose.
        indices: positions in the data set, ascending.
        endings: such as "selector.npy" (`patchmint.shards.keys`); those that a sample lacks are left out.
        progress: told after each sample.

    Raises:
        InputError: there are fewer samples.
        ShardError: a sidecar belongs to another tar, or a sample is damaged.
        StorageError: a tar can't be read.
    """
    wanted = frozenset(endings)
    placed = ((int(index), *dataset.place(int(index))) for index in indices)
    done = 0
    for shard, group in groupby(placed, key=itemgetter(1)):
        positions, _, rows = zip(*group, strict=True)
        table = read_table(dataset, shard, ["key", "offset", "size"])
        keys = table["key"].take(pa.array(rows)).to_pylist()
        places = [(int(table["offset"][row].as_py()), int(table["size"][row].as_py())) for row in rows]
        for index, key, sample in zip(positions, keys, _read(dataset, shard, places, wanted), strict=True):
            if sample.key != key:
                raise ShardError(
                    f"{shard.tar} of {dataset.uri} has sample {sample.key!r} where its sidecar has {key!r}; run "
                    f"`patchmint inspect verify {dataset.uri}`",
                    uri=uri_of(dataset.storage, shard.tar),
                )
            yield index, sample
            done += 1
            if progress is not None:
                progress(done, len(indices))


def _read(
    dataset: Dataset, shard: Shard, places: Sequence[tuple[int, int]], wanted: frozenset[str]
) -> Iterator[StoredSample]:
    if dataset.storage.is_local:
        with dataset.storage.open(shard.tar) as file:
            for offset, size in places:
                yield _pick(file, shard.tar, offset, size, wanted)
        return

    def read_range(place: tuple[int, int]) -> bytes:
        return dataset.storage.read_range(shard.tar, *place)

    for (offset, _), data in done_ahead(read_range, places, threads=_THREADS, ahead=_AHEAD):
        whole = parse_sample(data, shard.tar, offset)
        members = {ending: data for ending, data in whole.members.items() if ending in wanted}
        yield StoredSample(whole.key, offset, whole.size, members)


def _pick(file: BinaryIO, tar: str, offset: int, size: int, wanted: frozenset[str]) -> StoredSample:
    """Walk a sample's headers, and read what is wanted."""
    position, key = offset, ""
    members: dict[str, bytes] = {}
    while position < offset + size:
        file.seek(position)
        name, length, kind = read_header(file.read(_BLOCK), tar)
        key, _, ending = name.partition(".")
        end = position + _BLOCK + length + -length % _BLOCK
        if kind != "file" or length < 0 or end > offset + size:
            raise ShardError(f"{tar} has a member that ends outside its sample; run `patchmint inspect verify` on it")
        if ending in wanted:
            members[ending] = file.read(length)
        position = end
    return StoredSample(key, offset, size, members)
