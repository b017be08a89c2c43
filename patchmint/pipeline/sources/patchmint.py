"""A finished data set of our own: its samples keep their keys, texts and what annotators drew.

Sidecars say what there is; a sample is read from its shard, and from those of columns, when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache

from patchmint.config.sources import PatchmintSourceConfig
from patchmint.datasets.dataset import Dataset, Shard
from patchmint.datasets.extension import base_of, finished_manifest
from patchmint.datasets.extents import Extent
from patchmint.datasets.reader import read_extent
from patchmint.datasets.rows import extents_of, read_table
from patchmint.errors import ShardError
from patchmint.pipeline.sources.base import StoredImages
from patchmint.pipeline.sources.choice import columns_of
from patchmint.samples import NO_NUMBER, Found, ImageRef, Part, PlannedSample, SourceSample, SourceText, Turn
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import SampleDocument
from patchmint.storage import Storage, uri_of
from patchmint.storage.ahead import done_ahead

_READERS = 16
_TABLES = 16
_COLUMNS = ("key", "id", "offset", "size", "texts")


class PatchmintSource(StoredImages):
    """Samples in the order of the shards."""

    def __init__(self, config: PatchmintSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._config = config
        self._asked = {name.casefold() for name in columns_of(config.where)}
        self._extents = lru_cache(_TABLES)(self._of_shard)

    @cached_property
    def _dataset(self) -> Dataset:
        return base_of(self._config)

    def check(self) -> None:
        """As `Source.check`: the data set is finished."""
        finished_manifest(self._storage)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        shards = (shard for shard in self._dataset.shards if shard.samples)
        for _, samples in done_ahead(self._read, shards, threads=_READERS, ahead=_READERS):
            yield from samples

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        return self.read_stored(ref).images[max(ref.number, 0)].data

    def read_stored(self, ref: ImageRef, key: str | None = None) -> StoredSample:
        """A whole sample, with what the columns have of it. Several threads may call this at once.

        Raises:
            StorageError: reading failed; another try may do.
            ShardError: the shard isn't what its sidecar says, or `key` isn't the sample's.
        """
        extent: Extent | None = Extent(ref.path, ref.start, ref.length, key)
        if self._dataset.columns and (extent := self._extents(ref.path).get(ref.start)) is None:
            raise ShardError(f"no sample begins at byte {ref.start} any more", uri=uri_of(self._storage, ref.path))
        assert extent is not None
        return read_extent(self._dataset, extent)

    def read_whole(self, planned: PlannedSample) -> tuple[PlannedSample, StoredSample]:
        """A stored sample, and the planned one with everything that its first source said.

        Raises:
            StorageError: reading failed; another try may do.
            ShardError: the sample is damaged, or the shard isn't what its sidecar says.
        """
        ref = planned.sample.image
        try:
            stored = self.read_stored(ref, planned.key)
            return restored(planned, stored), stored
        except ShardError as error:
            raise ShardError(
                f"{planned.key} in {ref.path} of {self._config.uri} can't be used: {error}; run `patchmint inspect "
                "verify` on it",
                uri=uri_of(self._storage, ref.path),
            ) from error

    def _of_shard(self, tar: str) -> dict[int, Extent]:
        shard = next(shard for shard in self._dataset.shards if shard.tar == tar)
        return {extent.offset: extent for extent in extents_of(self._dataset, shard)}

    def _read(self, shard: Shard) -> list[SourceSample]:
        documents = ["images"] if self._dataset.has_documents else []
        asked = [name for name in self._dataset.schema.names if name in self._asked]
        table = read_table(self._dataset, shard, list(dict.fromkeys((*_COLUMNS, *documents, *asked))))
        samples = []
        for row in table.to_pylist():
            texts = tuple(SourceText(text) for text in row["texts"])
            numbers = range(row["images"]) if documents else [NO_NUMBER]
            images = tuple(ImageRef(shard.tar, row["offset"], row["size"], number=number) for number in numbers)
            # where they stand is read with the sample
            parts = tuple(Part(image=number) for number in numbers if number != NO_NUMBER)
            record = {name: row[name] for name in asked}
            samples.append(SourceSample(row["id"], images, texts, key=row["key"], record=record, parts=parts))
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
