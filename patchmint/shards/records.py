"""The commit record: which attempt a unit's bytes come from.

Its presence decides that the unit is done; everything else follows from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from patchmint.errors import ShardError
from patchmint.shards.paths import PREFIX, canonical_paths
from patchmint.shards.schema import first_error
from patchmint.shards.shard_list import ListedUnit

ATTEMPTS = "attempts"
_ATTEMPT_ID = re.compile(r"(?P<run>[a-z0-9][a-z0-9-]*)-(?P<unit>[0-9]{6,})-[0-9a-f]{16}")

_Count = Annotated[int, Field(ge=0)]


def attempt_path(attempt: str, canonical: str) -> str:
    """Where an attempt writes the file that is to be published under a canonical name."""
    return f"{ATTEMPTS}/{attempt}/{canonical.replace('/', '-')}"


def run_and_unit(attempt: str) -> tuple[str, int] | None:
    """The run and the unit that an attempt's id names; None if it isn't such an id."""
    match = _ATTEMPT_ID.fullmatch(attempt)
    return (match["run"], int(match["unit"])) if match else None


def mean_share(shares: Sequence[float]) -> float | None:
    """Mean label share, to six decimals and whatever the order; None of nothing.

    Args:
        shares: the column `label_shares` of some rows, one after another.
    """
    return round(math.fsum(shares) / len(shares), 6) if shares else None


def mean_share_of(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Mean label share of several units, to six decimals and whatever their order; None where none has labels.

    Args:
        parts: mean label share and number of texts of each unit.
    """
    labelled = [(share, texts) for share, texts in parts if share is not None and texts]
    if not labelled:
        return None
    return round(math.fsum(share * texts for share, texts in labelled) / sum(texts for _, texts in labelled), 6)


@dataclass(frozen=True)
class ImageCounts:
    """What became of the images of documents: those planned are written, dropped, or of rejected documents.

    Attributes:
        planned: images of planned documents.
        written: images in shards.
        dropped: images that documents were written without.
        most: of one written document.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    planned: _Count = 0
    written: _Count = 0
    dropped: _Count = 0
    most: _Count = 0

    @classmethod
    def of(cls, planned: int, records: Iterable[CommitRecord]) -> Self | None:
        """Add up what commit records say, of `planned` images; None where samples are pictures."""
        told = [record.images for record in records if record.images is not None]
        return (
            cls(
                planned=planned,
                written=sum(images.written for images in told),
                dropped=sum(images.dropped for images in told),
                most=max(images.most for images in told),
            )
            if told
            else None
        )


def describe_images(images: ImageCounts) -> str:
    """The images of documents, for people: "30 planned = 24 written + 2 dropped + 4 of rejected documents"."""
    rest = images.planned - images.written - images.dropped
    return (
        f"{images.planned} planned = {images.written} written + {images.dropped} dropped + {rest} of rejected documents"
    )


class FileRecord(BaseModel):
    """A file of a unit.

    Attributes:
        path: where the attempt wrote it, and where it is until it is published.
        size: bytes.
        sha256: in hex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    size: _Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class CommitRecord(BaseModel):
    """`commits/UNIT.json`.

    Attributes:
        unit: its number in the plan.
        attempt: whose files these are.
        plan_digest: of the plan that the unit belongs to.
        planned: samples in the plan; always `written` plus all `rejects`.
        written: samples in the shard; with none there is no shard.
        texts: of those samples.
        label_share: mean of their label shares, 0..1; None where there are no labels, or no texts.
        rejects: samples that weren't written, by reason.
        images: of documents; None where samples are pictures.
        prefix: what the shard's name begins with.
        rules: how codes were chosen, by their member; samples don't say it.
        files: by canonical path.
        seconds: from the attempt's beginning to the record.
        host: who did it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    unit: _Count
    attempt: str
    plan_digest: str
    planned: _Count
    written: _Count
    texts: _Count
    label_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
    rejects: dict[str, _Count]
    images: ImageCounts | None = Field(default=None, exclude_if=lambda images: images is None)
    prefix: Annotated[str, Field(pattern=f"^{PREFIX}$")] = ""
    rules: dict[str, str] = Field(default={}, exclude_if=lambda rules: not rules)
    files: dict[str, FileRecord]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    host: str

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.planned != self.written + sum(self.rejects.values()):
            raise ValueError("planned isn't written plus rejects")
        if self.images is not None and self.images.planned < self.images.written + self.images.dropped:
            raise ValueError("more images are written and dropped than planned")
        parsed = run_and_unit(self.attempt)
        if parsed is None or parsed[1] != self.unit:
            raise ValueError("the attempt isn't one at this unit")
        if unknown := self.files.keys() - set(self.paths):
            raise ValueError(f"{min(unknown)!r} isn't a file of this unit")
        # A record decides what is moved and deleted, so it can't name any path it likes.
        if any(file.path != attempt_path(self.attempt, name) for name, file in self.files.items()):
            raise ValueError("a file lies outside the attempt")
        return self

    @property
    def paths(self) -> tuple[str, str, str]:
        """`canonical_paths` of the unit, in the version that has its sidecar where this record does."""
        beside_the_tar = canonical_paths(self.unit, self.prefix, 1)
        return beside_the_tar if beside_the_tar[1] in self.files else canonical_paths(self.unit, self.prefix)

    def listed(self) -> ListedUnit:
        """What shards.json says of the unit."""
        _, sidecar, tar = (self.files.get(path) for path in self.paths)
        return ListedUnit(
            unit=self.unit,
            samples=self.written,
            rejected=self.planned - self.written,
            bytes=tar.size if tar else 0,
            table_bytes=sidecar.size if sidecar else 0,
            table_sha256=sidecar.sha256 if sidecar else "",
            texts=self.texts,
            label_share=self.label_share,
        )

    def to_json(self) -> bytes:
        """The record as it stands in its file."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, unit: int, shown: str) -> CommitRecord:
        """Read a record.

        Args:
            data: what its file holds.
            unit: whose record it should be.
            shown: how error messages call the file.

        Raises:
            ShardError: it is damaged, or another unit's.
        """
        try:
            record = cls.model_validate_json(data)
        except ValidationError as error:
            raise _damaged(shown, first_error(error)) from error
        if record.unit != unit:
            raise _damaged(shown, f"it is unit {record.unit}'s")
        return record


def _damaged(shown: str, why: str) -> ShardError:
    return ShardError(
        f"the commit record {shown} is damaged ({why}); delete it and build again: the unit is then redone"
    )
