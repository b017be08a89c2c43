"""One text of a stored image: its labels, checked (a lone tar may be anybody's), and its phrases, marked in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError
from patchmint.pictures.labels import PALETTE
from patchmint.samples import Part
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.schema import PhraseDocument

Grid = npt.NDArray[np.uint8]


def text_labels(image: StoredImage, text: int) -> tuple[Grid, Grid | None]:
    """The selector and the coverage of a text.

    Args:
        image: with its arrays.
        text: number of one of the texts that label it.

    Returns:
        uint8 (rows of all views, cols), 0 or 1; and uint8 of the same shape, 255 = all of the patch, or None where the
        image has none. Where there are no labels at all the first is empty.

    Raises:
        ShardError: they don't fit its texts or its grid.
    """
    selector, coverage = image.selector, image.coverage
    if selector is None:
        return np.zeros((0, 0), np.uint8), None
    wanted = (len(image.texts), *image.info.label_shape)
    if any(array is not None and (array.shape != wanted or array.dtype != np.uint8) for array in (selector, coverage)):
        raise ShardError(
            f"sample {image.name!r} has labels that don't fit its texts and its grid, {wanted} of uint8; run "
            "`patchmint inspect verify` on it"
        )
    place = image.texts.index(text)
    return selector[place], coverage[place] if coverage is not None else None


def texts_of(image: StoredImage) -> dict[int, str]:
    """The texts that label an image, by number.

    Raises:
        ShardError: the sample has no such texts.
    """
    texts = image.key_json.texts
    if any(number >= len(texts) for number in image.texts):
        raise ShardError(f"sample {image.name!r} is labelled by texts that it hasn't; run `patchmint inspect verify`")
    return {number: texts[number] for number in image.texts}


def parts_of(sample: StoredSample) -> tuple[Part, ...]:
    """Texts and images of a document in their order; none of a picture.

    Raises:
        ShardError: the sample has no such images.
    """
    if any(part.image >= len(sample.images) for part in sample.parts):
        raise ShardError(f"sample {sample.key!r} shows images that it hasn't; run `patchmint inspect verify`")
    return sample.parts


def whole_view(image: StoredImage) -> tuple[int, tuple[slice, slice]]:
    """The view that shows the whole image, and where its cells lie among those of all views."""
    placement = image.info.placement
    if placement is None:
        return 0, (slice(image.grid.rows), slice(image.grid.cols))
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


def phrases_of_text(image: StoredImage, text: int) -> list[PhraseDocument]:
    """What was found in an image for one of its texts, best first."""
    return [phrase for phrase in image.phrases if phrase.text_index == text]


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
