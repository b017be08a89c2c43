"""From settings to a source."""

from __future__ import annotations

from patchmint.config.sources import (
    CocoSourceConfig,
    FolderSourceConfig,
    LlavaSourceConfig,
    ParquetSourceConfig,
    ReferencesSourceConfig,
    SourceConfig,
    VisualGenomeSourceConfig,
    WebDatasetSourceConfig,
)
from patchmint.pipeline.sources import llava, parquet, references, visual_genome, webdataset
from patchmint.pipeline.sources.base import Source, check_root
from patchmint.pipeline.sources.coco import CocoSource
from patchmint.pipeline.sources.folder import FolderSource
from patchmint.storage import open_storage


def open_source(config: SourceConfig) -> Source:
    """The source that the settings describe. Cheap: no annotation file is read before `Source.samples`.

    Raises:
        ConfigError: a path in the settings leads out of the source, or a pattern can't be read.
        StorageError: the URI is of an unknown kind, or its folder isn't on this machine.
    """
    root = config.uri
    match config:
        case WebDatasetSourceConfig():
            root, _ = webdataset.split_uri(config.uri)
        case ParquetSourceConfig():
            root, _ = parquet.split_uri(config.uri)
    storage = open_storage(root)
    check_root(storage)
    match config:
        case FolderSourceConfig():
            return FolderSource(config, storage)
        case WebDatasetSourceConfig():
            return webdataset.WebDatasetSource(config, storage)
        case CocoSourceConfig():
            return CocoSource(config, storage)
        case VisualGenomeSourceConfig():
            return visual_genome.VisualGenomeSource(config, storage)
        case ReferencesSourceConfig():
            return references.ReferencesSource(config, storage)
        case LlavaSourceConfig():
            return llava.LlavaSource(config, storage)
        case ParquetSourceConfig():
            return parquet.ParquetSource(config, storage)
