"""WebDataset tars: headers are read in a first pass, images later from where they lie in the tar."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, BinaryIO, NamedTuple

from patchmint.config.sources import WebDatasetSourceConfig
from patchmint.errors import ConfigError
from patchmint.images import IMAGE_ENDINGS
from patchmint.pipeline.sources.base import MAX_TEXT_BYTES, Section, StoredImages, check_head, in_sections
from patchmint.pipeline.sources.documents import as_documents, in_order, is_document, read_key, to_sample
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice, expand
from patchmint.pipeline.sources.records import NO_IMAGE, Sample, faulty, json_object, quoted
from patchmint.samples import Absent, Found, ImageRef
from patchmint.storage import Entry, Storage

_BLOCK = 512
_STATS = "_stats.json"
_MOST_STATS_BYTES = 1 << 20
_MOST_FAILED = 1_000_000
_FIELD = "json:"
_USUAL = IMAGE_ENDINGS | {"txt", "json"}


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of a webdataset URI, and the name or pattern of tars below it ("" = all)."""
    brace = uri.find("{")
    cut = uri.rfind("/", 0, brace if brace >= 0 else len(uri)) + 1
    if brace < 0 and not uri.endswith(".tar"):
        return uri, ""
    return uri[:cut] or ".", uri[cut:]


class _Member(NamedTuple):
    """A member of a tar: what follows its key's dot, and where it lies."""

    ending: str
    start: int
    size: int


@dataclass
class _Group:
    """The members of one key that can be an image or a text."""

    key: str
    members: list[_Member] = field(default_factory=list)

    def of(self, endings: Collection[str]) -> list[_Member]:
        return [member for member in self.members if member.ending in endings]


