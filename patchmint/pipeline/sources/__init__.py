"""Data sets to take samples from: folders, tars, annotation files, tables."""

from __future__ import annotations

from patchmint.config.sources import (
    CocoSourceConfig,
    ConversationsSourceConfig,
    FlickrSourceConfig,
    FolderSourceConfig,
    GroundingSourceConfig,
    KarpathySourceConfig,
    ParquetSourceConfig,
    PatchmintSourceConfig,
    ReferencesSourceConfig,
    SourceConfig,
    VisualGenomeSourceConfig,
    WebDatasetSourceConfig,
)
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import Source, missing_root
from patchmint.pipeline.sources.coco import CocoSource
from patchmint.pipeline.sources.conversations import ConversationsSource
from patchmint.pipeline.sources.flickr import FlickrSource
from patchmint.pipeline.sources.folder import FolderSource
from patchmint.pipeline.sources.grounding import GroundingSource
from patchmint.pipeline.sources.karpathy import KarpathySource
from patchmint.pipeline.sources.parquet import ParquetSource
from patchmint.pipeline.sources.parquet import split_uri as split_parquet_uri
from patchmint.pipeline.sources.patchmint import PatchmintSource
from patchmint.pipeline.sources.references import ReferencesSource
from patchmint.pipeline.sources.visual_genome import VisualGenomeSource
from patchmint.pipeline.sources.webdataset import WebDatasetSource
from patchmint.pipeline.sources.webdataset import split_uri as split_tar_uri
from patchmint.storage import open_storage

__all__ = ["Source", "open_source"]


def open_source(config: SourceConfig, *, outage_seconds: float | None = None) -> Source:
    """The source that the settings describe. Cheap: no annotation file is read before `Source.samples`.

    Args:
        config: the settings.
        outage_seconds: as for `open_storage`, of a store. A folder isn't waited for: another machine may see it.

    Raises:
        ConfigError: the folder isn't on this machine, a path in the settings leads out of it, or a pattern is none.
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
    match config:
        case FolderSourceConfig():
            return FolderSource(config, storage)
        case WebDatasetSourceConfig():
            return WebDatasetSource(config, storage)
        case CocoSourceConfig():
            return CocoSource(config, storage)
        case VisualGenomeSourceConfig():
            return VisualGenomeSource(config, storage)
        case ReferencesSourceConfig():
            return ReferencesSource(config, storage)
        case KarpathySourceConfig():
            return KarpathySource(config, storage)
        case GroundingSourceConfig():
            return GroundingSource(config, storage)
        case FlickrSourceConfig():
            return FlickrSource(config, storage)
        case ConversationsSourceConfig():
            return ConversationsSource(config, storage)
        case ParquetSourceConfig():
            return ParquetSource(config, storage)
        case PatchmintSourceConfig():
            return PatchmintSource(config, storage)
