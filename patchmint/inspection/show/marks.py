"""Phrases marked in their text, and their colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from patchmint.pictures.labels import PALETTE


@dataclass(frozen=True)
class Run:
    """A stretch of a text.

    Attributes:
        text: its characters.
        numbers: of the phrases that it belongs to, ascending; none: of no phrase.
    """

    text: str
    numbers: tuple[int, ...]


def phrase_colours(phrases: Iterable[str]) -> dict[str, int]:
    """Number in `PALETTE` for the words of a text's phrases, as `draw_overlay` colours them: the same words share one.

    Args:
        phrases: their words, best first.
    """
    return {words: number % len(PALETTE) for number, words in enumerate(dict.fromkeys(phrases))}


def mark_phrases(text: str, spans: Sequence[tuple[int, int]]) -> list[Run]:
    """Split a text where phrases begin and end. The runs, joined, are the text.

    Args:
        text: of any length.
        spans: of the phrases, half-open; their numbers count from 1. What lies outside the text is left out.
    """
    cuts = sorted({0, len(text), *(min(max(place, 0), len(text)) for span in spans for place in span)})
    runs = [
        Run(text[start:end], tuple(number for number, (a, b) in enumerate(spans, start=1) if a <= start and end <= b))
        for start, end in pairwise(cuts)
    ]
    merged = groupby(runs, key=lambda run: run.numbers)
    return [Run("".join(run.text for run in same), numbers) for numbers, same in merged]
