"""Which of a source's files are read: `files`, and `split` by the names that the Hugging Face Hub knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

from patchmint.config.sources import CommonSettings
from patchmint.errors import ConfigError, MixedSplitsError, did_you_mean
from patchmint.pipeline.sources.records import quoted
from patchmint.samples import Absent

OTHER_FILE = Absent("not-chosen-files")

_ALL = "all"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_SHARDED = re.compile(r"(?:.*/)?data/([^/]+)-\d{5}-of-\d{5}[^/]*")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_NAMES = 1_000_000
_WILD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])")
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_SHOWN = 5
_SEARCHED = 1000
"""Most names to look through for one that was meant."""


def expand(pattern: str, setting: str = "source.uri") -> list[str]:
    """The names that a pattern with ranges stands for: "{008..010}.tar" is 008.tar, 009.tar, 010.tar.

    Raises:
        ConfigError: a brace in it is no range of numbers, a range runs backwards, or there are too many.
    """
    ranges = [(match[1], match[2]) for match in _RANGE.finditer(pattern)]
    fixed = _RANGE.split(pattern)[::3]
    if any(set(part) & set("{}") for part in fixed) or any(int(first) > int(last) for first, last in ranges):
        raise ConfigError(
            f"{setting}: {pattern!r} isn't a range of files; write the first and the last number with as many digits "
            "as in the names, as in {00000..00012}.tar"
        )
    count = 1
    for first, last in ranges:
        count *= int(last) - int(first) + 1
    if count > _MOST_NAMES:
        raise ConfigError(f"{setting}: {pattern!r} stands for {count} files; {_MOST_NAMES} at most can be named")
    numbers = ([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)] for first, last in ranges)
    return [
        fixed[0] + "".join(number + rest for number, rest in zip(chosen, fixed[1:], strict=True))
        for chosen in product(*numbers)
    ]


def split_of(path: str, *, by_folder: bool = False) -> str:
    """The split that a file belongs to, as the Hugging Face Hub tells it from names; empty where they don't tell.

    Args:
        path: of the file in the source.
        by_folder: only folders tell: photographs may be called anything.
    """
    if match := _SHARDED.fullmatch(path):
        return _SPLIT_OF_WORD.get(match[1], match[1])
    *folders, name = path.split("/")
    for part in ([] if by_folder else [name]) + folders[::-1]:
        for word in _BETWEEN_WORDS.split(part.lower()):
            if split := _SPLIT_OF_WORD.get(word):
                return split
    return ""


class FileChoice:
    """Which of a source's files are read: `files` and `split`."""

    def __init__(self, config: CommonSettings, *, by_folder: bool = False) -> None:
        """Read the settings.

        Raises:
            ConfigError: a pattern is none.
        """
        self._splits = OwnSplits(None if config.has_own_split else config.split, _SPLIT_OF_WORD)
        self._by_folder = by_folder
        self._given = bool(config.files)
        names = [name.removeprefix("./") for glob in config.files for name in expand(glob, "source.files")]
        self._names = frozenset(name for name in names if not _WILD.search(name))
        self._globs = {name: _pattern(name) for name in names if _WILD.search(name)}

    def has(self, path: str) -> bool:
        """Whether samples of this file are chosen."""
        if self._given and not (
            path in self._names
            or path.rpartition("/")[2] in self._names
            or any(glob.fullmatch(path) for glob in self._globs.values())
        ):
            return False
        return self._splits.has(self.split_of(path))

    @property
    def may_mix(self) -> bool:
        """Whether files of several splits may be read together: nobody said which, or somebody did."""
        return self._given or self._splits.given

    def split_of(self, path: str) -> str:
        """The split that a file belongs to; empty where names don't tell."""
        return split_of(path, by_folder=self._by_folder)

    def check(self, paths: Sequence[str], uri: str) -> list[str]:
        """Those of the source's files that are chosen.

        Args:
            paths: all of its files.
            uri: of the source.

        Raises:
            ConfigError: none is; one that is named isn't there; or there are several splits, and none is named.
        """
        known = {*paths, *(path.rpartition("/")[2] for path in paths)}
        missing = sorted(self._names - known)
        missing += [name for name, glob in self._globs.items() if not any(map(glob.fullmatch, paths))]
        if missing:
            raise ConfigError(
                f"source.files: {len(missing)} of those named aren't in {uri}: {_listed(missing)}"
                f"{did_you_mean(missing[0], paths[:_SEARCHED])}; correct it, or get them. There is {_listed(paths)}"
            )
        chosen = [path for path in paths if self.has(path)]
        lacking = self._splits.lacking(map(self.split_of, chosen))
        if lacking:
            splits = sorted({self.split_of(path) for path in paths} - {""})
            there = f"of the splits {', '.join(splits)}" if splits else f"such as {_listed(paths)}, of no split"
            named = lacking[0]
            raise ConfigError(
                f"source.split: no file{' of those named' if self._given else ''} in {uri} is of the split "
                f"{named!r}; there are files {there}. Name another, or choose by source.files"
            )
        if not self.may_mix:
            check_unmixed((self.split_of(path) for path in chosen), uri)
        return chosen


