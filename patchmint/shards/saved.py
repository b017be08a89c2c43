"""What an interrupted run had annotated of a unit, for the run that resumes: `saved/UNIT.json`, `.tar` and `.parquet`.

The tar and the table of rejects have the form of a unit's own; their samples may stand in another order. Nothing
depends on these files: without them, or where they don't fit, the unit is annotated from its beginning.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from patchmint.errors import NotFoundError
from patchmint.samples import NO_NUMBER, Reject
from patchmint.shards.paths import unit_name
from patchmint.shards.reader import StoredSample, iter_samples
from patchmint.shards.records import FileRecord
from patchmint.shards.rejects import read_rejects
from patchmint.storage import Storage

SAVED = "saved"
_CHUNK = 1 << 20
_Place = Annotated[int, Field(ge=0)]


def saved_path(unit: int, ending: str) -> str:
    """Where a unit's tar, parquet or json is saved."""
    return f"{SAVED}/{unit_name(unit)}.{ending}"


class SavedUnit(BaseModel):
    """`saved/UNIT.json`.

    Attributes:
        unit: its number in the plan.
        plan_digest: of the plan that the unit belongs to.
        samples: positions in the unit of the tar's samples, in the tar's order.
        rejects: positions of the rejects, in the table's order; of dropped images, their samples'.
        looked: the last position that had been considered for a batch; -1: none had.
        files: the tar and the table of rejects, by ending.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    unit: _Place
    plan_digest: str
    samples: list[_Place]
    rejects: list[_Place]
    looked: Annotated[int, Field(ge=-1)]
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wanted = {"tar"} if self.samples else set()
        wanted |= {"parquet"} if self.rejects else set()
        if {ending: file.path for ending, file in self.files.items()} != {
            ending: saved_path(self.unit, ending) for ending in wanted
        }:
            raise ValueError("its files aren't those of the unit")
        return self

    @property
    def positions(self) -> set[int]:
        """Of all that is saved."""
        return {*self.samples, *self.rejects}

    def read_samples(self, storage: Storage) -> Iterator[tuple[int, StoredSample]]:
        """Places and samples, in the tar's order.

        Raises:
            StorageError, ShardError: they can't be read.
        """
        if self.samples:
            yield from zip(self.samples, iter_samples(storage, self.files["tar"].path), strict=True)

    def read_rejects(self, storage: Storage) -> tuple[dict[int, Reject], dict[int, list[Reject]]]:
        """Rejected samples by position, and the dropped images of others. Raises as `read_samples`."""
        samples: dict[int, Reject] = {}
        images: defaultdict[int, list[Reject]] = defaultdict(list)
        rejects = read_rejects(storage, self.files["parquet"].path) if self.rejects else []
        for position, reject in zip(self.rejects, rejects, strict=True):
            if reject.image == NO_NUMBER:
                samples[position] = reject
            else:
                images[position].append(reject)
        return samples, dict(images)


def find_saved(storage: Storage, unit: int, plan_digest: str) -> SavedUnit | None:
    """What is saved of a unit; None where nothing is, or not of this plan, or not whole.

    Raises:
        StorageError: the storage failed.
    """
    try:
        saved = SavedUnit.model_validate_json(storage.read(saved_path(unit, "json")))
        if (
            saved.unit == unit
            and saved.plan_digest == plan_digest
            and all(_is_whole(storage, file) for file in saved.files.values())
        ):
            return saved
    except (NotFoundError, ValidationError):
        pass
    return None


def _is_whole(storage: Storage, file: FileRecord) -> bool:
    """Two drivers may have saved the same unit, one its tar and one its record."""
    if storage.size(file.path) != file.size:
        return False
    found = hashlib.sha256()
    with storage.open(file.path) as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest() == file.sha256


def forget_saved(storage: Storage, unit: int | None = None) -> None:
    """Delete what is saved: of a unit that is committed, or of all.

    Raises:
        StorageError: the storage failed.
    """
    if unit is None:
        storage.delete([entry.path for entry in storage.list(SAVED)])
    else:
        storage.delete([saved_path(unit, ending) for ending in ("json", "parquet", "tar")])
