"""Reads samples at given places: from local tars directly, from object stores ahead of their turn."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from patchmint.datasets.sources import StoredDataset
from patchmint.errors import ShardError
from patchmint.shards.reader import StoredSample, parse_sample
from patchmint.storage import Storage
from patchmint.storage.ahead import done_ahead

_OPEN_FILES = 64
_THREADS = 8
_AHEAD = 32
# Samples asked for before their turn: a store answers each within tens of milliseconds, wherever it lies.


@dataclass(frozen=True, slots=True)
class Place:
    """Which sample comes.

    Attributes:
        dataset: number of the data set.
        epoch: of that data set; the run's own where no weights are given.
        index: of the sample, shards in order of their names.
    """

    dataset: int
    epoch: int
    index: int


class SampleReader:
    """Reads the samples of some data sets. Belongs to one process and one thread.

    Args:
        datasets: where the samples lie.
    """

    def __init__(self, datasets: Sequence[StoredDataset]) -> None:
        self._datasets = datasets
        self._local = all(dataset.storage.is_local for dataset in datasets)
        self._files = _OpenFiles()

    def read(self, places: Iterable[Place]) -> Iterator[tuple[Place, StoredSample | ShardError]]:
        """Read samples in the order asked for; a damaged one comes as the error that says so.

        Raises:
            StorageError: a tar can't be read.
        """
        if self._local:
            for place in places:
                yield place, self._parsed(place, self._read_file(place))
            return
        for place, data in done_ahead(self._read_range, places, threads=_THREADS, ahead=_AHEAD):
            yield place, self._parsed(place, data)

    def _parsed(self, place: Place, data: bytes) -> StoredSample | ShardError:
        tar, offset, _ = self._datasets[place.dataset].place(place.index)
        try:
            return parse_sample(data, tar, offset)
        except ShardError as error:
            return error

    def _read_range(self, place: Place) -> bytes:
        dataset = self._datasets[place.dataset]
        return dataset.storage.read_range(*dataset.place(place.index))

    def _read_file(self, place: Place) -> bytes:
        dataset = self._datasets[place.dataset]
        tar, offset, size = dataset.place(place.index)
        file = self._files.at(place.dataset, dataset.storage, tar)
        with suppress(OSError):
            data = os.pread(file, size, offset)
            if len(data) == size:
                return data
        # This says what is wrong; or it reads on, where the system gave less than was asked for.
        return dataset.storage.read_range(tar, offset, size)


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
