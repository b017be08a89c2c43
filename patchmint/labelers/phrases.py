"""What of a text is looked for, and detectors that have to be told."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.errors import PluginError
from patchmint.interfaces import (
    Detections,
    PhraseBoxes,
    PhraseDetector,
    PrefersLikeSizes,
    check_answers,
    handed,
    prepared_by,
)
from patchmint.types import RgbImage, Size, Span, Text


def phrase_spans(text: Text) -> Sequence[Span]:
    """A text's phrases; where it names none, those between its "."."""
    if text.phrases:
        return text.phrases
    spans, content = [], text.content
    start = 0
    for stop in re.finditer(r"\.(?=\s|$)|$", content):
        part = content[start : stop.start()]
        stripped = part.strip()
        if stripped:
            begin = start + part.index(stripped)
            spans.append((begin, begin + len(stripped)))
        start = stop.end()
    return spans


Asked = tuple[int, Span, str]
"""A phrase to look for: which text's, where in it, and the words."""


def asked(texts: Sequence[Text], *, splits: bool = False) -> list[Asked]:
    """The phrases of an image's texts, as `phrase_spans` or, without `splits`, each text that names none as a whole."""
    return [
        (number, (start, end), text.content[start:end])
        for number, text in enumerate(texts)
        for start, end in (phrase_spans(text) if splits else text.phrases or [(0, len(text.content))])
        if text.content[start:end].strip()
    ]


def plain(phrase: str) -> str:
    """A phrase as it is compared with others."""
    return " ".join(phrase.casefold().split())


@dataclass(frozen=True)
class ByPhrases:
    """A `Detector` made of one that is told phrases: those of a text that names some, else the whole text.

    Attributes:
        detector: is asked for each phrase of an image once, however many texts have it.
    """

    detector: PhraseDetector

    def prepare(self, image: RgbImage) -> object:
        """What the detector does ahead, if anything."""
        return prepared_by(self.detector, image)

    def batch_key(self, size: Size) -> Hashable:
        """The detector's, if it has one."""
        return self.detector.batch_key(size) if isinstance(self.detector, PrefersLikeSizes) else None

    def detect(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        threshold: float,
        prepared: Sequence[Any] | None = None,
    ) -> list[Detections]:
        """See `patchmint.interfaces.Detector`.

        Raises:
            PluginError: the detector answers for a phrase that there isn't, or not once an image.
        """
        wanted = [asked(own) for own in texts]
        looked = [number for number, own in enumerate(wanted) if own]
        phrases = [list(dict.fromkeys(words for _, _, words in wanted[number])) for number in looked]
        found = [Detections.none()] * len(images)
        if looked:
            seen = [images[number] for number in looked]
            ahead = {} if prepared is None else handed(self.detector, [prepared[number] for number in looked])
            answers = self.detector.find(seen, phrases, threshold, **ahead)
            check_answers("a detector", len(looked), answers, PhraseBoxes)
            for number, words, answer in zip(looked, phrases, answers, strict=True):
                found[number], _ = of_texts(answer, wanted[number], words)
        return found


def of_texts(
    found: PhraseBoxes, wanted: Sequence[Asked], phrases: Sequence[str]
) -> tuple[Detections, npt.NDArray[np.int64]]:
    """What was found of phrases, once for each text that has them.

    Args:
        found: of one picture.
        wanted: what its texts ask for.
        phrases: those that `found` numbers.

    Returns:
        Its detections, in the order of `wanted`, and for each which of `found` it is.

    Raises:
        PluginError: a number is none of a phrase.
    """
    if not np.isin(found.phrase_index, np.arange(len(phrases))).all():
        raise PluginError(f"a detector gave a phrase_index that isn't one of its {len(phrases)} phrases")
    rows = [
        (row, text, span)
        for text, span, words in wanted
        for row in np.flatnonzero(found.phrase_index == phrases.index(words)).tolist()
    ]
    chosen = np.array([row for row, _, _ in rows], np.int64)
    detections = Detections(
        boxes=found.boxes[chosen],
        scores=found.scores[chosen],
        spans=np.array([span for _, _, span in rows], np.int64).reshape(-1, 2),
        text_index=np.array([text for _, text, _ in rows], np.int64),
    )
    return detections, chosen
