"""What the gallery's page is told, as JSON values in scripts: of the data set, of samples, and for its filters."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import dataset_notice
from patchmint.datasets.rows import rows_at
from patchmint.errors import ShardError
from patchmint.inspection.gallery.remake import Offer
from patchmint.inspection.show.labels import (
    Kept,
    parts_of,
    phrase_colours,
    text_labels,
    texts_of,
    whole_view,
)
from patchmint.pictures.labels import PALETTE, score_words
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.schema import PhraseDocument
from patchmint.types import Integers
from patchmint.version import __version__

INDEX_CHUNK = 10_000
"""Samples of one file of numbers."""

TEXTS_CHUNK = 2_000
"""Samples of one file of texts: some MB at most, since a page must hold one of them while it searches."""

SCALE = 20_000
"""Shares and scores are sent as whole numbers of this fraction. An even one stands for itself, an odd one for all that
lies between its neighbours, so that a bound of up to four decimals, as `inspect find` takes it, is held exactly."""

NONE = 65_535
"""Stands for a sample that has no score."""

_STEPS = (np.arange(SCALE // 2 + 1) / (SCALE // 2)).astype(np.float32)
# In single precision, as the sidecar has its numbers.

_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
# No text can end the script, open a comment in it or break a line of it, wherever a browser or a person puts it.

_PLAIN = -1
# The colour of what isn't highlighted.


def index_document(dataset: Dataset, indices: Integers) -> dict[str, str]:
    """Numbers of samples at ascending positions, packed as uint16.

    Returns:
        `shares`: the label shares of each sample's texts, ascending, each once, one sample after the other; `counts`:
        how many of them each sample has; `score`: each sample's best score.
    """
    rows = [row for _, row in rows_at(dataset, indices, ["label_shares", "scores"])]
    every = iter(_levels([share for row in rows for share in row["label_shares"]]).tolist())
    shares = [sorted(set(islice(every, len(row["label_shares"])))) for row in rows]
    best = _levels([max(row["scores"], default=-1) for row in rows])
    return {
        "shares": packed(np.array([level for own in shares for level in own], np.uint16)),
        "counts": packed(np.array([len(own) for own in shares], np.uint16)),
        "score": packed(best),
    }


def texts_document(dataset: Dataset, indices: Integers) -> dict[str, list[Any]]:
    """Keys and texts of samples at ascending positions."""
    rows = [row for _, row in rows_at(dataset, indices, ["key", "texts"])]
    return {"keys": [row["key"] for row in rows], "texts": [row["texts"] for row in rows]}


def _levels(numbers: Iterable[float]) -> npt.NDArray[np.uint16]:
    """Numbers 0..1 as `SCALE` has them; `NONE` for -1, which is "not known"."""
    values = np.array(numbers, np.float32)
    below = np.searchsorted(_STEPS, np.clip(values, 0, 1), side="right") - 1
    levels = 2 * below + (_STEPS[below] < values)
    return np.where(values >= 0, levels, NONE).astype(np.uint16)


def script(name: str, document: object) -> bytes:
    """A document as a script that hands it to the page.

    Args:
        name: under which the page asks for it: its path without the ending.
        document: JSON values, whatever their texts hold.
    """
    name, text = (json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in (name, document))
    return f"patchmint.receive({name},{text});\n".translate(_ESCAPES).encode("utf-8", "replace")


def packed(array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> str:
    """Numbers in row-major order, little-endian, as base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def describe_sample(sample: StoredSample) -> dict[str, Any]:
    """A sample's names; of a document also its texts and images in their order. Raises a ShardError, as the sample."""
    told = sample.key_json
    described: dict[str, Any] = {"key": sample.key, "id": told.id, "notice": told.notice}
    if sample.parts:
        parts = parts_of(sample)
        described["sequence"] = [{"text": part.text, "image": part.image, "role": part.role} for part in parts]
    return described


def describe_image(dataset: Dataset, image: StoredImage) -> dict[str, Any]:
    """An image with its texts, phrases, patches and codes.

    Args:
        dataset: that has it.
        image: with its arrays; its bytes aren't looked at.

    Raises:
        ShardError: a member is damaged, or one contradicts another.
    """
    info, source = image.info, image.source
    described: dict[str, Any] = {
        "key": image.name,
        "image": {"width": info.width, "height": info.height, "format": info.format, "mode": info.mode},
        "source": {"path": source.path, "start": source.start},
        "texts": [_text(number, text, image) for number, text in texts_of(image).items()],
        "grid": None,
        "codes": None,
    }
    described |= _labels(dataset, image)
    codes = image.codes
    if codes is not None:
        described["codes"] = {"shape": list(codes.shape), "values": codes.ravel().tolist()}
    return described


