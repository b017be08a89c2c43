"""Is a sample what the format says? Asked by the writer before it writes, and by `verify` of what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.errors import InputError, ShardError
from patchmint.geometry import Fit, PatchGrid, RleMasks, coverage_to_uint8
from patchmint.samples import NO_NUMBER, ROLES
from patchmint.shards.endings import (
    COVERAGE,
    FEATURES,
    MAX_DOCUMENT_KEY,
    MAX_KEY_LENGTH,
    SELECTOR,
    VALID_KEY,
    numbered,
    on_grid,
)
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import (
    EntryDocument,
    FoundDocument,
    GridDocument,
    KeyJson,
    PhraseDocument,
    SampleDocument,
    SequenceDocument,
    TokensDocument,
    dump_features,
)

Array = npt.NDArray[Any]
Problem = tuple[str, str]
"""A code to count by, and a message for people."""

_LABEL_TYPE = np.dtype("u1")
_FEATURE_TYPE = np.dtype("<f2")

MAX_PER_SHARD = 100
"""A wholly broken shard says so this often, and then how often more."""


def check_key(key: str, longest: int = MAX_KEY_LENGTH) -> Iterator[Problem]:
    """Is the key lawful, and no longer than the layout of its data set allows?"""
    if not VALID_KEY.fullmatch(key) or len(key) > longest:
        yield (
            "key-invalid",
            f"key {key[:120]!r} isn't valid; keys have 1 to {longest} of a-z, 0-9, '_' and '-'",
        )


def check_document(told: KeyJson, key: str, layout: Layout | None) -> Iterator[Problem]:
    """Does KEY.json agree with itself, with its sample's key, and with the data set?

    Args:
        told: KEY.json.
        key: the sample's name in its shard.
        layout: of the data set; None where it isn't known.
    """
    if told.key != key:
        yield "document-key", f"KEY.json says key {told.key[:120]!r}"
    if layout is not None:
        yield from _check_against_layout(told, layout)
    try:
        for index, phrase in enumerate(told.phrases):
            yield from _check_phrase(index, phrase, told)
        if len(told.annotators) != len(told.texts):
            yield (
                "document-texts",
                f"{len(told.texts)} texts, but annotators_json has {len(told.annotators)} entries",
            )
        if isinstance(told, SampleDocument):
            _ = told.conversation
        else:
            yield from _check_sequence(told)
    except ShardError as error:
        yield "document-form", str(error)


def _check_sequence(told: SequenceDocument) -> Iterator[Problem]:
    """Does a document show each of its images, and do its turns and the texts of its images agree with it?"""
    if len(told.key) > MAX_DOCUMENT_KEY:
        yield "key-invalid", f"its key has {len(told.key)} characters; a document's has at most {MAX_DOCUMENT_KEY}"
    shown = {part.image for part in told.sequence if part.image != NO_NUMBER}
    if wrong := sorted(shown ^ set(range(len(told.images)))):
        yield (
            "sequence-images",
            f"of {len(told.images)} images the sequence doesn't show, or shows beyond them, {wrong[:20]}",
        )
    if any(part.text for part in told.sequence if part.image != NO_NUMBER):
        yield "sequence-part", "a part of the sequence is a text and an image"
    roles = [part.role for part in told.sequence]
    if unknown := {role[:40] for role in roles} - {"", *ROLES}:
        yield "sequence-role", f"the sequence has roles {sorted(unknown)[:9]}; {', '.join(ROLES)} are known"
    elif any(roles) and not roles[0]:
        yield "sequence-role", "the first part of the sequence has no role, and a later one has"
    for number, texts in enumerate(told.image_texts):
        if list(texts) != sorted(set(texts)) or (texts and texts[-1] >= len(told.texts)):
            yield (
                "image-texts",
                f"image {number} has texts {list(texts)[:20]}: not ascending, or beyond {len(told.texts)}",
            )
    for index, phrase in enumerate(told.phrases):
        if phrase.image < len(told.images) and phrase.text_index not in told.image_texts[phrase.image]:
            message = f"phrase {index} is of text {phrase.text_index}, which doesn't label its image {phrase.image}"
            yield "phrase-text", message


def check_arrays(told: KeyJson, arrays: Mapping[str, Array], layout: Layout | None) -> Iterator[Problem]:
    """Have the arrays the types and shapes that the document says, and do they agree with each other?

    Args:
        told: KEY.json.
        arrays: by ending, such as "selector.npy"; what isn't there isn't checked.
        layout: of the data set; None where it isn't known, and then any one threshold will do.
    """
    for number in range(len(told.images)):
        yield from _check_arrays_of(told, number, arrays, layout.threshold if layout else None)


def _check_arrays_of(
    told: KeyJson, number: int, arrays: Mapping[str, Array], threshold: int | None
) -> Iterator[Problem]:
    image = told.images[number]
    grids = {ending: ending for ending in (SELECTOR, COVERAGE)}
    try:
        yield from _check_labels(told, number, image, grids, arrays, threshold)
        for grid in image.further_grids:
            named = {ending: on_grid(ending, grid.name) for ending in grids}
            yield from _check_labels(told, number, image.on_grid(grid.name), named, arrays, threshold)
    except ShardError as error:
        yield "document-grid", str(error)
        return
    features = _ending(told, number, FEATURES)
    for tokens in told.all_tokens:
        ending = _ending(told, number, f"{tokens.member}.npy")
        if ending in arrays:
            yield from _check_codes(tokens, number, ending, arrays[ending])
    if features in arrays:
        yield from _check_features(told, image.grid, features, arrays[features])


def _check_labels(
    told: KeyJson,
    number: int,
    image: EntryDocument,
    endings: Mapping[str, str],
    arrays: Mapping[str, Array],
    threshold: int | None,
) -> Iterator[Problem]:
    """Check the labels on one grid; raises a ShardError where its placement can't be read."""
    shape = (len(told.image_texts[number]), *image.label_shape)
    selector, coverage = (_ending(told, number, endings[ending]) for ending in (SELECTOR, COVERAGE))
    problems = []
    for ending in (selector, coverage):
        if ending in arrays:
            problems += _check_form(ending, arrays[ending], _LABEL_TYPE, shape)
    yield from problems
    if not problems and selector in arrays:
        yield from _check_selector(selector, arrays[selector], arrays.get(coverage), threshold)


