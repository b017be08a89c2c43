"""Random access to the samples of data sets: whole, or only some of their members."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, BinaryIO

import numpy as np

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.rows import read_table, rows_at
from patchmint.errors import ShardError, about
from patchmint.shards.endings import COVERAGE, SELECTOR, on_grid
from patchmint.shards.foreign import parse_foreign
from patchmint.shards.reader import StoredSample, parse_sample, walk_sample
from patchmint.storage import Storage, uri_of
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


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a sample's bytes are.

    Attributes:
        tar: path in the storage.
        offset: first byte.
        size: number of bytes.
        key: by the sidecar; None where that wasn't looked up.
    """

    tar: str
    offset: int
    size: int
    key: str | None


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
        self._columns = lru_cache(_TABLES)(partial(_read_columns, datasets))

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
        for (ref, extent), data in done_ahead(self._read_range, located, threads=_THREADS, ahead=_AHEAD):
            try:
                yield ref, _parsed(self._datasets[ref.dataset], extent, data, self._endings)
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
        if dataset.extents is not None:
            offsets, sizes = dataset.extents
            return Extent(shard.tar, int(offsets[ref.index]), int(sizes[ref.index]), None)
        columns = self._columns(ref.dataset, shard)
        return Extent(shard.tar, columns["offset"][row], columns["size"][row], columns["key"][row])

    def _read_range(self, located: tuple[SampleRef, Extent]) -> bytes:
        ref, extent = located
        return self._datasets[ref.dataset].storage.read_range(extent.tar, extent.offset, extent.size)

    def _read_local(self, ref: SampleRef, extent: Extent) -> StoredSample:
        dataset = self._datasets[ref.dataset]
        file = self._files.at(ref.dataset, dataset.storage, extent.tar)
        read = partial(_read_at, file, dataset.storage, extent.tar)
        if self._endings is None or dataset.foreign:
            return _parsed(dataset, extent, read(extent.offset, extent.size), None)
        with about(uri_of(dataset.storage, extent.tar)):
            endings = _stored(dataset, self._endings)
            return _checked(dataset, extent, walk_sample(read, extent.tar, extent.offset, extent.size, endings))


def read_extent(dataset: Dataset, extent: Extent, endings: Collection[str] | None = None) -> StoredSample:
    """The sample at a known place.

    Raises:
        ShardError: the sidecar belongs to another tar, or the sample is damaged.
        StorageError: it can't be read.
    """
    data = dataset.storage.read_range(extent.tar, extent.offset, extent.size)
    return _parsed(dataset, extent, data, endings)


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


def _read_columns(datasets: Sequence[Dataset], number: int, shard: Shard) -> dict[str, list[Any]]:
    return read_table(datasets[number], shard, ["key", "offset", "size"]).to_pydict()  # type: ignore[no-any-return]


def _parsed(dataset: Dataset, extent: Extent, data: bytes, endings: Collection[str] | None) -> StoredSample:
    with about(uri_of(dataset.storage, extent.tar)):
        if dataset.foreign:
            return parse_foreign(data, extent.tar, extent.offset)
        return _checked(dataset, extent, parse_sample(data, extent.tar, extent.offset, _stored(dataset, endings)))


def _stored(dataset: Dataset, endings: Collection[str] | None) -> Collection[str] | None:
    """What members are called in the shards of a data set that is read on a further grid."""
    if endings is None or not dataset.further_grid:
        return endings
    labels = (SELECTOR, COVERAGE)
    return [on_grid(ending, dataset.further_grid) if ending in labels else ending for ending in endings]


def _checked(dataset: Dataset, extent: Extent, sample: StoredSample) -> StoredSample:
    if extent.key is not None and sample.key != extent.key:
        raise ShardError(
            f"{extent.tar} of {dataset.uri} has sample {sample.key!r} where its sidecar has {extent.key!r}; run "
            f"`patchmint inspect verify {dataset.uri}`"
        )
    sample = sample.on_grid(dataset.further_grid) if dataset.further_grid else sample
    return sample.with_codes(dataset.further_codes) if dataset.further_codes else sample


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
        self._files: OrderedDict[tuple[int, str], BinaryIO] = OrderedDict()

    def at(self, dataset: int, storage: Storage, path: str) -> int:
        """Descriptor of an open file."""
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
