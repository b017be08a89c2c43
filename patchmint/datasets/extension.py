"""Building on a finished data set: what is there, and whether the settings go with it."""

from __future__ import annotations

from patchmint.config.build import BuildConfig
from patchmint.config.grids import resolve_grid, stored_grid
from patchmint.config.sources import PatchmintSourceConfig
from patchmint.errors import ConfigError, NotFoundError
from patchmint.shards.layout import FurtherGridLayout
from patchmint.shards.manifest import Manifest, read_manifest
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.storage import Storage, open_storage


def extended_manifest(config: BuildConfig) -> Manifest | None:
    """The manifest of the data set that a build extends; None for a build from other sources.

    Raises:
        ConfigError: it isn't finished, or no data set of ours.
        ShardError: its manifest is damaged.
        StorageError: it can't be read.
    """
    if not isinstance(config.source, PatchmintSourceConfig):
        return None
    return finished_manifest(open_storage(config.source.uri))


def finished_manifest(storage: Storage) -> Manifest:
    """The manifest of a data set that is to be extended.

    Raises:
        ConfigError, ShardError, StorageError: as for `extended_manifest`.
    """
    try:
        return read_manifest(storage)
    except NotFoundError as error:
        raise ConfigError(
            f"{storage.uri} holds no {MANIFEST_PATH}: only a finished data set of patchmint can be extended. Finish "
            "its build first (the build's command again), or correct source.uri"
        ) from error


def check_extension(config: BuildConfig) -> None:
    """Check that what is carried over and what is made lie on the same grids.

    Raises:
        ConfigError: they don't; or as for `extended_manifest`.
        ShardError, StorageError: as for `extended_manifest`.
    """
    manifest = extended_manifest(config)
    if manifest is None or config.source is None:
        return
    if config.labels is not None and config.labels.from_stored and not manifest.layout.instances:
        raise ConfigError(
            f"{config.source.uri} holds no instances that labels could be made of; it must have been built with "
            "labels.instances: true"
        )
    carried = [
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
                f"labels.min_coverage {config.labels.min_coverage:g}: that of the labels that are carried over from "
                f"{config.source.uri} is {held.min_coverage}; use that one, or make them again"
            )
        others = {name for name, grid in made.items() if FurtherGridLayout.of(grid, name=name) in held.further_grids}
        if lost := sorted({grid.name for grid in held.further_grids} - others):
            raise ConfigError(f"grids: add those on which {config.source.uri} has labels already: {', '.join(lost)}")
    if carried and resolve_grid(there) != resolve_grid(config.grid):
        shown = there if isinstance(there, str) else there.model_dump()
        raise ConfigError(
            f"grid {config.grid!r}: the {' and '.join(carried)} that are carried over from {config.source.uri} lie on "
            f"the grid {shown!r}; use that one, make them again, or add a grid: --grids '[{shown}, {config.grid}]'"
        )
