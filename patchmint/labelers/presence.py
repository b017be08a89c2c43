"""A second look: is what a box holds what its phrase says, or only something like it?

The phrase has to win there against phrases that can't be true of the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

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


class Presence:
    """`labels.presence`.

    Args:
        settings: which.

    Raises:
        ConfigError: as `PresenceConfig.learnt`.
    """

    def __init__(self, settings: PresenceConfig) -> None:
        self._settings = settings.learnt()
        self._thresholds = {plain(phrase): value for phrase, value in self._settings.thresholds.items()}

    def kept(
        self,
        detector: Detector,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        found: Sequence[Detections],
        losses: Sequence[list[Loss]] | None = None,
    ) -> list[Detections]:
        """The boxes of phrases of which a second look confirms any.

        Of several things that a phrase names, one may be hard to see. Arguments as of `scores`,
        `losses` as of `BoxRules.detect`.
        """
        noted = [None] * len(images) if losses is None else losses
        answers = []
        for own, boxes, sure, lost in zip(
            texts, found, self.scores(detector, images, texts, found), noted, strict=True
        ):
            phrases = map(plain, phrases_of(boxes, own))
            limits = [self._thresholds.get(phrase, self._settings.threshold) for phrase in phrases]
            confirmed = sure > np.array(limits, np.float32)
            names = np.concatenate([boxes.text_index[:, None], boxes.spans], axis=1)
            there = (names[:, None] == names[confirmed]).all(axis=2).any(axis=1)
            answers.append(without(boxes, ~there, "presence", lost))
        return answers

    def scores(
        self,
        detector: Detector,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        found: Sequence[Detections],
    ) -> list[Scores]:
        """How sure a second look is of each box.

        It looks at no more parts together than there are images, so it takes no more memory than the first look.

        Args:
            detector: any.
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts.
            found: in each image.

        Returns:
            float32 (N,) of each image, -1..1: how much better the phrase scores than its best alternative.

        Raises:
            PluginError: an outside detector breaks its contract.
        """
        margins = self._settings.margins
        looks: list[_Look] = []
        for number, (image, own, boxes) in enumerate(zip(images, texts, found, strict=True)):
            phrases = [plain(phrase) for phrase in phrases_of(boxes, own)]
            for margin in margins:
                looks += _looks(number, image, boxes, phrases, margin)
        scores = [np.zeros(len(boxes.boxes), np.float32) for boxes in found]
        for start in range(0, len(looks), len(images)):
            some = looks[start : start + len(images)]
            asked = [[Text.from_phrases([phrase, *self.against(phrase)]) for phrase in look.rows] for look in some]
            pixels = [look.pixels for look in some]
            ahead = handed(detector, [prepared_by(detector, image) for image in pixels])
            answers = detector.detect(pixels, asked, 0.0, **ahead)
            check_answers("a detector", len(some), answers, Detections)
            for look, prompts, answer in zip(some, asked, answers, strict=True):
                check_found("a detector", answer, (look.pixels.shape[0], look.pixels.shape[1]), prompts)
                for number, (prompt, rows) in enumerate(zip(prompts, look.rows.values(), strict=True)):
                    here = found[look.image].boxes[rows] - np.array([*look.corner, *look.corner], np.float32)
                    scores[look.image][rows] += _scores(answer.only(answer.text_index == number), prompt, here)
        return [summed / np.float32(len(margins)) for summed in scores]

    def rehearse(self, detector: Detector, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]]) -> None:
        """Look once more at each image, as if all of it were the box of its first text."""
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
        """A plain phrase with each word of `alternatives` exchanged for each other one of its group."""
        found = []
        for group in self._settings.alternatives:
            members = sorted(map(plain, group), key=len, reverse=True)
            for match in re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, members))})(?!\w)", phrase):
                others = (word for word in map(plain, group) if word != match[0])
                found += [f"{phrase[: match.start()]}{word}{phrase[match.end() :]}" for word in others]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Look:
    """A part of an image that is looked at.

    Attributes:
        image: number of the image.
        pixels: the part.
        corner: where it begins: left, top.
        rows: numbers of the boxes in it, by phrase.
    """

    image: int
    pixels: RgbImage
    corner: tuple[int, int]
    rows: dict[str, list[int]] = field(default_factory=dict)


def _looks(
    number: int, image: RgbImage, found: Detections, phrases: Sequence[str], margin: float | None
) -> list[_Look]:
    """What of an image is looked at; boxes around which the same is seen share it."""
    looks: dict[tuple[int, ...], _Look] = {}
    height, width = image.shape[:2]
    for row, (box, phrase) in enumerate(zip(found.boxes, phrases, strict=True)):
        left, top, right, bottom = 0, 0, width, height
        if margin is not None:
            around = margin * float((box[2:] - box[:2]).max())
            left, top = np.floor(box[:2] - around).clip(0, (width - 1, height - 1)).astype(int).tolist()
            right, bottom = np.ceil(box[2:] + around).clip((left + 1, top + 1), (width, height)).astype(int).tolist()
        part = image[top:bottom, left:right]
        look = looks.setdefault((left, top, right, bottom), _Look(number, part, (left, top)))
        look.rows.setdefault(phrase, []).append(row)
    return list(looks.values())


def _scores(found: Detections, prompt: Text, boxes: Scores) -> Scores:
    """At each box by how much the prompt's first phrase scores better than the best other one: float32 (N,)."""
    here = overlaps(boxes, found.boxes) > _SAME
    own, *others = (
        np.where(here & (found.spans == span).all(axis=1), found.scores, 0).max(axis=1, initial=0)
        for span in prompt.phrases
    )
    return np.asarray(own - np.max(others, axis=0) if others else own, np.float32)


def phrases_of(found: Detections, texts: Sequence[Text]) -> list[str]:
    """The words that each box answers to."""
    rows = zip(found.text_index.tolist(), found.spans.tolist(), strict=True)
    return [texts[text].content[start:end] for text, (start, end) in rows]
