"""One sample as it lies in a tar: ours, or somebody else's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from patchmint.errors import PatchmintError, ShardError
from patchmint.shards.checks import Array, Problem, check_arrays, check_document, check_key
from patchmint.shards.codec import decode_array
from patchmint.shards.endings import CAPTION, COVERAGE, DOCUMENT, FEATURES, IMAGE, SELECTOR
from patchmint.shards.layout import Layout
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import SampleDocument, dump_features

_IMAGES = (IMAGE, "jpeg", "png", "webp", "bmp", "gif")


def is_own(sample: StoredSample) -> bool:
    """Whether the sample says that it is of our format."""
    try:
        document = json.loads(sample.members.get(DOCUMENT, b""))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and str(document.get("schema", "")).startswith("patchmint.sample/")


def check_own(sample: StoredSample, layout: Layout | None) -> Iterator[Problem]:
    """A sample of our format: members, document, arrays, caption.

    Args:
        sample: as read.
        layout: of its data set; None: only what the sample says of itself is held against it.
    """
    yield from check_key(sample.key)
    document: SampleDocument | None = None
    if DOCUMENT in sample.members:
        try:
            document = sample.document
        except ShardError as error:
            yield "document-form", str(error)
    yield from _check_endings(sample, _expected(sample, document, layout))
    arrays: dict[str, Array] = {}
    yield from _read_arrays(sample, arrays)
    if document is None:
        return
    yield from check_document(document, sample.key, layout)
    yield from check_arrays(document, arrays, layout)
    yield from _check_caption(sample, document)


def check_foreign(sample: StoredSample) -> Iterator[Problem]:
    """A sample of somebody else's tar: what every reader needs."""
    if sample.members and all("." in ending for ending in sample.members):
        dotted = next(iter(sample.members))
        yield (
            "key-dotted",
            f"every member has a dotted ending, such as {dotted[:80]!r}: readers cut names at the first dot, so "
            "samples with dots in their keys run together",
        )
    if DOCUMENT in sample.members:
        try:
            json.loads(sample.members[DOCUMENT])
        except (ValueError, RecursionError) as error:
            yield "document-form", f"the JSON can't be read: {error}"
    yield from _read_arrays(sample, {})


def check_image(sample: StoredSample, decode: Callable[[bytes], tuple[int, int]]) -> Iterator[Problem]:
    """Decode the sample's images, and hold their size against the document.

    Args:
        sample: as read.
        decode: an image file's bytes -> (height, width); raises a PatchmintError where it can't.
    """
    for ending in _IMAGES:
        if ending not in sample.members:
            continue
        try:
            height, width = decode(sample.members[ending])
        except PatchmintError as error:
            yield "image-damaged", f"{ending} can't be decoded: {error}"
            continue
        try:
            image = sample.document.image
        except ShardError:  # said already, or not ours
            continue
        if (image.height, image.width) != (height, width):
            yield (
                "image-size",
                f"the image has {width} x {height} pixels, KEY.json says {image.width} x {image.height}",
            )


def _expected(sample: StoredSample, document: SampleDocument | None, layout: Layout | None) -> tuple[str, ...] | None:
    if layout is not None:
        return layout.members
    if document is None:
        return None
    labels = (SELECTOR, COVERAGE) if {SELECTOR, COVERAGE} & sample.members.keys() else ()
    tokens = (f"{document.tokens.member}.npy",) if document.tokens.member else ()
    features = (FEATURES,) if document.features_json != dump_features(None) else ()
    return (IMAGE, DOCUMENT, CAPTION, *labels, *tokens, *features)


def _check_endings(sample: StoredSample, expected: tuple[str, ...] | None) -> Iterator[Problem]:
    held = tuple(sample.members)
    if expected is None or held == expected:
        return
    missing = [ending for ending in expected if ending not in held]
    unknown = [ending[:80] for ending in held if ending not in expected]
    if missing:
        yield "members-missing", f"there is no {', '.join(missing)}"
    if unknown:
        yield (
            "members-unknown",
            f"{', '.join(map(repr, unknown))} doesn't belong to the format; a key with a dot looks like this too",
        )
    if not missing and not unknown:
        yield "members-order", f"members stand in the order {', '.join(held)}; it must be {', '.join(expected)}"


def _read_arrays(sample: StoredSample, arrays: dict[str, Array]) -> Iterator[Problem]:
    for ending, data in sample.members.items():
        if ending.endswith(".npy") or ending == "npy":
            try:
                arrays[ending] = decode_array(data, ending)
            except ShardError as error:
                yield "array-form", str(error)


def _check_caption(sample: StoredSample, document: SampleDocument) -> Iterator[Problem]:
    if CAPTION not in sample.members:
        return
    try:
        if sample.caption != document.texts[0]:
            yield "caption", "KEY.txt isn't the first text of KEY.json"
    except ShardError as error:
        yield "caption", str(error)
