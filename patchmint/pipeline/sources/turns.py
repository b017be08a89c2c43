"""Turns of conversations, in whatever form, with `<image>` marks where their images stand.

They are turns of human, gpt and system: LLaVA, ShareGPT, OpenAI's messages, the_cauldron. Training reads nothing else,
so whatever doesn't come to that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from patchmint.pipeline.sources.records import is_unicode, quoted
from patchmint.samples import Turn

TURNS = ("conversations", "messages", "conversation", "texts")
"""Fields of turns."""
IMAGES = ("image", "images")
"""Fields of images."""
FRAMES = ("video", "frames")
"""Fields of what may be the frames of a video."""
MARK = "<image>"
"""Stands for the image in what a human says."""

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


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


def images_of(entry: Mapping[str, Any]) -> list[object]:
    """The images that an entry of a JSON file names, as they stand there; none if it is no conversation."""
    try:
        named = read_turns(entry, "").images or of_fields(entry, IMAGES)
    except Wrong:
        return []
    return named or [frame for field in FRAMES if isinstance(entry.get(field), list) for frame in entry[field]]


def of_fields(entry: Mapping[str, Any], fields: Iterable[str]) -> list[object]:
    """What the first of some fields that an entry has lists; a single value is a list of one."""
    return listed(next((entry[field] for field in fields if entry.get(field) is not None), None))


def listed(named: object) -> list[object]:
    """Images as a list: of none, one or several."""
    items = named if isinstance(named, list) else [named]
    return [item for item in items if item is not None and item != ""]


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
