"""Samples of tars that other programs wrote, img2dataset's above all: an image, its text, and nothing of ours."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa

from patchmint.errors import ImageError, ShardError
from patchmint.images import IMAGE_ENDINGS
from patchmint.images.decode import ImageHeader, read_header
from patchmint.shards.endings import CAPTION, DOCUMENT, IMAGE
from patchmint.shards.reader import StoredImage, StoredSample, group_members, is_own, iter_members
from patchmint.shards.schema import SCHEMA as SAMPLE_SCHEMA
from patchmint.shards.schema import (
    AnnotatorDocument,
    GridDocument,
    ImageDocument,
    SampleDocument,
    SourceDocument,
    TokensDocument,
    dump_features,
    dump_list,
)
from patchmint.shards.sidecar import SCHEMA
from patchmint.storage import Storage

_TEXTS = ("caption", "text", "texts")
_BLANK = {
    field.name: () if pa.types.is_list(field.type) else "" if pa.types.is_string(field.type) else -1 for field in SCHEMA
}
"""A row without anything."""


class ForeignSample(StoredSample):
    """A sample of another program's tar: what a document of ours would say of it is made up from its members."""

    @property
    def image(self) -> bytes:
        """The image file, whatever it is called."""
        for ending, data in self.members.items():
            if ending.lower() in IMAGE_ENDINGS:
                return data
        raise ShardError(f"sample {self.key!r} holds no image ({', '.join(self.members)})")

    @property
    def texts(self) -> tuple[str, ...]:
        """Of its .txt, else of its .json."""
        if CAPTION in self.members:
            return (self.members[CAPTION].decode("utf-8-sig", "replace").strip(),)
        try:
            fields = json.loads(self.members.get(DOCUMENT, b"{}"))
        except (ValueError, RecursionError):
            return ()
        found = next((fields[name] for name in _TEXTS if fields.get(name)), ()) if isinstance(fields, dict) else ()
        return tuple(text for text in ([found] if isinstance(found, str) else found) if isinstance(text, str))

    @property
    def header(self) -> ImageHeader:
        """What the image's header says."""
        try:
            return read_header(self.image)
        except ImageError as error:
            raise ShardError(f"the image of sample {self.key!r} can't be read: {error}") from error

    @property
    def document(self) -> SampleDocument:
        """As `key_json`."""
        return self.key_json

    @cached_property
    def images(self) -> tuple[StoredImage, ...]:
        """The only image."""
        return (StoredImage(0, self.key, self.key_json, {IMAGE: self.image}),)

    @cached_property
    def key_json(self) -> SampleDocument:
        """Its names, image and texts, without labels, codes and features. A grid that nothing lies on has no fit."""
        header, texts = self.header, self.texts or ("",)
        height, width = header.size
        return SampleDocument(
            schema=SAMPLE_SCHEMA,
            key=self.key,
            id=self.key,
            notice="",
            image=ImageDocument(
                width=width, height=height, format=header.format, mode=header.mode, orientation=header.orientation
            ),
            texts=texts,
            phrases_json="[]",
            annotators_json=dump_list([AnnotatorDocument(spans=(), instances=())] * len(texts)),
            conversation_json="[]",
            grid=GridDocument(rows=1, cols=1, patch_px=1, fit="", views=1),
            tokens=TokensDocument(member="", grid=(), codebook_sizes=(), preprocessing=""),
            features_json=dump_features(None),
            source=SourceDocument(name="", path="", start=-1),
        )

    def row(self, ordinal: int) -> dict[str, Any]:
        """As a sidecar has it; the size of an image that can't be read is 0 x 0."""
        try:
            header = self.header
        except ShardError:
            header = None
        height, width = header.size if header is not None else (0, 0)
        names = {"key": self.key, "id": self.key, "ordinal": ordinal, "offset": self.offset, "size": self.size}
        shape = {"width": width, "height": height, "format": header.format if header is not None else "unreadable"}
        return _BLANK | names | shape | {"texts": self.texts}


def iter_foreign(storage: Storage, tar: str) -> Iterator[ForeignSample]:
    """Samples of a tar in order; what isn't a regular file is passed over.

    Raises:
        StorageError: it can't be read.
        ShardError: it isn't a complete tar.
    """
    with storage.open(tar) as file:
        files = (member for member in iter_members(file, tar) if member.data is not None)
        for sample in group_members(files, tar):
            yield ForeignSample(sample.key, sample.offset, sample.size, sample.members)


def is_foreign(storage: Storage, tar: str) -> bool:
    """Whether the first sample of a tar isn't of our format.

    Raises:
        StorageError: it can't be read.
        ShardError: it isn't a tar.
    """
    first = next(iter_foreign(storage, tar), None)
    return first is not None and not is_own(first)


def scan_foreign(storage: Storage, tar: str) -> pa.Table:
    """What would be the sidecar of a tar: it is read through.

    Raises:
        StorageError: it can't be read.
        ShardError: it isn't a complete tar.
    """
    rows = [sample.row(ordinal) for ordinal, sample in enumerate(iter_foreign(storage, tar))]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def parse_foreign(data: bytes, tar: str, offset: int) -> ForeignSample:
    """The one sample in a stretch of a tar, with whatever headers its program writes.

    Args:
        data: the stretch.
        tar: path of the tar, for errors.
        offset: where in it the stretch begins.

    Raises:
        ShardError: it holds no sample, or several.
    """
    files = (member for member in iter_members(io.BytesIO(data), tar) if member.data is not None)
    samples = list(group_members(files, tar))
    if len(samples) != 1:
        raise ShardError(f"{tar} has no sample at byte {offset}: it was changed while it was read")
    return ForeignSample(samples[0].key, offset, len(data), samples[0].members)
