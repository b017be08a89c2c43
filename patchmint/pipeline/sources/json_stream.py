"""JSON files of any size, record by record: annotation files have a gigabyte, their records a kilobyte."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from patchmint.errors import ConfigError
from patchmint.pipeline.sources.base import open_checked
from patchmint.storage import Storage

LINES = (".jsonl", ".ndjson")
"""What JSON Lines are called."""

_CHUNK = 1 << 20
_MAX_RECORD = 64 << 20
"""Characters. A file that is broken inside a string would otherwise be read to its end before anybody notices."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NEAR_END = 16
"""A number, word or escape this close to the end of what has been read may go on behind it."""


def stream_list(storage: Storage, path: str) -> Iterator[Any]:
    """The records of a file whose top level is a list, or of JSON Lines, whatever its name.

    Bytes that aren't UTF-8 come out as lone surrogates, so that the records around them aren't lost. A line that isn't
    JSON comes out as the text that it is.

    Raises:
        ConfigError: the file isn't JSON, is cut, or has something else at its top level.
        StorageError: it can't be read.
    """
    with open_checked(storage, path, "a JSON list") as file:
        reader = _Reader(file, f"{path} in {storage.uri}")
        if reader.begins_with("{") or (path.lower().endswith(LINES) and not reader.begins_with("[")):
            file.seek(0)
            yield from _lines(file, path, storage.uri)
            return
        reader.expect("[", "a list of records at the top level")
        yield from reader.elements()
        reader.finish()


def _lines(file: BinaryIO, path: str, uri: str) -> Iterator[Any]:
    """JSON Lines. In a file that isn't called so, the first line must be an object, and not the only one."""
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
        lines: Iterator[str] = (line for line in iter(lambda: text.readline(_MAX_RECORD), "") if line.strip())
        if not path.lower().endswith(LINES):
            first, second = next(lines), next(lines, None)
            if second is None or not isinstance(_parsed(first), dict):
                raise ConfigError(
                    f"{path} in {uri} has no list of records at the top level, and isn't JSON Lines. Files with "
                    "`images` and `annotations` are read with source.kind coco, grounding or karpathy; of others, take "
                    "the list out"
                )
            lines = chain([first, second], lines)
        for line in lines:
            yield _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def stream_members(storage: Storage, path: str) -> Iterator[tuple[str, Any]]:
    """The members of a file whose top level is an object: (key, element) for each element of a list, else (key, value).

    Bytes that aren't UTF-8 come out as lone surrogates.

    Raises:
        ConfigError: the file isn't JSON, is cut, or has something else at its top level.
        StorageError: it can't be read.
    """
    with open_checked(storage, path, "a JSON object") as file:
        reader = _Reader(file, f"{path} in {storage.uri}")
        if reader.begins_with("["):
            raise ConfigError(
                f"{path} in {storage.uri} is a list, and should be an object with lists of records at the top level, "
                "such as `images` and `annotations`. A list of conversations is read with source.kind: conversations, "
                "one of file names and texts with source.kind: folder and source.table (as .jsonl)"
            )
        reader.expect("{", "an object with lists of records at the top level")
        yield from reader.members()
        reader.finish()


class _Reader:
    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._file = file
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._before = 0  # characters dropped from the front of the text
        self._ended = False

    def begins_with(self, mark: str) -> bool:
        return self._peek() == mark

    def expect(self, mark: str, what: str) -> None:
        if self._peek() != mark:
            raise self._broken(f"it doesn't have {what}")
        self._at += 1

    def elements(self) -> Iterator[Any]:
        """Elements of the list whose "[" has been read."""
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._separator("]"):
                return

    def members(self) -> Iterator[tuple[str, Any]]:
        """Members of the object whose "{" has been read."""
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._broken("a key isn't a string")
            self.expect(":", "a ':' after a key")
            if self._peek() == "[":
                self._at += 1
                for element in self.elements():
                    yield key, element
            else:
                yield key, self._value()
            if self._separator("}"):
                return

    def finish(self) -> None:
        if self._peek():
            raise self._broken(
                "something follows the end of the JSON; was another file appended, or are these JSON Lines?"
            )

    def _separator(self, closing: str) -> bool:
        mark = self._peek()
        if mark not in (",", closing):
            raise self._broken("it ends in the middle" if not mark else f"a ',' or '{closing}' is missing")
        self._at += 1
        return mark == closing

    def _peek(self) -> str:
        """The next character that isn't space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more(_CHUNK):
                return ""

    def _value(self) -> Any:
        self._peek()
        wanted = _CHUNK
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_END or error.msg.startswith("Unterminated string")
                if not cut or len(self._text) - self._at > _MAX_RECORD:
                    raise self._broken(error.msg, error.pos) from error
                if not self._read_more(wanted):
                    raise self._broken(f"it ends in the middle ({error.msg})", error.pos) from error
            except (RecursionError, ValueError) as error:  # lists within lists without end; a number of 5,000 digits
                raise self._broken(str(error)) from error
            else:
                if end + _NEAR_END < len(self._text) or not self._read_more(wanted):
                    self._at = end
                    return value
            wanted *= 2

    def _read_more(self, count: int) -> bool:
        """Read some more, and drop what is done with; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(count)
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._before += self._at
        self._at = 0
        return True

    def _broken(self, why: str, position: int | None = None) -> ConfigError:
        place = self._before + (self._at if position is None else position)
        return ConfigError(
            f"{self._shown} isn't sound JSON at character {place}: {why}; it may be cut or damaged, so get it again"
        )
