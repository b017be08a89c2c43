"""One text of a stored sample: its labels, checked (a lone tar may be anybody's), and its phrases, marked in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError
from patchmint.pictures.labels import PALETTE
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import PhraseDocument, SampleDocument

Grid = npt.NDArray[np.uint8]


def text_labels(sample: StoredSample, text: int) -> tuple[Grid, Grid | None]:
    """The selector and the coverage of a text.

    Returns:
        uint8 (rows of all views, cols), 0 or 1; and uint8 of the same shape, 255 = all of the patch, or None where the
        sample has none. Where there are no labels at all the first is empty.

    Raises:
        ShardError: they don't fit the sample's texts or its grid.
    """
    selector, coverage = sample.selector, sample.coverage
    if selector is None:
        return np.zeros((0, 0), np.uint8), None
    wanted = (len(sample.document.texts), *sample.document.label_shape)
    if any(array is not None and (array.shape != wanted or array.dtype != np.uint8) for array in (selector, coverage)):
        raise ShardError(
            f"sample {sample.key!r} has labels that don't fit its texts and its grid, {wanted} of uint8; run "
            "`patchmint inspect verify` on it"
        )
    return selector[text], coverage[text] if coverage is not None else None


def whole_view(document: SampleDocument) -> tuple[int, tuple[slice, slice]]:
    """The view that shows the whole image, and where its cells lie among those of all views."""
    placement = document.placement
    if placement is None:
        return 0, (slice(document.grid.rows), slice(document.grid.cols))
    return placement.overview, placement.cells_of(placement.overview)


@dataclass(frozen=True)
class Kept:
    """How many patches of a text are kept, of all views: the same numbers in the terminal and in the gallery.

    Attributes:
        patches: that are kept.
        all: patches that there are.
    """

    patches: int
    all: int

    @classmethod
    def of(cls, selector: Grid) -> Kept:
        """Count them."""
        return cls(int(np.count_nonzero(selector)), selector.size)

    @property
    def share(self) -> str:
        """Their share in per cent, as people read it."""
        return f"{self.patches / max(self.all, 1):.1%}"


@dataclass(frozen=True)
class Run:
    """A stretch of a text.

    Attributes:
        text: its characters.
        numbers: of the phrases that it belongs to, ascending; none: of no phrase.
    """

    text: str
    numbers: tuple[int, ...]


def phrases_of_text(document: SampleDocument, text: int) -> list[PhraseDocument]:
    """What was found for one of a sample's texts, best first."""
    return [phrase for phrase in document.phrases if phrase.text_index == text]


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
