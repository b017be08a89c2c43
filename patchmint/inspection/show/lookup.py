"""From a key to its sample, without a search: an index of 64-bit hashes, made once and kept in the user's cache."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.extents import Extent
from patchmint.datasets.reader import read_extent, sample_at
from patchmint.datasets.rows import extents_of, iter_tables, read_table
from patchmint.errors import InputError, PatchmintError
from patchmint.inspection.cache import open_index
from patchmint.shards.reader import StoredSample
from patchmint.types import Integers, Progress

_NAMES = ("key", "id")
_COMPARED_SHARDS, _COMPARED_KEYS = 32, 20_000
_NEAREST = 3
_MAX_SHOWN = 5
_MAX_DIGITS = 19
# Of a position: more than any data set has samples.

Hashes = npt.NDArray[np.uint64]


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
        digits = name[1:].lstrip("0")[:_MAX_DIGITS] or "0"
        return Found(int(digits), sample_at(dataset, int(digits)))
    if len(dataset.shards) == 1:
        return _look_up(dataset, name, partial(_rows_named, dataset))
    index = _open(dataset, progress)
    try:
        return _look_up(dataset, name, index.positions)
    except _StaleIndexError:
        return _look_up(dataset, name, _open(dataset, progress, anew=True).positions)
    except InputError:
        if _agrees(dataset, index):
            raise
        return _look_up(dataset, name, _open(dataset, progress, anew=True).positions)


class _StaleIndexError(PatchmintError):
    """The index leads to a sample of another name: it is of another data set that looked like this one."""


def _look_up(dataset: Dataset, name: str, positions: Callable[[str, str], list[int]]) -> Found:
    for column in _NAMES:
        rows = [_row(dataset, index) for index in positions(column, name)]
        if any(name_hash(row.names[column]) != name_hash(name) for row in rows):
            raise _StaleIndexError(f"the index of {dataset.uri} is stale")
        # Hashes of different names may be equal.
        found = [row for row in rows if row.names[column] == name]
        if len(found) > 1 and column == "id":
            raise InputError(_ambiguous(name, found))
        if found:
            return Found(found[0].index, read_extent(dataset, found[0].extent))
    raise InputError(_unknown(dataset, name))


def _agrees(dataset: Dataset, index: _Index) -> bool:
    """Whether the index knows the first sample of shards spread over the data set."""
    numbers = [number for number, shard in enumerate(dataset.shards) if shard.samples]
    chosen = [int(dataset.starts[numbers[at]]) for at in spread(len(numbers), _COMPARED_SHARDS).tolist()]
    return all(first in index.positions("key", _row(dataset, first).names["key"]) for first in chosen)


@dataclass(frozen=True)
class _Row:
    """What a sidecar says of a sample."""

    index: int
    names: dict[str, str]
    extent: Extent


def _row(dataset: Dataset, index: int) -> _Row:
    shard, row = dataset.place(index)
    table = read_table(dataset, shard, [*_NAMES, "offset", "size"]).slice(row, 1)
    (extent,) = extents_of(dataset, shard, table)
    return _Row(index, {column: table[column][0].as_py() for column in _NAMES}, extent)


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


@dataclass(frozen=True)
class _Index:
    """By kind of name: its hashes, and the samples' positions."""

    hashes: dict[str, Hashes]
    samples: dict[str, Integers]

    def positions(self, column: str, name: str) -> list[int]:
        """Of the samples whose names have the hash of this one."""
        wanted = np.uint64(name_hash(name))
        first, end = (int(np.searchsorted(self.hashes[column], wanted, side)) for side in ("left", "right"))
        return [int(index) for index in self.samples[column][first:end]]


def _open(dataset: Dataset, progress: Progress | None, *, anew: bool = False) -> _Index:
    def build(folder: Path) -> None:
        _build(dataset, folder, progress)

    return open_index(dataset, "keys-1", build, partial(_load, dataset.samples), anew=anew)


def _load(count: int, folder: Path) -> _Index:
    hashes, samples = (
        {column: np.load(folder / f"{column}-{part}.npy", mmap_mode="r", allow_pickle=False) for column in _NAMES}
        for part in ("hashes", "samples")
    )
    for array in (*hashes.values(), *samples.values()):
        if array.shape != (count,):
            raise ValueError(f"an array of shape {array.shape} for {count} samples")
    return _Index(hashes, samples)


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
