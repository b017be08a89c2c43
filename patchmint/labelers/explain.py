"""Why a phrase has boxes, or none: the models are asked once more, and say of every box what became of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchmint.interfaces import Detections, Explanation, Reason
from patchmint.labelers.box_rules import Loss
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.tiled import TiledSegmenter
from patchmint.types import UNKNOWN_SCORE, RgbImage, Span, Text


def explain(segmenter: GroundedSam | TiledSegmenter, image: RgbImage, texts: Sequence[Text]) -> list[Explanation]:
    """Explain what is found in an image, a phrase of a text at a time; a whole text where it names none.

    Args:
        segmenter: as for labels.
        image: HWC uint8 RGB.
        texts: of the image.
    """
    labeler = segmenter.segmenter if isinstance(segmenter, TiledSegmenter) else segmenter
    fates: list[Loss] = []
    (found,) = segmenter.segment([image], [texts], losses=[fates])
    fates.insert(0, Loss("found", Detections(found.boxes, found.scores, found.spans, found.text_index)))
    return [
        _explained(number, text, span, fates, labeler)
        for number, text in enumerate(texts)
        for span in _asked(text, labeler)
    ]


def _asked(text: Text, labeler: GroundedSam) -> Sequence[Span | None]:
    """The spans that are looked for; None stands for the whole text, whatever its words."""
    return (text.phrases if text.instances or labeler.detector is None else labeler.box_rules.spans(text)) or [None]


def _explained(number: int, text: Text, span: Span | None, fates: Sequence[Loss], labeler: GroundedSam) -> Explanation:
    start, end = span or (0, len(text.content))
    words = text.content[start:end]
    counts: dict[Reason, int] = {}
    best: tuple[float, Reason, list[float]] | None = None
    for fate in fates:
        rows = fate.found.text_index == number
        if span is not None:
            rows &= (fate.found.spans == span).all(axis=1)
        if rows.any():
            counts[fate.reason] = counts.get(fate.reason, 0) + int(rows.sum())
            highest = int(np.flatnonzero(rows)[fate.found.scores[rows].argmax()])
            score = float(fate.found.scores[highest])
            if best is None or score > best[0]:
                best = score, fate.reason, fate.found.boxes[highest].tolist()
    boxes, _ = counts.pop("found", 0), counts.pop("threshold", 0)
    nothing: Reason = "not-asked" if labeler.detector is None else "unreadable"
    score, why, (left, top, right, bottom) = best or (UNKNOWN_SCORE, nothing, [0.0] * 4)
    return Explanation(
        text=words,
        text_index=number,
        span=(start, end),
        boxes=boxes,
        best=score,
        box=(left, top, right, bottom),
        threshold=labeler.box_rules.threshold_of(words) if labeler.detector is not None else 0.0,
        reason="drawn" if text.instances else "found" if boxes else why,
        lost=counts,
    )
