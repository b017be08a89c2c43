"""Conversations about images: LLaVA, ShareGPT, OpenAI's messages, the_cauldron; JSON, JSON Lines or Parquet.

Whatever the form, a conversation becomes turns of human, gpt and system, and its image one `<image>` mark in a turn of
a human; or a document, with its images in their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from patchmint.config.sources import ConversationsSourceConfig
from patchmint.pipeline.sources.documents import read_document, to_sample
from patchmint.pipeline.sources.image_records import Record, RecordsSource
from patchmint.pipeline.sources.records import Sample, as_id, faulty
from patchmint.pipeline.sources.turns import MARK, TURNS, Wrong, count_marks, listed, read_turns, with_marks
from patchmint.samples import Absent, Found
from patchmint.storage import Storage

PRETRAIN = "blip_laion_cc_sbu_558k.json"
FINETUNE = "llava_v1_5_mix665k.json"

_OTHERS = ("video", "videos", "audio", "audios")
_TEXTS = {"answers": ("gpt",), "questions": ("human",), "all": ("human", "gpt")}


class ConversationsSource(RecordsSource):
    """Entries in the order of the file, or of the Parquet files, one at a time."""

    layout = (
        f"{PRETRAIN} with images/, {FINETUNE} with coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images "
        "and vg/VG_100K, another .json or .jsonl with conversations or messages, or .parquet files there"
    )
    usual = (PRETRAIN, FINETUNE)
    markers = TURNS
    what = f"turns ({', '.join(TURNS)})"

    def __init__(self, config: ConversationsSourceConfig, storage: Storage) -> None:
        super().__init__(config, storage)
        self._config = config

    def folder_of(self, path: str) -> str | None:
        """As `RecordsSource.folder_of`."""
        return "images" if self._config.images is None and path.endswith(PRETRAIN) else None

    def read_record(self, record: Record) -> Iterator[Found]:
        """As `RecordsSource.read_record`."""
        entry, where, config = record.fields, record.where, self._config
        # ids aren't unique in the published file, and needn't be
        name = as_id(entry.get(config.id_column)) or record.unnamed
        roles, prepend = _TEXTS[config.texts], config.missing_mark == "prepend"
        if config.documents:
            found = read_document(
                record.whole, name, where, lambda given, _: self.locate(given, record.folder), prepend=prepend
            )
            yield to_sample(found, name, record.own, where, spread=config.image_texts, roles=roles)
            return
        try:
            said = read_turns(entry, where)
            # images that parts name have their place in the turns; a list beside them only repeats them
            images = [self.locate(image, record.folder) for image in said.images or listed(record.images)]
            if not images:
                if count_marks(said.turns):
                    raise Wrong("no-image", f"{where} has an {MARK} mark, but names no image")
                if any(entry.get(field) for field in _OTHERS):
                    raise Wrong("no-image", f"{where} is about a video or a sound, not about an image")
                yield Absent("text-only")
                return
            if len(images) > 1:
                message = f"{where} is about {len(images)} images; source.documents: true reads such"
                raise Wrong("several-images", message)
            turns = with_marks(said, 1, where, prepend=prepend)
        except Wrong as wrong:
            unnamed = record.unnamed if wrong.reason == "record-malformed" else name
            yield replace(faulty(unnamed, wrong.reason, str(wrong)), record=record.own)
            return
        sample = Sample(name, images[0], record.own)
        for position, turn in enumerate(turns):
            text = turn.content.replace(MARK, "").strip() if turn.role == "human" else turn.content.strip()
            if turn.role in roles and (text or MARK not in turn.content):  # the mark alone asks nothing
                sample.add_text(text, f"turn {position} of {where}")
        yield from sample.finish(f"{where} has no turn of {' or '.join(roles)} with words in it", turns)
