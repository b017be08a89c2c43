"""The images that contain a code: how often, where in the grid, and what their texts say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import rows_at
from patchmint.errors import ShardError
from patchmint.inspection.codes.index import (
    TERM_SAMPLES,
    Code,
    CodeIndex,
    book_starts,
    named_code,
    stored_codes,
)
from patchmint.inspection.codes.terms import Term, telling_terms, terms_of
from patchmint.shards.endings import DOCUMENT
from patchmint.shards.layout import TokensLayout
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.types import Integers, Progress

MAX_TERM_IMAGES = 200
"""Images of a code whose texts are looked at, at most: those that have it most often."""

_MIN_TERM_IMAGES = 10
_TERMS = 10
_TERM_IMAGES = 40
# Looked at for a code's top word. Fewer than for one code alone: there are many codes.
_RELATIVE = (16, 16)
_CHECKED_IMAGES = 6
# Of each code, against the sidecars: those that a contact sheet shows.


@dataclass(frozen=True)
class CodeImage:
    """An image that contains the code.

    Attributes:
        index: its sample's position in the data set.
        key: its sample's name.
        image: its number in the sample; 0 for a picture.
        name: what people call it: KEY; of a document KEY.NUMBER.
        count: how often the code is in it.
        share: of all its occurrences, 0..1.
        grid: shape of its codes, without the codebooks.
        cells: where in the grid, as its array counts: (row, col), or (position,) of a tokenizer without rows.
        text: its sample's first text.
    """

    index: int
    key: str
    image: int
    name: str
    count: int
    share: float
    grid: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]
    text: str


@dataclass(frozen=True)
class CodeTerms:
    """Words and phrases that go with a code.

    Attributes:
        terms: the surest first (`telling_terms`).
        images: images of the code whose texts were looked at: the quarter that has it most often, 10 to 200.
        others: images that they are compared with: of 20,000 spread over the data set, those that aren't among them.
    """

    terms: tuple[Term, ...]
    images: int
    others: int


@dataclass(frozen=True)
class CodeReport:
    """What is known of a code.

    Attributes:
        code: its name: its number, or BOOK:NUMBER.
        codebook_size: codes in its codebook.
        occurrences: how often it is there, in all images.
        share: of all codes of its codebook in the data set, 0..1.
        images: in how many samples it is (of pictures: images).
        samples: in the data set.
        grid: shape of an image's codes, without the codebooks; 0, 0 where it depends on the image.
        positions: by position in the grid, how often the code is there a shown image; one row where there are no rows.
            Where the grid depends on the image, by position in the image, of 16 x 16.
        shown: the images of the samples that have it most often.
        words: what their texts say more often than others.
    """

    code: str
    codebook_size: int
    occurrences: int
    share: float
    images: int
    samples: int
    grid: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...]
    shown: tuple[CodeImage, ...]
    words: CodeTerms


def report_code(
    dataset: Dataset, index: CodeIndex, tokens: TokensLayout, code: Code, limit: int, progress: Progress | None = None
) -> CodeReport:
    """Find out about a code.

    Args:
        dataset: what to look into.
        index: its index.
        tokens: what its codes are.
        code: which.
        limit: samples to show at most.
        progress: told while images are read.

    Raises:
        ShardError: a sample is damaged, or its sidecar belongs to another.
        StorageError: one can't be read.
    """
    try:
        return _report(dataset, index, tokens, code, limit, progress)
    except _CountError:
        if index.agrees(dataset, [code.number], limit):
            raise
    index.renew()
    return _report(dataset, index, tokens, code, limit, progress)


class _CountError(ShardError):
    """A sample has a code more or less often than the index says."""


def _report(
    dataset: Dataset, index: CodeIndex, tokens: TokensLayout, code: Code, limit: int, progress: Progress | None
) -> CodeReport:
    positions, counts = index.ranked(code.number, limit)
    occurrences = int(index.totals[code.number])
    shown = _shown(dataset, index, code, positions, counts, occurrences, progress)
    book = slice(code.number - code.code, code.number - code.code + tokens.codebook_sizes[code.book])
    heat = np.zeros(_RELATIVE if tokens.varies else tokens.grid)
    for image in shown:
        cells = np.array(image.cells) * heat.shape // image.grid
        np.add.at(heat, tuple(cells.T), 1 / len(shown))
    flat = heat.reshape(1, -1) if heat.ndim == 1 else heat.reshape(heat.shape[0], -1)
    return CodeReport(
        code=code.name,
        codebook_size=tokens.codebook_sizes[code.book],
        occurrences=occurrences,
        share=occurrences / max(int(index.totals[book].sum()), 1),
        images=int(index.images[code.number]),
        samples=dataset.samples,
        grid=tokens.grid,
        positions=tuple(tuple(row) for row in flat.tolist()),
        shown=shown,
        words=code_terms(dataset, index, [code])[code.number],
    )


def _shown(
    dataset: Dataset,
    index: CodeIndex,
    code: Code,
    positions: Integers,
    counts: Integers,
    occurrences: int,
    progress: Progress | None,
) -> tuple[CodeImage, ...]:
    count_of = dict(zip(positions.tolist(), counts.tolist(), strict=True))
    images = {}
    members = (DOCUMENT, f"{index.tokens.member}.npy")
    for position, sample in iter_stored(dataset, sorted(count_of), members, progress):
        text = sample.key_json.texts[0]
        images[position] = [
            CodeImage(
                position,
                sample.key,
                image.number,
                image.name,
                len(cells),
                len(cells) / occurrences,
                image.key_json.tokens.grid_of(image.number),
                cells,
                text,
            )
            for image, cells in find_cells(sample, index, code, count_of[position])
        ]
    return tuple(image for position in count_of for image in images[position])


Cells = tuple[tuple[int, ...], ...]
"""Places in a grid."""


def find_cells(sample: StoredSample, index: CodeIndex, code: Code, count: int) -> list[tuple[StoredImage, Cells]]:
    """The images of a sample that contain a code, with the places in their grids, most of them first.

    Args:
        sample: with its document and its codes.
        index: which says whether cells of padding count.
        code: which.
        count: how often it is in the sample by the index.

    Raises:
        ShardError: an array isn't of the data set's shape, or the index belongs to another one.
    """
    places = []
    arrays = stored_codes(sample, index.tokens)
    for image, codes in zip(sample.images, arrays, strict=False):
        book: npt.NDArray[np.unsignedinteger] = codes if codes.ndim == len(index.tokens.grid) else codes[..., code.book]
        counted = index.counted_cells((image.info.height, image.info.width))
        cells = np.argwhere(book == code.code if counted is None else (book == code.code) & counted)
        places.append((image, tuple(tuple(cell) for cell in cells.tolist())))
    if (found := sum(len(cells) for _, cells in places)) != count or len(arrays) != len(places):
        raise _CountError(
            f"sample {sample.key!r} has code {code.name} {found} times, its sidecar says {count}; run "
            "`patchmint inspect verify`"
        )
    return sorted(((image, cells) for image, cells in places if cells), key=lambda place: -len(place[1]))


def code_terms(
    dataset: Dataset,
    index: CodeIndex,
    codes: Iterable[Code],
    progress: Progress | None = None,
    *,
    most: int = MAX_TERM_IMAGES,
) -> dict[int, CodeTerms]:
    """Words and phrases that go with codes, by the codes' numbers; their texts are read from the sidecars in one pass.

    Of a code's images the quarter that has it most often is looked at, `most` at most: a code that is in nearly every
    image, once or twice by chance, still tells what it stands for.

    Raises:
        ShardError: a sidecar is damaged.
        StorageError: one can't be read.
    """
    looked_at = {}
    for code in codes:
        images = int(index.images[code.number])
        looked_at[code.number] = index.ranked(code.number, min(most, max(_MIN_TERM_IMAGES, images // 4)))[0]
    wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *looked_at.values()]))
    terms = {
        position: terms_of(row["texts"], row["phrases"])
        for position, row in rows_at(dataset, wanted, ["texts", "phrases"], progress)
    }
    found = {}
    counted = spread(dataset.samples, TERM_SAMPLES)
    for number, positions in looked_at.items():
        both = np.intersect1d(positions, counted, assume_unique=True).tolist()
        own, twice = ([terms[position] for position in group] for group in (positions.tolist(), both))
        telling = telling_terms(own, twice, index.background, _TERMS)
        found[number] = CodeTerms(tuple(telling), len(own), index.background.samples - len(twice))
    return found


@dataclass(frozen=True)
class RankedCode:
    """A code in a list.

    Attributes:
        code: its name.
        occurrences: how often it is there.
        share: of all codes of its codebook in the data set, 0..1.
        images: in how many samples it is (of pictures: images).
        per_image: occurrences / images: how often it is in a sample that has it, on average.
        example: key of the sample that has it most often.
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
