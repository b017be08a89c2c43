"""A data set on disk, opened for reading: a finished build, an unfinished one, or one tar.

Quick to import: `inspect ls` needs neither numpy nor pyarrow nor pydantic for a finished data set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchmint.errors import ConfigError, InputError, NotFoundError, ShardError, about
from patchmint.shards.paths import (
    MANIFEST_PATH,
    PLAN_PATH,
    PUBLISHED,
    SHARDS,
    SIDECARS,
    canonical_paths,
    plan_path,
    prefix_and_unit,
    record_path,
)
from patchmint.shards.shard_list import ShardList, read_shard_list
from patchmint.shards.versions import VERSION, version_of
from patchmint.storage import Storage, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

    from patchmint.geometry import Grid, Placement
    from patchmint.shards.columns import Joiner
    from patchmint.shards.manifest import Manifest
    from patchmint.shards.reader import StoredImage
    from patchmint.types import Integers

_STORE_THREADS = 16


@dataclass(frozen=True)
class Shard:
    """A shard, or a unit of which nothing was written.

    Attributes:
        unit: its number in the plan; 0 for a lone tar.
        tar: its path in the storage.
        sidecar: the path of its table; empty for a lone tar that has none.
        samples: written samples.
        rejected: samples of the unit that weren't written.
        size: bytes of the tar; 0 where nothing was written.
        sidecar_size: bytes of the table; 0 where there is none.
        label_share: mean of the labels' shares over the texts; None without labels, or without shards.json.
        lacking: further samples of the tar that a column lacks, so that they aren't read.
    """

    unit: int
    tar: str
    sidecar: str
    samples: int
    rejected: int
    size: int
    sidecar_size: int = 0
    label_share: float | None = None
    lacking: int = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is read.

    A sample's index is its position in the data set: shards in order, rows of a shard in order.

    Attributes:
        uri: as given.
        storage: the data set's folder; for a lone tar as `open_tar` says.
        manifest_data: bytes of dataset.json; None for a build that wasn't finished yet and for a lone tar. While a
            retry is under way it is that of the build before: its totals are too small, the rest still holds.
        shards: in order of their units.
        unbuilt: units of the plan, retries included, that aren't done yet.
        finished: dataset.json is there and covers all units.
        list_digest: SHA-256 of the list of shards that was used; empty where there is none.
        scanned: rows of a lone tar without a sidecar (an Arrow table), made from its samples; else None.
        foreign: a lone tar that another program wrote; its samples have images and texts only.
        extents: first bytes and sizes of all samples, int64 (samples,) each; None unless read ahead (`with_extents`).
        further_grid: name of the grid on which it is read (`on_grid`); empty: the first.
        further_codes: name of the tokenizer whose codes alone are read (`with_codes`); empty: the first, and others.
        columns: that are read with it, in the order in which one is put over the other. Its samples are those that all
            columns but the sparse ones have.
        without_wrong: samples that somebody marked as wrong aren't among its samples (`columns.without_wrong`).
        min_trust: samples whose texts all have labels of less trust aren't either (`columns.with_trust`).
    """

    uri: str
    storage: Storage
    manifest_data: bytes | None = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    unbuilt: int = 0
    finished: bool = False
    list_digest: str = ""
    scanned: Any = field(default=None, repr=False)
    foreign: bool = False
    extents: tuple[Integers, ...] | None = field(default=None, repr=False)
    further_grid: str = ""
    further_codes: str = ""
    columns: tuple[Column, ...] = ()
    without_wrong: bool = False
    min_trust: float = 0.0

    @cached_property
    def manifest(self) -> Manifest | None:
        """dataset.json, as `manifest_data`; its layout is that with the columns, of `on_grid` and `with_codes`.

        Raises:
            ShardError: it isn't of the format's form.
        """
        if (told := self.stored_manifest) is None:
            return None
        layout = told.layout.on_grid(self.further_grid) if self.further_grid else told.layout
        layout = layout.with_codes(self.further_codes) if self.further_codes else layout
        return told.model_copy(update={"layout": layout})

    @cached_property
    def stored_manifest(self) -> Manifest | None:
        """The same on all grids, with the codes of all tokenizers."""
        from patchmint.shards.manifest import parse_manifest  # takes longer to import than all that `ls` needs

        with about(self.uri):
            told = None if self.manifest_data is None else parse_manifest(self.manifest_data)
            for column in self.columns:
                if told is not None and column.dataset.manifest is not None:
                    told = told.with_column(column.dataset.manifest, sparse=column.sparse)
        if told is None or not self.columns:
            return told
        lacking = sum(shard.lacking for shard in self.shards)
        rejected = told.totals.rejected | ({"not-in-a-column": lacking} if lacking else {})
        totals = told.totals.model_copy(update={"written": self.samples, "rejected": rejected})
        return told.model_copy(update={"totals": totals})

    @cached_property
    def grid_names(self) -> tuple[str, ...]:
        """Names of the grids on which it has labels, the first first; of a data set without dataset.json ().

        Raises:
            ShardError: dataset.json names grids that there aren't.
        """
        return tuple(self._grids)

    def on_grid(self, name: str | None) -> Dataset:
        """The data set as if its labels were on one of its grids alone; on a further one it has no features.

        Args:
            name: one of `grid_names`, or as the settings name it ("llava-1.5-finetune"); None: the first.

        Raises:
            InputError: it has no labels on such a grid.
            ShardError: dataset.json is damaged.
        """
        if name is None:
            return replace(self, further_grid="")
        names = self.grid_names
        chosen = name if name in names else name.replace(".", "-")
        if chosen not in names:
            known = f"its grids: {', '.join(names)}" if names else f"without {MANIFEST_PATH} only the first can be read"
            raise InputError(f"{self.uri} has no labels on a grid {name!r} ({known})")
        return replace(self, further_grid="" if chosen == names[0] else chosen)

    @property
    def codes_names(self) -> tuple[str, ...]:
        """Names of the tokenizers whose codes it has, the first first; of a data set without dataset.json ().

        Raises:
            ShardError: dataset.json is damaged.
        """
        return tuple(each.name for each in self.stored_manifest.layout.all_tokens) if self.stored_manifest else ()

    def with_codes(self, name: str | None) -> Dataset:
        """The data set as if the codes of one of its tokenizers were the only ones.

        Args:
            name: one of `codes_names`; None: the first, and the others are there as well.

        Raises:
            InputError: it has no such codes.
            ShardError: dataset.json is damaged.
        """
        names = self.codes_names
        if name is not None and name not in names:
            known = f"its codes: {', '.join(names)}" if names else f"only {MANIFEST_PATH} says which it has"
            raise InputError(f"{self.uri} has no codes {name!r} ({known})")
        return replace(self, further_codes="" if name is None or name == names[0] else name)

    @cached_property
    def _grids(self) -> dict[str, Grid]:
        from patchmint.config.grids import stored_grids
        from patchmint.shards.manifest import made_by

        if self.manifest is None:
            return {}
        try:
            return stored_grids(made_by(self.manifest.config, "labels") or self.manifest.config)
        except ConfigError as error:
            message = f"the grid in {MANIFEST_PATH} of {self.uri} can't be used: {error}"
            raise ShardError(message, uri=self.uri) from error

    @cached_property
    def samples(self) -> int:
        """How many there are."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def starts(self) -> Integers:
        """Index of each shard's first sample, and the number of samples at the end: int64 (shards + 1,)."""
        import numpy as np

        counts = np.array([shard.samples for shard in self.shards], np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @cached_property
    def grid(self) -> Grid:
        """The grid on which labels lie, as the build's settings name it; that of `on_grid`, else the first.

        Raises:
            ShardError: they name none, or another one than the layout; or there is no dataset.json.
        """
        from patchmint.shards.layout import GridLayout

        if self.manifest is None:
            raise ShardError(f"{self.uri} has no {MANIFEST_PATH}, which names its grid", uri=self.uri)
        grid = self._grids[self.further_grid or self.grid_names[0]]
        layout = GridLayout.of(grid)
        # Version 1 has no settings of the grid.
        if self.manifest.layout.grid not in (layout, layout.model_copy(update={"settings": {}})):
            raise ShardError(
                f"{MANIFEST_PATH} of {self.uri} names the grid {self.manifest.config.get('grid')!r}, its labels lie "
                f"on {self.manifest.layout.grid!r}; it was changed by hand, or by another version of patchmint",
                uri=self.uri,
            )
        return grid

    def placement(self, image: StoredImage) -> Placement:
        """Where on a stored image the cells of its labels lie.

        KEY.json says it where that depends on the image, else the build's settings do. Without them (a lone tar, an
        unfinished build) it is `StoredImage.placement`.

        Raises:
            ShardError: KEY.json, or dataset.json, names no grid of ours.
        """
        if image.info.placement is None and self.manifest is not None:
            return self.grid.place((image.info.height, image.info.width))
        return image.placement

    @cached_property
    def joiner(self) -> Joiner:
        """Puts its samples together with those of its columns, of which it has some."""
        from patchmint.shards.columns import Joiner

        assert self.stored_manifest is not None
        return Joiner(self.stored_manifest.layout)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of its sidecars, with the codes of `with_codes`; see `patchmint.shards.sidecar.schema_for`.

        Raises:
            ShardError: dataset.json or, without one, the first sidecar is damaged.
            StorageError: that can't be read.
        """
        return self._schema(self.manifest)

    @cached_property
    def stored_schema(self) -> pa.Schema:
        """As `schema`, with the codes of all tokenizers, as sidecars have them."""
        return self._schema(self.stored_manifest)

    def _schema(self, manifest: Manifest | None) -> pa.Schema:
        from patchmint.shards.sidecar import SCHEMA, schema_for, schema_of

        if self.scanned is not None:
            return self.scanned.schema
        if manifest is not None:
            return schema_for(manifest.layout)
        sidecar = next((shard.sidecar for shard in self.shards if shard.samples), "")
        return schema_of(self.storage, sidecar) if sidecar else SCHEMA

    @cached_property
    def own(self) -> Dataset:
        """It as its own shards are: without columns, on all grids, with the codes of all tokenizers."""
        return replace(self, columns=(), further_grid="", further_codes="")

    @cached_property
    def absent(self) -> dict[str, Any]:
        """What its own sidecars would hold in columns of `stored_schema` that only its columns have."""
        from pyarrow.types import is_list

        from patchmint.shards.sidecar import NOT_EDITED

        if not self.columns:
            return dict(NOT_EDITED)
        own = self.own.stored_schema.names
        further = (field for field in self.stored_schema if field.name not in own)
        return {field.name: [] if is_list(field.type) else 0 for field in further} | dict(NOT_EDITED)

    @property
    def has_edits(self) -> bool:
        """Whether it is read with corrections: there are the columns wrong, corrected and edits. Raises as `schema`."""
        return "edits" in self.schema.names

    @property
    def has_trust(self) -> bool:
        """Whether it says how far its labels can be relied on: there are the columns trust and trusts."""
        return "trusts" in self.schema.names

    @property
    def has_documents(self) -> bool:
        """Whether its samples are documents, not pictures. Raises as `schema`."""
        return "images" in self.schema.names

    @property
    def max_megapixels(self) -> float:
        """Larger images aren't decoded: the build's own limit, where dataset.json names it."""
        from patchmint.shards.manifest import image_limit

        return image_limit(self.manifest)

    @property
    def reject_tables(self) -> list[str]:
        """Paths of the tables of rejects, and of images that documents were written without.

        Raises:
            ShardError, StorageError: as for `schema`; of documents also where their folder can't be listed.
        """
        # the list of shards doesn't say of which units images alone were dropped
        listed = {entry.path for entry in self.storage.list("rejects")} if self.has_documents else set()
        paths = ((canonical_paths(shard.unit)[0], shard.rejected) for shard in self.shards)
        return [path for path, rejected in paths if rejected or path in listed]

    def place(self, index: int) -> tuple[Shard, int]:
        """The shard of a sample, and its row there.

        Raises:
            InputError: there are fewer samples.
        """
        if not 0 <= index < self.samples:
            raise InputError(f"{self.uri} has {self.samples} samples, so none at position {index}")
        number = int(self.starts.searchsorted(index, side="right")) - 1
        return self.shards[number], index - int(self.starts[number])


@dataclass(frozen=True, eq=False)
class Column:
    """A column that is read with its base.

    Attributes:
        name: of its folder.
        dataset: the folder, as a data set by itself; its samples hold only what was added.
        units: of lower numbers are those of the base; the others retry rejects.
        sparse: it holds some samples only.
        extents: of each sample of the base the number of the shard in which the column has it (-1: it hasn't), the
            first byte there, and the size: int64 (samples,) each; None unless read ahead (`with_extents`).
    """

    name: str
    dataset: Dataset
    units: int
    sparse: bool
    extents: tuple[Integers, ...] | None = field(default=None, repr=False)

    @cached_property
    def _by_unit(self) -> dict[int, int]:
        shards = enumerate(self.dataset.shards)
        return {shard.unit: number for number, shard in shards if shard.samples and shard.unit < self.units}

    @cached_property
    def retried(self) -> list[int]:
        """Numbers of the shards in which samples of any unit may be."""
        shards = enumerate(self.dataset.shards)
        return [number for number, shard in shards if shard.samples and shard.unit >= self.units]

    def shards_of(self, unit: int) -> list[int]:
        """Numbers of the shards in which samples of the base's unit may be."""
        return [*([self._by_unit[unit]] if unit in self._by_unit else []), *self.retried]

    def has_all(self, shard: Shard) -> bool:
        """Whether it surely has every sample of a shard of the base."""
        number = self._by_unit.get(shard.unit)
        return self.sparse or (number is not None and self.dataset.shards[number].samples == shard.samples)


def spread(total: int, count: int) -> Integers:
    """Evenly spaced positions, ascending: `count` of `total`, or all where there are fewer or `count` is 0."""
    import numpy as np

    if count <= 0 or count >= total:
        return np.arange(total)
    return np.arange(count) * total // count


def open_dataset(
    uri: str | os.PathLike[str], *, columns: Sequence[str] | None = None, check_files: bool = True
) -> Dataset:
    """Open a data set, or one tar.

    Args:
        uri: a build's output, finished or not, or a tar; a path or a URI such as s3://BUCKET/PREFIX.
        columns: names of the finished columns to read with it, of which "corrections" stands for all of these; they
            take the place of what it holds itself. None: those that add what nobody else has, and the corrections.
        check_files: whether all files are looked for. False: shards.json of a finished data set is believed, so that
            nothing needs to be listed; where there is none, they are looked for in any case.

    Raises:
        InputError: there is neither a data set nor a tar, or it is a column; there is no such column, or two hold the
            same and none of them was named.
        ShardError: dataset.json, the plan or a record is damaged, or files are absent; without `check_files` also:
            shards.json is damaged.
        StorageError: it can't be read.
    """
    text = os.fspath(uri)
    with about(text):
        if text.endswith(".tar"):
            return _open_tar(text)
        dataset = open_folder(text, check_files=check_files)
        if b'"column":' in (dataset.manifest_data or b"") and dataset.manifest and dataset.manifest.column:
            raise InputError(f"{text} is a column; open the data set that it belongs to, and name it there (--columns)")
        from patchmint.datasets.columns import with_columns  # which imports this

        return with_columns(dataset, columns, check_files=check_files)


def open_folder(uri: str, *, check_files: bool) -> Dataset:
    """As `open_dataset`, a build's output without its columns; it may be a column itself."""
    storage = open_storage(uri)
    try:
        manifest = storage.read(MANIFEST_PATH)
    except NotFoundError:
        manifest = None
    told = _told(manifest) if manifest is not None else None
    listed = None
    try:
        listed = _matching_list(storage, told) if told is not None else None
    except ShardError:
        if not check_files:  # else it only saves reading; `verify` says what is wrong with it
            raise
    if told is not None and listed is not None and not storage.exists(plan_path(listed.plans)):
        if check_files:
            counts = [(unit.unit, unit.samples, unit.rejected, unit.label_share) for unit in listed.units]
            shards = tuple(_shards(storage, counts, published_sizes(storage), listed.prefix, told.version))
        else:
            shards = tuple(_listed_shards(listed, told.version))
        return Dataset(uri, storage, manifest, shards, finished=True, list_digest=listed.digest)
    return _open_unlisted(uri, storage, manifest, told, listed)


def open_tar(uri: str) -> tuple[Storage, str]:
    """The storage that a tar lies in, and its path there. Of one in `shards/`, the storage has the folder's neighbours.

    Raises:
        InputError: there is no such tar.
        StorageError: it can't be looked for.
    """
    folder, slash, name = (uri if "://" in uri else str(Path(uri).expanduser().absolute())).rpartition("/")
    if folder.endswith(f"/{SHARDS}") and not folder.endswith(f"//{SHARDS}"):  # that is a bucket
        folder, name = folder.removesuffix(f"/{SHARDS}"), f"{SHARDS}/{name}"
    storage = open_storage(folder + slash)
    if not storage.exists(name):
        raise InputError(f"there is no tar {uri!r}; check the path")
    return storage, name


def sidecar_of(storage: Storage, tar: str) -> str:
    """The path of a lone tar's sidecar, which lies in `sidecars/` or beside it; empty where there is none.

    Raises:
        StorageError: it can't be looked for.
    """
    from patchmint.shards.sidecar import is_sidecar

    beside = f"{tar.removesuffix('.tar')}.parquet"
    folder, _, name = beside.rpartition("/")
    paths = [f"{SIDECARS}/{name}", beside] if folder == SHARDS else [beside]
    return next((path for path in paths if is_sidecar(storage, path)), "")


class _Told(NamedTuple):
    """What dataset.json says."""

    version: int
    units: int
    written: int


def _matching_list(storage: Storage, told: _Told) -> ShardList | None:
    """shards.json, if there is one, and it was written with this dataset.json."""
    listed = read_shard_list(storage)
    if listed is None or (len(listed.units), sum(unit.samples for unit in listed.units)) != told[1:]:
        return None
    return listed


def _told(manifest: bytes) -> _Told:
    """Of dataset.json, which is parsed whole only where something is wrong with it."""
    try:
        document = json.loads(manifest)
        totals, version = document["totals"], version_of("dataset", document["schema"])
        units, written = totals["units"], totals["written"]
        if isinstance(units, int) and isinstance(written, int) and min(units, written) >= 0:
            return _Told(version, units, written)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    from patchmint.shards.manifest import parse_manifest

    checked = parse_manifest(manifest)  # says what is wrong
    return _Told(checked.version, checked.totals.units, checked.totals.written)


def _listed_shards(listed: ShardList, version: int) -> Iterator[Shard]:
    for unit in listed.units:
        _, sidecar, tar = canonical_paths(unit.unit, listed.prefix, version)
        sizes = unit.bytes, unit.table_bytes
        yield Shard(unit.unit, tar, sidecar, unit.samples, unit.rejected, *sizes, label_share=unit.label_share)


def published_sizes(storage: Storage) -> dict[str, int]:
    """Bytes of every published file, by path."""
    # A tar is published last: whoever lists its unit's other files afterwards finds them.
    return {entry.path: entry.size for folder in PUBLISHED for entry in storage.list(folder)}


def _open_unlisted(
    uri: str, storage: Storage, manifest: bytes | None, told: _Told | None, listed: ShardList | None
) -> Dataset:
    """A data set that shards.json doesn't tell all of: an unfinished build, a retry, or a copy of the shards only."""
    from patchmint.shards.commit import committed_units, read_records
    from patchmint.shards.plan import load_plans

    plans = load_plans(storage)
    planned = {unit.id: unit.samples for plan in plans for unit in plan.units}
    prefix = str(plans[0].config.get("output", {}).get("prefix", "")) if plans else ""
    version, covered, written = told or (plans[0].version if plans else VERSION, 0, 0)
    sizes = published_sizes(storage)
    if not planned:
        if manifest is None:
            raise InputError(
                f"{uri} holds no data set (no {PLAN_PATH}); give the output folder of `patchmint build`, or a tar"
            )
        prefix, planned = _count_rows(storage, sizes, version)
        done, finished, known = sorted(planned), True, planned
    else:
        finished = manifest is not None and covered >= len(planned)
        # A finished build has a record of every unit: nothing to list.
        done = sorted(planned) if finished else sorted(committed_units(storage) & planned.keys())
        known = {unit.unit: unit.samples for unit in listed.units} if listed is not None else {}
        # Units without rejects wrote what was planned: only the others' records are read.
        unclear = [unit for unit in done if unit not in known and _is_unclear(unit, sizes, prefix)]
        known |= {record.unit: record.written for record in read_records(storage, unclear)}
    counts = []
    for unit in done:
        count = known.get(unit, planned[unit])
        if count > planned[unit]:
            raise ShardError(
                f"{record_path(unit)} of {storage.uri} says that {count} samples are written, planned were "
                f"{planned[unit]}; it is of another build, or damaged; delete it and run the build's command again"
            )
        counts.append((unit, count, planned[unit] - count, None))
    shards = tuple(_shards(storage, counts, sizes, prefix, version))
    before_retries = set(sorted(planned)[:covered])
    found = sum(shard.samples for shard in shards if shard.unit in before_retries)
    if found != written:
        raise ShardError(
            f"the files of {uri} make {found} samples, its {MANIFEST_PATH} says {written}: the copy isn't "
            f"complete; run `patchmint inspect verify {uri}`"
        )
    digest = listed.digest if listed is not None else ""
    unbuilt = len(planned) - len(done)
    return Dataset(uri, storage, manifest, shards, unbuilt=unbuilt, finished=finished, list_digest=digest)


def _is_unclear(unit: int, sizes: Mapping[str, int], prefix: str) -> bool:
    """Whether files alone don't tell how many samples of a unit were written."""
    rejects, _, tar = canonical_paths(unit, prefix)
    return rejects in sizes or tar not in sizes


def _count_rows(storage: Storage, sizes: Mapping[str, int], version: int) -> tuple[str, dict[int, int]]:
    """What shards' names begin with, and samples by unit, from the sidecars."""
    from patchmint.shards.sidecar import SCHEMA, read_table

    named = sorted(found for path in sizes if (found := prefix_and_unit(path)))
    prefix = named[0][0] if named else ""
    sidecars = {unit: canonical_paths(unit, prefix, version)[1] for own, unit in named if own == prefix}
    paths = [path for path in sidecars.values() if path in sizes]
    with ThreadPoolExecutor(1 if storage.is_local else _STORE_THREADS) as pool:
        counts = pool.map(lambda path: read_table(storage, path, SCHEMA, ["offset"]).num_rows, paths)
        rows = dict(zip(paths, counts, strict=True))
    return prefix, {unit: rows.get(path, 1) for unit, path in sidecars.items()}


def _shards(
    storage: Storage,
    counts: Sequence[tuple[int, int, int, float | None]],
    sizes: Mapping[str, int],
    prefix: str,
    version: int,
) -> Iterator[Shard]:
    """Shards of units (number, written, rejected, label share), whose files must be there."""
    for unit, written, rejected, share in counts:
        rejects, sidecar, tar = canonical_paths(unit, prefix, version)
        wanted = ((sidecar, tar) if written else ()) + ((rejects,) if rejected else ())
        if missing := [path for path in wanted if path not in sizes]:
            raise ShardError(
                f"{storage.uri} lacks {missing[0]}, although {record_path(unit)} says that it is written: the copy "
                f"isn't complete, or a build must publish it; run the build's command again, or `patchmint inspect "
                f"verify {storage.uri}`"
            )
        yield Shard(unit, tar, sidecar, written, rejected, sizes.get(tar, 0), sizes.get(sidecar, 0), share)


def _open_tar(uri: str) -> Dataset:
    """A tar by itself: its rows are those of its sidecar, or made by reading it through."""
    from patchmint.shards.foreign import is_foreign, scan_foreign
    from patchmint.shards.sidecar import SCHEMA, read_table, scan_tar

    storage, name = open_tar(uri)
    size = storage.size(name)
    if sidecar := sidecar_of(storage, name):
        rows = read_table(storage, sidecar, SCHEMA, ["key"]).num_rows
        return Dataset(uri, storage, None, (Shard(0, name, sidecar, rows, 0, size, storage.size(sidecar)),))
    foreign = is_foreign(storage, name)
    table = (scan_foreign if foreign else scan_tar)(storage, name)
    shard = Shard(0, name, "", table.num_rows, 0, size)
    return Dataset(uri, storage, None, (shard,), scanned=table, foreign=foreign)
