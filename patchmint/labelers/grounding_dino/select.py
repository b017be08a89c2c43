"""From token scores to phrases: which queries count, and which characters of the text each stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.labelers.grounding_dino.prompts import Prompt
from patchmint.types import Size, Span


@dataclass(frozen=True)
class Detections:
    """Boxes found for the texts of one image, best first within each text.

    Attributes:
        boxes: float32 (N, 4), XYXY in original pixels, inside the image.
        scores: float32 (N,), 0..1.
        spans: int64 (N, 2), characters of the text.
        text_index: int64 (N,).
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    spans: npt.NDArray[np.int64]
    text_index: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> Detections:
        """Nothing found."""
        return cls(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
        )


def select(
    scores: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    prompt: Prompt,
    *,
    image_size: Size,
    text_index: int,
    box_threshold: float,
    text_threshold: float,
) -> Detections:
    """Keep the queries that a readable token claims, and name each by the words that claim it.

    Upstream takes the best score over all tokens, `[CLS]` and "." included, and decodes every token over the text
    threshold, which gives empty names, words merged from different places and `##` fragments. Here a query's score is
    that of its best readable token, and its phrase is the unbroken run of whole words around that token that are over
    the text threshold; where phrases were asked for, the one that token belongs to.

    Args:
        scores: float32 (queries, 256), sigmoid of the logits.
        boxes: float32 (queries, 4), centre and size as shares of the image.
        prompt: what was asked.
        image_size: (height, width) in original pixels.
        text_index: which of the image's texts the prompt comes from.
        box_threshold: a query is kept if its best score is over this.
        text_threshold: a word belongs to the phrase if one of its tokens is over this.
    """
    readable = np.array([token.readable for token in prompt.tokens])
    of_tokens = np.where(readable, scores[:, prompt.places], -1.0)
    best = of_tokens.argmax(axis=1)
    best_scores = of_tokens[np.arange(len(best)), best]
    kept = np.flatnonzero(best_scores > box_threshold)
    kept = kept[np.argsort(-best_scores[kept], kind="stable")]
    spans = [
        prompt.phrases[prompt.phrase_of[best[query]]]
        if prompt.phrases
        else _run_of_words(prompt, of_tokens[query] > text_threshold, int(best[query]))
        for query in kept
    ]
    return Detections(
        boxes=_to_pixels(boxes[kept], image_size),
        scores=best_scores[kept].astype(np.float32),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        text_index=np.full(len(kept), text_index, dtype=np.int64),
    )


def merge(parts: list[Detections]) -> Detections:
    """Put the detections of several prompts together, texts in order, best first within each."""
    if not parts:
        return Detections.none()
    text_index = np.concatenate([part.text_index for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((-scores, text_index))
    return Detections(
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        spans=np.concatenate([part.spans for part in parts])[order],
        text_index=text_index[order],
    )


def _run_of_words(prompt: Prompt, over: npt.NDArray[np.bool_], best: int) -> Span:
    tokens = prompt.tokens
    claimed = {tokens[i].word for i in np.flatnonzero(over)} | {tokens[best].word}

    def grow(step: int) -> int:
        end = best
        following = best + step
        while 0 <= following < len(tokens) and tokens[following].word in claimed:
            end = following
            following += step
        return end

    return tokens[grow(-1)].span[0], tokens[grow(1)].span[1]


def _to_pixels(boxes: npt.NDArray[np.float32], image_size: Size) -> npt.NDArray[np.float32]:
    height, width = image_size
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1)
    return np.asarray(corners * np.array([width, height, width, height], dtype=np.float32), dtype=np.float32)
