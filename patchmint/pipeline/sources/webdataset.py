"""WebDataset tars: headers are read in a first pass, images later from where they lie in the tar."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, BinaryIO

from patchmint.config.sources import WebDatasetSourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import MAX_TEXT_BYTES, Section, StoredImages, check_head, in_sections
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice, expand
from patchmint.pipeline.sources.folder import IMAGE_ENDINGS
from patchmint.pipeline.sources.records import Sample, faulty, quoted
from patchmint.samples import Absent, Found, ImageRef
from patchmint.storage import Entry, Storage

_BLOCK = 512
_STATS = "_stats.json"
_MOST_STATS_BYTES = 1 << 20
_MOST_FAILED = 1_000_000


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of a webdataset URI, and the name or pattern of tars below it ("" = all)."""
    brace = uri.find("{")
    cut = uri.rfind("/", 0, brace if brace >= 0 else len(uri)) + 1
    if brace < 0 and not uri.endswith(".tar"):
        return uri, ""
    return uri[:cut] or ".", uri[cut:]


@dataclass
class _Group:
    """The members of one key that lie side by side."""

    key: str
    images: list[tarfile.TarInfo] = field(default_factory=list)
    text: tarfile.TarInfo | None = None
    json: tarfile.TarInfo | None = None


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
        self._reads_fields = bool(config.where.strip())

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
        counts = _record(self._storage.read(path).decode("utf-8", "replace"))
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
        """Samples of one tar. A cut one gives those that are whole, then a fault that stands for the rest."""
        group: _Group | None = None
        count, end = 0, 0
        for member, following in _members(file, f"{name} in {self._storage.uri}"):
            if member.offset_data + member.size > size:
                break
            end = following
            key, ending = _key_and_ending(member.name)
            if not ending or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                continue
            if group is not None and key != group.key:
                yield from self._from_group(name, file, group)
                count, group = count + 1, None
            group = group or _Group(key)
            _put(group, ending, member)
        whole = _ends_here(file, end)
        if group is not None and (whole or (group.images and (group.text or group.json))):
            yield from self._from_group(name, file, group)
            count, group = count + 1, None
        if not whole:
            lost = f", in the middle of {quoted(group.key)}" if group is not None else ""
            yield faulty(
                f"{name}#rest",
                "tar-cut",
                f"{name} is cut or damaged at byte {end}, after {count} whole samples{lost}; get it again, or "
                "leave the rest out",
            )

    def _from_group(self, name: str, file: BinaryIO, group: _Group) -> Iterator[Found]:
        where = f"{quoted(group.key)} in {name}"
        record: Mapping[str, Any] = {}
        if group.json and (self._reads_fields or not group.text or not group.images):
            record = _record(_text_of(file, group.json))
        if not group.images and record.get("status", "success") != "success":
            yield Absent("download-failed")  # as img2dataset notes it
            return
        if len(group.images) != 1:
            what = "several images" if group.images else "no image"
            reason = "record-malformed" if group.images else "no-image"
            yield faulty(f"{name}/{group.key}", reason, f"{where} has {what}; a key holds one")
            return
        image = group.images[0]
        sample = Sample(group.key, ImageRef(name, image.offset_data, image.size), record)
        member = group.text or group.json
        if member is not None and member.size > MAX_TEXT_BYTES:
            sample.add_fault("text-too-long", f"the .txt or .json of {where} has {member.size} bytes")
        elif group.text is not None:
            sample.add_text(_text_of(file, group.text).strip(), f"the caption of {where}")
        elif group.json is not None:
            sample.add_text(record.get("caption"), f"the caption of {where}")
        yield from sample.finish(f"{where} has neither a .txt nor a .json")


def _put(group: _Group, ending: str, member: tarfile.TarInfo) -> None:
    """Members of other kinds are left alone, and pickles (.pyd, .pkl, .pth) with them: nothing opens those."""
    if ending in IMAGE_ENDINGS:
        group.images.append(member)
    elif ending == "txt":
        group.text = member
    elif ending == "json":
        group.json = member


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


def _text_of(file: BinaryIO, member: tarfile.TarInfo) -> str:
    if member.size > MAX_TEXT_BYTES:
        return ""
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8-sig", "surrogateescape")


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
