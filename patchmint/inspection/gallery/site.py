"""The gallery as a map from paths to bytes: written out as a folder, or answered one by one by a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from patchmint.datasets.dataset import Dataset, spread
from patchmint.errors import InputError
from patchmint.inspection.gallery.documents import (
    INDEX_CHUNK,
    TEXTS_CHUNK,
    index_document,
    meta_document,
    offer_document,
    script,
    texts_document,
)
from patchmint.inspection.gallery.doubts import doubts_document
from patchmint.inspection.gallery.edits import PendingEdits
from patchmint.inspection.gallery.remake import Remaker, has_instances, offer_decoded, offer_masks, offer_outlines
from patchmint.inspection.gallery.sample_files import Prepared, SampleFiles, file_name, has_problem
from patchmint.types import Progress

ASSETS = (
    "index.html",
    "icon.svg",
    "gallery.css",
    "store.js",
    "draw.js",
    "finder.js",
    "cards.js",
    "strip.js",
    "detail.js",
    "gallery.js",
)
"""The page itself, the same for every data set."""

EDITING_ASSETS = ("edit.css", "edit.js")
"""What it has besides where it edits."""

_BATCH = 16
_READERS = 4
_KEPT = 48
# Samples that a server keeps at hand: a page asks for a sample's files one after the other.
_KEPT_MASKS = 16
_CHUNKS = {"index": INDEX_CHUNK, "texts": TEXTS_CHUNK}
_OF_CHUNK = re.compile(r"data/(index|texts)-(\d{6})\.js", re.ASCII)
_OF_SAMPLE = re.compile(
    r"(samples|pictures|masks|decoded)/\d{6}/(\d{6,9})((?:-\d{1,4}){0,2})\.(?:js|jpg|png)", re.ASCII
)
_FOLDER = re.compile(r"data|(samples|pictures|masks|decoded)(/\d{6})?", re.ASCII)


def is_own_file(path: str) -> bool:
    """Whether a gallery has files of such names."""
    return path in (*ASSETS, "data/meta.js") or any(names.fullmatch(path) for names in (_OF_CHUNK, _OF_SAMPLE))


def is_own_folder(path: str) -> bool:
    """Whether a gallery has folders of such names."""
    return _FOLDER.fullmatch(path) is not None


def _editing_page(page: bytes) -> bytes:
    """index.html of a page that edits: it loads what is needed for that, and may send requests to its own server."""
    own = b'<link rel="stylesheet" href="edit.css">\n<script src="edit.js" defer></script>\n'
    gallery = b'<script src="gallery.js"'
    return page.replace(gallery, own + gallery).replace(b"base-uri", b"connect-src 'self'; base-uri")


@dataclass(frozen=True)
class GallerySettings:
    """What a gallery shows.

    Attributes:
        samples: how many, evenly spread; 0 = all.
        size: longest side of its pictures in pixels.
        masks: whether masks are made again where that is possible.
        decoded: whether codes are drawn where that is possible.
        masker: name or path of what outlines boxes that are drawn while editing; None: the labels' masker.
    """

    samples: int = 0
    size: int = 512
    masks: bool = True
    decoded: bool = True
    masker: str | None = None


class Site:
    """Every file of a gallery. Safe across threads."""

    def __init__(self, dataset: Dataset, settings: GallerySettings, pending: PendingEdits | None = None) -> None:
        """Choose the samples, and find out what can be shown of them.

        Args:
            dataset: that has them.
            settings: what is shown of it.
            pending: edits that samples are shown with, and more can be made; None: the page doesn't edit.

        Raises:
            ConfigError: the manifest's settings aren't patchmint's.
            InputError: instances that aren't stored can't be edited.
        """
        if pending is not None and not (dataset.finished and has_instances(dataset)):
            raise InputError(
                f"{dataset.uri} can't be edited: only a finished data set that stores its instances can; build it with "
                "`labels.instances: true`, or run `patchmint extend DATASET --labels.instances true` and `patchmint "
                "compact DATASET NEW --columns labels`"
            )
        self.dataset = dataset
        self.positions = spread(dataset.samples, settings.samples)
        self.masks = offer_masks(dataset, settings.masks)
        self.decoded = offer_decoded(dataset, settings.decoded)
        self.pending = pending
        self.outlines = offer_outlines(dataset, settings.masker)
        self._samples = SampleFiles(dataset, settings.size, Remaker(self.masks, self.decoded), pending)
        self._kept = lru_cache(maxsize=_KEPT)(self._small_files)
        self._kept_masks = lru_cache(maxsize=_KEPT_MASKS)(self._masks_of)

    def file(self, path: str) -> bytes | None:
        """The bytes at a path; None where there is nothing.

        Raises:
            ShardError, StorageError: a shard can't be read.
            WeightsError, PluginError, InputError: a model can't be used.
        """
        if path in ASSETS or (path in EDITING_ASSETS and self.pending is not None):
            data = (resources.files("patchmint.inspection.gallery") / "assets" / path).read_bytes()
            return data if self.pending is None or path != "index.html" else _editing_page(data)
        if path == "data/meta.js":
            meta = meta_document(self.dataset, len(self.positions), self.masks, self.decoded)
            if self.pending is not None:
                meta["edit"] = {"file": self.pending.path.name, "outlines": offer_document(self.outlines)}
            return script("data/meta", meta)
        if path == "data/doubts.js" and self.pending is not None:
            return script("data/doubts", doubts_document(self.dataset, self.positions, self.pending))
        if chunk := _OF_CHUNK.fullmatch(path):
            return self._chunk(chunk[1], int(chunk[2]))
        if own := _OF_SAMPLE.fullmatch(path):
            kind, position, numbers = own[1], int(own[2]), tuple(map(int, own[3].split("-")[1:]))
            if position < len(self.positions) and path == file_name(kind, position, *numbers):
                return self._of_sample(kind, position, numbers)
        return None

    def forget(self) -> None:
        """Make samples anew from now on: their edits are others."""
        self._kept.cache_clear()
        self._kept_masks.cache_clear()

    def described(self, position: int) -> dict[str, Any]:
        """What the page is told of a sample. Raises a StorageError where its shard can't be read."""
        prepared = self._read(position)
        for image in prepared.images:
            self._samples.decode(image)
        return prepared.described

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
                samples = list(pool.map(self._read, range(start, min(start + _BATCH, total))))
                images = [image for prepared in samples for image in prepared.images]
                for first in range(0, len(images), _BATCH):  # of a document's many images a few are in memory at a time
                    decoded = pool.map(self._samples.decode, images[first : first + _BATCH])
                    yield from self._samples.of_batch(list(decoded))
                for prepared in samples:
                    yield file_name("samples", prepared.position), self._samples.script(prepared)
                    if problem is not None and has_problem(prepared.described):
                        problem(prepared.described["key"])
                if progress is not None:
                    progress(start + len(samples), total)

    def _chunk(self, kind: str, number: int) -> bytes | None:
        length = _CHUNKS[kind]
        indices = self.positions[number * length : (number + 1) * length]
        if not len(indices):
            return None
        document = (index_document if kind == "index" else texts_document)(self.dataset, indices)
        return script(f"data/{kind}-{number:06}", document)

    def _of_sample(self, kind: str, position: int, numbers: tuple[int, ...]) -> bytes | None:
        if kind in ("samples", "pictures"):
            return self._kept(position).get(file_name(kind, position, *numbers))
        if len(numbers) != self.dataset.has_documents + (kind == "masks"):
            return None
        number = numbers[0] if self.dataset.has_documents else 0
        if kind == "masks":
            masks = self._kept_masks(position, number)
            return (masks[numbers[-1]] or None) if numbers[-1] < len(masks) else None
        images = self._read(position).images[number : number + 1]
        decoded = [image for image in map(self._samples.decode, images) if image.described["decoded"]]
        return self._samples.decoded(decoded)[0] if decoded else None

    def _small_files(self, position: int) -> dict[str, bytes]:
        prepared = self._read(position)
        images = map(self._samples.decode, prepared.images)
        files = {
            image.file_name("pictures"): self._samples.picture(image) for image in images if image.pixels is not None
        }
        return files | {file_name("samples", position): self._samples.script(prepared)}

    def _masks_of(self, position: int, number: int) -> list[bytes]:
        images = map(self._samples.decode, self._read(position).images[number : number + 1])
        masked = [image for image in images if any(image.described["masks"])]
        return self._samples.masks(masked)[0] if masked else []

    def _read(self, position: int) -> Prepared:
        return self._samples.read(position, int(self.positions[position]))