def _text(number: int, text: str, image: StoredImage) -> dict[str, Any]:
    numbered = {place: phrase for place, phrase in enumerate(image.phrases) if phrase.text_index == number}
    phrases = [*numbered.values()]
    colours = phrase_colours(phrase.text for phrase in phrases)
    return {
        "number": number,
        "parts": list(_parts(text, phrases, colours)),
        "phrases": [
            {
                "instance": place,
                "words": phrase.text,
                "span": [phrase.start, phrase.end],
                "colour": colours[phrase.text],
                "score": phrase.score,
                "score_words": score_words(phrase.score, phrase.origin),
                "origin": phrase.origin,
                "box": phrase.box,
            }
            for place, phrase in numbered.items()
        ],
    }


def _parts(text: str, phrases: Sequence[PhraseDocument], colours: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """A text cut where highlights begin and end; here, since a browser counts characters in another way.

    Where spans overlap, the first phrase's colour is seen: they come best first.
    """
    paint = np.full(len(text), _PLAIN)
    for phrase in reversed(phrases):
        paint[phrase.start : phrase.end] = colours[phrase.text]
    start = 0
    for colour, run in groupby(paint.tolist()):
        end = start + len(list(run))
        yield text[start:end], colour
        start = end


def _labels(dataset: Dataset, image: StoredImage) -> dict[str, Any]:
    """Patches of the view that shows the whole: their borders in image pixels, what is kept, how much covered."""
    if image.selector is None:
        return {"labels": None}
    texts = [text_labels(image, text) for text in image.texts]
    selectors = [selector != 0 for selector, _ in texts]
    coverages = [coverage for _, coverage in texts if coverage is not None]
    _, view = whole_view(image)
    kept = [Kept.of(selector) for selector, _ in texts]
    labels: dict[str, Any] = {
        "kept": [{"kept": own.patches, "all": own.all, "share": own.share} for own in kept],
        "selector": _packed([selector[view] for selector in selectors]),
        "coverage": _packed([coverage[view] for coverage in coverages]) if len(coverages) == len(texts) else None,
    }
    return {"labels": labels, "grid": _grid(dataset, image)}


def _packed(grids: Sequence[npt.NDArray[Any]]) -> str:
    return packed(np.array(grids, np.uint8))


def _grid(dataset: Dataset, image: StoredImage) -> dict[str, Any]:
    """Borders of that view's cells; without them, the reason why they aren't known."""
    grid = image.grid
    facts: dict[str, Any] = {"rows": grid.rows, "cols": grid.cols, "views": grid.views, "fit": grid.fit}
    try:
        placement = dataset.placement(image)
    except ShardError as error:
        return facts | {"problem": str(error)}
    if (placement.rows, placement.cols) != (grid.rows, grid.cols):
        return facts | {"problem": f"the build's grid is {placement.rows} x {placement.cols}; run verify"}
    view = placement.views[whole_view(image)[0]]
    facts |= {"rows": view.rows, "cols": view.cols}
    y, x = placement.edges(view)
    return facts | {"y": np.round(y, 3).tolist(), "x": np.round(x, 3).tolist()}


def meta_document(dataset: Dataset, shown: int, masks: Offer, decoded: Offer) -> dict[str, Any]:
    """Counts, forms and what can be switched on.

    The data set is named by the last part of its address: the gallery may be shown to those whom paths don't concern.

    Args:
        dataset: what is shown.
        shown: samples of it that are in the gallery, evenly spread.
        masks: whether masks can be switched on.
        decoded: whether decoded pictures can.

    Raises:
        StorageError: the first sample, which tells an unfinished build's notice, can't be read.
    """
    manifest = dataset.manifest
    name = dataset.uri.rstrip("/").rpartition("/")[2]
    if name in ("", ".", ".."):
        name = dataset.storage.uri.rstrip("/").rpartition("/")[2]
    notice = ""
    with suppress(ShardError):  # a damaged first sample; its card says so
        notice = dataset_notice(dataset)
    return {
        "version": __version__,
        "name": name,
        "shown": shown,
        "samples": dataset.samples,
        "shards": sum(bool(shard.samples) for shard in dataset.shards),
        "rejected": sum(shard.rejected for shard in dataset.shards),
        "unbuilt": dataset.unbuilt,
        "notice": notice,
        "min_coverage": manifest.layout.min_coverage if manifest is not None else None,
        "index_chunk": INDEX_CHUNK,
        "texts_chunk": TEXTS_CHUNK,
        "scale": SCALE,
        "none": NONE,
        "palette": [f"rgb({red} {green} {blue})" for red, green, blue in PALETTE],
        "masks": offer_document(masks),
        "decoded": offer_document(decoded),
    }


def offer_document(offer: Offer) -> dict[str, Any]:
    """What the page is told of something that can be made, or can't."""
    return {"available": offer.available, "remark": offer.remark}
