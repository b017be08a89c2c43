"""The gallery as a map from paths to bytes: written out as a folder, or answered one by one by a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from patchmint.datasets.dataset import Dataset, spread
from patchmint.inspection.gallery.documents import (
    INDEX_CHUNK,
    TEXTS_CHUNK,
    index_document,
    meta_document,
    script,
    texts_document,
)
from patchmint.inspection.gallery.remake import Remaker, offer_decoded, offer_masks
from patchmint.inspection.gallery.sample_files import Prepared, SampleFiles, file_name
from patchmint.types import Progress

ASSETS = (
    "index.html",
    "icon.svg",
    "gallery.css",
    "store.js",
    "draw.js",
    "finder.js",
    "cards.js",
    "detail.js",
    "gallery.js",
)
"""The page itself, the same for every data set."""

_BATCH = 16
_READERS = 4
_KEPT = 48
# Samples that a server keeps at hand: a page asks for a sample's files one after the other.
_KEPT_MASKS = 16
_CHUNKS = {"index": INDEX_CHUNK, "texts": TEXTS_CHUNK}
_OF_CHUNK = re.compile(r"data/(index|texts)-(\d{6})\.js", re.ASCII)
_OF_SAMPLE = re.compile(r"(samples|pictures|masks|decoded)/\d{6}/(\d{6,9})(?:-(\d{1,4}))?\.(?:js|jpg|png)", re.ASCII)
_FOLDER = re.compile(r"data|(samples|pictures|masks|decoded)(/\d{6})?", re.ASCII)


def is_own_file(path: str) -> bool:
    """Whether a gallery has files of such names."""
    return path in (*ASSETS, "data/meta.js") or any(names.fullmatch(path) for names in (_OF_CHUNK, _OF_SAMPLE))


def is_own_folder(path: str) -> bool:
    """Whether a gallery has folders of such names."""
    return _FOLDER.fullmatch(path) is not None


@dataclass(frozen=True)
class GallerySettings:
    """What a gallery shows.

    Attributes:
        samples: how many, evenly spread; 0 = all.
        size: longest side of its pictures in pixels.
        masks: whether masks are made again where that is possible.
        decoded: whether codes are drawn where that is possible.
    """

    samples: int = 0
    size: int = 512
    masks: bool = True
    decoded: bool = True


class Site:
    """Every file of a gallery. Safe across threads."""

    def __init__(self, dataset: Dataset, settings: GallerySettings) -> None:
        """Choose the samples, and find out what can be shown of them.

        Raises:
            ConfigError: the manifest's settings aren't patchmint's.
        """
        self.dataset = dataset
        self.positions = spread(dataset.samples, settings.samples)
        self.masks = offer_masks(dataset, settings.masks)
        self.decoded = offer_decoded(dataset, settings.decoded)
        self._samples = SampleFiles(dataset, settings.size, Remaker(self.masks, self.decoded))
        self._kept = lru_cache(maxsize=_KEPT)(self._small_files)
        self._kept_masks = lru_cache(maxsize=_KEPT_MASKS)(self._masks_of)

    def file(self, path: str) -> bytes | None:
        """The bytes at a path; None where there is nothing.

        Raises:
            ShardError, StorageError: a shard can't be read.
            WeightsError, PluginError, InputError: a model can't be used.
        """
        if path in ASSETS:
            return (resources.files("patchmint.inspection.gallery") / "assets" / path).read_bytes()
        if path == "data/meta.js":
            return script("data/meta", meta_document(self.dataset, len(self.positions), self.masks, self.decoded))
        if chunk := _OF_CHUNK.fullmatch(path):
            return self._chunk(chunk[1], int(chunk[2]))
        if own := _OF_SAMPLE.fullmatch(path):
            kind, position, text = own[1], int(own[2]), int(own[3] or 0)
            if position < len(self.positions) and path == file_name(kind, position, text):
                return self._of_sample(kind, position, text)
        return None

    def files(
        self, progress: Progress | None = None, problem: Callable[[str], None] | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Every path with its bytes; few samples are in memory at a time.

        Args:
            progress: told after each batch of samples.
            problem: told the key of each sample of which something can't be shown; its card says what.

        Raises:
            ShardError, StorageError, WeightsError, PluginError: as for `file`.
        """
        total = len(self.positions)
        chunks = (f"data/{kind}-{n:06}.js" for kind, length in _CHUNKS.items() for n in range(-(-total // length)))
        for path in (*ASSETS, "data/meta.js", *chunks):
            data = self.file(path)
            assert data is not None
            yield path, data
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, total, _BATCH):
                batch = range(start, min(start + _BATCH, total))
                yield from self._samples.of_batch(list(pool.map(self._prepare, batch)), problem)
                if progress is not None:
                    progress(batch[-1] + 1, total)

    def _chunk(self, kind: str, number: int) -> bytes | None:
        length = _CHUNKS[kind]
        indices = self.positions[number * length : (number + 1) * length]
        if not len(indices):
            return None
        document = (index_document if kind == "index" else texts_document)(self.dataset, indices)
        return script(f"data/{kind}-{number:06}", document)

    def _of_sample(self, kind: str, position: int, text: int) -> bytes | None:
        if kind in ("samples", "pictures"):
            return self._kept(position).get(kind)
        if kind == "masks":
            masks = self._kept_masks(position)
            return (masks[text] or None) if text < len(masks) else None
        prepared = self._prepare(position)
        return self._samples.decoded([prepared])[0] if prepared.described["decoded"] else None

    def _small_files(self, position: int) -> dict[str, bytes]:
        prepared = self._prepare(position)
        files = {"samples": self._samples.script(prepared)}
        return files if prepared.pixels is None else files | {"pictures": self._samples.picture(prepared)}

    def _masks_of(self, position: int) -> list[bytes]:
        prepared = self._prepare(position)
        return self._samples.masks([prepared])[0] if any(prepared.described["masks"]) else []

    def _prepare(self, position: int) -> Prepared:
        return self._samples.prepare(position, int(self.positions[position]))
