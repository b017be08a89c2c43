"""Making plans: from a source once, and from what was rejected as often as wanted."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from patchmint.config.build import BuildConfig
from patchmint.errors import BuildError, ConfigError, StorageError
from patchmint.json_values import differences
from patchmint.pipeline.plan.keys import Repeats, marked
from patchmint.pipeline.plan.models import compile_pays, library_versions
from patchmint.pipeline.plan.reading import KEPT
from patchmint.samples import PlannedSample, describe_absent
from patchmint.shards.paths import COMMITS, PLAN_PATH, PUBLISHED, plan_path, prefix_and_unit
from patchmint.shards.plan import ModelRecord, Plan, fingerprints, load_plan, write_index
from patchmint.shards.plan_parts import PARTS, SCHEMA, image_counts, read_unit, to_batch, write_parts
from patchmint.shards.records import ATTEMPTS, run_and_unit
from patchmint.storage import Storage

_NOTHING: Mapping[str, int] = MappingProxyType({})
_ROWS = 500
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def make_plan(
    read: Iterable[pa.RecordBatch],
    config: BuildConfig,
    models: Mapping[str, ModelRecord],
    storage: Storage,
    may_replace: Callable[[], bool] = lambda: False,
    absent: Mapping[str, int] = _NOTHING,
) -> Plan:
    """Write down which samples of the source go into which shard.

    The same source and settings give the same bytes. Stopped anywhere and run again it ends the same, and so do two
    that run at once: `plan.parquet` is created last, and only if it isn't there.

    Args:
        read: the samples in the source's order, which is kept (`reading`, `to_batches`). They are streamed: memory
            doesn't grow with their number.
        config: the build.
        models: what `record_models` found.
        storage: the output.
        may_replace: whether this driver may take away another plan of which nothing is finished; asked right before.
        absent: what of the source is no sample, by reason; looked at when all are read (`Reading.absent`).

    Returns:
        The plan, as it lies in the output.

    Raises:
        ConfigError: the source has no samples, or the output holds a plan of other settings.
        BuildError: the output holds a plan of another state of the source.
        StorageError: the output can't be written, or the disk for temporary files is full.
    """
    extends = config.all_sources[0].kind == "patchmint"
    samples, images = config.output.samples_per_shard, config.output.images_per_shard
    cut = cut_by_shard if extends else partial(cut_units, samples=samples, images=images)
    with spooled(read, cut) as batches:
        numbered = ((unit_of(batch), batch) for batch in batches) if extends else enumerate(batches)
        units = tuple(write_parts(numbered, storage))
    if not units:
        raise no_samples(config, absent)
    wanted = config.runner.compile
    pictures = sum(unit.images or unit.samples for unit in units)
    plan = Plan(
        generation=0,
        units=units,
        config=config.deciding(),
        config_digest=config.digest(fingerprints(models)),
        models=dict(models),
        versions=library_versions(),
        absent=dict(sorted((reason, count) for reason, count in absent.items() if count)),
        compiled=compile_pays(pictures, models) if wanted is None else wanted,
    )
    return _create(storage, plan, lambda other: other.check_same(config, models), may_replace)


def no_samples(config: BuildConfig, absent: Mapping[str, int]) -> ConfigError:
    """The error of sources in which there is nothing to build."""
    there = ", ".join(source.uri for source in config.all_sources)
    if told := describe_absent({reason: count for reason, count in absent.items() if count}):
        return ConfigError(
            f"there are no samples left in {there} ({told}); choose more with files, split, where and sample of the "
            "source"
        )
    kinds = ", ".join(repr(source.kind) for source in config.all_sources)
    return ConfigError(
        f"there are no samples in {there}: nothing in it is what a source of the kind {kinds} reads. Check source.uri "
        "and source.kind; docs/sources.md shows the folder that each kind expects"
    )


def discard_plan(storage: Storage) -> bool:
    """Take away the plan if nothing of it is finished.

    For the driver that holds the lease. Workers commit only units of the plan that is there; where one has committed in
    between all the same, the plan comes back. Killed anywhere, this leaves a whole plan or none.

    Returns:
        Whether there is no plan any more. False: a unit is committed, or a shard is there.

    Raises:
        StorageError: the storage failed.
    """
    if _has_results(storage):
        return False
    index = storage.read(PLAN_PATH)
    storage.delete([PLAN_PATH])
    if _has_results(storage):
        storage.create(PLAN_PATH, index)
        return False
    return True


def sweep_unplanned(storage: Storage, plan: Plan) -> None:
    """Delete what planning leaves: sections that were read, other plans' parts, attempts at units that they had.

    For the driver that holds the lease, before anything is committed: later there may be retry plans.

    Raises:
        StorageError: the storage failed.
    """
    parts, units = {unit.part for unit in plan.units}, {unit.id for unit in plan.units}
    unplanned = [entry.path for entry in storage.list(PARTS) if entry.path not in parts]
    unplanned += [entry.path for entry in storage.list(KEPT)]
    for entry in storage.list(ATTEMPTS):
        tried = run_and_unit(entry.path.split("/")[1])
        if tried is not None and tried[1] not in units:
            unplanned.append(entry.path)
    storage.delete(unplanned)


def is_whole(storage: Storage, plan: Plan) -> bool:
    """Whether every part that a plan names is there.

    Raises:
        StorageError: the storage failed.
    """
    return {unit.part for unit in plan.units} <= {entry.path for entry in storage.list(PARTS)}


def _has_results(storage: Storage) -> bool:
    return any(next(storage.list(room), None) for room in (COMMITS, *PUBLISHED))


def make_retry_plan(storage: Storage, plans: Sequence[Plan], rejected: Iterable[int]) -> Plan:
    """Plan rejected samples anew, with the ordinals and keys that they have.

    Args:
        storage: the output.
        plans: the plan and every retry plan there is, as `load_plans` gives them.
        rejected: ordinals of the samples to try again, in any order.

    Returns:
        The next retry plan; its units' ids follow the last there is, its shards are as large as the plan's.

    Raises:
        BuildError: nothing is to be tried again, the plan has no such samples, or another driver has made another retry
            plan meanwhile.
        StorageError, ShardError: the output can't be read or written.
    """
    plan = plans[0]
    ordinals = np.unique(np.fromiter(rejected, np.int64))
    if not ordinals.size:
        raise BuildError(f"no sample of {storage.uri} is to be tried again: there are no rejects")
    if ordinals[0] < 0 or ordinals[-1] >= plan.total:
        raise BuildError(
            f"samples {ordinals[0]} to {ordinals[-1]} are to be tried again, but the plan of {storage.uri} has "
            f"{plan.total}; the rejects belong to another plan"
        )
    output = plan.config["output"]
    batches = _batches(_chosen(storage, plan, ordinals))
    cut = map(pa.concat_batches, cut_units(batches, output["samples_per_shard"], output.get("images_per_shard")))
    first = plans[-1].units[-1].id + 1
    retry = Plan(
        generation=len(plans),
        units=tuple(write_parts(enumerate(cut, first), storage)),
        config=plan.config,
        config_digest=plan.config_digest,
        models=plan.models,
        versions=library_versions(),
        compiled=plan.compiled,
    )
    return _create(storage, retry, lambda _: None, lambda: False)


def _create(storage: Storage, plan: Plan, check: Callable[[Plan], None], may_replace: Callable[[], bool]) -> Plan:
    """Put the index into the output; where there is one already, it must be the same plan, or one to be replaced."""
    path = plan_path(plan.generation)
    while not storage.create(path, write_index(plan)):
        there = load_plan(storage, plan.generation)
        if there is None:
            raise BuildError(f"{path} in {storage.uri} was there and is gone: somebody deletes files there; stop that")
        if there.digest == plan.digest:
            return there
        if may_replace() and discard_plan(storage):
            continue
        check(there)
        versions = differences(there.versions, plan.versions)
        what = "with other versions: " + ", ".join(versions) if versions else "of other samples"
        raise BuildError(
            f"{path} in {storage.uri} was made meanwhile, {what} ({there.total} samples there, {plan.total} here): the "
            "source has changed, or another driver is at work. Run the same command again to resume that plan, or "
            "build into another output.uri"
        )
    return plan


def _chosen(storage: Storage, plan: Plan, ordinals: npt.NDArray[np.int64]) -> Iterator[PlannedSample]:
    """The plan's samples with these ordinals, which ascend; only the units that they are in are read."""
    ends = np.searchsorted(ordinals, [unit.first_ordinal + unit.samples for unit in plan.units])
    start = 0
    for unit, end in zip(plan.units, ends.tolist(), strict=True):
        if end > start:
            samples = read_unit(storage, unit)
            for ordinal in ordinals[start:end].tolist():
                yield samples[ordinal - unit.first_ordinal]
        start = end


