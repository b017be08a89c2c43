"""What stands in an output: plans, commit records, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from patchmint.datasets.dataset import Dataset, published_sizes
from patchmint.errors import BuildError, NotFoundError, ShardError
from patchmint.samples import NO_NUMBER, Reject
from patchmint.shards.commit import committed_units, publish, read_records
from patchmint.shards.manifest import Totals, read_manifest
from patchmint.shards.paths import canonical_paths, record_path, unit_name
from patchmint.shards.plan import Plan, Unit, load_plans
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.records import ATTEMPTS, CommitRecord, ImageCounts, run_and_unit
from patchmint.shards.rejects import read_rejects, read_rejects_table
from patchmint.storage import Storage


@dataclass(frozen=True)
class Ledger:
    """Plans and records of an output, as read at one moment.

    Attributes:
        storage: the output.
        plans: the plan, and its retries; may be empty.
        records: by unit, of all that are committed.
    """

    storage: Storage = field(repr=False)
    plans: Sequence[Plan]
    records: Mapping[int, CommitRecord] = field(repr=False)

    @classmethod
    def read(cls, storage: Storage, plans: Sequence[Plan] | None = None) -> Ledger:
        """Read the records, and the plans unless they are given.

        Raises:
            StorageError: they can't be read.
            ShardError: one is damaged.
        """
        found = load_plans(storage) if plans is None else plans
        records = read_records(storage, sorted(committed_units(storage)))
        return cls(storage, found, {record.unit: record for record in records})

    @cached_property
    def units(self) -> list[Unit]:
        """Units of all plans, in order."""
        return [unit for plan in self.plans for unit in plan.units]

    @cached_property
    def left(self) -> list[Unit]:
        """Units without a record."""
        return [unit for unit in self.units if unit.id not in self.records]

    @property
    def planned(self) -> int:
        """Samples of the data set."""
        return self.plans[0].total if self.plans else 0

    @property
    def absent(self) -> Mapping[str, int]:
        """What of the source is no sample, by reason."""
        return self.plans[0].absent if self.plans else {}

    @cached_property
    def written(self) -> int:
        """Samples in shards."""
        return sum(record.written for record in self.records.values())

    @property
    def planned_images(self) -> int:
        """Images of the data set's documents; 0 where samples are pictures."""
        return self.plans[0].images if self.plans else 0

    def standing_rejects(self) -> dict[int, str]:
        """Reason by ordinal, of rejects that no retry has taken up, and of those that a retry rejected again."""
        standing: dict[int, str] = {}
        for plan in self.plans:
            if plan is not self.plans[0]:
                for unit in plan.units:
                    for planned in read_unit(self.storage, unit):
                        standing.pop(planned.ordinal, None)
            for unit in plan.units:
                record = self.records.get(unit.id)
                if record is not None and record.rejects:
                    standing |= {
                        reject.ordinal: reject.fault.reason
                        for reject in self._rejects(record)
                        if reject.image == NO_NUMBER
                    }
        return standing

    def rejects(self) -> Counter[str]:
        """Number of standing rejects by reason, in alphabetical order."""
        counts: Counter[str] = Counter()
        if len(self.plans) > 1:
            counts.update(self.standing_rejects().values())
        else:
            for record in self.records.values():
                counts.update(record.rejects)
        return Counter(dict(sorted(counts.items())))

    def check(self) -> None:
        """Check that what is committed is of these plans and is there.

        Raises:
            BuildError: a record is of another plan, or a file that one names is gone or has another size.
        """
        digests = {unit.id: plan.digest for plan in self.plans for unit in plan.units}
        sizes = published_sizes(self.storage)
        for unit, record in self.records.items():
            if digests.get(unit) != record.plan_digest:
                raise BuildError(
                    f"{record_path(unit)} in {self.storage.uri} was built by another plan than the plan.parquet there; "
                    "bring back the plan that it belongs to, or build into another output.uri"
                )
            for path, file in record.files.items():
                if sizes.get(path) != file.size:
                    found = f"has {sizes[path]} bytes" if path in sizes else "is gone"
                    raise BuildError(
                        f"{path} in {self.storage.uri} {found}, but {record_path(unit)} says that it was finished "
                        f"with {file.size} bytes; bring it back, or delete {record_path(unit)} as well, and the same "
                        "command builds that unit again"
                    )

    def _rejects(self, record: CommitRecord) -> list[Reject]:
        canonical = f"rejects/{unit_name(record.unit)}.parquet"
        try:
            return read_rejects(self.storage, canonical)
        except NotFoundError:  # committed this moment, and not yet published
            return read_rejects(self.storage, record.files[canonical].path)


