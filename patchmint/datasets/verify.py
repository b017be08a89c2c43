"""Is a data set what its records say, columns included?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from patchmint.datasets.columns import finished_columns
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.extents import Extent
from patchmint.datasets.reader import read_extent
from patchmint.datasets.rows import extents_of
from patchmint.errors import InputError, ShardError
from patchmint.shards.checks import Finding
from patchmint.shards.columns import Joiner
from patchmint.shards.manifest import read_manifest
from patchmint.shards.paths import COLUMNS
from patchmint.shards.plan import load_plans
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.reader import StoredSample
from patchmint.shards.verify import verify
from patchmint.shards.verify_tar import Base, Decode
from patchmint.storage import Storage, open_storage, uri_of
from patchmint.types import Progress

_TABLES = 32


def verify_all(
    storage: Storage, *, decode: Decode | None = None, progress: Progress | None = None
) -> Iterator[Finding]:
    """As `patchmint.shards.verify.verify`, and then each finished column, whose files' paths begin with `columns/`."""
    yield from verify(storage, decode=decode, progress=progress)
    for name in finished_columns(storage):
        yield from verify_column(storage, name, decode=decode, progress=progress)


def verify_column(
    storage: Storage, name: str, *, decode: Decode | None = None, progress: Progress | None = None
) -> Iterator[Finding]:
    """Check a finished column, and every sample as it is with what its base has.

    Args:
        storage: the base's.
        name: of the column.
        decode: given, labels are also made again of instances; images are the base's, and not looked at.
        progress: told after each unit.

    Raises:
        StorageError: the column can't be listed.
    """
    folder = f"{COLUMNS}/{name}"
    column = open_storage(uri_of(storage, folder))
    try:
        found = list(verify(column, decode=decode, progress=progress, base=_base_of(storage, column)))
    except (InputError, ShardError) as error:
        found = [Finding("", "", "column-base", str(error))]
    yield from (replace(finding, shard=f"{folder}/{finding.shard}".rstrip("/")) for finding in found)


def _base_of(storage: Storage, column: Storage) -> Base:
    """What a column belongs to; an InputError where that isn't what it was made for."""
    dataset, told = open_dataset(storage.uri, columns=()), read_manifest(column)
    manifest, entry = dataset.manifest, told.column
    if manifest is None or entry is None or entry.base != manifest.plan_digest:
        raise InputError(f"it is a column of another data set than {storage.uri}, or of another state of it")
    layout = manifest.layout.with_column(told.layout)
    joiner = Joiner(layout)
    shards = {shard.unit: shard for shard in dataset.shards}
    retries = {unit.id: unit for plan in load_plans(column)[1:] for unit in plan.units}

    @lru_cache(_TABLES)
    def extents(unit: int) -> dict[str | None, Extent]:
        if unit < entry.units:
            return {extent.key: extent for extent in extents_of(dataset, shards[unit])} if unit in shards else {}
        planned = read_unit(column, retries[unit]) if unit in retries else []
        places = ((each.key, each.sample.image) for each in planned)
        return {key: Extent(ref.path, ref.start, ref.length, key) for key, ref in places}

    def whole(unit: int, sample: StoredSample) -> StoredSample:
        if (extent := extents(unit).get(sample.key)) is None:
            raise ShardError(f"the data set has no sample {sample.key[:120]!r} in the unit {unit}")
        return joiner.join(read_extent(dataset, extent), [sample])

    return Base(layout, whole)