def _batches(samples: Iterator[PlannedSample]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(samples, _ROWS)):
        yield to_batch(chunk)


@contextmanager
def spooled(
    read: Iterable[pa.RecordBatch], cut: Callable[[Iterable[pa.RecordBatch]], Iterator[list[pa.RecordBatch]]]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Number the samples and give each a unique key; they pass through temporary files, a unit in memory at a time.

    Args:
        read: the samples, as for `make_plan`.
        cut: puts those of a unit together (`cut_units`, `cut_by_shard`).

    Yields:
        The units' batches, of `plan_parts.SCHEMA`.

    Raises:
        StorageError: the disk for temporary files is full.
    """
    # Neither file has a name: nothing is left of them whatever happens. Closing one writes what is still buffered.
    with _disk_space(), tempfile.TemporaryFile(prefix="patchmint-plan-") as file:
        with Repeats() as repeats:
            with pa.ipc.new_stream(file, SCHEMA, options=_OPTIONS) as stream:
                first = 0
                for rows in cut(read):
                    unit = _numbered(rows, first)
                    first += unit.num_rows
                    repeats.add(unit["key"].to_pylist())
                    stream.write_batch(unit)
            bits = repeats.find()
        file.seek(0)
        yield _with_marks(pa.ipc.open_stream(file), bits)


def cut_units(read: Iterable[pa.RecordBatch], samples: int, images: int | None) -> Iterator[list[pa.RecordBatch]]:
    """The same rows, those of a unit together: it ends before it has more samples, or more images, than it may."""
    rows: list[pa.RecordBatch] = []
    free, free_images = samples, images
    for batch in read:
        start, ends = 0, np.cumsum(image_counts(batch))
        while start < batch.num_rows:
            count = min(free, batch.num_rows - start)
            if free_images is not None:
                before = int(ends[start - 1]) if start else 0
                count = min(count, int(np.searchsorted(ends[start:], before + free_images, "right")))
                count = count or int(not rows)  # one that alone has too many
                free_images -= int(ends[start + count - 1]) - before if count else 0
            if count:
                rows.append(batch.slice(start, count))
            start, free = start + count, free - count
            if not free or start < batch.num_rows:
                yield rows
                rows, free, free_images = [], samples, images
    if rows:
        yield rows


def cut_by_shard(read: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Samples of a data set of ours, those of one of its shards together."""
    ones = (batch.slice(row, 1) for batch in read for row in range(batch.num_rows))
    for _, rows in groupby(ones, key=_tar_of):
        yield list(rows)


def unit_of(batch: pa.RecordBatch) -> int:
    """The unit of a data set of ours that its samples are from."""
    found = prefix_and_unit(_tar_of(batch))
    assert found is not None  # its shards are called so
    return found[1]


def _tar_of(batch: pa.RecordBatch) -> str:
    return str(batch["images"][0].values.field("path")[0].as_py())


def _numbered(rows: list[pa.RecordBatch], first: int) -> pa.RecordBatch:
    unit = pa.concat_batches(rows)
    ordinals = pa.array(np.arange(first, first + unit.num_rows))
    return unit.set_column(unit.schema.get_field_index("ordinal"), SCHEMA.field("ordinal"), ordinals)


def _with_marks(batches: Iterable[pa.RecordBatch], bits: npt.NDArray[np.uint8]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        ordinals = batch["ordinal"].to_numpy()
        repeats = np.flatnonzero(bits[ordinals // 8] & (128 >> (ordinals % 8)).astype(np.uint8))
        if repeats.size:
            keys = batch["key"].to_pylist()
            for row in repeats:
                keys[row] = marked(keys[row], int(ordinals[row]))
            batch = batch.set_column(batch.schema.get_field_index("key"), SCHEMA.field("key"), pa.array(keys))
        yield batch


@contextmanager
def _disk_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"the disk is full in {tempfile.gettempdir()}, where samples wait while the plan is made (some 100 to 500 "
            "bytes each); free some space, or name another folder in the TMPDIR variable"
        ) from error
