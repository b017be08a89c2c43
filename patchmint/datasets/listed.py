"""Opens a finished data set by what its shards.json says, without looking for the files: quick, also on a store."""

from __future__ import annotations

from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.totals import read_totals
from patchmint.errors import NotFoundError
from patchmint.shards.names import MANIFEST_PATH, canonical_paths, plan_path
from patchmint.shards.shard_list import ListedUnit, ShardList, read_shard_list
from patchmint.storage import Storage, open_storage


def open_listed(uri: str) -> Dataset | None:
    """Open a finished data set; whether its files are there isn't checked (`open_dataset` and `verify` do).

    Returns:
        None where there is no finished data set with a list of its shards, or a retry is under way.

    Raises:
        ShardError: dataset.json or shards.json is damaged.
        StorageError: one can't be read.
    """
    storage = open_storage(uri)
    try:
        manifest = storage.read(MANIFEST_PATH)
    except NotFoundError:
        return None
    listed = read_matching_list(storage, manifest)
    if listed is None or storage.exists(plan_path(listed.plans)):
        return None
    return Dataset(uri, storage, manifest, tuple(map(_shard, listed.units)), finished=True, list_digest=listed.digest)


def read_matching_list(storage: Storage, manifest: bytes) -> ShardList | None:
    """shards.json, if there is one, and it was written with this dataset.json.

    Raises:
        ShardError: it is damaged.
        StorageError: it can't be read.
    """
    units, written = read_totals(manifest)
    listed = read_shard_list(storage)
    if listed is None or (len(listed.units), sum(unit.samples for unit in listed.units)) != (units, written):
        return None
    return listed


def _shard(listed: ListedUnit) -> Shard:
    _, sidecar, tar = canonical_paths(listed.unit)
    return Shard(
        listed.unit,
        tar,
        sidecar,
        listed.samples,
        listed.rejected,
        listed.bytes,
        listed.table_bytes,
        label_share=listed.label_share,
    )
