"""Building on a finished data set: what is there, and whether the settings go with it."""

from __future__ import annotations

from patchmint.config.build import BuildConfig
from patchmint.config.grids import resolve_grid, stored_grid
from patchmint.config.sources import PatchmintSourceConfig
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.errors import ConfigError, NotFoundError
from patchmint.shards.layout import FurtherGridLayout, Layout
from patchmint.shards.manifest import Manifest, read_manifest
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.storage import Storage, open_storage


def base_of(source: PatchmintSourceConfig) -> Dataset:
    """The data set that a build reads, with the columns that the settings name.

    Raises:
        ConfigError: it isn't finished, or no data set of ours.
        InputError: there is no such column.
        ShardError: it is damaged, or files of it are absent.
        StorageError: it can't be read.
    """
    finished_manifest(open_storage(source.uri))
    return open_dataset(source.uri, columns=source.columns)


def extended_manifest(config: BuildConfig) -> Manifest | None:
    """The manifest of the data set that a build reads, with the columns that the settings name; None for other sources.

    Raises:
        ConfigError, InputError, ShardError, StorageError: as for `base_of`.
    """
    if not isinstance(config.source, PatchmintSourceConfig):
        return None
    if config.source.columns:
        manifest = base_of(config.source).manifest
        assert manifest is not None
        # a copy has what corrections made, but not who made them
        return manifest.model_copy(update={"layout": manifest.layout.model_copy(update={"edits": False})})
    return finished_manifest(open_storage(config.source.uri))


def finished_manifest(storage: Storage) -> Manifest:
    """The manifest of a data set that is to be extended.

    Raises:
        ConfigError, ShardError, StorageError: as for `base_of`.
    """
    try:
        return read_manifest(storage)
    except NotFoundError as error:
        raise ConfigError(
            f"{storage.uri} holds no {MANIFEST_PATH}: only a finished data set of patchmint can be extended. Finish "
            "its build first (the build's command again), or correct source.uri"
        ) from error


def added(made: Layout, base: Layout, *, keep_labels: bool) -> Layout:
    """The layout of a column.

    Args:
        made: of what is made.
        base: of the data set.
        keep_labels: whether labels are made for further grids only (`PatchmintSourceConfig`).
    """
    update: dict[str, object] = {"column": True, "documents": base.documents}
    if keep_labels:
        further = tuple(grid for grid in made.further_grids if grid not in base.further_grids)
        update |= {"min_coverage": None, "instances": False, "further_grids": further}
    return made.model_copy(update=update)


def check_extension(config: BuildConfig) -> None:
    """Check that what there is and what is made lie on the same grids.

    Raises:
        ConfigError: they don't; or as for `base_of`.
        InputError, ShardError, StorageError: as for `base_of`.
    """
    manifest = extended_manifest(config)
    if manifest is None or config.source is None or not config.makes:
        return
    if config.labels is not None and config.labels.from_stored and not manifest.layout.instances:
        raise ConfigError(
            f"{config.source.uri} holds no instances that labels could be made of; it must have been built with "
            "labels.instances: true"
        )
    kept = [
        name
        for name, there, made in (
            ("labels", manifest.layout.min_coverage is not None, None if config.keeps_labels else config.labels),
            ("features", manifest.layout.features is not None, config.features),
        )
        if there and made is None
    ]
    there = stored_grid(manifest.config.get("grid"))
    held, made = manifest.layout, config.further_grids
    if config.keeps_labels and config.labels is not None:
        if held.min_coverage != config.labels.min_coverage:
            raise ConfigError(
                f"labels.min_coverage {config.labels.min_coverage:g}: that of the labels in {config.source.uri} is "
                f"{held.min_coverage}; use that one, or make them again"
            )
        others = {name for name, grid in made.items() if FurtherGridLayout.of(grid, name=name) in held.further_grids}
        if lost := sorted({grid.name for grid in held.further_grids} - others):
            raise ConfigError(f"grids: add those on which {config.source.uri} has labels already: {', '.join(lost)}")
    if kept and resolve_grid(there) != resolve_grid(config.grid):
        shown = there if isinstance(there, str) else there.model_dump()
        raise ConfigError(
            f"grid {config.grid!r}: the {' and '.join(kept)} in {config.source.uri} lie on the grid {shown!r}; use "
            f"that one, make them again, or add a grid: --grids '[{shown}, {config.grid}]'"
        )
