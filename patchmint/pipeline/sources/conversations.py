"""Conversations about images: LLaVA, ShareGPT, OpenAI's messages, the_cauldron; JSON, JSON Lines or Parquet.

Whatever the form, a conversation becomes turns of human, gpt and system, and its image one `<image>` mark in a turn of
a human. Training reads nothing else, so whatever doesn't come to that is rejected here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchmint.config.sources import ConversationsSourceConfig, ParquetSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import Section, in_sections, inner_setting, require
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice
from patchmint.pipeline.sources.images import NamedImages
from patchmint.pipeline.sources.json_stream import stream_list
from patchmint.pipeline.sources.parquet import ParquetSource
from patchmint.pipeline.sources.records import Sample, as_id, faulty, is_unicode, listed_image, quoted
from patchmint.pipeline.sources.tables import JSON, is_bytes, parquet_file, parquet_rows, require_columns
from patchmint.samples import WHOLE_FILE, Absent, Fault, Found, ImageRef, Turn
from patchmint.storage import Entry, Storage

PRETRAIN = "blip_laion_cc_sbu_558k.json"
FINETUNE = "llava_v1_5_mix665k.json"
TURNS = ("conversations", "messages", "conversation", "texts")
"""Fields of turns."""
IMAGES = ("image", "images")
"""Fields of images."""
_OTHERS = ("video", "videos", "audio", "audios")
MARK = "<image>"
"""Stands for the image in what a human says."""

_LAYOUT = (
    f"{PRETRAIN} with images/, {FINETUNE} with coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images and "
    "vg/VG_100K, another .json or .jsonl with conversations or messages, or .parquet files there"
)
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_TEXTS = {"answers": ("gpt",), "questions": ("human",), "all": ("human", "gpt")}


class Wrong(Exception):  # noqa: N818
    """A record can't be used: the reason and the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Said:
    """What an entry says.

    Attributes:
        turns: with `<image>` marks.
        images: those that parts of turns name, as they stand there.
        marked: whether its form has marks at all.
    """

    turns: list[Turn]
    images: list[object]
    marked: bool = True


