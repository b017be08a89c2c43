"""A second look: is what a box holds what its phrase says, or only something like it?

The box is cut out and looked at again, larger. The phrase has to win there against phrases that can't be true with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from patchmint.config import PresenceConfig
from patchmint.interfaces import Detections, Detector, check_answers, check_found, handed, prepared_by
from patchmint.labelers.box_rules import Loss, overlaps, without
from patchmint.labelers.phrases import plain
from patchmint.types import RgbImage, Text

Scores = npt.NDArray[np.float32]

_SAME = 0.5
"""What the second look finds is the box if it overlaps it by more (IoU)."""


@dataclass(frozen=True)
class Presence:
    """The settings in `labels.presence`.

    Attributes:
        threshold: what the score of the second look must be over.
        thresholds: of single phrases, instead.
        alternatives: groups of words; of a group one at most is true of a thing.
        margin: how much is seen around a box, as a share of its longer side.
    """

    threshold: float
    thresholds: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[tuple[str, ...], ...] = ()
    margin: float = 0.5

    @classmethod
    def of(cls, settings: PresenceConfig) -> Self:
        """Those of the settings. Raises ConfigError as `PresenceConfig.learnt`."""
        learnt = settings.learnt()
        thresholds = {plain(phrase): value for phrase, value in learnt.thresholds.items()}
        return cls(learnt.threshold, thresholds, settings.alternatives, settings.margin)

    def kept(
        self,
        detector: Detector,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        found: Sequence[Detections],
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Detections]:
        """The boxes that a second look confirms; arguments as of `scores`, `losses` as of `BoxRules.detect`."""
        answers = []
        noted = [None] * len(images) if losses is None else losses
        scores = self.scores(detector, images, texts, found)
        for own, boxes, sure, lost in zip(texts, found, scores, noted, strict=True):
            limits = [self.thresholds.get(plain(phrase), self.threshold) for phrase in phrases_of(boxes, own)]
            answers.append(without(boxes, sure <= np.array(limits, np.float32), "presence", lost))
        return answers

    def scores(
        self,
        detector: Detector,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        found: Sequence[Detections],
    ) -> list[Scores]:
        """How sure the second look is of each box.

        As many boxes are looked at together as there are images, so it takes no more memory than the first look.

        Args:
            detector: any.
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts.
            found: of each image.

        Returns:
            float32 (N,) of each image: the score of the phrase, 0..1; 0 where an alternative scores as high.

        Raises:
            PluginError: an outside detector breaks its contract.
        """
        looks: list[_Look] = []
        for number, (image, own, boxes) in enumerate(zip(images, texts, found, strict=True)):
            places: dict[bytes, _Look] = {}
            for row, phrase in enumerate(phrases_of(boxes, own)):
                box = boxes.boxes[row]
                if (look := places.get(box.tobytes())) is None:
                    look = places[box.tobytes()] = _Look.at(image, number, box, self.margin)
                look.rows.setdefault(plain(phrase), []).append(row)
            looks += places.values()
        scores = [np.zeros(len(boxes.boxes), np.float32) for boxes in found]
        for start in range(0, len(looks), len(images)):
            some = looks[start : start + len(images)]
            asked = [[Text.from_phrases([phrase, *self.against(phrase)]) for phrase in look.rows] for look in some]
            pixels = [look.pixels for look in some]
            answers = detector.detect(
                pixels, asked, 0.0, **handed(detector, [prepared_by(detector, image) for image in pixels])
            )
            check_answers("a detector", len(some), answers, Detections)
            for look, prompts, answer in zip(some, asked, answers, strict=True):
                check_found("a detector", answer, (look.pixels.shape[0], look.pixels.shape[1]), prompts)
                for number, (prompt, rows) in enumerate(zip(prompts, look.rows.values(), strict=True)):
                    scores[look.image][rows] = look.score(answer.only(answer.text_index == number), prompt)
        return scores

    def rehearse(self, detector: Detector, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]]) -> None:
        """Look once more at all of each image, as if it were the box of its first text."""
        found = [
            Detections(
                boxes=np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32),
                scores=np.ones(1, np.float32),
                spans=np.array([own[0].phrases[0] if own[0].phrases else (0, len(own[0].content))], np.int64),
                text_index=np.zeros(1, np.int64),
            )
            for image, own in zip(images, texts, strict=True)
        ]
        self.scores(detector, images, texts, found)

    def against(self, phrase: str) -> list[str]:
        """The phrase with each word of `alternatives` exchanged for each other one of its group."""
        found = []
        for group in self.alternatives:
            words = "|".join(re.escape(plain(word)) for word in sorted(group, key=len, reverse=True))
            for match in re.finditer(rf"(?<!\w)(?:{words})(?!\w)", phrase):
                others = (plain(word) for word in group if plain(word) != match[0])
                found += [f"{phrase[: match.start()]}{word}{phrase[match.end() :]}" for word in others]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Look:
    """A box and what is around it.

    Attributes:
        image: its number.
        pixels: what is looked at.
        box: in these pixels, XYXY.
        rows: numbers of the boxes that are this one, by phrase.
    """

    image: int
    pixels: RgbImage
    box: Scores
    rows: dict[str, list[int]]

    @classmethod
    def at(cls, image: RgbImage, number: int, box: Scores, margin: float) -> Self:
        """At a box of an image with a number, with a margin around it."""
        around = margin * float((box[2:] - box[:2]).max())
        last = np.array(image.shape[1::-1]) - 1
        left, top = np.floor(box[:2] - around).clip(0, last).astype(int)
        right, bottom = np.ceil(box[2:] + around).astype(int)
        pixels = image[top : max(bottom, top + 1), left : max(right, left + 1)]
        return cls(number, pixels, box - np.array([left, top, left, top], np.float32), {})

    def score(self, found: Detections, prompt: Text) -> float:
        """The score of the prompt's first phrase at the box; 0 if that of another one is as high."""
        here = overlaps(self.box[None], found.boxes)[0] > _SAME
        best = dict.fromkeys(prompt.phrases, 0.0)
        for (start, end), score in zip(found.spans[here].tolist(), found.scores[here].tolist(), strict=True):
            best[start, end] = max(best.get((start, end), 0.0), score)
        own, *others = (best[span] for span in prompt.phrases)
        return own if own > max(others, default=0.0) else 0.0


def phrases_of(found: Detections, texts: Sequence[Text]) -> list[str]:
    """The words that each box answers to."""
    rows = zip(found.text_index.tolist(), found.spans.tolist(), strict=True)
    return [texts[text].content[start:end] for text, (start, end) in rows]
