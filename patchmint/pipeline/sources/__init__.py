"""Data sets to take samples from: folders, tars, annotation files, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from patchmint.config.build import BuildConfig
from patchmint.config.sources import (
    AnySource,
    CocoSourceConfig,
    ConversationsSourceConfig,
    FlickrSourceConfig,
    FolderSourceConfig,
    GroundingSourceConfig,
    InterleavedSourceConfig,
    KarpathySourceConfig,
    ParquetSourceConfig,
    PatchmintSourceConfig,
    ReferencesSourceConfig,
    VisualGenomeSourceConfig,
    WebDatasetSourceConfig,
)
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import Source, missing_root
from patchmint.pipeline.sources.choice import Chosen
from patchmint.pipeline.sources.coco import CocoSource
from patchmint.pipeline.sources.conversations import ConversationsSource
from patchmint.pipeline.sources.flickr import FlickrSource
from patchmint.pipeline.sources.folder import FolderSource
from patchmint.pipeline.sources.grounding import GroundingSource
from patchmint.pipeline.sources.interleaved import InterleavedSource
from patchmint.pipeline.sources.karpathy import KarpathySource
from patchmint.pipeline.sources.parquet import ParquetSource
from patchmint.pipeline.sources.parquet import split_uri as split_parquet_uri
from patchmint.pipeline.sources.patchmint import PatchmintSource
from patchmint.pipeline.sources.references import ReferencesSource
from patchmint.pipeline.sources.visual_genome import VisualGenomeSource
from patchmint.pipeline.sources.webdataset import WebDatasetSource
from patchmint.pipeline.sources.webdataset import split_uri as split_tar_uri
from patchmint.samples import Found, ImageRef
from patchmint.storage import Storage, open_storage

__all__ = ["Chosen", "Source", "Sources", "open_source", "open_sources"]


@dataclass(frozen=True)
class Sources:
    """All sources of a build, in order, by name."""

    parts: Mapping[str, Chosen]

    @property
    def extended(self) -> PatchmintSource | None:
        """The data set that is extended, if it is that: the only source, then."""
        source = next(iter(self.parts.values())).source
        return source if isinstance(source, PatchmintSource) else None

    def check(self) -> None:
        """As `Source.check`."""
        for part in self.parts.values():
            part.check()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`, without those that `dedupe` leaves out."""
        return chain.from_iterable(part.samples() for part in self.parts.values())

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        return self.parts[ref.source].read_image(ref)


def open_sources(config: BuildConfig, *, outage_seconds: float | None = None) -> Sources:
    """All sources of a build, by name. Cheap, as `open_source`, which says what is raised."""
    most, masks = config.limits.max_images, "masks" in config.drawn
    return Sources(
        {
            part.name: open_source(part, outage_seconds=outage_seconds, max_images=most, masks=masks)
            for part in config.all_sources
        }
    )


def open_source(
    config: AnySource, *, outage_seconds: float | None = None, max_images: int | None = None, masks: bool = False
) -> Chosen:
    """The samples that the settings of a source choose. Cheap: no annotation file is read before `Source.samples`.

    Args:
        config: the settings.
        outage_seconds: as for `open_storage`, of a store. A folder isn't waited for: another machine may see it.
        masks: whether annotators' masks are read; planning takes longer for them.
        max_images: documents of more have a fault; None: of any number are good.

    Raises:
        ConfigError: the folder isn't on this machine, a path in the settings leads out of it, a pattern is none, or
            a condition can't be used.
        StorageError: the URI is of an unknown kind.
    """
    root = config.uri
    match config:
        case WebDatasetSourceConfig():
            root, _ = split_tar_uri(config.uri)
        case ParquetSourceConfig():
            root, _ = split_parquet_uri(config.uri)
    storage = open_storage(root, outage_seconds=outage_seconds if "://" in root else None)
    if missing := missing_root(storage):
        raise ConfigError(missing)
    return Chosen(_open(config, storage, masks), config, max_images)


def _open(config: AnySource, storage: Storage, masks: bool) -> Source:
    match config:
        case FolderSourceConfig():
            return FolderSource(config, storage)
        case WebDatasetSourceConfig():
            return WebDatasetSource(config, storage)
        case CocoSourceConfig():
            return CocoSource(config, storage, masks=masks)
        case VisualGenomeSourceConfig():
            return VisualGenomeSource(config, storage)
        case ReferencesSourceConfig():
            return ReferencesSource(config, storage, masks=masks)
        case KarpathySourceConfig():
            return KarpathySource(config, storage)
        case GroundingSourceConfig():
            return GroundingSource(config, storage, masks=masks)
        case FlickrSourceConfig():
            return FlickrSource(config, storage)
        case ConversationsSourceConfig():
            return ConversationsSource(config, storage)
        case InterleavedSourceConfig():
            return InterleavedSource(config, storage)
        case ParquetSourceConfig():
            return ParquetSource(config, storage)
        case PatchmintSourceConfig():
            return PatchmintSource(config, storage)
