"""What is said about a scene, in several forms, each text with what it names.

A phrase names every object that all its words are true of: that is its truth, whatever the form. A singular phrase is
only used where one object fits, a plural one where several do; a phrase for something absent fits none. Relations are
always true, and hold between phrases that are clear without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from patchmint.config import PresenceConfig
from patchmint.demo.shapes import COLOURS, FILLS, SHAPES, SIZES, SceneObject
from patchmint.types import PHRASE_SEPARATOR, Span, Text

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
UNKNOWN_THINGS = ("cat", "dog", "car", "house", "tree", "person", "chair", "bird")
"""Things that no scene holds and the demo detector's vocabulary lacks."""

ABSENT_SHARE = 0.3
"""Share of phrases in mixed texts that name something absent."""


@dataclass(frozen=True)
class ScenePhrase:
    """A phrase of a text.

    Attributes:
        span: its characters.
        objects: indices of the objects it names; none where it names something absent.
    """

    span: Span
    objects: tuple[int, ...]


@dataclass(frozen=True)
class SceneText:
    """A text with its truth.

    Attributes:
        form: how it is made, a key of `FORMS`.
        content: the text.
        phrases: what it names, in order.
    """

    form: str
    content: str
    phrases: tuple[ScenePhrase, ...]

    @property
    def objects(self) -> tuple[int, ...]:
        """All objects that any of its phrases names."""
        return tuple(sorted({index for phrase in self.phrases for index in phrase.objects}))

    def with_phrases(self) -> Text:
        """The text with its phrases spelled out."""
        return Text(self.content, tuple(phrase.span for phrase in self.phrases))


@dataclass(frozen=True)
class _Name:
    words: str
    objects: tuple[int, ...]
    plural: bool


class _Namer:
    """Finds phrases for a scene; never the same one, or one for the same objects, twice in a text."""

    def __init__(self, objects: Sequence[SceneObject], rng: np.random.Generator) -> None:
        self._objects = objects
        self._rng = rng
        self._used: set[str | tuple[int, ...]] = set()

    def start(self) -> None:
        """Begin a new text."""
        self._used.clear()

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def choice(self, items: Sequence[str]) -> str:
        return items[int(self._rng.integers(len(items)))]

    def count(self, least: int, most: int) -> int:
        return int(self._rng.integers(least, most + 1))

    def of(self, index: int | None = None, *, alone: bool = False) -> _Name | None:
        """A phrase that is true of an object (by chance where None); `alone` = of no other. None if none is left."""
        for _ in range(12):
            thing = self._objects[self.count(0, len(self._objects) - 1) if index is None else index]
            words = self._some_words(thing)
            fitting = self._fitting(words)
            if not (alone and len(fitting) > 1):
                name = self._say(words, fitting)
                if name:
                    return name
        return None

    def absent(self) -> _Name | None:
        """A phrase that is true of nothing here, mostly only just not."""
        for _ in range(12):
            if self.chance(0.1):
                adjective = self.choice([*COLOURS, *SIZES])
                name = self._say([adjective, self.choice(UNKNOWN_THINGS)], ())
            else:
                words = self._some_words(self._objects[self.count(0, len(self._objects) - 1)])
                changed = [self._other(word) if self.chance(0.6) else word for word in words]
                name = None if self._fitting(changed) else self._say(changed, ())
            if name:
                return name
        return None

    def either(self) -> _Name | None:
        return self.absent() if self.chance(ABSENT_SHARE) else self.of()

    def relation(self, first: int, second: int) -> str:
        (x, y), (other_x, other_y) = self._objects[first].centre, self._objects[second].centre
        if abs(x - other_x) > abs(y - other_y):
            return "left of" if x < other_x else "right of"
        return "above" if y < other_y else "below"

    def pair(self) -> tuple[int, int] | None:
        if len(self._objects) < 2:
            return None
        first, second = self._rng.permutation(len(self._objects))[:2].tolist()
        return first, second

    def _some_words(self, thing: SceneObject) -> list[str]:
        words = []
        if self.chance(0.3):
            words.append(thing.size)
        if self.chance(0.25):
            words.append(thing.fill)
        if self.chance(0.8):
            words.append(thing.colour)
        words.append(thing.shape if self.chance(0.85) or not words else "shape")
        return words

    def _other(self, word: str) -> str:
        for kind in (SHAPES, tuple(COLOURS), FILLS, SIZES):
            if word in kind:
                return self.choice([other for other in kind if other != word])
        return word

    def _fitting(self, words: Sequence[str]) -> tuple[int, ...]:
        said = [word for word in words if word != "shape"]
        return tuple(index for index, thing in enumerate(self._objects) if thing.has(*said))

    def _say(self, words: Sequence[str], fitting: tuple[int, ...]) -> _Name | None:
        several = len(fitting) > 1 or (not fitting and self.chance(0.2))
        noun = words[-1]
        said = " ".join([*words[:-1], plural(noun) if several else noun])
        if said in self._used or fitting in self._used:
            return None
        self._used |= {said, fitting} if fitting else {said}
        return _Name(said, fitting, several)


