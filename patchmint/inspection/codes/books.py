"""The codebooks of a data set, and how a code is called: C, or BOOK:C where there are several."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from patchmint.datasets.arrays import Integers
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.samples import sample_at
from patchmint.errors import InputError, ShardError
from patchmint.shards.layout import TokensLayout

_CODE = re.compile(r"(?:([0-9]{1,9}):)?([0-9]{1,12})", re.ASCII)


@dataclass(frozen=True)
class Code:
    """A code.

    Attributes:
        number: its row in an index of all codebooks, one after another (as in the sidecars).
        book: which codebook, from 0.
        code: its number there, from 0: what stands in the sample's array.
        name: `code`, or `book:code` where there are several codebooks.
    """

    number: int
    book: int
    code: int
    name: str


def tokens_layout(dataset: Dataset) -> TokensLayout:
    """What the data set's codes are; of an unfinished build or a lone tar, what its first sample says.

    Raises:
        InputError: it has no codes, or no samples.
        ShardError: the sample is damaged.
        StorageError: it can't be read.
    """
    if not dataset.samples:
        raise InputError(f"{dataset.uri} has no samples yet, so there are no codes to look at")
    if dataset.manifest is not None:
        tokens = dataset.manifest.layout.tokens
    else:
        document = sample_at(dataset, 0).document.tokens
        try:
            tokens = TokensLayout.model_validate(document.model_dump()) if document.member else None
        except ValidationError as error:
            message = f"the first sample of {dataset.uri} describes its codes wrongly; run verify"
            raise ShardError(message, uri=dataset.uri) from error
    if tokens is None:
        raise InputError(
            f"{dataset.uri} has no codes: it was built with `tokens: null`; `patchmint extend {dataset.uri} OUT "
            "--tokens.size 256` makes them"
        )
    return tokens


def book_starts(tokens: TokensLayout) -> Integers:
    """Number of each codebook's first code, and of all codes at the end: int64 (codebooks + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(tokens.codebook_sizes, np.int64))])


def parse_code(text: str, tokens: TokensLayout) -> Code:
    """What a user calls a code.

    Raises:
        InputError: it is no number, there is no such code or codebook, or it must be said which codebook.
    """
    match = _CODE.fullmatch(text)
    if match is None:
        raise InputError(f"{text[:40]!r} is no code; give its number, or BOOK:NUMBER where there are several codebooks")
    sizes = tokens.codebook_sizes
    if match[1] is None and len(sizes) > 1:
        raise InputError(
            f"there are {len(sizes)} codebooks, so code {text} could be in any; say which, such as 0:{text}"
        )
    book, code = int(match[1] or 0), int(match[2])
    if book >= len(sizes):
        raise InputError(f"there is no codebook {book}; they run from 0 to {len(sizes) - 1}")
    if code >= sizes[book]:
        named = f"codebook {book}" if len(sizes) > 1 else "the codebook"
        raise InputError(f"code {code} isn't in {named}, whose codes run from 0 to {sizes[book] - 1}")
    return named_code(int(book_starts(tokens)[book]) + code, tokens)


def named_code(number: int, tokens: TokensLayout) -> Code:
    """The code of a row of an index."""
    starts = book_starts(tokens)
    book = int(np.searchsorted(starts, number, side="right")) - 1
    code = number - int(starts[book])
    return Code(number, book, code, f"{book}:{code}" if len(tokens.codebook_sizes) > 1 else str(code))
