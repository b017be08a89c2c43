"""A finished data set of our own, to be extended: its samples keep their keys, texts and what isn't made anew.

Sidecars say what there is; a sample is read from its shard when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.sources import PatchmintSourceConfig
from patchmint.datasets.extension import finished_manifest
from patchmint.errors import ConfigError, ShardError
from patchmint.pipeline.sources.base import StoredImages
from patchmint.pipeline.sources.choice import columns_of
from patchmint.samples import NO_NUMBER, Found, ImageRef, Part, PlannedSample, SourceSample, SourceText, Turn
from patchmint.shards.paths import MANIFEST_PATH, sidecar_folder, tar_of
from patchmint.shards.reader import StoredSample, read_sample
from patchmint.shards.schema import SampleDocument
from patchmint.shards.sidecar import ADDED, DOCUMENTS
from patchmint.shards.sidecar import SCHEMA as SIDECAR
from patchmint.storage import Storage, uri_of
from patchmint.storage.ahead import done_ahead

_READERS = 16
_COLUMNS = ("key", "id", "offset", "size", "texts", "images")


class PatchmintSource(StoredImages):
    """Samples in the order of the shards."""

    def __init__(self, config: PatchmintSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._uri = config.uri
        asked = {name.casefold() for name in columns_of(config.where)}
        self._asked = [name for name in dict.fromkeys([*SIDECAR.names, *DOCUMENTS.names]) if name in asked]

    def check(self) -> None:
        """As `Source.check`: the data set is finished."""
        finished_manifest(self._storage)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        count = 0
        manifest = finished_manifest(self._storage)
        folder = sidecar_folder(manifest.version)
        sidecars = (entry.path for entry in self._storage.list(folder) if entry.path.endswith(".parquet"))
        for _, samples in done_ahead(self._of_sidecar, sidecars, threads=_READERS, ahead=_READERS):
            yield from samples
            count += len(samples)
        written = manifest.totals.written
        if count != written:
            raise ConfigError(
                f"the sidecars in {self._uri} name {count} samples, its {MANIFEST_PATH} says {written}; run "
                f"`patchmint inspect verify {self._uri}`"
            )

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        return self.read_stored(ref).images[max(ref.number, 0)].data

    def read_stored(self, ref: ImageRef) -> StoredSample:
        """A whole sample. Several threads may call this at once.

        Raises:
            StorageError: reading failed; another try may do.
            ShardError: the shard isn't what its sidecar says.
        """
        return read_sample(self._storage, ref.path, ref.start, ref.length)

    def read_whole(self, planned: PlannedSample) -> tuple[PlannedSample, StoredSample]:
        """A stored sample, and the planned one with everything that its first source said.

        Raises:
            StorageError: reading failed; another try may do.
            ShardError: the sample is damaged, or the shard isn't what its sidecar says.
        """
        ref = planned.sample.image
        try:
            stored = self.read_stored(ref)
            if stored.key != planned.key:
                raise ShardError(f"there is sample {stored.key!r} in its place")
            return restored(planned, stored), stored
        except ShardError as error:
            raise ShardError(
                f"{planned.key} in {ref.path} of {self._uri} can't be carried over: {error}; run `patchmint inspect "
                "verify` on it",
                uri=uri_of(self._storage, ref.path),
            ) from error

    def _of_sidecar(self, path: str) -> list[SourceSample]:
        tar = tar_of(path)
        samples = []
        try:
            with self._storage.open(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(columns=list({*_COLUMNS, *self._asked})):
                    for row in batch.to_pylist():
                        texts = tuple(SourceText(text) for text in row["texts"])
                        numbers = range(row["images"]) if "images" in row else [NO_NUMBER]
                        images = tuple(ImageRef(tar, row["offset"], row["size"], number=number) for number in numbers)
                        # where they stand is read with the sample
                        parts = tuple(Part(image=number) for number in numbers if number != NO_NUMBER)
                        record = {name: row.get(name, ADDED.get(name)) for name in self._asked}
                        samples.append(
                            SourceSample(row["id"], images, texts, key=row["key"], record=record, parts=parts)
                        )
        except (pa.ArrowException, OSError) as error:
            raise ShardError(
                f"{path} in {self._uri} isn't a readable sidecar: {error}; run `patchmint inspect verify` on it",
                uri=uri_of(self._storage, path),
            ) from error
        return samples


def restored(planned: PlannedSample, stored: StoredSample) -> PlannedSample:
    """A planned sample with everything that its source said when the data set that is extended was built.

    Raises:
        ShardError: the stored sample's document is damaged.
    """
    told = stored.key_json
    if len(told.annotators) != len(told.texts):
        raise ShardError(f"{len(told.texts)} texts, but annotators_json has {len(told.annotators)} entries")
    texts = tuple(
        SourceText(content, annotator.spans, annotator.drawn)
        for content, annotator in zip(told.texts, told.annotators, strict=True)
    )
    turns = told.conversation if isinstance(told, SampleDocument) else ()
    source = SourceSample(
        id=told.id,
        images=tuple(
            ImageRef(image.source.path, image.source.start, source=image.source.name) for image in told.images
        ),
        texts=texts,
        conversation=tuple(Turn(turn.role, turn.content) for turn in turns),
        parts=stored.parts,
        image_texts=told.image_texts if stored.parts else (),
    )
    return PlannedSample(planned.ordinal, planned.key, source)
