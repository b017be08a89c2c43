"""Random access to the samples of data sets: whole, or only some of their members."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import BinaryIO

import numpy as np

from patchmint.datasets.dataset import Column, Dataset
from patchmint.datasets.extents import Endings, Extent, Read, assemble, stored_endings
from patchmint.datasets.rows import extents_of, rows_at
from patchmint.errors import ShardError
from patchmint.shards.reader import StoredSample
from patchmint.storage import Storage
from patchmint.storage.ahead import done_ahead
from patchmint.types import Integers, Progress

_OPEN_FILES = 64
_TABLES = 16
_THREADS = 16
_AHEAD = 32
# Samples fetched before their turn: a store answers each within tens of milliseconds, wherever it lies.


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A sample of one of several data sets.

    Attributes:
        dataset: number of the data set.
        epoch: of that data set, in training; else 0.
        index: position in the data set.
    """

    dataset: int
    epoch: int
    index: int


class SampleReader:
    """Reads samples of some data sets by their positions.

    Of local tars only the wanted bytes are read, from files that stay open; from stores ranges are fetched ahead of
    their turn. Where a data set's extents aren't in memory (`with_extents`), the sidecars of the shards read last are.
    """

    def __init__(self, datasets: Sequence[Dataset], endings: Collection[str] | None = None) -> None:
        """Take data sets; nothing is read yet.

        Args:
            datasets: where the samples lie.
            endings: members that samples come with, such as "selector.npy" (`patchmint.shards.endings`), of a document
                those of each image; those that a sample lacks are left out. None: all.
        """
        self._datasets = datasets
        self._endings = endings
        self._local = all(dataset.storage.is_local for dataset in datasets)
        self._files = _OpenFiles()
        self._extents = lru_cache(_TABLES)(lambda dataset, shard: extents_of(datasets[dataset], shard))
        self._stored = [stored_endings(dataset, endings) for dataset in datasets]

    def sample(self, index: int, dataset: int = 0) -> StoredSample:
        """One sample. Safe across threads.

        Raises:
            InputError: there are fewer samples.
            ShardError: a sidecar belongs to another tar, or the sample is damaged.
            StorageError: it can't be read.
        """
        return read_extent(self._datasets[dataset], self.locate(SampleRef(dataset, 0, index)), self._endings)

    def read(self, refs: Iterable[SampleRef]) -> Iterator[tuple[SampleRef, StoredSample | ShardError]]:
        """Read samples in the order asked for; a damaged one comes as the error that says so. For one thread.

        Raises:
            InputError: a data set has fewer samples.
            ShardError: a sidecar is damaged, or belongs to another tar.
            StorageError: a tar can't be read.
        """
        located = ((ref, self.locate(ref)) for ref in refs)
        if self._local:
            for ref, extent in located:
                try:
                    yield ref, self._read_local(ref, extent)
                except ShardError as error:
                    yield ref, error
            return
        for (ref, extent), data in done_ahead(self._read_ranges, located, threads=_THREADS, ahead=_AHEAD):
            try:
                yield ref, _of_ranges(self._datasets[ref.dataset], extent, self._stored[ref.dataset], data)
            except ShardError as error:
                yield ref, error

    def describe(self, ref: SampleRef) -> str:
        """Which sample that is, for errors about one whose bytes don't tell it any more."""
        dataset, extent = self._datasets[ref.dataset], self.locate(ref)
        ((_, row),) = rows_at(dataset, np.array([ref.index]), ["key"])
        return f"sample {row['key']!r} of {dataset.uri} ({extent.tar}, byte {extent.offset})"

    def locate(self, ref: SampleRef) -> Extent:
        """Where a sample's bytes are. Safe across threads.

        Raises:
            InputError: there are fewer samples.
            ShardError: the sidecar is damaged, or belongs to another tar.
            StorageError: it can't be read.
        """
        dataset = self._datasets[ref.dataset]
        shard, row = dataset.place(ref.index)
        if dataset.extents is None:
            return self._extents(ref.dataset, shard)[row]
        offsets, sizes = dataset.extents
        parts = tuple(_extent_in(column, ref.index) for column in dataset.columns)
        return Extent(shard.tar, int(offsets[ref.index]), int(sizes[ref.index]), None, parts)

    def _read_ranges(self, located: tuple[SampleRef, Extent]) -> list[bytes]:
        ref, extent = located
        return _read_ranges(self._datasets[ref.dataset], extent)

    def _read_local(self, ref: SampleRef, extent: Extent) -> StoredSample:
        def read(number: int, dataset: Dataset, tar: str) -> Read:
            return partial(_read_at, self._files.at((ref.dataset, number), dataset.storage, tar), dataset.storage, tar)

        return assemble(self._datasets[ref.dataset], extent, self._stored[ref.dataset], read)