def _ending(told: KeyJson, number: int, ending: str) -> str:
    return numbered(number, ending) if isinstance(told, SequenceDocument) else ending


def _check_against_layout(told: KeyJson, layout: Layout) -> Iterator[Problem]:
    if told.notice != layout.notice:
        yield "document-notice", f"notice {told.notice!r}, the data set's is {layout.notice!r}"
    if isinstance(told, SequenceDocument) != layout.documents:
        yield (
            "document-kind",
            f"it is {'a picture' if layout.documents else 'a document'}, the data set's samples aren't",
        )
    for image in told.images:
        yield from _check_grid(image, image.grid, layout.grid)
        if [grid.name for grid in image.further_grids] != [grid.name for grid in layout.further_grids]:
            yield "document-grid", f"further grids {image.further_grids!r}, the data set's are {layout.further_grids!r}"
            continue
        for grid, each in zip(image.further_grids, layout.further_grids, strict=True):
            yield from _check_grid(image, grid, each)
    if told.features_json != dump_features(layout.features):
        yield "document-features", f"features {told.features_json[:200]}, the data set's are {layout.features!r}"
    tokens = [each.model_dump(exclude={"grids"}) for each in told.all_tokens]
    if tokens != [each.model_dump(exclude={"rule"}) for each in layout.all_tokens]:
        yield "document-tokens", f"tokens {told.all_tokens!r}, the data set's are {layout.all_tokens!r}"
        return
    for codes, theirs in zip(told.all_tokens, layout.all_tokens, strict=True):
        try:
            grids = tuple(theirs.grid_on((image.height, image.width)) for image in told.images if theirs.varies)
        except InputError as error:
            yield "document-tokens", f"the tokenizer's grid can't be laid on this image: {error}"
            continue
        if len(codes.grids) != len(grids) or (any(grids) and codes.grids != grids):
            yield "document-tokens", f"the codes {codes.member} have grids {codes.grids}, on these images {grids}"


def _check_grid(image: EntryDocument, told: GridDocument, layout: GridLayout) -> Iterator[Problem]:
    if not layout.settings:
        if told.model_dump(exclude={"views"}) != layout.model_dump():
            yield "document-grid", f"grid {told!r}, the data set's is {layout!r}"
        return
    try:
        grid = layout.grid
        assert grid is not None
        placed = GridDocument.of(grid.place((image.height, image.width)), layout.fit)
    except InputError as error:
        yield "document-grid", f"the data set's grid can't be laid on this image: {error}"
        return
    if told.model_dump(exclude={"name"}) != placed.model_dump():
        yield "document-grid", f"grid {told!r}, the data set's makes {placed!r} of this image"


