"""How a codebook is used: how evenly, and which codes never."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchmint.inspection.codes.books import book_starts
from patchmint.shards.layout import TokensLayout
from patchmint.types import Integers


@dataclass(frozen=True)
class BookUsage:
    """Use of one codebook.

    Attributes:
        book: which, from 0.
        size: codes that it has.
        occurrences: codes in the data set that are of it.
        used: codes that are there at least once.
        dead: codes that never are.
        perplexity: 2 ** entropy of the codes' shares: so many codes, equally frequent, would be as hard to guess. At
            most `size`.
        counts: how often each code is there.
    """

    book: int
    size: int
    occurrences: int
    used: int
    dead: int
    perplexity: float
    counts: tuple[int, ...]


def book_usage(counts: Integers, tokens: TokensLayout) -> tuple[BookUsage, ...]:
    """Use of each codebook.

    Args:
        counts: int64, how often each code is there; codebooks one after another.
        tokens: what the codes are.
    """
    starts = book_starts(tokens)
    parts = [counts[starts[book] : starts[book + 1]] for book in range(len(tokens.codebook_sizes))]
    return tuple(_usage(book, part) for book, part in enumerate(parts))


def _usage(book: int, counts: Integers) -> BookUsage:
    total, used = int(counts.sum()), int((counts > 0).sum())
    shares = counts[counts > 0] / max(total, 1)
    return BookUsage(
        book=book,
        size=len(counts),
        occurrences=total,
        used=used,
        dead=len(counts) - used,
        perplexity=float(2 ** -(shares * np.log2(shares)).sum()) if total else 0.0,
        counts=tuple(counts.tolist()),
    )
