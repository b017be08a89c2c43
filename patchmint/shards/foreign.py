"""Samples of tars that other programs wrote, img2dataset's above all: an image, its text, and nothing of ours."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from patchmint.errors import ImageError, ShardError
from patchmint.images import IMAGE_ENDINGS
from patchmint.images.decode import read_header
from patchmint.samples import NO_NUMBER
from patchmint.shards.endings import CAPTION, DOCUMENT, IMAGE, numbered
from patchmint.shards.reader import StoredImage, StoredSample, group_members, is_own, iter_members
from patchmint.shards.schema import SCHEMA as SAMPLE_SCHEMA
from patchmint.shards.schema import (
    AnnotatorDocument,
    EntryDocument,
    GridDocument,
    ImageDocument,
    KeyJson,
    PartDocument,
    SampleDocument,
    SequenceDocument,
    SourceDocument,
    TokensDocument,
    dump_features,
    dump_list,
    dump_numbers,
)
from patchmint.shards.sidecar import DOCUMENTS, SCHEMA, sidecar_row
from patchmint.storage import Storage

_TEXTS = ("caption", "text", "texts")
_UNREADABLE: Any = {"width": 0, "height": 0, "format": "unreadable", "mode": "", "orientation": 1}


class ForeignSample(StoredSample):
    """A sample of another program's tar: what a KEY.json of ours would say of it is made up from its members.

    One with several images (KEY.0.jpg, KEY.1.png, ...) is a document: its images, then its texts.
    """

    @cached_property
    def files(self) -> tuple[bytes, ...]:
        """The image file, whatever it is called; where none is without a number, those with one, by their numbers."""
        plain = [data for ending, data in self.members.items() if ending.lower() in IMAGE_ENDINGS]
        if plain:
            return (plain[0],)
        found = {}
        for ending, data in self.members.items():
            number, _, kind = ending.lower().partition(".")
            if number.isdecimal() and kind in IMAGE_ENDINGS:
                found[int(number)] = data
        return tuple(found[number] for number in sorted(found))

    @property
    def image(self) -> bytes:
        """The first image file."""
        if not self.files:
            raise ShardError(f"sample {self.key!r} holds no image ({', '.join(self.members)})")
        return self.files[0]

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

    @cached_property
    def images(self) -> tuple[StoredImage, ...]:
        """The images, by number."""
        names = [self._name(number) for number in range(len(self.files))]
        members = dict(zip(names, self.files, strict=True))
        return tuple(StoredImage(number, self.key, self.key_json, members) for number in range(len(names)))

    @cached_property
    def key_json(self) -> KeyJson:
        """Its names, images and texts, without labels, codes and features. A grid that nothing lies on has no fit."""
        _ = self.image  # there is one
        images = [self._described(number) for number in range(len(self.files))]
        return self._told(images, documents=len(images) > 1)

    def rows(self, ordinal: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """As a sidecar of pictures has it, and one of documents; the size of an image that can't be read is 0 x 0."""
        images = []
        for number in range(max(len(self.files), 1)):
            try:
                images.append(self._described(number))
            except ShardError:
                images.append(ImageDocument.model_construct(**_UNREADABLE))
        place = {"ordinal": ordinal, "offset": self.offset, "size": self.size}
        told = (self._told(images, documents=documents) for documents in (False, True))
        picture, document = (sidecar_row(each, (), {}, **place) | {"texts": self.texts} for each in told)
        return picture, document

    def _name(self, number: int) -> str:
        return numbered(number, IMAGE) if len(self.files) > 1 else IMAGE

    def _described(self, number: int) -> ImageDocument:
        try:
            header = read_header(self.files[number] if number else self.image)
        except ImageError as error:
            raise ShardError(f"the {self._name(number)} of sample {self.key!r} can't be read: {error}") from error
        height, width = header.size
        return ImageDocument(
            width=width, height=height, format=header.format, mode=header.mode, orientation=header.orientation
        )

    def _told(self, images: Sequence[ImageDocument], *, documents: bool) -> KeyJson:
        texts = self.texts or ("",)
        common: dict[str, Any] = {
            "schema": SAMPLE_SCHEMA,
            "key": self.key,
            "id": self.key,
            "notice": "",
            "texts": texts,
            "phrases_json": "[]",
            "annotators_json": dump_list([AnnotatorDocument(spans=(), instances=())] * len(texts)),
            "tokens": TokensDocument(member="", grid=(), codebook_sizes=(), preprocessing=""),
            "features_json": dump_features(None),
        }
        grid = GridDocument(rows=1, cols=1, patch_px=1, fit="", views=1)
        source = SourceDocument(name="", path="", start=-1)
        if not documents:
            return SampleDocument(**common, image=images[0], conversation_json="[]", grid=grid, source=source)
        shown = [PartDocument(text="", image=number, role="") for number in range(len(images))]
        return SequenceDocument(
            **common,
            images=tuple(EntryDocument.model_construct(**dict(image), grid=grid, source=source) for image in images),
            sequence=(*shown, *(PartDocument(text=text, image=NO_NUMBER, role="") for text in texts)),
            image_texts_json=dump_numbers([range(len(texts))] * len(images)),
        )


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
    """What would be the sidecar of a tar, which is read through; of documents where any key has several images.

    Raises:
        StorageError: it can't be read.
        ShardError: it isn't a complete tar.
    """
    rows = [sample.rows(ordinal) for ordinal, sample in enumerate(iter_foreign(storage, tar))]
    if any(document["images"] > 1 for _, document in rows):
        return pa.Table.from_pylist([document for _, document in rows], schema=DOCUMENTS)
    return pa.Table.from_pylist([picture for picture, _ in rows], schema=SCHEMA)


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
