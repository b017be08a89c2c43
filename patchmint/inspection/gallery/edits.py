"""Edits made in the gallery: lines of a file, drawn over what is stored until `patchmint correct` applies them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from patchmint.datasets.corrections import corrected, standing
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.edits import Edit, read_edits
from patchmint.datasets.reader import SampleReader
from patchmint.datasets.rows import rows_at
from patchmint.errors import InputError
from patchmint.shards.reader import StoredSample
from patchmint.storage import open_storage


class PendingEdits:
    """An edits file. Each change is on the disk, whole, before anybody is told of it. Safe across threads.

    Other processes may add to the file: it is read again when it has changed.
    """

    def __init__(self, path: Path) -> None:
        """Read it, if it is there.

        Raises:
            InputError: it holds something else, or can't be read.
        """
        self.path = path.absolute()
        self._lock = Lock()
        self._state: tuple[int, int, int] | None = None
        self._edits: list[Edit] = []
        self.all()

    def all(self) -> list[Edit]:
        """Every edit in the file, in order. Raises an InputError, as for a new one."""
        with self._lock:
            return list(self._read())

    def of(self, key: str) -> list[Edit]:
        """The edits of a sample, in order. Raises an InputError, as for a new one."""
        return [edit for edit in self.all() if edit.key == key]

    def append(self, edit: Edit) -> None:
        """Add an edit. Raises an InputError, or a StorageError where the file can't be written."""
        with self._lock:
            self._write([*self._read(), edit])

    def drop(self, edit: Edit) -> None:
        """Take away an edit, where there are several like it the last. Raises as `append`."""
        with self._lock:
            others = self._read()[::-1]
            if edit in others:
                others.remove(edit)
                self._write(others[::-1])

    def _read(self) -> list[Edit]:
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                if (state := (about.st_mtime_ns, about.st_size, about.st_ino)) != self._state:
                    self._edits = [line.edit for line in read_edits(file, str(self.path))]
                    self._state = state
        except FileNotFoundError:
            self._state, self._edits = None, []
        except OSError as error:
            raise InputError(
                f"can't read {self.path}: {error.strerror or error}; name another file of edits"
            ) from error
        return self._edits

    def _write(self, edits: Sequence[Edit]) -> None:
        open_storage(self.path.parent).write(self.path.name, b"".join(edit.to_line() for edit in edits))
        self._read()


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
        stand = standing(row)
        waiting = [edit for edit in self._pending.of(sample.key) if edit not in stand]
        named = [(self._pending.path.name, edit) for edit in (*waiting, *more)]
        made = corrected(self._dataset, self._base, index, sample, row, named) if named else None
        after = sample if made is None else made.sample
        wrong = bool(row.get("wrong")) if made is None else made.wrong
        return EditedSample(after.on_grid(self._grid) if self._grid else after, tuple(waiting), wrong)
