"""Finished data sets, opened for training: what they hold, and where each sample lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.annotator import resolve_grid
from patchmint.datasets.extension import stored_grid
from patchmint.errors import ConfigError, NotFoundError, ShardError
from patchmint.geometry import PatchGrid
from patchmint.shards.layout import GridLayout
from patchmint.shards.manifest import Manifest, image_limit, read_manifest
from patchmint.shards.names import MANIFEST_PATH
from patchmint.storage import Storage, open_storage, uri_of

Integers = npt.NDArray[np.int64]

_SHARDS = "shards"
_READERS = 16


@dataclass(frozen=True, eq=False)
class StoredDataset:
    """A finished data set.

    Attributes:
        uri: as given.
        storage: where it lies.
        manifest: its dataset.json.
        tars: of its shards, in order of their names.
        counts: samples of each shard.
        ends: samples up to the end of each shard.
        offsets: of every sample, shards in order: first byte in its tar.
        sizes: bytes of every sample.
    """

    uri: str
    storage: Storage
    manifest: Manifest
    tars: tuple[str, ...]
    counts: Integers = field(repr=False)
    ends: Integers = field(repr=False)
    offsets: Integers = field(repr=False)
    sizes: Integers = field(repr=False)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.offsets)

    @cached_property
    def grid(self) -> PatchGrid:
        """The patch grid on which labels lie, as the build's settings name it: the layout doesn't tell canvases.

        Raises:
            ShardError: they name none, or another one than the layout.
        """
        stored = self.manifest.config.get("grid")
        try:
            grid = resolve_grid(stored_grid(self.manifest))
        except ConfigError as error:
            message = f"the grid in {MANIFEST_PATH} of {self.uri} can't be used: {error}"
            raise ShardError(message, uri=self.uri) from error
        layout = GridLayout(rows=grid.rows, cols=grid.cols, patch_px=grid.patch_px, fit=grid.fit.value)
        if layout != self.manifest.layout.grid:
            raise ShardError(
                f"{MANIFEST_PATH} of {self.uri} names the grid {stored!r}, its labels lie on "
                f"{self.manifest.layout.grid!r}; it was changed by hand, or by another version of patchmint",
                uri=self.uri,
            )
        return grid

    @property
    def max_megapixels(self) -> float:
        """Larger images aren't decoded: the build's own limit, where the manifest names it."""
        return image_limit(self.manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """What a position in an epoch depends on: which samples there are, and in which shards."""
        shards = hashlib.sha256(self.counts.astype("<i8").tobytes()).hexdigest()[:16]
        return {"plan": self.manifest.plan_digest, "samples": self.samples, "shards": shards}

    def place(self, index: int) -> tuple[str, int, int]:
        """Tar, first byte and number of bytes of a sample."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return self.tars[shard], int(self.offsets[index]), int(self.sizes[index])

    def key(self, index: int) -> str:
        """A sample's key, from the sidecar: for errors about samples whose bytes don't tell it any more."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        row = index - int(self.ends[shard] - self.counts[shard])
        return str(_column(self.storage, _sidecar(self.tars[shard]), ["key"])["key"][row])


def open_dataset(uri: str | os.PathLike[str]) -> StoredDataset:
    """Open a finished data set.

    Args:
        uri: the folder or prefix that holds dataset.json.

    Raises:
        ConfigError: there is no finished data set.
        ShardError: it is damaged, or not all of it is there.
        StorageError: it can't be read.
    """
    storage = open_storage(uri)
    manifest = _manifest(storage)
    sizes = {entry.path: entry.size for entry in storage.list(_SHARDS)}
    tars = tuple(path for path in sizes if path.endswith(".tar"))
    _check_complete(storage, manifest, sizes, tars)
    with ThreadPoolExecutor(1 if storage.is_local else _READERS) as pool:
        places = list(pool.map(lambda tar: _places(storage, tar, sizes[tar]), tars))
    counts = np.array([len(offsets) for offsets, _ in places], np.int64)
    if counts.sum() != manifest.totals.written:
        raise ShardError(
            f"the sidecars in {storage.uri} name {counts.sum()} samples, its {MANIFEST_PATH} says "
            f"{manifest.totals.written}; {_verify(storage)}",
            uri=storage.uri,
        )
    return StoredDataset(
        uri=storage.uri,
        storage=storage,
        manifest=manifest,
        tars=tars,
        counts=counts,
        ends=np.cumsum(counts),
        offsets=np.concatenate([offsets for offsets, _ in places]),
        sizes=np.concatenate([lengths for _, lengths in places]),
    )


def _manifest(storage: Storage) -> Manifest:
    try:
        manifest = read_manifest(storage)
    except NotFoundError as error:
        if storage.exists("plan.parquet"):
            why = (
                "its build isn't finished, or wrote no sample: run the build's command again "
                f"(`patchmint status {storage.uri}` says how far it is)"
            )
        else:
            why = "it is no data set of patchmint: make one with `patchmint build`, or correct the path"
        raise ConfigError(f"can't train on {storage.uri}: there is no {MANIFEST_PATH}; {why}") from error
    if not manifest.totals.written:
        raise ConfigError(f"can't train on {storage.uri}: no sample was written; its rejects/ say why")
    return manifest


def _check_complete(storage: Storage, manifest: Manifest, sizes: Mapping[str, int], tars: tuple[str, ...]) -> None:
    totals = manifest.totals
    missing = [_sidecar(tar) for tar in tars if _sidecar(tar) not in sizes]
    if missing:
        raise ShardError(f"{storage.uri} has no {missing[0]}; {_verify(storage)}", uri=uri_of(storage, missing[0]))
    found = sum(sizes[tar] for tar in tars)
    if len(tars) != totals.shards or found != totals.bytes:
        raise ShardError(
            f"{storage.uri} has {len(tars)} shards of {found} bytes, its {MANIFEST_PATH} says {totals.shards} of "
            f"{totals.bytes}: the copy isn't complete; {_verify(storage)}",
            uri=storage.uri,
        )


def _places(storage: Storage, tar: str, size: int) -> tuple[Integers, Integers]:
    table = _column(storage, _sidecar(tar), ["offset", "size"])
    offsets, sizes = np.asarray(table["offset"], np.int64), np.asarray(table["size"], np.int64)
    if len(offsets) == 0 or offsets.min() < 0 or sizes.min() < 1 or (offsets + sizes).max() > size:
        message = f"{_sidecar(tar)} in {storage.uri} names places outside its tar; {_verify(storage)}"
        raise ShardError(message, uri=uri_of(storage, _sidecar(tar)))
    return offsets, sizes


def _column(storage: Storage, path: str, columns: list[str]) -> Any:
    with storage.open(path) as file:
        try:
            return pq.ParquetFile(file).read(columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, KeyError) as error:
            message = f"{path} in {storage.uri} is no sidecar: {error}; {_verify(storage)}"
            raise ShardError(message, uri=uri_of(storage, path)) from error


def _sidecar(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.parquet"


def _verify(storage: Storage) -> str:
    return f"run `patchmint inspect verify {storage.uri}`"
