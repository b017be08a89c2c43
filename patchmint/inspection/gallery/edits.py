"""Edits made in the gallery: lines of a file, drawn over what is stored until `patchmint correct` applies them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from patchmint.datasets.edits import Edit, edited, read_edits
from patchmint.errors import InputError
from patchmint.shards.endings import DOCUMENT, INSTANCES
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import (
    InstancesDocument,
    PhraseDocument,
    dump_list,
    dump_phrases,
)
from patchmint.storage import open_storage


class PendingEdits:
    """An edits file. Each change is on the disk, whole, before anybody is told of it. Safe across threads."""

    def __init__(self, path: Path) -> None:
        """Read it, if it is there.

        Raises:
            InputError: it holds something else.
            StorageError: it can't be read.
        """
        self.path = path.absolute()
        self._storage = open_storage(self.path.parent)
        self._lock = Lock()
        self._edits: list[Edit] = []
        if self._storage.exists(path.name):
            with self._storage.open(path.name) as file:
                self._edits = [line.edit for line in read_edits(file, str(path))]

    def __len__(self) -> int:
        return len(self._edits)

    def of(self, key: str) -> list[Edit]:
        """The edits of a sample, in order."""
        return [edit for edit in self._edits if edit.key == key]

    def append(self, edit: Edit) -> None:
        """Add an edit. Raises a StorageError where the file can't be written."""
        with self._lock:
            self._write([*self._edits, edit])

    def drop_last(self, key: str) -> Edit:
        """Take a sample's last edit away, which nobody has applied yet.

        Raises:
            InputError: it has none.
            StorageError: the file can't be written.
        """
        with self._lock:
            if not (own := self.of(key)):
                raise InputError(f"sample {key!r} has no edit that could be undone")
            self._write([edit for edit in self._edits if edit is not own[-1]])
            return own[-1]

    def _write(self, edits: Sequence[Edit]) -> None:
        self._storage.write(self.path.name, b"".join(edit.to_line() for edit in edits))
        self._edits = list(edits)


def revised(sample: StoredSample, edits: Sequence[Edit]) -> StoredSample:
    """A sample with other instances; its labels stay those of the stored ones.

    Raises:
        InputError: an edit doesn't fit the sample, or the sample has no stored instances.
        ShardError: the sample is damaged.
    """
    if not edits:
        return sample
    images, told = sample.images, sample.key_json
    stored = [image.instances for image in images]
    found = [instances for instances in stored if instances is not None]
    if len(found) < len(images):
        raise InputError(f"sample {sample.key!r} has no stored instances, so they can't be edited")
    first = list(found)
    for edit in edits:
        if edit.image >= len(images):
            raise InputError(f"sample {sample.key!r} has no image {edit.image}; it has {len(images)}, counted from 0")
        image = images[edit.image]
        if edit.undo:
            found = list(first)
        size = (image.info.height, image.info.width)
        found[edit.image] = edited(found[edit.image], edit, told.texts, image.texts, size)
    phrases = [
        [
            PhraseDocument(text=told.texts[each.text_index][each.start : each.end], **each.model_dump(exclude={"mask"}))
            for each in own
        ]
        for own in found
    ]
    document = json.loads(sample.members[DOCUMENT])
    document["phrases_json"] = dump_phrases(phrases) if sample.parts else dump_list(phrases[0])
    members = sample.members | {DOCUMENT: json.dumps(document).encode()}
    for image, own in zip(images, found, strict=True):
        members[image.ending_of(INSTANCES)] = InstancesDocument(instances_json=dump_list(own)).to_bytes()
    return StoredSample(sample.key, sample.offset, sample.size, members, sample.grid)


def is_wrong(edits: Sequence[Edit]) -> bool:
    """Whether edits of a sample, in order, leave it marked wrong as a whole."""
    wrong = False
    for edit in edits:
        wrong = edit.wrong if edit.wrong is not None else wrong and not edit.undo
    return wrong