def _check_phrase(index: int, phrase: PhraseDocument, told: KeyJson) -> Iterator[Problem]:
    if phrase.image >= len(told.images):
        yield "phrase-image", f"phrase {index} is of image {phrase.image}; there are {len(told.images)}"
        return
    if phrase.text_index >= len(told.texts):
        yield "phrase-text", f"phrase {index} is of text {phrase.text_index}; there are {len(told.texts)} texts"
        return
    text = told.texts[phrase.text_index]
    if not phrase.start < phrase.end <= len(text):
        yield (
            "phrase-span",
            f"phrase {index} has span ({phrase.start}, {phrase.end}) in a text of {len(text)} characters",
        )
    elif text[phrase.start : phrase.end] != phrase.text:
        yield "phrase-span", f"phrase {index} says {phrase.text[:80]!r}, but its span holds other words"
    x0, y0, x1, y1 = phrase.box
    image = told.images[phrase.image]
    if not (0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height):
        size = f"{image.width} x {image.height}"
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


def _check_selector(ending: str, selector: Array, coverage: Array | None, threshold: int | None) -> Iterator[Problem]:
    if selector.size and selector.max() > 1:
        yield "selector-values", f"{ending} holds {selector.max()}; it must be 0 or 1"
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


def _check_codes(told: TokensDocument, image: int, ending: str, codes: Array) -> Iterator[Problem]:
    try:
        tokens = TokensLayout(**told.model_dump(exclude={"grids"}))
        shape = tokens.shape_of(told.grid_of(image))
    except (ValueError, ShardError) as error:
        yield "document-tokens", f"KEY.json's tokens can't be: {error}"
        return
    problems = _check_form(ending, codes, tokens.dtype, shape)
    yield from problems
    if problems or not codes.size:
        return
    # One codebook has no axis of its own: its size is compared with all codes.
    if (codes >= np.array(tokens.codebook_sizes, dtype=np.int64)).any():
        yield "codes-range", f"{ending} holds {codes.max()}; the codebooks have {tokens.codebook_sizes} codes"


def _check_features(told: KeyJson, grid: GridDocument, ending: str, features: Array) -> Iterator[Problem]:
    try:
        form = told.features
    except ShardError as error:
        yield "document-features", str(error)
        return
    if form is None:
        return  # said already: the member doesn't belong to the sample
    tokens = grid.views * form.tokens_of(grid.rows * grid.cols)
    yield from _check_form(ending, features, _FEATURE_TYPE, (tokens, form.channels))
    if not np.isfinite(features).all():
        yield "features-values", f"{ending} holds numbers that aren't finite"


def check_instances(image: StoredImage, *, deep: bool) -> Iterator[Problem]:
    """Are an image's instances its phrases with masks of its size?

    Args:
        image: with its members; KEY.json is sound.
        deep: also whether the masks make the coverage that is stored.
    """
    try:
        if (found := image.instances) is None:
            return
        masks, size = [each.mask.rle for each in found], (image.info.height, image.info.width)
        phrases, coverage = image.phrases, image.coverage
        if any(tuple(mask["size"]) != size for mask in masks):
            yield "instances-mask", f"image {image.number} has masks that aren't of its size {size} (height, width)"
            return
        if len(found) != len(phrases) or not all(map(FoundDocument.is_of, found, phrases)):
            yield "instances-phrases", f"image {image.number} has instances other than the phrases of KEY.json"
            return
        if not deep or coverage is None or len(coverage) != len(image.texts):
            return
        grid = image.grid
        placement = image.info.placement
        if placement is None:
            placement = PatchGrid(grid.rows, grid.cols, grid.patch_px, Fit(grid.fit)).place(size)
    except (ShardError, ValueError) as error:
        yield "instances-form", str(error)
        return
    for text, stored in zip(image.texts, coverage, strict=True):
        members = [number for number, each in enumerate(found) if each.text_index == text]
        made = coverage_to_uint8(RleMasks(masks).coverage(members, placement))
        if not np.array_equal(made, stored):
            yield "instances-coverage", f"image {image.number}: the masks of text {text} make another coverage"


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
