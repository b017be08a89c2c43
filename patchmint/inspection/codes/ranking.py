"""The commonest codes of a data set, and the most concentrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.rows import Progress, rows_at
from patchmint.inspection.codes.books import book_starts, named_code
from patchmint.inspection.codes.index import CodeIndex
from patchmint.inspection.codes.query import code_terms
from patchmint.shards.layout import TokensLayout
from patchmint.types import Integers

_TERM_IMAGES = 40
# Looked at for a code's top word. Fewer than for one code alone: there are many codes.
_CHECKED_IMAGES = 6
# Of each code, against the sidecars: those that a contact sheet shows.


@dataclass(frozen=True)
class RankedCode:
    """A code in a list.

    Attributes:
        code: its name.
        occurrences: how often it is there.
        share: of all codes of its codebook in the data set, 0..1.
        images: in how many images it is.
        per_image: occurrences / images: how often it is in an image that has it, on average.
        example: key of the image that has it most often.
        word: the word or phrase that goes with it most surely; empty where none does.
    """

    code: str
    occurrences: int
    share: float
    images: int
    per_image: float
    example: str
    word: str


@dataclass(frozen=True)
class Ranking:
    """The lists.

    Attributes:
        commonest: codes that are there most often.
        concentrated: codes with most occurrences an image that has them: they fill areas or make up one kind of thing,
            where others are scattered.
        min_images: images that a concentrated code must be in.
    """

    commonest: tuple[RankedCode, ...]
    concentrated: tuple[RankedCode, ...]
    min_images: int


def rank_codes(
    dataset: Dataset,
    index: CodeIndex,
    tokens: TokensLayout,
    limit: int,
    min_images: int,
    progress: Progress | None = None,
) -> Ranking:
    """List the commonest and the most concentrated codes, of all codebooks together.

    Args:
        dataset: what to look into.
        index: its index.
        tokens: what its codes are.
        limit: codes in each list at most.
        min_images: images that a concentrated code must be in, so that one odd image doesn't make the list.
        progress: told while texts are read.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    common, concentrated = _pick(index, limit, min_images)
    if not index.agrees(dataset, np.union1d(common, concentrated).tolist(), _CHECKED_IMAGES):
        index.renew()
        common, concentrated = _pick(index, limit, min_images)
    codes = {int(number): named_code(int(number), tokens) for number in np.union1d(common, concentrated)}
    words = code_terms(dataset, index, codes.values(), progress, most=_TERM_IMAGES)
    examples = {number: int(index.ranked(number, 1)[0][0]) for number in codes}
    keys = {at: row["key"] for at, row in rows_at(dataset, np.unique(list(examples.values())), ["key"])}
    starts = book_starts(tokens)

    def ranked(number: int) -> RankedCode:
        code = codes[number]
        total = int(index.totals[number])
        terms = words[number].terms
        of_book = int(index.totals[starts[code.book] : starts[code.book + 1]].sum())
        return RankedCode(
            code=code.name,
            occurrences=total,
            share=total / of_book,
            images=int(index.images[number]),
            per_image=total / int(index.images[number]),
            example=keys[examples[number]],
            word=terms[0].text if terms else "",
        )

    first, second = (tuple(ranked(int(number)) for number in numbers) for numbers in (common, concentrated))
    return Ranking(first, second, min_images)


def _pick(index: CodeIndex, limit: int, min_images: int) -> tuple[Integers, Integers]:
    images = index.images
    common = _highest(index.totals.astype(np.float64), images > 0, limit)
    return common, _highest(index.totals / np.maximum(images, 1), images >= max(min_images, 1), limit)


def _highest(values: npt.NDArray[np.float64], lawful: npt.NDArray[np.bool_], limit: int) -> Integers:
    """Positions of the highest lawful values, in order; among equals the first."""
    places = np.flatnonzero(lawful)
    return places[np.argsort(-values[places], kind="stable")[:limit]]