class WebDatasetSource(StoredImages):
    """Samples in the order of the tars' names, and in each tar in its own order."""

    at_once = 64
    chooses_files = True

    def __init__(self, config: WebDatasetSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        self._choice = FileChoice(config)
        _, pattern = split_uri(config.uri)
        self._names = expand(pattern) if pattern else []
        self._stats: dict[str, Entry] = {}
        image = None if config.image_member is None else _ending(config.image_member)
        texts = [text if text.startswith(_FIELD) else _ending(text) for text in config.texts]
        self._image = image
        self._documents = config.documents
        self._spread = config.image_texts
        self._images = IMAGE_ENDINGS if image is None else {image, *(f"{image}.{ending}" for ending in IMAGE_ENDINGS)}
        self._text_fields = tuple(texts)
        self._texts = {"json" if text.startswith(_FIELD) else text for text in texts} or {"txt", "json"}
        self._may_have_dots = image is None and not texts and not config.documents
        self._reads_fields = bool(config.where.strip())  # few tars are chosen from, and it costs a quarter

    def check(self) -> None:
        """As `Source.check`: all tars are there, and the first one is one."""
        next(self._samples_of(next(tar.path for tar in self._tars() if self._choice.has(tar.path))), None)

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`."""
        return self.in_section(tuple(self._with_stats()))

    def sections(self) -> Iterator[Section]:
        """As `Source.sections`: tars."""
        return in_sections(self._with_stats())

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        for file in section:
            if file.path.endswith(_STATS):
                yield from self._failed(file.path)
            elif self._choice.has(file.path):
                yield from self._samples_of(file.path)
            else:
                yield OTHER_FILE

    def _failed(self, path: str) -> Iterator[Absent]:
        """What img2dataset couldn't get for a tar."""
        counts = json_object(self._storage.read(path).decode("utf-8", "replace")) or {}
        for name, reason in (("failed_to_download", "download-failed"), ("failed_to_resize", "resize-failed")):
            count = counts.get(name)
            yield from repeat(Absent(reason), count if isinstance(count, int) and 0 < count <= _MOST_FAILED else 0)

    def _samples_of(self, name: str) -> Iterator[Found]:
        with self._storage.open(name, skipping=True) as file:
            check_head(file, f"{name} in {self._storage.uri}", "a tar")
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            yield from self._in_tar(name, file, size)

    def _with_stats(self) -> Iterator[Entry]:
        """The tars, each followed by img2dataset's counts of it if they are there."""
        for tar in self._tars():
            yield tar
            beside = self._stats.get(tar.path.removesuffix(".tar") + _STATS)
            if beside is not None and beside.size <= _MOST_STATS_BYTES and self._choice.has(tar.path):
                yield beside

    def _tars(self) -> list[Entry]:
        if len(self._names) == 1 and self._storage.exists(self._names[0]):
            tars = [Entry(self._names[0], self._storage.size(self._names[0]))]
        else:
            there = {entry.path: entry for entry in self._storage.list()}  # cheaper than a question for each
            self._stats = {path: entry for path, entry in there.items() if path.endswith(_STATS)}
            names = self._names or [path for path in there if path.endswith(".tar")]
            tars = [there[name] for name in names if name in there]
            missing = [name for name in self._names if name not in there]
            if missing:
                raise ConfigError(
                    f"source.uri: {len(missing)} of {len(self._names)} tars aren't in {self._storage.uri}: "
                    f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; get them, or correct the range"
                )
        if not tars:
            raise ConfigError(f"source.uri: there is no .tar in {self._storage.uri}; unpack .tar.gz files first")
        self._choice.check([tar.path for tar in tars], self._storage.uri)
        return tars

    def _in_tar(self, name: str, file: BinaryIO, size: int) -> Iterator[Found]:
        """Samples of one tar. A cut one gives those that are whole, then a fault that stands for the rest.

        A key without an image or a text waits for the end of the tar: its other members may not lie beside these.
        """
        group: _Group | None = None
        waiting: dict[str, _Group] = {}
        count, end = 0, 0

        def close(group: _Group) -> Iterator[Found]:
            nonlocal count
            earlier = waiting.pop(group.key, None)
            if earlier is not None and self._belong_together(earlier, group):
                group.members[:0] = earlier.members
            elif earlier is not None:
                yield from self._from_group(name, file, earlier)
            if self._is_whole(group):
                count += 1
                yield from self._from_group(name, file, group)
            else:
                waiting[group.key] = group

        for member, following in _members(file, f"{name} in {self._storage.uri}"):
            if member.offset_data + member.size > size:
                break
            end = following
            key, ending = _key_and_ending(member.name)
            if not ending or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                continue
            if group is not None and key != group.key:
                yield from close(group)
                group = None
            group = group or _Group(key)
            if self._is_of_use(ending):
                group.members.append(_Member(ending, member.offset_data, member.size))
        whole = _ends_here(file, end)
        if group is not None:
            earlier = waiting.get(group.key, _Group(group.key))
            if whole or self._is_whole(_Group(group.key, [*earlier.members, *group.members])):
                yield from close(group)
                group = None
        for left in waiting.values():
            yield from self._from_group(name, file, left)
        if not whole:
            lost = f", in the middle of {quoted(group.key)}" if group is not None else ""
            yield faulty(
                f"{name}#rest",
                "tar-cut",
                f"{name} is cut or damaged at byte {end}, after {count} whole samples{lost}; get it again, or "
                "leave the rest out",
            )

    def _is_of_use(self, ending: str) -> bool:
        """Members of other kinds are left alone, and pickles (.pyd, .pkl, .pth) with them: nothing opens those."""
        return ending.rpartition(".")[2] in _USUAL or ending in self._images or ending in self._texts

    def _is_whole(self, group: _Group) -> bool:
        return bool(self._images_of(group) and group.of(self._texts)) or bool(self._dotted(group))

    def _belong_together(self, one: _Group, other: _Group) -> bool:
        both_have_images = self._images_of(one) and self._images_of(other)
        return not both_have_images and not (one.of(self._texts) and other.of(self._texts))

    def _images_of(self, group: _Group) -> list[_Member]:
        """The members that are images; of a document also those with a number or a name of their own before."""
        if not self._documents:
            return group.of(self._images)
        chosen = group.members if self._image is None else [m for m in group.members if self._is_named(m.ending)]
        return [member for member in chosen if member.ending.rpartition(".")[2] in IMAGE_ENDINGS]

    def _is_named(self, ending: str) -> bool:
        return ending == self._image or ending.startswith(f"{self._image}.")

    def _dotted(self, group: _Group) -> list[_Group]:
        """The samples of a group whose names have dots of their own: img.v2.jpg and img.v2.txt are the key img.v2.

        None where nothing speaks for that: the key has an image before its first dot, or no stem has image and text.
        """
        if not self._may_have_dots or group.of(self._images):
            return []
        groups: dict[str, _Group] = {}
        for member in group.members:
            stem, _, ending = member.ending.rpartition(".")
            key = f"{group.key}.{stem}" if stem else group.key
            groups.setdefault(key, _Group(key)).members.append(member._replace(ending=ending))
        whole = any(each.of(self._images) and each.of(self._texts) for each in groups.values())
        return list(groups.values()) if whole else []

    def _from_group(self, name: str, file: BinaryIO, group: _Group) -> Iterator[Found]:
        if dotted := self._dotted(group):
            for each in dotted:
                yield from self._from_group(name, file, each)
            return
        where = f"{quoted(group.key)} in {name}"
        images = self._images_of(group)
        texts = self._text_fields or ("txt" if group.of(("txt",)) else f"{_FIELD}caption",)
        fields = any(text.startswith(_FIELD) for text in texts)
        needed = self._reads_fields or self._documents or not images or fields
        record = self._record(file, group) if needed else None
        if not images and record is not None and record.get("status", "success") != "success":  # img2dataset's
            yield Absent("download-failed")
            return
        if not self._documents and len(images) != 1:
            endings = ", ".join(quoted(member.ending) for member in group.members[:8])
            what = "several images" if images else "no image"
            reason = "record-malformed" if images else "no-image"
            message = f"{where} has {what} among its members ({endings}): a key ends at the first dot, and holds one "
            which = "image. source.image_member says which member it is; source.documents: true reads several"
            yield faulty(f"{name}/{group.key}", reason, message + which)
            return
        refs = {member.ending: ImageRef(name, member.start, member.size) for member in images}
        if self._documents and not self._text_fields and is_document(record):
            found = read_key(group.key, refs, record, where)
            yield to_sample(found, f"{name}/{group.key}", record, where, spread=self._spread)
            return
        sample = Sample(group.key, next(iter(refs.values()), NO_IMAGE), record or {})
        missing = [text for text in texts if not self._add_text(sample, text, group, record, file, where)]
        if len(missing) < len(texts):
            for _ in missing:
                sample.add_absent("text-null")
        told = sample.finish(f"{where} has no {' and no '.join(missing)}")
        yield from as_documents(told, in_order(refs), where, self._spread) if self._documents else told

    def _record(self, file: BinaryIO, group: _Group) -> dict[str, Any] | None:
        """What is in KEY.json; None if there is none, or something else in it."""
        found = group.of(("json",))
        if not found or found[0].size > MAX_TEXT_BYTES:
            return None
        return json_object(_text_of(file, found[0]))

    def _add_text(
        self, sample: Sample, text: str, group: _Group, record: dict[str, Any] | None, file: BinaryIO, where: str
    ) -> bool:
        """Add what `texts` names; whether it is there."""
        is_field = text.startswith(_FIELD)
        found = group.of(("json" if is_field else text,))
        if not found:
            return False
        value: object = None
        if found[0].size > MAX_TEXT_BYTES:
            sample.add_fault("text-too-long", f"the {found[0].ending} of {where} has {found[0].size} bytes")
        elif not is_field:
            sample.add_text(_text_of(file, found[0]).strip(), f"the {text} of {where}")
        elif record is None:
            sample.add_fault("record-malformed", f"the .json of {where} isn't a JSON object")
        elif (value := _field(record, text.removeprefix(_FIELD))) is None:
            return False
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            sample.add_text(each, f"{quoted(text)} of {where}")
        return True


def _ending(setting: str) -> str:
    """The ending of members that a setting names, as `_key_and_ending` has it."""
    return setting.removeprefix(".").lower()


def _text_of(file: BinaryIO, member: _Member) -> str:
    file.seek(member.start)
    return file.read(member.size).decode("utf-8-sig", "surrogateescape")


def _field(record: dict[str, Any], name: str) -> object:
    """A field of a record: of that name, or by the names of the objects that it is in, with dots between them."""
    if name in record or "." not in name:
        return record.get(name)
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return _field(inner, rest) if isinstance(inner, dict) else None


def _members(file: BinaryIO, shown: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The headers of a tar as far as they are sound, each with the position of the next."""
    try:
        tar = tarfile.TarFile(fileobj=file)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(
            f"{shown} isn't a tar, or is cut within its first header ({error}); get it again, or "
            "take it out of the folder"
        ) from error
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, EOFError, ValueError, OverflowError):
            return
        # a forged negative size leads back to the same header, again and again
        if member is None or member.size < 0:
            return
        tar.members = []  # type: ignore[attr-defined]  # every header is kept, a gigabyte in a big tar
        yield member, tar.offset


def _ends_here(file: BinaryIO, position: int) -> bool:
    """Whether a tar's end mark is at this position."""
    file.seek(position)
    return file.read(_BLOCK) == bytes(_BLOCK)


def _key_and_ending(name: str) -> tuple[str, str]:
    """A member's name, cut at the first dot of its last part, as webdataset does."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending.lower() if stem else ""