class ConversationsSource(NamedImages):
    """Entries in the order of the file, or of the Parquet files, one at a time."""

    at_once = 8
    chooses_files = True  # Parquet files, or images of a JSON file

    def __init__(self, config: ConversationsSourceConfig, storage: Storage) -> None:
        self._choice = FileChoice(config)
        self._choice_of_images = FileChoice(config, by_folder=True)
        super().__init__(config, storage)
        self._config = config
        given = config.annotations
        self._annotations = None if given is None else inner_setting(given, "source.annotations")
        self._stored: ParquetSource | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """As `Source.check`."""
        read = next(file for file in self._files if self._choice.has(file.path) or not _in_rows(file))
        first = read.path
        if not _in_rows(read):
            next(stream_list(self._storage, first), None)
            self.check_images(folder=self._folder_of(first))
        else:
            with parquet_file(self._storage, first) as table:
                if not self._columns(first, table).embedded:
                    self.check_images()

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        return self.in_section(tuple(self._files))

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`: Parquet files; a JSON file can't be divided."""
        return in_sections(self._files) if _in_rows(self._files[0]) else None

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        for file in section:
            if not _in_rows(file):
                yield from self._in_json(file.path)
            elif self._choice.has(file.path):
                yield from self._in_parquet(file.path)
            else:
                yield OTHER_FILE

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        if ref.start == WHOLE_FILE:
            return super().read_image(ref)
        with self._lock:
            if self._stored is None:
                with parquet_file(self._storage, ref.path) as table:
                    column = self._columns(ref.path, table).image
                config = ParquetSourceConfig(kind="parquet", uri=self._config.uri, image_column=column)
                self._stored = ParquetSource(config, self._storage)
        return self._stored.read_image(ref)

    @cached_property
    def _files(self) -> list[Entry]:
        """The JSON file, or all Parquet files."""
        storage, given = self._storage, self._annotations
        if given is None:
            names = [name for name in (PRETRAIN, FINETUNE) if storage.exists(name)]
            found = [Entry(name, storage.size(name)) for name in names] or self._below("")
        else:
            found = self._below(given)
            if not found:
                path = require(storage, given, "source.annotations", _LAYOUT)
                found = [Entry(path, storage.size(path))]
        if parquets := [entry for entry in found if _in_rows(entry)]:
            self._choice.check([entry.path for entry in parquets], storage.uri)
            return parquets
        if len(found) != 1:
            names = [entry.path for entry in found]
            what = f"several JSON files ({', '.join(names)})" if found else "neither JSON nor Parquet files"
            raise ConfigError(
                f"source.annotations: there are {what} in {storage.uri}; name the one to read. Expected {_LAYOUT}"
            )
        return found

    def _below(self, folder: str) -> list[Entry]:
        """Parquet files in a folder at any depth, and JSON files at the top: images may be there in millions."""
        listed = self._storage.list(folder)
        return [entry for entry in listed if _in_rows(entry) or ("/" not in entry.path and entry.path.endswith(JSON))]

    def _folder_of(self, path: str) -> str | None:
        """The folder that image paths of a file start from, where the settings don't say."""
        return "images" if self._config.images is None and path.endswith(PRETRAIN) else None

    def _in_json(self, path: str) -> Iterator[Found]:
        folder = self._folder_of(path)
        fields = IMAGES if self._config.image_column is None else (self._config.image_column,)
        for number, entry in enumerate(stream_list(self._storage, path)):
            where, name = f"entry {number} of {path}", f"entry-{number}"
            if not isinstance(entry, dict):
                yield faulty(name, "record-malformed", f"{where} isn't an object: {quoted(entry)}")
                continue
            images = [self.image_at(image, folder) for image in of_fields(entry, fields)]
            if not all(isinstance(image, Fault) or self._choice_of_images.has(image.path) for image in images):
                yield OTHER_FILE
                continue
            yield from self._entry(entry, images, where, name, folder)

    def _in_parquet(self, path: str) -> Iterator[Found]:
        with parquet_file(self._storage, path) as table:
            columns = self._columns(path, table)
            file = listed_image(path)
            for number, row in parquet_rows(self._storage, path, table, columns.read):
                named: list[object] = _listed(row.get(columns.image)) if columns.asked else [None]
                images: list[ImageRef | Fault] = [
                    replace(file, start=number - 1) if isinstance(file, ImageRef) else file for _ in named
                ]
                if not columns.embedded:
                    images = [self.image_at(image) for image in named]
                row.pop(columns.image, None)
                yield from self._entry(row, images, f"row {number} of {path}", f"{path}:{number}")

    def _columns(self, path: str, table: pq.ParquetFile) -> _Columns:
        """Which columns hold what.

        Raises:
            ConfigError: one is missing.
        """
        shown, schema = f"{path} in {self._storage.uri}", table.schema_arrow
        if not any(name in schema.names for name in TURNS):
            raise ConfigError(
                f"{shown} has no column of turns ({', '.join(TURNS)}); its columns: "
                f"{', '.join(map(quoted, schema.names))}. Tables with a text for each image are read with source.kind: "
                "parquet"
            )
        given = self._config.image_column
        image = given or next((name for name in IMAGES if name in schema.names), IMAGES[0])
        require_columns(shown, [image], schema.names)
        kind = schema.field(image).type
        item = kind.value_type if _is_list(kind) else kind
        others = [name for name in schema.names if name != image]
        if not pa.types.is_struct(item) and not is_bytes(item):
            return _Columns(image, [*others, image], asked=True, embedded=False)
        leaves = [table.schema.column(index).path for index in range(len(table.schema.names))]
        # how many images there are shows beside the bytes, which are left alone
        beside = [leaf for leaf in leaves if leaf.startswith(f"{image}.") and leaf.endswith(".path")]
        asked = beside or ([image] if _is_list(kind) else [])
        return _Columns(image, [*others, *asked], asked=bool(asked), embedded=True)

    def _entry(
        self,
        entry: Mapping[str, Any],
        images: list[ImageRef | Fault],
        where: str,
        unnamed: str,
        folder: str | None = None,
    ) -> Iterator[Found]:
        own = {key: value for key, value in entry.items() if key != "texts"}  # in a condition these are ours
        # ids aren't unique in the published file, and needn't be
        name = as_id(entry.get(self._config.id_column)) or unnamed
        try:
            said = read_turns(entry, where)
            # images that parts name have their place in the turns; a list beside them only repeats them
            images = [self.image_at(image, folder) for image in said.images] or images
            if not images:
                if count_marks(said.turns):
                    raise Wrong("no-image", f"{where} has an {MARK} mark, but names no image")
                if any(entry.get(field) for field in _OTHERS):
                    raise Wrong("no-image", f"{where} is about a video or a sound, not about an image")
                yield Absent("text-only")
                return
            if len(images) > 1:
                raise Wrong("several-images", f"{where} is about {len(images)} images; one can be read so far")
            turns = with_marks(said, 1, where, prepend=self._config.missing_mark == "prepend")
        except Wrong as wrong:
            malformed = wrong.reason == "record-malformed"
            yield replace(faulty(unnamed if malformed else name, wrong.reason, str(wrong)), record=own)
            return
        sample = Sample(name, images[0], own)
        roles = _TEXTS[self._config.texts]
        for position, turn in enumerate(turns):
            text = turn.content.replace(MARK, "").strip() if turn.role == "human" else turn.content.strip()
            if turn.role in roles and (text or MARK not in turn.content):  # the mark alone asks nothing
                sample.add_text(text, f"turn {position} of {where}")
        yield from sample.finish(f"{where} has no turn of {' or '.join(roles)} with words in it", turns)


def images_of(entry: Mapping[str, Any]) -> list[object]:
    """The images that an entry of a JSON file names, as they stand there; none if it is no conversation."""
    try:
        return read_turns(entry, "").images or of_fields(entry, IMAGES)
    except Wrong:
        return []


def of_fields(entry: Mapping[str, Any], fields: Iterable[str]) -> list[object]:
    """What the first of some fields that an entry has lists; a single value is a list of one."""
    return _listed(next((entry[field] for field in fields if entry.get(field) is not None), None))


class _Columns(NamedTuple):
    """What to read of a Parquet file while planning.

    Attributes:
        image: the column of images.
        read: columns, and parts of columns, to read.
        asked: whether the images' column, or what is beside the bytes in it, is among them.
        embedded: whether it holds images, not paths.
    """

    image: str
    read: list[str]
    asked: bool
    embedded: bool


def read_turns(entry: Mapping[str, Any], where: str) -> Said:
    """The turns of an entry.

    Args:
        entry: in any of the forms.
        where: which one that is, for messages.

    Raises:
        Wrong: it has none, or one isn't a text of a known role.
    """
    field = next((field for field in TURNS if entry.get(field) is not None), None)
    given = None if field is None else entry[field]
    if isinstance(given, str):  # some tables keep it as JSON
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, list):
        raise Wrong("record-malformed", f"{where} has no list of {', '.join(TURNS[:2])}")
    said = Said([], [])
    system = entry.get("system")
    if isinstance(system, str) and system:
        given = [{"role": "system", "content": system}, *given]
    for position, turn in enumerate(given):
        if isinstance(turn, dict) and "user" in turn and "assistant" in turn:  # the_cauldron: two turns, no marks
            said.marked = False
            pairs: list[tuple[object, object]] = [("user", turn["user"]), ("assistant", turn["assistant"])]
        elif isinstance(turn, dict):
            value = turn.get("value")
            pairs = [(turn.get("from") or turn.get("role"), turn.get("content") if value is None else value)]
        else:
            pairs = [(None, None)]
        for role, value in pairs:
            known = _ROLES.get(role.lower()) if isinstance(role, str) else None
            content = _content(value, said.images)
            if known is None or content is None:
                message = f"turn {position} of {where} isn't a text or parts of text and images from human (user), gpt "
                raise Wrong("record-malformed", f"{message}(assistant) or system: {quoted(turn)}")
            if not is_unicode(content):
                raise Wrong("text-not-unicode", f"{where} isn't valid Unicode; save the file as UTF-8")
            said.turns.append(Turn(known, content))
    return said


def _content(value: object, images: list[object]) -> str | None:
    """What a turn says, as one text; images that its parts name are added to `images`. None: it is something else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    pieces: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        match kind:
            case "text" if isinstance(part.get("text"), str):
                pieces.append(part["text"])
            case "image" | "image_url":
                pieces.append(MARK)
                given = part.get("image_url") or part.get("image") or part.get("path") or part.get("url")
                named = given.get("url") if isinstance(given, dict) else given
                if named is not None:
                    images.append(named)
            case _:
                return None
    return "\n".join(pieces)


def count_marks(turns: Iterable[Turn]) -> int:
    """How many marks stand for images: those of humans. In an answer a mark is text, for training, too."""
    return sum(turn.content.count(MARK) for turn in turns if turn.role == "human")


def with_marks(said: Said, images: int, where: str, *, prepend: bool) -> list[Turn]:
    """The turns with a mark for each image.

    Args:
        said: turns and images.
        images: how many, at least one.
        where: which conversation that is, for messages.
        prepend: put the marks before the first question if there are none, or if its form has none.

    Raises:
        Wrong: there are more marks than images, or fewer.
    """
    turns, marks = said.turns, count_marks(said.turns)
    if marks == images:
        return turns
    many = "one image" if images == 1 else f"{images} images"
    if marks > images:
        raise Wrong("mark-repeated", f"{where} has {marks} {MARK} marks for {many}; each image has one mark")
    if marks:
        raise Wrong("mark-missing", f"{where} has {marks} {MARK} marks for {many}; each image has one mark")
    if not prepend and said.marked:
        raise Wrong(
            "mark-missing",
            f"{where} is about {many}, but no turn of a human has an {MARK} mark; source.missing_mark: prepend puts "
            "one for each before the first question",
        )
    put = "\n".join([MARK] * images)
    first = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if first < len(turns) and turns[first].role == "human":
        return [*turns[:first], Turn("human", f"{put}\n{turns[first].content}"), *turns[first + 1 :]]
    return [*turns[:first], Turn("human", put), *turns[first:]]


def _in_rows(file: Entry) -> bool:
    return file.path.endswith(".parquet")


def _listed(named: object) -> list[object]:
    """Images as a list: of none, one or several."""
    items = named if isinstance(named, list) else [named]
    return [item for item in items if item is not None and item != ""]


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