def plural(noun: str) -> str:
    """The plural of one of the nouns used here."""
    if noun == "person":
        return "people"
    return noun + ("es" if noun.endswith("ss") else "s")


DEMO_PRESENCE = PresenceConfig(
    alternatives=(tuple(COLOURS), SHAPES, tuple(map(plural, SHAPES)), FILLS), margins=(None, 1.5, 2.5), threshold=-0.1
)
"""A second look (`labels.presence`) for the demo models; its numbers were chosen on scenes that were only tuned on."""

SECOND_LOOK: Mapping[str, object] = MappingProxyType(
    {"presence": DEMO_PRESENCE.model_dump(mode="json", exclude_defaults=True), "box_threshold": 0.30}
)
"""Settings of labels with it. The first look can be less strict then: it finds more of what is there."""


def _article(name: _Name) -> str:
    if name.plural:
        several = len(name.objects)
        return f"{NUMBERS[several] if several < len(NUMBERS) else 'many'} " if several else "some "
    return "an " if name.words[0] in "aeiou" else "a "


_Parts = list["str | _Name"]
"""A text as plain strings and phrases in turn."""


def _list(namer: _Namer) -> _Parts | None:
    names = [namer.either() for _ in range(namer.count(1, 4))]
    return _joined([name for name in names if name], PHRASE_SEPARATOR)


def _count(namer: _Namer) -> _Parts | None:
    names = [namer.either() for _ in range(namer.count(1, 3))]
    parts = _enumerated([name for name in names if name])
    if not parts:
        return None
    several = isinstance(parts[1], _Name) and parts[1].plural
    return ["there are " if several else "there is ", *parts]


def _sentence(namer: _Namer) -> _Parts | None:
    names = [namer.either() for _ in range(namer.count(1, 4))]
    parts = _enumerated([name for name in names if name])
    opening = namer.choice(["a photo of ", "a picture of ", "an image with ", "we see ", ""])
    ending = namer.choice(["", "", " on a grey background", "."])
    return [opening, *parts, ending] if parts else None


def _relation(namer: _Namer) -> _Parts | None:
    pair = namer.pair()
    if pair is None:
        return None
    first, second = namer.of(pair[0], alone=True), namer.of(pair[1], alone=True)
    if not first or not second:
        return None
    return ["the ", first, f" {namer.relation(*pair)} the ", second]


def _plurals(namer: _Namer) -> _Parts | None:
    for _ in range(8):
        name = namer.of()
        if name and len(name.objects) > 1:
            return [namer.choice(["all ", "the ", ""]), name]
    return None


def _single(namer: _Namer) -> _Parts | None:
    name = namer.of()
    return [namer.choice(["", "the "]) if name.plural else _article(name), name] if name else None


def _absent(namer: _Namer) -> _Parts | None:
    name = namer.absent()
    return [namer.choice(["", _article(name), "the "]), name] if name else None


def _long(namer: _Namer) -> _Parts | None:
    parts: _Parts = []
    for _ in range(namer.count(2, 4)):
        maker = namer.choice(["count", "sentence", "relation"])
        more = FORMS[maker](namer)
        if more:
            while isinstance(more[-1], str) and not more[-1].strip("."):
                more.pop()
            parts += [*more, ". "]
    return parts or None


FORMS: dict[str, Callable[[_Namer], _Parts | None]] = {
    "list": _list,
    "count": _count,
    "sentence": _sentence,
    "relation": _relation,
    "plural": _plurals,
    "single": _single,
    "absent": _absent,
    "long": _long,
}
"""Ways to say something, each from a `_Namer` to a text in parts; None where the scene doesn't offer it."""


def write_texts(objects: Sequence[SceneObject], count: int, rng: np.random.Generator) -> tuple[SceneText, ...]:
    """Write `count` texts about a scene, each of a form by chance."""
    namer = _Namer(objects, rng)
    texts: list[SceneText] = []
    while len(texts) < count:
        form = namer.choice(tuple(FORMS))
        namer.start()
        parts = FORMS[form](namer)
        if parts:
            texts.append(_assemble(form, parts))
    return tuple(texts)


def _joined(names: Sequence[_Name], separator: str) -> _Parts | None:
    parts: _Parts = []
    for name in names:
        parts += [separator, name]
    return parts[1:] or None


def _enumerated(names: Sequence[_Name]) -> _Parts:
    """Say things as "a red circle, two blue stars and a cross"."""
    parts: _Parts = []
    for place, name in enumerate(names):
        glue = "" if place == 0 else " and " if place == len(names) - 1 else ", "
        parts += [glue + _article(name), name]
    return parts


def _assemble(form: str, parts: _Parts) -> SceneText:
    content = ""
    phrases = []
    for part in parts:
        if isinstance(part, str):
            content += part
        else:
            phrases.append(ScenePhrase((len(content), len(content) + len(part.words)), part.objects))
            content += part.words
    return SceneText(form, content.rstrip(), tuple(phrases))