def read_extent(dataset: Dataset, extent: Extent, endings: Endings = None) -> StoredSample:
    """The sample at a known place.

    Raises:
        ShardError: the sidecar belongs to another tar, or the sample is damaged.
        StorageError: it can't be read.
    """
    return _of_ranges(dataset, extent, stored_endings(dataset, endings), _read_ranges(dataset, extent))


def sample_at(dataset: Dataset, index: int) -> StoredSample:
    """One sample, by its position; reads the shard's table for the place, and then only the sample's bytes.

    Raises:
        InputError, ShardError, StorageError: as for `SampleReader.sample`.
    """
    return SampleReader([dataset]).sample(index)


def iter_stored(
    dataset: Dataset,
    indices: Sequence[int] | Integers,
    endings: Collection[str],
    progress: Progress | None = None,
) -> Iterator[tuple[int, StoredSample]]:
    """Samples at some positions, best ascending, with only the members asked for.

    Args:
        dataset: whose.
        indices: positions in the data set.
        endings: as for `SampleReader`.
        progress: told after each sample.

    Raises:
        InputError: there are fewer samples.
        ShardError: a sidecar belongs to another tar, or a sample is damaged.
        StorageError: a tar can't be read.
    """
    refs = (SampleRef(0, 0, int(index)) for index in indices)
    for done, (ref, sample) in enumerate(SampleReader([dataset], endings).read(refs), start=1):
        if isinstance(sample, ShardError):
            raise sample
        yield ref.index, sample
        if progress is not None:
            progress(done, len(indices))


def dataset_notice(dataset: Dataset) -> str:
    """What says that untrained or demo models made it; of an unfinished build or a lone tar, by its first sample.

    Returns:
        Empty where there is none.

    Raises:
        ShardError: the sample is damaged.
        StorageError: it can't be read.
    """
    if dataset.manifest is not None:
        return dataset.manifest.notice
    return sample_at(dataset, 0).key_json.notice if dataset.samples else ""


def _read_ranges(dataset: Dataset, extent: Extent) -> list[bytes]:
    places = extent.all_in(dataset)
    return [own.storage.read_range(place.tar, place.offset, place.size) for _, own, place in places]


def _of_ranges(dataset: Dataset, extent: Extent, endings: Sequence[Endings], data: Sequence[bytes]) -> StoredSample:
    """The sample of bytes that were read at its place."""
    found = {
        number: (place.offset, part) for (number, _, place), part in zip(extent.all_in(dataset), data, strict=True)
    }

    def read(number: int, _: Dataset, __: str) -> Read:
        first, part = found[number]
        return lambda start, size: part[start - first : start - first + size]

    return assemble(dataset, extent, endings, read)


def _extent_in(column: Column, index: int) -> Extent | None:
    assert column.extents is not None
    tar, offset, size = (int(array[index]) for array in column.extents)
    return Extent(column.dataset.shards[tar].tar, offset, size, None) if tar >= 0 else None


def _read_at(file: int, storage: Storage, tar: str, offset: int, size: int) -> bytes:
    try:
        data = os.pread(file, size, offset)
    except OSError:
        data = b""
    if len(data) == size:
        return data
    # This says what is wrong; or it reads on, where the system gave less than was asked for.
    return storage.read_range(tar, offset, size)


class _OpenFiles:
    """The local tars read last."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[tuple[int, int], str], BinaryIO] = OrderedDict()

    def at(self, dataset: tuple[int, int], storage: Storage, path: str) -> int:
        """Descriptor of an open file, of a data set (its number, and 0) or a column (that, and its own number)."""
        file = self._files.pop((dataset, path), None)
        if file is None:
            file = storage.open(path)
            if len(self._files) == _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files[dataset, path] = file
        return file.fileno()

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()
