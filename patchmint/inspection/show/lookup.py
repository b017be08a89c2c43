"""From a key to its sample, without a search: an index of 64-bit hashes, made once and kept in the user's cache."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError, ShardError
from patchmint.inspection.cache import cached_index
from patchmint.inspection.dataset import Dataset, spread
from patchmint.inspection.rows import Progress, iter_tables, read_table
from patchmint.inspection.samples import sample_at
from patchmint.shards.reader import StoredSample, read_sample

_NAMES = ("key", "id")
_COMPARED_SHARDS, _COMPARED_KEYS = 32, 20_000
_NEAREST = 3
_MAX_SHOWN = 5

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """A sample that was looked up.

    Attributes:
        index: its position in the data set.
        sample: it.
    """

    index: int
    sample: StoredSample


def find_sample(dataset: Dataset, name: str, progress: Progress | None = None) -> Found:
    """Look a sample up.

    The first look into a data set of several shards reads the names of all its samples, once; each later one reads a
    few pages of the index, a row of a sidecar and the sample.

    Args:
        dataset: where.
        name: its key; or "#" and its position, from 0 on; or, where no key is so, the source's own name for it.
        progress: told while the index is being made.

    Raises:
        InputError: there is no such sample, or several have that name in the source.
        ShardError: a sidecar or the sample is damaged.
        StorageError: it can't be read.
    """
    if name.startswith("#") and name[1:].isdecimal():
        index = int(name[1:])
        return Found(index, sample_at(dataset, index))
    alone = len(dataset.shards) == 1
    folder = None if alone else cached_index(dataset, "keys-1", lambda folder: _build(dataset, folder, progress))
    for column in _NAMES:
        candidates = _rows_named(dataset, column, name) if folder is None else _candidates(folder, column, name)
        # Hashes of different names may be equal.
        found = [row for row in map(partial(_row, dataset), candidates) if row.names[column] == name]
        if len(found) > 1 and column == "id":
            raise InputError(_ambiguous(name, found))
        if found:
            return _read(dataset, found[0])
    raise InputError(_unknown(dataset, name))


@dataclass(frozen=True)
class _Row:
    """What a sidecar says of a sample."""

    index: int
    names: dict[str, str]
    offset: int
    size: int


def _row(dataset: Dataset, index: int) -> _Row:
    shard, row = dataset.place(index)
    table = read_table(dataset, shard, [*_NAMES, "offset", "size"])
    values = {column: table[column][row].as_py() for column in table.column_names}
    return _Row(index, {column: values[column] for column in _NAMES}, values["offset"], values["size"])


def _read(dataset: Dataset, row: _Row) -> Found:
    tar = dataset.place(row.index)[0].tar
    sample = read_sample(dataset.storage, tar, row.offset, row.size)
    if sample.key != row.names["key"]:
        raise ShardError(
            f"{tar} of {dataset.uri} has sample {sample.key!r} where its sidecar has {row.names['key']!r}; run "
            f"`patchmint inspect verify {dataset.uri}`"
        )
    return Found(row.index, sample)


def name_hash(name: str) -> int:
    """64 bits of a name; the same everywhere."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _build(dataset: Dataset, folder: Path, progress: Progress | None) -> None:
    """For each kind of name its hashes, sorted, and the samples' positions in the same order: 12 to 16 bytes each."""
    hashes = {column: np.empty(dataset.samples, np.uint64) for column in _NAMES}
    start = 0
    for shard, table in iter_tables(dataset, _NAMES, progress):
        for column in _NAMES:
            names = table[column].to_pylist()
            hashes[column][start : start + shard.samples] = np.fromiter(map(name_hash, names), np.uint64, len(names))
        start += shard.samples
    kind = np.uint32 if dataset.samples < 1 << 32 else np.uint64
    for column in _NAMES:
        order = np.argsort(hashes[column], kind="stable")
        np.save(folder / f"{column}-hashes.npy", hashes[column][order], allow_pickle=False)
        np.save(folder / f"{column}-samples.npy", order.astype(kind), allow_pickle=False)


def _candidates(folder: Path, column: str, name: str) -> list[int]:
    hashes: Hashes = np.load(folder / f"{column}-hashes.npy", mmap_mode="r", allow_pickle=False)
    wanted = np.uint64(name_hash(name))
    first, end = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
    if first == end:
        return []
    samples: Indices = np.load(folder / f"{column}-samples.npy", mmap_mode="r", allow_pickle=False)
    return [int(index) for index in samples[first:end]]


def _rows_named(dataset: Dataset, column: str, name: str) -> list[int]:
    names = read_table(dataset, dataset.shards[0], [column])[column].to_pylist()
    return [index for index, found in enumerate(names) if found == name]


def _ambiguous(name: str, found: Sequence[_Row]) -> str:
    keys = ", ".join(repr(row.names["key"]) for row in found[:_MAX_SHOWN])
    more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    return f"{len(found)} samples have the id {name!r} in the source; give a key: {keys}{more}"


def _unknown(dataset: Dataset, name: str) -> str:
    if not dataset.samples:
        return f"{dataset.uri} has no samples yet, so none with the key {name!r}; see `patchmint inspect ls`"
    keys = list(_some_keys(dataset))
    near = difflib.get_close_matches(name, keys, _NEAREST, cutoff=0.5) or keys[:_NEAREST]
    return (
        f"{dataset.uri} has no sample with the key or id {name!r}; there are such as {', '.join(map(repr, near))}; a "
        "position is written '#17'"
    )


def _some_keys(dataset: Dataset) -> Iterator[str]:
    """Keys to compare with: of a small data set all, of a large one those of shards spread over it."""
    shards = [shard for shard in dataset.shards if shard.samples]
    chosen = [shards[number] for number in spread(len(shards), _COMPARED_SHARDS).tolist()]
    each = -(-_COMPARED_KEYS // len(chosen))
    return chain.from_iterable(read_table(dataset, shard, ["key"])["key"].to_pylist()[:each] for shard in chosen)
