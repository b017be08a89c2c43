"""A finished data set of our own, to be extended: its samples keep their keys, texts and what isn't made anew.

Sidecars say what there is; a sample is read from its shard when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.sources import PatchmintSourceConfig
from patchmint.errors import ConfigError, ShardError
from patchmint.pipeline.extension import finished_manifest
from patchmint.pipeline.sources.base import StoredImages
from patchmint.samples import ImageRef, SourceSample, SourceText
from patchmint.shards.manifest import MANIFEST_PATH
from patchmint.shards.reader import StoredSample, read_sample
from patchmint.storage import Storage

_COLUMNS = ["key", "id", "offset", "size", "texts"]


class PatchmintSource(StoredImages):
    """Samples in the order of the shards."""

    def __init__(self, config: PatchmintSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._uri = config.uri

    def samples(self) -> Iterator[SourceSample]:
        """As `Source.samples`."""
        count = 0
        for entry in self._storage.list("shards"):
            if not entry.path.endswith(".parquet"):
                continue
            for sample in self._of_sidecar(entry.path):
                yield sample
                count += 1
        written = finished_manifest(self._storage).totals.written
        if count != written:
            raise ConfigError(
                f"the sidecars in {self._uri} name {count} samples, its {MANIFEST_PATH} says {written}; run "
                f"`patchmint inspect verify {self._uri}`"
            )

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        return self.read_stored(ref).image

    def read_stored(self, ref: ImageRef) -> StoredSample:
        """A whole sample. Several threads may call this at once.

        Raises:
            StorageError: reading failed; another try may do.
            ShardError: the shard isn't what its sidecar says.
        """
        return read_sample(self._storage, ref.path, ref.start, ref.length)

    def _of_sidecar(self, path: str) -> Iterator[SourceSample]:
        tar = path.removesuffix("parquet") + "tar"
        try:
            with self._storage.open(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(columns=_COLUMNS):
                    for row in batch.to_pylist():
                        texts = tuple(SourceText(text) for text in row["texts"])
                        yield SourceSample(row["id"], ImageRef(tar, row["offset"], row["size"]), texts, key=row["key"])
        except (pa.ArrowException, OSError) as error:
            raise ShardError(
                f"{path} in {self._uri} is no sidecar that can be read: {error}; run `patchmint inspect verify` on it"
            ) from error
