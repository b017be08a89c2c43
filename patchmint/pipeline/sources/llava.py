"""LLaVA's training data: conversations about images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchmint.config.sources import LlavaSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import StoredImages, inner_setting, require, require_images
from patchmint.pipeline.sources.json_stream import stream_list
from patchmint.pipeline.sources.records import Sample, as_id, faulty, image_at, is_unicode, quoted
from patchmint.samples import Found, Turn
from patchmint.storage import Storage

PRETRAIN = "blip_laion_cc_sbu_558k.json"
FINETUNE = "llava_v1_5_mix665k.json"
_LAYOUT = (
    f"{PRETRAIN} with images/, or {FINETUNE} with coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images "
    "and vg/VG_100K there"
)
_IMAGE_MARK = "<image>"
_ROLES = {"answers": ("gpt",), "questions": ("human",), "all": ("human", "gpt")}


class LlavaSource(StoredImages):
    """Entries in the order of the file, one at a time."""

    def __init__(self, config: LlavaSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        given = config.annotations
        self._annotations = None if given is None else inner_setting(given, "source.annotations")
        self._images = None if config.images is None else inner_setting(config.images, "source.images")
        self._roles = _ROLES[config.texts]

    def check(self) -> None:
        """As `Source.check`."""
        path = self._find()
        next(stream_list(self._storage, path), None)
        require_images(self._storage, self._images_beside(path), "source.images")

    def _images_beside(self, path: str) -> str:
        if self._images is not None:
            return self._images
        return "images" if path.endswith(PRETRAIN) else ""

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        path = self._find()
        images = self._images_beside(path)
        for number, entry in enumerate(stream_list(self._storage, path)):
            where = f"entry {number} of {path}"
            turns = _turns(entry, where)
            if isinstance(turns, str):
                yield faulty(f"entry-{number}", "record-malformed", turns)
                continue
            # ids aren't unique in the published file, and needn't be
            name = as_id(entry.get("id")) or f"entry-{number}"
            if entry.get("image") is None:
                yield faulty(name, "no-image", f"{where} is a conversation without an image")
                continue
            sample = Sample(name, image_at(images, entry["image"]))
            if all(is_unicode(turn.content) for turn in turns):
                self._add_texts(sample, turns, where)
            else:
                sample.add_fault("text-not-unicode", f"{where} isn't valid Unicode; save the file as UTF-8")
            yield from sample.finish(f"{where} has no turn of {' or '.join(self._roles)} with words in it", turns)

    def _find(self) -> str:
        if self._annotations is not None:
            return require(self._storage, self._annotations, "source.annotations", _LAYOUT)
        found = [name for name in (PRETRAIN, FINETUNE) if self._storage.exists(name)]
        if len(found) == 1:
            return found[0]
        what = f"both {found[0]} and {found[1]}" if found else "neither of LLaVA's files"
        raise ConfigError(
            f"source.annotations: {what} in {self._storage.uri}; name the one to read. Expected {_LAYOUT}"
        )

    def _add_texts(self, sample: Sample, turns: list[Turn], where: str) -> None:
        for position, turn in enumerate(turns):
            if turn.role not in self._roles:
                continue
            text = turn.content.replace(_IMAGE_MARK, "").strip()
            if not text and _IMAGE_MARK in turn.content:
                continue  # the mark alone asks nothing
            sample.add_text(text, f"turn {position} of {where}")


def _turns(entry: Any, where: str) -> list[Turn] | str:
    """The turns of an entry, or what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        return f"{where} isn't an object with a list of conversations"
    turns = []
    for position, turn in enumerate(entry["conversations"]):
        role, content = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ("human", "gpt") or not isinstance(content, str):
            return f"turn {position} of {where} isn't a text from human or gpt: {quoted(turn)}"
        turns.append(Turn(role, content))
    return turns
