"""Is a sample what the format says? Asked by the writer before it writes, and by `verify` of what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError, ShardError
from patchmint.shards.endings import COVERAGE, FEATURES, MAX_KEY_LENGTH, SELECTOR, VALID_KEY
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.schema import GridDocument, PhraseDocument, SampleDocument, dump_features

Array = npt.NDArray[Any]
Problem = tuple[str, str]
"""A code to count by, and a message for people."""

_LABEL_TYPE = np.dtype("u1")
_FEATURE_TYPE = np.dtype("<f2")

MAX_PER_SHARD = 100
"""A wholly broken shard says so this often, and then how often more."""


def check_key(key: str) -> Iterator[Problem]:
    """Is the key lawful?"""
    if not VALID_KEY.fullmatch(key):
        yield (
            "key-invalid",
            f"key {key[:120]!r} isn't valid; keys have 1 to {MAX_KEY_LENGTH} of a-z, 0-9, '_' and '-'",
        )


def check_document(document: SampleDocument, key: str, layout: Layout | None) -> Iterator[Problem]:
    """Does the document agree with itself, with its sample's key, and with the data set?

    Args:
        document: KEY.json.
        key: the sample's name in its shard.
        layout: of the data set; None where it isn't known.
    """
    if document.key != key:
        yield "document-key", f"KEY.json says key {document.key[:120]!r}"
    if layout is not None:
        yield from _check_against_layout(document, layout)
    try:
        for index, phrase in enumerate(document.phrases):
            yield from _check_phrase(index, phrase, document)
        if len(document.annotators) != len(document.texts):
            yield (
                "document-texts",
                f"{len(document.texts)} texts, but annotators_json has {len(document.annotators)} entries",
            )
        _ = document.conversation
    except ShardError as error:
        yield "document-form", str(error)


def check_arrays(document: SampleDocument, arrays: Mapping[str, Array], layout: Layout | None) -> Iterator[Problem]:
    """Have the arrays the types and shapes that the document says, and do they agree with each other?

    Args:
        document: KEY.json.
        arrays: by ending, such as "selector.npy"; what isn't there isn't checked.
        layout: of the data set; None where it isn't known, and then any one threshold will do.
    """
    try:
        shape = (len(document.texts), *document.label_shape)
    except ShardError as error:
        yield "document-grid", str(error)
        return
    problems = []
    for ending in (SELECTOR, COVERAGE):
        if ending in arrays:
            problems += _check_form(ending, arrays[ending], _LABEL_TYPE, shape)
    yield from problems
    if not problems and SELECTOR in arrays:
        yield from _check_selector(arrays[SELECTOR], arrays.get(COVERAGE), layout.threshold if layout else None)
    ending = f"{document.tokens.member}.npy"
    if document.tokens.member and ending in arrays:
        yield from _check_codes(document, ending, arrays[ending])
    if FEATURES in arrays:
        yield from _check_features(document, arrays[FEATURES])


def _check_against_layout(document: SampleDocument, layout: Layout) -> Iterator[Problem]:
    if document.notice != layout.notice:
        yield "document-notice", f"notice {document.notice!r}, the data set's is {layout.notice!r}"
    yield from _check_grid(document, layout.grid)
    expected: dict[str, object] = {"member": "", "grid": (), "codebook_sizes": (), "preprocessing": ""}
    if layout.tokens:
        expected = layout.tokens.model_dump(exclude={"rule"})
    if document.tokens.model_dump() != expected:
        yield "document-tokens", f"tokens {document.tokens!r}, the data set's are {layout.tokens!r}"
    if document.features_json != dump_features(layout.features):
        yield "document-features", f"features {document.features_json[:200]}, the data set's are {layout.features!r}"


def _check_grid(document: SampleDocument, layout: GridLayout) -> Iterator[Problem]:
    if not layout.settings:
        if document.grid.model_dump(exclude={"views"}) != layout.model_dump():
            yield "document-grid", f"grid {document.grid!r}, the data set's is {layout!r}"
        return
    try:
        grid = layout.grid
        assert grid is not None
        placed = GridDocument.of(grid.place((document.image.height, document.image.width)), layout.fit)
    except InputError as error:
        yield "document-grid", f"the data set's grid can't be laid on this image: {error}"
        return
    if document.grid != placed:
        yield "document-grid", f"grid {document.grid!r}, the data set's makes {placed!r} of this image"


def _check_phrase(index: int, phrase: PhraseDocument, document: SampleDocument) -> Iterator[Problem]:
    if phrase.text_index >= len(document.texts):
        yield "phrase-text", f"phrase {index} is of text {phrase.text_index}; there are {len(document.texts)} texts"
        return
    text = document.texts[phrase.text_index]
    if not phrase.start < phrase.end <= len(text):
        yield (
            "phrase-span",
            f"phrase {index} has span ({phrase.start}, {phrase.end}) in a text of {len(text)} characters",
        )
    elif text[phrase.start : phrase.end] != phrase.text:
        yield "phrase-span", f"phrase {index} says {phrase.text[:80]!r}, but its span holds other words"
    x0, y0, x1, y1 = phrase.box
    if not (0 <= x0 <= x1 <= document.image.width and 0 <= y0 <= y1 <= document.image.height):
        size = f"{document.image.width} x {document.image.height}"
        yield "phrase-box", f"phrase {index} has box {phrase.box}, which isn't inside the image of {size} pixels"
    if phrase.score < 0 and phrase.score != -1:
        yield "phrase-score", f"phrase {index} has score {phrase.score}; 0..1, or -1 for none"


def _check_form(ending: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> list[Problem]:
    problems = []
    if array.dtype != dtype:
        problems.append(("array-dtype", f"{ending} is {array.dtype}, it must be {dtype}"))
    if array.shape != shape:
        problems.append(("array-shape", f"{ending} has shape {array.shape}, it must be {shape}"))
    return problems


def _check_selector(selector: Array, coverage: Array | None, threshold: int | None) -> Iterator[Problem]:
    if selector.size and selector.max() > 1:
        yield "selector-values", f"selector.npy holds {selector.max()}; it must be 0 or 1"
    if coverage is None:
        return
    if threshold is None:  # of a lone tar: some threshold must part what is kept from what isn't
        kept, left = coverage[selector == 1], coverage[selector != 1]
        threshold = int(left.max()) if left.size else 0
        wrong = int((kept <= threshold).sum())
    else:
        wrong = int(((coverage > threshold) != selector).sum())
    if wrong:
        yield "selector-coverage", f"{wrong} patches have a selector other than coverage > {threshold}"


def _check_codes(document: SampleDocument, ending: str, codes: Array) -> Iterator[Problem]:
    try:
        tokens = TokensLayout(**document.tokens.model_dump())
    except ValueError as error:
        yield "document-tokens", f"KEY.json's tokens can't be: {error}"
        return
    problems = _check_form(ending, codes, tokens.dtype, tokens.shape)
    yield from problems
    if problems or not codes.size:
        return
    # One codebook has no axis of its own: its size is compared with all codes.
    if (codes >= np.array(tokens.codebook_sizes, dtype=np.int64)).any():
        yield "codes-range", f"{ending} holds {codes.max()}; the codebooks have {tokens.codebook_sizes} codes"


def _check_features(document: SampleDocument, features: Array) -> Iterator[Problem]:
    try:
        form = document.features
    except ShardError as error:
        yield "document-features", str(error)
        return
    if form is None:
        return  # said already: the member doesn't belong to the sample
    tokens = document.grid.views * form.tokens_of(document.grid.rows * document.grid.cols)
    yield from _check_form(FEATURES, features, _FEATURE_TYPE, (tokens, form.channels))
    if not np.isfinite(features).all():
        yield "features-values", f"{FEATURES} holds numbers that aren't finite"


@dataclass(frozen=True)
class Finding:
    """Something that isn't as the format says.

    Attributes:
        shard: the file it is in; empty for the data set as a whole.
        key: the sample; empty where it is none of a sample.
        code: to count by, such as "selector-coverage".
        message: for people.
    """

    shard: str
    key: str
    code: str
    message: str


class Findings:
    """Collects the findings of one shard, and only counts what comes after the first hundred.

    Args:
        shard: the file.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._found: list[Finding] = []
        self._more = 0

    def add(self, code: str, message: str, key: str = "") -> None:
        """Add a finding."""
        if len(self._found) < MAX_PER_SHARD:
            self._found.append(Finding(self._shard, key, code, message))
        else:
            self._more += 1

    def extend(self, problems: Iterable[tuple[str, str]], key: str = "") -> bool:
        """Add problems (code, message); True if there were any."""
        before = len(self)
        for code, message in problems:
            self.add(code, message, key)
        return len(self) > before

    def to_list(self) -> list[Finding]:
        """All that are kept, in order, and one that counts the rest."""
        if not self._more:
            return list(self._found)
        return [*self._found, Finding(self._shard, "", "more", f"{self._more} more findings in this shard")]

    def __len__(self) -> int:
        return len(self._found) + self._more