@dataclass(frozen=True)
class Tally:
    """How far a build is, in numbers; read without most of the records, of which there may be a hundred thousand.

    Attributes:
        units, units_done: of the plan and its retries.
        planned, written, left: samples; the others of `planned` are rejects.
        rejects: standing rejects by reason, in alphabetical order.
        absent: what of the source is no sample, by reason (`Plan.absent`).
        images: of documents, in units that are done; None where samples are pictures. `most` is of those whose records
            were read.
    """

    units: int
    units_done: int
    planned: int
    written: int
    left: int
    rejects: Mapping[str, int]
    absent: Mapping[str, int]
    images: ImageCounts | None = None

    @classmethod
    def read(cls, storage: Storage) -> Tally:
        """Count; everything is 0 where there is no plan. Raises as `Ledger.read` does."""
        plans = load_plans(storage)
        samples = {unit.id: unit.samples for plan in plans for unit in plan.units}
        done = committed_units(storage) & samples.keys()
        totals = _totals(storage) if len(done) == len(samples) else None
        if totals is not None and totals.units == len(samples):
            written, rejects, images = totals.written, totals.rejected, totals.images
        else:
            # What is published without rejects was written whole; rejects that appear in between are listed last.
            unpublished = _tried(storage).values()
            rejected = {entry.path for entry in storage.list("rejects")}
            unclear = sorted(done & {*unpublished, *(unit for unit in done if canonical_paths(unit)[0] in rejected)})
            ledger = Ledger(storage, plans, {record.unit: record for record in read_records(storage, unclear)})
            written = ledger.written + sum(samples[unit] for unit in done.difference(unclear))
            rejects = ledger.rejects()
            images = _count_images(ledger, done, done.difference(unclear))
        left = sum(samples[unit] for unit in samples.keys() - done)
        planned, absent = (plans[0].total, plans[0].absent) if plans else (0, {})
        return cls(len(samples), len(done), planned, written, left, rejects, absent, images)


def _count_images(ledger: Ledger, done: Collection[int], whole: Collection[int]) -> ImageCounts | None:
    """Of documents; of `whole`, some of the units that are `done`, all images were written, and no record was read."""
    if not ledger.planned_images:
        return None
    planned = sum(unit.images for unit in ledger.plans[0].units if unit.id in done)
    found = ImageCounts.of(planned, ledger.records.values()) or ImageCounts(planned)
    return replace(found, written=found.written + sum(unit.images for unit in ledger.units if unit.id in whole))


def _totals(storage: Storage) -> Totals | None:
    try:
        return read_manifest(storage).totals
    except (NotFoundError, ShardError):  # it only saves reading
        return None


def roll_forward(storage: Storage) -> None:
    """Publish what is committed but not published: its attempts are still there.

    Raises:
        StorageError, ShardError: it can't be published.
    """
    tried = _tried(storage)
    for record in read_records(storage, sorted(committed_units(storage).intersection(tried.values()))):
        if record.attempt in tried:
            publish(storage, record)


def _tried(storage: Storage) -> dict[str, int]:
    """Attempts whose files aren't all published, or swept, and their units."""
    attempts = {entry.path.split("/")[1] for entry in storage.list(ATTEMPTS)}
    return {attempt: parsed[1] for attempt in attempts if (parsed := run_and_unit(attempt)) is not None}


def iter_rejects(dataset: Dataset) -> Iterator[pa.Table]:
    """Tables of standing rejects, units in order: what a retry rejected again is there once, as it was last.

    Images that documents were written without stand always.

    Yields:
        Arrow tables of `patchmint.shards.rejects.SCHEMA`; of a lone tar none.

    Raises:
        ShardError: a table, a plan or a record is damaged.
        StorageError: one can't be read.
    """
    paths = dataset.reject_tables
    plans = load_plans(dataset.storage) if paths else []
    if len(plans) < 2:
        for path in paths:
            yield read_rejects_table(dataset.storage, path)
        return
    standing = Ledger.read(dataset.storage, plans).standing_rejects()
    last = {
        ordinal: path
        for path in paths
        for ordinal in read_rejects_table(dataset.storage, path, ["ordinal"])["ordinal"].to_pylist()
        if ordinal in standing
    }
    for path in paths:
        table = read_rejects_table(dataset.storage, path)
        rows = zip(table["ordinal"].to_pylist(), table["image"].to_pylist(), strict=True)
        yield table.filter(pa.array([image != NO_NUMBER or last.get(ordinal) == path for ordinal, image in rows]))


@dataclass(frozen=True)
class RejectCount:
    """How many samples, or images of documents, were rejected at a stage for a reason."""

    stage: str
    reason: str
    count: int


def count_rejects(dataset: Dataset) -> tuple[tuple[RejectCount, ...], tuple[RejectCount, ...]]:
    """Rejects that no retry took up, and images that documents were written without; the most frequent first.

    Raises:
        ShardError: a table of rejects, a plan or a record is damaged.
        StorageError: one can't be read.
    """
    samples: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()
    for table in iter_rejects(dataset):
        for stage, reason, image in zip(
            *(table[name].to_pylist() for name in ("stage", "reason", "image")), strict=True
        ):
            (samples if image == NO_NUMBER else images)[stage, reason] += 1
    return _by_count(samples), _by_count(images)


def _by_count(counts: Counter[tuple[str, str]]) -> tuple[RejectCount, ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(RejectCount(*cause, count) for cause, count in ordered)
