"""The instances that are least certain, for a person to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from patchmint.config import LabelsConfig
from patchmint.config.parsing import parse_settings
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import rows_at
from patchmint.inspection.gallery.edits import EditedReader, PendingEdits
from patchmint.shards.endings import DOCUMENT
from patchmint.shards.manifest import made_by
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.schema import PhraseDocument
from patchmint.types import Box, Integers

LEAST = 0.5
"""Instances of less doubt aren't in the queue."""

_LOOKED_AT = 1000
# Samples whose boxes are read: those that come first by their sidecars.

_SMALL = 0.01
# Of this share of the image, an instance is large enough not to be doubted; of half of it, doubt is `LEAST`.


def doubts_document(dataset: Dataset, positions: Integers, pending: PendingEdits) -> list[dict[str, Any]]:
    """Instances of the samples at ascending positions, the greatest doubt first; those of wrong samples left out.

    Doubt is the greatest of four numbers, 0..1: how near the score is to the threshold; how small the box is; the
    overlap (IoU) with a better box of the same text with other words; and 1 - trust of the text's labels, where
    `patchmint trust` has told it. The sidecars, which have no boxes, choose the samples that are looked at.

    Raises:
        ConfigError: the manifest's settings aren't patchmint's.
        ShardError: a sample is damaged.
        StorageError: one can't be read.
    """
    threshold = _Threshold(dataset)
    edited, keys = EditedReader(dataset, pending), {edit.key for edit in pending.all()}
    chosen = _first(dataset, positions, threshold)
    found = []
    samples = iter_stored(dataset, positions[chosen], {DOCUMENT})
    for place, (index, sample) in zip(chosen.tolist(), samples, strict=True):
        now = edited.read(index) if sample.key in keys else None
        if now is not None and now.wrong:
            continue
        for image in (sample if now is None else now.sample).images:
            for doubt, why, phrase in _of_image(image, threshold, _trust(sample, image)):
                if doubt >= LEAST:
                    told = {"doubt": round(doubt, 4), "why": why, "text": phrase.text_index, "box": phrase.box}
                    found.append({"position": place, "image": image.number} | told)
    return sorted(found, key=lambda each: -each["doubt"])


def _plain(words: str) -> str:
    return " ".join(words.casefold().split())


class _Threshold:
    """What the score of a phrase had to be over."""

    def __init__(self, dataset: Dataset) -> None:
        config = made_by(dataset.manifest.config, "labels") if dataset.manifest is not None else None
        labels = parse_settings(LabelsConfig, config["labels"]) if config is not None else LabelsConfig()
        self._usual = labels.box_threshold
        self._own = {_plain(words): own for words, own in (labels.phrase_thresholds or {}).items()}

    def nearness(self, score: float, words: str, origin: str) -> float:
        """1 at the threshold, 0 where the score is 1, or isn't a model's."""
        if origin != "model" or score < 0:
            return 0
        threshold = self._own.get(_plain(words), self._usual)
        return min(max(1 - (score - threshold) / (1 - threshold), 0), 1)


def _first(dataset: Dataset, positions: Integers, threshold: _Threshold) -> Integers:
    """Places among the positions, ascending, of the samples that may hold the greatest doubts, by their sidecars."""
    documents = dataset.has_documents
    columns = ["phrases", "phrase_texts", "scores", "origins", "label_shares"]
    columns += ["phrase_images", "share_images", "share_texts"] if documents else []
    columns += ["wrong"] if dataset.has_edits else []
    columns += ["trust"] if dataset.has_trust else []
    doubts = []
    for _, row in rows_at(dataset, positions, columns):
        near = map(threshold.nearness, row["scores"], row["phrases"], row["origins"])
        # A text's labels on an image, shared among its instances, tell how large these are.
        counts = Counter(
            zip(row["phrase_images"], row["phrase_texts"], strict=True) if documents else row["phrase_texts"]
        )
        texts = (
            zip(row["share_images"], row["share_texts"], strict=True) if documents else range(len(row["label_shares"]))
        )
        small = (
            _smallness(share / counts[text])
            for share, text in zip(row["label_shares"], texts, strict=True)
            if counts[text]
        )
        doubts.append(-1.0 if row.get("wrong") else max([0.0, 1 - row.get("trust", 1.0), *near, *small]))
    order = np.argsort(-np.array(doubts), kind="stable")[:_LOOKED_AT]
    return np.sort(order[np.array(doubts)[order] >= 0])


def _trust(sample: StoredSample, image: StoredImage) -> dict[int, float]:
    """The trust of each text's labels on an image, where it is told."""
    first = sum(len(each.texts) for each in sample.images[: image.number])
    return dict(zip(image.texts, sample.key_json.trust[first:], strict=False))


def _of_image(
    image: StoredImage, threshold: _Threshold, trust: Mapping[int, float]
) -> Iterator[tuple[float, str, PhraseDocument]]:
    """Each instance with its doubt and the reason."""
    area = image.info.width * image.info.height
    for _, of_text in groupby(image.phrases, key=lambda phrase: phrase.text_index):
        phrases = list(of_text)
        for phrase in phrases:
            if phrase.origin == "corrected":
                continue
            near = threshold.nearness(phrase.score, phrase.text, phrase.origin)
            small = _smallness(_area(phrase.box) / area)
            overlap, other = max(_overlaps(phrase, phrases), default=(0, ""))
            own = trust.get(phrase.text_index, 1.0)
            yield max(
                (1 - own, f"the trust of its text's labels is {own:.2f}", phrase),
                (near, f"its score of {phrase.score:.2f} is near the threshold", phrase),
                (small, "it is small", phrase),
                (overlap, f"it overlaps \u201c{other}\u201d", phrase),
                key=lambda each: each[0],
            )


def _smallness(share: float) -> float:
    return max(1 - share / _SMALL, 0)


def _overlaps(phrase: PhraseDocument, phrases: Sequence[PhraseDocument]) -> Iterator[tuple[float, str]]:
    """IoU with better instances whose words are other ones: neither has the other's in it."""
    own = _plain(phrase.text)
    for other in phrases:
        words = _plain(other.text)
        if other.score > phrase.score and words not in own and own not in words:
            yield _iou(phrase.box, other.box), other.text


def _iou(one: Box, other: Box) -> float:
    shared = _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return shared / max(_area(one) + _area(other) - shared, 1e-9)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