class OwnSplits:
    """`split`: one split, several (train+val), or all.

    Attributes:
        given: whether the settings name any.
        names: of those that are read; none: all are.
    """

    def __init__(self, given: str | None, known_as: Mapping[str, str] = MappingProxyType({})) -> None:
        """Read the setting.

        Args:
            given: as it stands there.
            known_as: names of splits by their other names.
        """
        self.given = given is not None
        self.names = [] if given in (None, _ALL) else [known_as.get(name, name) for name in given.split("+")]

    @staticmethod
    def of(record: Any) -> str:
        """The split that a record of annotations says it is of; empty where it doesn't."""
        return str(record.get("split") or "") if isinstance(record, dict) else ""

    def has(self, split: str) -> bool:
        """Whether what is of this split is read."""
        return not self.names or split in self.names

    def lacking(self, found: Iterable[str]) -> list[str]:
        """Those that are named and not among those found."""
        there = set(found)
        return [name for name in self.names if name not in there]

    def check(self, found: Iterable[str], path: str, *, all_read: bool = True) -> None:
        """Refuse a file of annotations that doesn't have these splits, or several of which nobody has chosen.

        Args:
            found: the splits that its records are of.
            path: the file.
            all_read: whether these are all of its records, and not its first.

        Raises:
            ConfigError: a split that is named isn't there, or several are, and none is named.
        """
        splits = sorted({*found} - {""})
        if not self.given:
            check_unmixed(splits, path)
        if all_read and (lacking := self.lacking(splits)):
            there = ", ".join(map(quoted, splits))
            raise ConfigError(f"source.split: nothing in {path} is of the split {lacking[0]!r}; it has {there}")


def check_unmixed(splits: Iterable[str], uri: str) -> None:
    """Refuse files of several splits, of which nobody has chosen one.

    Raises:
        MixedSplitsError: there are two.
    """
    found: list[str] = []
    for split in splits:
        if split and split not in found:
            found.append(split)
    if len(found) > 1:
        likely = sorted(found, key=lambda split: (split != "train", split.startswith("test")))
        raise MixedSplitsError(
            f"source.split: {uri} holds the splits {', '.join(found)} side by side; take one (split: {likely[0]}), "
            f"several (split: {'+'.join(likely[:2])}), or all of them (split: all)",
            splits=found,
        )


def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression; one without a slash holds in every folder."""
    parts = _WILD.split(glob if "/" in glob else f"**/{glob}")
    written = [
        _WILDCARDS.get(part, part.replace("[!", "[^", 1)) if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    ]
    try:
        return re.compile("".join(written), re.DOTALL)
    except re.error as error:
        raise ConfigError(f"source.files: {glob!r} isn't a pattern of names: {error}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
