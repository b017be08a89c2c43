"""What texts say that go with a code: words and found phrases that are there more often than chance explains."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MAX_CHARACTERS = 2000
# Looked at of one text. Captions are shorter; a hostile text of megabytes costs no more.
_MAX_TERMS = 500
_MAX_LENGTH = 60
_MAX_HELD = 1_000_000
_MIN_IMAGES = 2
_MIN_Z = 2.5
# Chance alone gives that to one term in 160.


@dataclass(frozen=True)
class Background:
    """How often terms are in the texts of any images.

    Attributes:
        samples: images that were looked at.
        counts: term -> in how many of them.
    """

    samples: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Term:
    """A word or phrase that goes with a code.

    Attributes:
        text: in lower case.
        images: how many of the images looked at have it in their texts.
        share: of the images looked at, 0..1.
        share_of_others: of the other images, 0..1.
        lift: how many times as often as in the others (smoothed, so that a term that is in none has one too).
        z: the difference of log odds over its standard deviation.
    """

    text: str
    images: int
    share: float
    share_of_others: float
    lift: float
    z: float


def terms_of(texts: Iterable[str], phrases: Iterable[str]) -> frozenset[str]:
    """The words of an image's texts, and the phrases of several words that were found in it, in lower case."""
    terms: set[str] = set()
    for text in texts:
        terms.update(word for word in _WORD.findall(text[:_MAX_CHARACTERS].casefold()) if len(word) <= _MAX_LENGTH)
    for phrase in phrases:
        if " " in phrase and len(phrase) <= _MAX_LENGTH:
            terms.add(phrase.casefold())
    return frozenset(sorted(terms)[:_MAX_TERMS]) if len(terms) > _MAX_TERMS else frozenset(terms)


class TermCounter:
    """Counts in how many images terms are, in bounded memory: of too many, those seen once are let go."""

    def __init__(self) -> None:
        self._samples = 0
        self._counts: Counter[str] = Counter()

    def add(self, terms: frozenset[str]) -> None:
        """Count an image's terms."""
        self._samples += 1
        self._counts.update(terms)
        if len(self._counts) > _MAX_HELD:
            self._counts = Counter({term: count for term, count in self._counts.items() if count > 1})

    def background(self) -> Background:
        """What was counted."""
        return Background(self._samples, dict(self._counts))


def telling_terms(
    images: Sequence[frozenset[str]], counted: Sequence[frozenset[str]], background: Background, limit: int
) -> list[Term]:
    """Terms that these images have more often than others, the surest first.

    Ranked by the difference of log odds, a half added to each count (Haldane 1956, Anscombe 1956), over its standard
    deviation: a plain ratio would put words first that are there once. Words that are everywhere, such as "a", need no
    list to fall out. Only terms of at least two of the images, and of z >= 2.5.

    Args:
        images: the terms of each.
        counted: those of them that the background counts too; they are taken out of it.
        background: the terms of all.
        limit: how many to return at most.
    """
    counts = Counter(term for terms in images for term in terms)
    twice = Counter(term for terms in counted for term in terms)
    others = max(background.samples - len(counted), 0)
    found = []
    for text, count in counts.items():
        elsewhere = min(max(background.counts.get(text, 0) - twice[text], 0), others)
        if count >= _MIN_IMAGES:
            found.append(_term(text, count, len(images), elsewhere, others))
    telling = [term for term in found if term.z >= _MIN_Z]
    return sorted(telling, key=lambda term: (-term.z, -len(term.text), term.text))[:limit]


def _term(text: str, count: int, images: int, elsewhere: int, others: int) -> Term:
    cells = (count + 0.5, images - count + 0.5, elsewhere + 0.5, others - elsewhere + 0.5)
    difference = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
    deviation = math.sqrt(sum(1 / cell for cell in cells))
    return Term(
        text=text,
        images=count,
        share=count / images,
        share_of_others=elsewhere / max(others, 1),
        lift=cells[0] / (images + 1) / (cells[2] / (others + 1)),
        z=difference / deviation,
    )
