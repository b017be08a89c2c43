"""WebDataset tars: headers are read in a first pass, images later from where they lie in the tar."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import BinaryIO

from patchmint.config.sources import WebDatasetSourceConfig
from patchmint.errors import ConfigError
from patchmint.images import IMAGE_ENDINGS
from patchmint.pipeline.sources.base import MAX_TEXT_BYTES, Section, StoredImages, check_head, in_sections
from patchmint.pipeline.sources.records import Sample, faulty, quoted
from patchmint.samples import ImageRef, SourceSample
from patchmint.storage import Entry, Storage

_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_TARS = 1_000_000


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of a webdataset URI, and the name or pattern of tars below it ("" = all)."""
    brace = uri.find("{")
    cut = uri.rfind("/", 0, brace if brace >= 0 else len(uri)) + 1
    if brace < 0 and not uri.endswith(".tar"):
        return uri, ""
    return uri[:cut] or ".", uri[cut:]


def expand(pattern: str) -> list[str]:
    """The names that a pattern with ranges stands for: "{008..010}.tar" is 008.tar, 009.tar, 010.tar.

    Raises:
        ConfigError: a brace in it is no range of numbers, a range runs backwards, or there are too many.
    """
    ranges = [(match[1], match[2]) for match in _RANGE.finditer(pattern)]
    fixed = _RANGE.split(pattern)[::3]
    if any(set(part) & set("{}") for part in fixed) or any(int(first) > int(last) for first, last in ranges):
        raise ConfigError(
            f"source.uri: {pattern!r} isn't a range of tars; write the first and the last number with as many digits "
            "as in the names, as in {00000..00012}.tar"
        )
    count = 1
    for first, last in ranges:
        count *= int(last) - int(first) + 1
    if count > _MAX_TARS:
        raise ConfigError(f"source.uri: {pattern!r} stands for {count} tars; {_MAX_TARS} at most can be named")
    numbers = ([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] for first, last in ranges)
    return [
        fixed[0] + "".join(number + rest for number, rest in zip(chosen, fixed[1:], strict=True))
        for chosen in product(*numbers)
    ]


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

    def __init__(self, config: WebDatasetSourceConfig, storage: Storage) -> None:
        super().__init__(storage)
        _, pattern = split_uri(config.uri)
        self._names = expand(pattern) if pattern else []

    def check(self) -> None:
        """As `Source.check`: all tars are there, and the first one is one."""
        next(self._samples_of(self._tars()[0].path), None)

    def samples(self) -> Iterator[SourceSample]:
        """As `Source.samples`."""
        return self.in_section(tuple(self._tars()))

    def sections(self) -> Iterator[Section]:
        """As `Source.sections`: tars."""
        return in_sections(self._tars())

    def in_section(self, section: Section) -> Iterator[SourceSample]:
        """As `Source.in_section`."""
        for tar in section:
            yield from self._samples_of(tar.path)

    def _samples_of(self, name: str) -> Iterator[SourceSample]:
        with self._storage.open(name, skipping=True) as file:
            check_head(file, f"{name} in {self._storage.uri}", "a tar")
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            yield from self._in_tar(name, file, size)

    def _tars(self) -> list[Entry]:
        if self._names:
            if len(self._names) == 1 and self._storage.exists(self._names[0]):
                return [Entry(self._names[0], self._storage.size(self._names[0]))]
            there = {entry.path: entry for entry in self._storage.list()}  # cheaper than a question for each
            missing = [name for name in self._names if name not in there]
            if missing:
                raise ConfigError(
                    f"source.uri: {len(missing)} of {len(self._names)} tars aren't in {self._storage.uri}: "
                    f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; get them, or correct the range"
                )
            return [there[name] for name in self._names]
        tars = [entry for entry in self._storage.list() if entry.path.endswith(".tar")]
        if not tars:
            raise ConfigError(f"source.uri: there is no .tar in {self._storage.uri}; unpack .tar.gz files first")
        return tars

    def _in_tar(self, name: str, file: BinaryIO, size: int) -> Iterator[SourceSample]:
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

    def _from_group(self, name: str, file: BinaryIO, group: _Group) -> Iterator[SourceSample]:
        where = f"{quoted(group.key)} in {name}"
        if len(group.images) != 1:
            what = "several images" if group.images else "no image"
            reason = "record-malformed" if group.images else "no-image"
            yield faulty(f"{name}/{group.key}", reason, f"{where} has {what}; a key holds one")
            return
        image = group.images[0]
        sample = Sample(group.key, ImageRef(name, image.offset_data, image.size))
        member = group.text or group.json
        if member is not None and member.size > MAX_TEXT_BYTES:
            sample.add_fault("text-too-long", f"the .txt or .json of {where} has {member.size} bytes")
        elif member is not None:
            file.seek(member.offset_data)
            text = file.read(member.size).decode("utf-8-sig", "surrogateescape")
            sample.add_text(text.strip() if group.text else _caption(text), f"the caption of {where}")
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


def _caption(text: str) -> object:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record.get("caption") if isinstance(record, dict) else None
