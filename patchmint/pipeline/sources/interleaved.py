"""Documents whose texts stand around their images: MMC4, OBELICS, MINT-1T; JSON Lines, JSON or Parquet."""

from __future__ import annotations

from collections.abc import Iterator

from patchmint.config.sources import InterleavedSourceConfig
from patchmint.pipeline.sources.documents import read_document, to_sample
from patchmint.pipeline.sources.image_records import Record, RecordsSource
from patchmint.pipeline.sources.records import as_id
from patchmint.samples import Found
from patchmint.storage import Storage

MARKERS = ("text_list", "texts")
"""Fields of texts."""


class InterleavedSource(RecordsSource):
    """Documents in the order of their files' names, and in each file in its own order."""

    several = True
    layout = "MMC4's .jsonl files, OBELICS's or MINT-1T's .parquet files, and images where source.images says"
    markers = MARKERS
    what = f"texts ({', '.join(MARKERS)})"

    def __init__(self, config: InterleavedSourceConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        self._config = config

    def read_record(self, record: Record) -> Iterator[Found]:
        """As `RecordsSource.read_record`."""
        name = as_id(record.fields.get(self._config.id_column)) or record.unnamed
        found = read_document(record.whole, name, record.where, lambda given, _: self.locate(given, record.folder))
        yield to_sample(found, name, record.own, record.where, spread=self._config.image_texts)
