"""Edits made in the gallery: lines of a file, drawn over what is stored until `patchmint correct` applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from patchmint.datasets.corrections import corrected, edits_of
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.edits import Edit, read_edits
from patchmint.datasets.reader import SampleReader
from patchmint.datasets.rows import rows_at
from patchmint.shards.reader import StoredSample
from patchmint.storage import open_storage


class PendingEdits:
    """An edits file. Each change is on the disk, whole, before anybody is told of it. Safe across threads."""

    def __init__(self, path: Path) -> None:
        """Read it, if it is there.

        Raises:
            InputError: it holds something else.
            StorageError: it can't be read.
        """
        self.path = path.absolute()
        self._storage = open_storage(self.path.parent)
        self._lock = Lock()
        self._edits: list[Edit] = []
        if self._storage.exists(path.name):
            with self._storage.open(path.name) as file:
                self._edits = [line.edit for line in read_edits(file, str(path))]

    @property
    def keys(self) -> set[str]:
        """Of the samples that have edits."""
        return {edit.key for edit in self._edits}

    def of(self, key: str) -> list[Edit]:
        """The edits of a sample, in order."""
        return [edit for edit in self._edits if edit.key == key]

    def append(self, edit: Edit) -> None:
        """Add an edit. Raises a StorageError where the file can't be written."""
        with self._lock:
            self._write([*self._edits, edit])

    def drop(self, edit: Edit) -> None:
        """Take an edit away. Raises a StorageError where the file can't be written."""
        with self._lock:
            self._write([each for each in self._edits if each is not edit])

    def _write(self, edits: Sequence[Edit]) -> None:
        self._storage.write(self.path.name, b"".join(edit.to_line() for edit in edits))
        self._edits = list(edits)


@dataclass(frozen=True)
class EditedSample:
    """A sample as its edits make it: with their instances, and the labels of these.

    Attributes:
        sample: on the data set's grid.
        edits: that nobody has applied yet.
        wrong: whether it is marked wrong as a whole.
    """

    sample: StoredSample
    edits: tuple[Edit, ...]
    wrong: bool


class EditedReader:
    """Reads samples with their edits. Safe across threads."""

    def __init__(self, dataset: Dataset, pending: PendingEdits) -> None:
        """Take a data set with stored instances, on whatever grid it is read, and the edits that wait for it."""
        self._grid = dataset.further_grid
        self._dataset = dataset.on_grid(None)
        self._base = replace(self._dataset, columns=tuple(c for c in dataset.columns if not c.sparse))
        self._pending = pending
        self._reader = SampleReader([self._dataset])

    def read(self, index: int, more: Sequence[Edit] = ()) -> EditedSample:
        """A sample of the data set.

        Args:
            index: its position.
            more: edits after those that wait for it.

        Raises:
            InputError: an edit doesn't fit the sample.
            ShardError, StorageError: it can't be read.
        """
        sample = self._reader.sample(index)
        row: Mapping[str, Any] = {}
        if self._dataset.has_edits:
            ((_, row),) = rows_at(self._dataset, np.array([index]), ["wrong", "edits"])
        past = edits_of(row)
        waiting = [edit for edit in self._pending.of(sample.key) if edit not in past]
        named = [(self._pending.path.name, edit) for edit in (*waiting, *more)]
        made = corrected(self._dataset, self._base, index, sample, row, named) if named else None
        after = sample if made is None else made.sample
        wrong = bool(row.get("wrong")) if made is None else made.wrong
        return EditedSample(after.on_grid(self._grid) if self._grid else after, tuple(waiting), wrong)
