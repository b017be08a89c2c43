"""What the page needs to know of one sample, as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.datasets.dataset import Dataset
from patchmint.errors import ShardError
from patchmint.inspection.gallery.scripts import packed
from patchmint.inspection.show.labels import phrase_colours, text_labels
from patchmint.inspection.show.overlays import sample_placement
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import PhraseDocument, SampleDocument

_PLAIN = -1
# The colour of what isn't highlighted.


def phrases_of_text(document: SampleDocument, text: int) -> list[PhraseDocument]:
    """What was found for one of a sample's texts, best first."""
    return [phrase for phrase in document.phrases if phrase.text_index == text]


def describe_sample(dataset: Dataset, sample: StoredSample) -> dict[str, Any]:
    """A sample's texts, phrases, patches and codes.

    Args:
        dataset: that has it.
        sample: with all its members; its image isn't looked at.

    Raises:
        ShardError: a member is damaged, or one contradicts another.
    """
    document = sample.document
    image = document.image
    described: dict[str, Any] = {
        "key": sample.key,
        "id": document.id,
        "notice": document.notice,
        "image": {"width": image.width, "height": image.height, "format": image.format, "mode": image.mode},
        "source": {"path": document.source.path, "start": document.source.start},
        "texts": [_text(number, document) for number in range(len(document.texts))],
        "grid": None,
        "codes": None,
    }
    described |= _labels(dataset, sample, document)
    codes = sample.codes
    if codes is not None:
        described["codes"] = {"shape": list(codes.shape), "values": codes.ravel().tolist()}
    return described


def _text(number: int, document: SampleDocument) -> dict[str, Any]:
    phrases = phrases_of_text(document, number)
    colours = phrase_colours(phrase.text for phrase in phrases)
    return {
        "parts": list(_parts(document.texts[number], phrases, colours)),
        "phrases": [
            {"words": phrase.text, "colour": colours[phrase.text], "score": phrase.score, "box": phrase.box}
            for phrase in phrases
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


def _labels(dataset: Dataset, sample: StoredSample, document: SampleDocument) -> dict[str, Any]:
    """The first view's patches: their borders in image pixels, what is kept, and how much of each is covered."""
    if sample.selector is None:
        return {"labels": None}
    texts = [text_labels(sample, text) for text in range(len(document.texts))]
    selectors = [selector != 0 for selector, _ in texts]
    coverages = [coverage for _, coverage in texts if coverage is not None]
    rows = document.grid.rows
    labels: dict[str, Any] = {
        "shares": [round(float(selector.mean()), 4) for selector in selectors],
        "selector": _packed_first(selectors, rows),
        "coverage": _packed_first(coverages, rows) if len(coverages) == len(texts) else None,
    }
    return {"labels": labels, "grid": _grid(dataset, document)}


def _packed_first(grids: Sequence[npt.NDArray[Any]], rows: int) -> str:
    return packed(np.array([grid[:rows] for grid in grids], np.uint8))


def _grid(dataset: Dataset, document: SampleDocument) -> dict[str, Any]:
    """Borders of the first view's cells; without them, the reason why they aren't known."""
    grid = document.grid
    facts: dict[str, Any] = {"rows": grid.rows, "cols": grid.cols, "views": grid.views, "fit": grid.fit}
    try:
        placement = sample_placement(dataset, document)
    except ShardError as error:
        return facts | {"problem": str(error)}
    if (placement.rows, placement.cols) != (grid.rows, grid.cols):
        return facts | {"problem": f"the build's grid is {placement.rows} x {placement.cols}; run verify"}
    y, x = placement.edges(placement.views[0])
    return facts | {"y": np.round(y, 3).tolist(), "x": np.round(x, 3).tolist()}
