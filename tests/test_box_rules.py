"""Rules for boxes and masks, each against a plain recomputation from what is found without any."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from seeded_weights import shake
from skimage import data

from patchmint.annotate.preflight import check_explained
from patchmint.config import AnnotatorConfig
from patchmint.errors import ConfigError, InputError
from patchmint.geometry.rle import area, decode_mask
from patchmint.labelers.box_rules import USUAL_RULES, BoxRules
from patchmint.labelers.explain import explain
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.grounding_dino.arch import TINY
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.model import untrained
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.masker import SamMasker
from patchmint.labelers.tiled import TiledSegmenter
from patchmint.types import UNKNOWN_SCORE, Instance, Text

IMAGES = [data.coffee(), data.astronaut()[:300]]
TEXTS = [[Text.from_phrases(["a cup", "spoon", "a  Cup"]), Text("some words")], [Text.from_phrases(["a face"])]]
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def model():
    model = untrained(TINY)
    shake(model)
    return model


def detect(model, rules, texts=TEXTS, threshold=THRESHOLD):
    """Of each image what is found: text, phrase, score, box."""
    detector = GroundingDino(model, TINY, Vocabulary.of_characters(TINY.text_vocabulary), text_threshold=0.2)
    resized = [detector.prepare(image) for image in IMAGES]
    answers = replace(rules, threshold=threshold).detect(detector, IMAGES, texts, resized)
    return [rows(found, asked) for found, asked in zip(answers, texts, strict=True)]


def rows(found, texts):
    return [
        (int(text), texts[text].content[start:end], tuple(span), float(score), tuple(box))
        for text, span, score, box in zip(
            found.text_index.tolist(), found.spans.tolist(), found.scores, found.boxes.tolist(), strict=True
        )
        for start, end in [span]
    ]


def iou(one, other):
    def size(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    shared = size((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return shared / (size(one) + size(other) - shared)


def equal(found, expected):
    assert [[row[:3] for row in image] for image in found] == [[row[:3] for row in image] for image in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose((one[3], *one[4]), (other[3], *other[4]), rtol=1e-4, atol=1e-2)


def fewer(expected, raw):
    """Something is left out, and something stays."""
    assert 0 < sum(map(len, expected)) < sum(map(len, raw))


def test_thresholds_of_single_phrases(model):
    raw = detect(model, USUAL_RULES, threshold=0.01)
    scores = sorted(row[3] for image in raw for row in image if row[1] == "a face")
    limits = {"A cup": 0.2, "a face": scores[len(scores) // 2]}
    expected = [[row for row in image if met(row, limits)] for image in raw]
    equal(detect(model, BoxRules(thresholds=limits)), expected)
    fewer(expected, raw)


def met(row, limits):
    name = {"a cup": "A cup", "a  Cup": "A cup"}.get(row[1], row[1])
    return row[3] > limits.get(name, THRESHOLD)


def test_boxes_of_negative_phrases_take_others_away(model):
    raw = detect(model, USUAL_RULES)
    negative = ("a plate", "hair")
    theirs = detect(model, USUAL_RULES, [[Text.from_phrases(negative)]] * 2)
    expected = [
        [row for row in image if not any(other[3] > row[3] and iou(row[4], other[4]) > 0.5 for other in others)]
        for image, others in zip(raw, theirs, strict=True)
    ]
    equal(detect(model, BoxRules(negative=negative)), expected)
    fewer(expected, raw)


def test_of_boxes_of_a_phrase_that_overlap_the_best_stays(model):
    raw = detect(model, USUAL_RULES)
    expected = []
    for image in raw:
        kept = []
        for row in image:
            if not any(other[:3] == row[:3] and iou(other[4], row[4]) > 0.4 for other in kept):
                kept.append(row)
        expected.append(kept)
    equal(detect(model, BoxRules(nms=0.4)), expected)
    fewer(expected, raw)


def test_boxes_are_of_some_size(model):
    raw = detect(model, USUAL_RULES)

    def share(box, image):
        return (box[2] - box[0]) * (box[3] - box[1]) / (image.shape[0] * image.shape[1])

    shares = sorted(share(row[4], image) for found, image in zip(raw, IMAGES, strict=True) for row in found)
    limits = shares[len(shares) // 4] + 1e-6, shares[-len(shares) // 4] - 1e-6
    expected = [
        [row for row in found if limits[0] <= share(row[4], image) <= limits[1]]
        for found, image in zip(raw, IMAGES, strict=True)
    ]
    equal(detect(model, BoxRules(area=limits)), expected)
    fewer(expected, raw)


def test_rules_follow_each_other(model):
    """What is under its threshold, or beaten, suppresses nothing; what is too large does."""
    rules = BoxRules(thresholds={"a face": 0.9}, negative=("hair",), nms=0.3, area=(0.0, 0.5))
    for found, alone in zip(detect(model, rules), detect(model, USUAL_RULES), strict=True):
        assert {row[:3] for row in found} <= {row[:3] for row in alone}
        assert all(row[1] != "a face" or row[3] > 0.9 for row in found)
        for one, other in product(found, found):
            assert one is other or one[:3] != other[:3] or iou(one[4], other[4]) <= 0.3


@pytest.fixture(scope="module")
def segmenters(model):
    """With rules for masks, and without."""
    detector = GroundingDino(model, TINY, Vocabulary.of_characters(TINY.text_vocabulary))
    masker = SamMasker(sam_model.untrained(sam_arch.TINY, seed=0))
    return lambda **rules: GroundedSam(detector, masker, box_rules=BoxRules(threshold=THRESHOLD), **rules)


def test_masks_end_at_their_boxes(segmenters):
    raw, clipped = segmenters().segment(IMAGES, TEXTS), segmenters(clip_to_box=True).segment(IMAGES, TEXTS)
    cut = 0
    for ours, theirs in zip(clipped, raw, strict=True):
        for rle, whole, (left, top, right, bottom) in zip(
            ours.masks.rles(), theirs.masks.rles(), theirs.boxes, strict=True
        ):
            mask, expected = decode_mask(rle), decode_mask(whole).copy()
            y, x = np.indices(expected.shape)
            expected[(x + 1 <= left) | (x >= right) | (y + 1 <= top) | (y >= bottom)] = 0
            np.testing.assert_array_equal(mask, expected)
            cut += area(whole) - area(rle)
    assert cut > 0


def test_masks_are_of_some_size(segmenters):
    raw = segmenters().segment(IMAGES, TEXTS)
    shares = [[area(rle) / np.prod(found.image_size) for rle in found.masks.rles()] for found in raw]
    ranked = sorted(share for own in shares for share in own)
    limits = ranked[len(ranked) // 3], ranked[-2]
    for ours, theirs, own in zip(segmenters(mask_area=limits).segment(IMAGES, TEXTS), raw, shares, strict=True):
        kept = [place for place, share in enumerate(own) if limits[0] <= share <= limits[1]]
        np.testing.assert_array_equal(ours.boxes, theirs.boxes[kept])
        np.testing.assert_array_equal(ours.text_index, theirs.text_index[kept])
        rles = theirs.masks.rles()
        assert ours.masks.rles() == tuple(rles[place] for place in kept)
    assert limits[0] > ranked[0]


def test_settings_reach_the_models_and_say_nothing_while_they_are_off():
    labels = {"phrase_thresholds": {"cat": 0.5}, "negative_phrases": ["dog"], "nms": 0.7, "box_area": [0.1, 0.9]}
    config = AnnotatorConfig.parse({"labels": labels | {"mask_area": [0, 0.5], "clip_to_box": True}}).labels
    assert (config.phrase_thresholds, config.negative_phrases, config.nms) == ({"cat": 0.5}, ("dog",), 0.7)
    assert (config.box_area, config.mask_area, config.clip_to_box) == ((0.1, 0.9), (0, 0.5), True)
    for wrong in ({"box_area": [0.9, 0.1]}, {"nms": 1}, {"negative_phrases": [""]}, {"phrase_thresholds": {"a": 2}}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AnnotatorConfig.parse({"labels": wrong})


PHRASES = [
    Text.from_phrases(["a cup", "spoon", "a face", "\u4e2d"]),
    Text("given", instances=(Instance((0, 0, 9, 9)),)),
]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (USUAL_RULES, "found"),
        (BoxRules(thresholds={"a cup": 1, "spoon": 1, "a face": 1}), "threshold"),
        (BoxRules(negative=("a cup", "spoon", "a face", "hair")), "negative_phrases"),
        (BoxRules(nms=0.0), "nms"),
        (BoxRules(area=(0.999, 1.0)), "box_area"),
        ((0.9999, 1.0), "mask_area"),
    ],
)
def test_explanations_say_what_became_of_each_box(model, rules, reason):
    """As the rules do one after the other, recomputed from all boxes that there are."""
    box_rules, mask_area = (USUAL_RULES, rules) if isinstance(rules, tuple) else (rules, None)
    detector = GroundingDino(model, TINY, Vocabulary.of_characters(TINY.text_vocabulary))
    masker = SamMasker(sam_model.untrained(sam_arch.TINY, seed=0))
    box_rules = replace(box_rules, threshold=THRESHOLD)
    segmenter = GroundedSam(detector, masker, box_rules=box_rules, mask_area=mask_area)
    told = explain(segmenter, IMAGES[0], PHRASES)
    (found,) = segmenter.segment(IMAGES[:1], [PHRASES])
    (raw,) = detect(model, USUAL_RULES, [PHRASES[:1]] * 2, threshold=0.0)[:1]
    assert [each.text for each in told] == ["a cup", "spoon", "a face", "\u4e2d", "given"]
    assert (told[-1].reason, told[-1].best) == ("drawn", UNKNOWN_SCORE)
    assert told[-2].reason in ("found", "unreadable", reason)
    reasons = Counter()
    for each in told[:3]:
        own = [row for row in raw if row[1] == each.text]
        np.testing.assert_allclose(each.best, max(row[3] for row in own), rtol=1e-5)
        assert each.boxes == int(((found.text_index == 0) & (found.spans == each.span).all(axis=1)).sum())
        over = sum(row[3] > each.threshold for row in own)
        assert over == each.boxes + sum(each.lost.values())
        assert (each.reason == "found") == (each.boxes > 0)
        reasons.update([each.reason, *each.lost])
    assert reasons[reason]
    assert set(reasons) <= {"found", "threshold", reason}


def test_explanations_of_tiles_say_where_a_box_was_lost(model):
    detector = GroundingDino(model, TINY, Vocabulary.of_characters(TINY.text_vocabulary))
    segmenter = TiledSegmenter(GroundedSam(detector, None, box_rules=BoxRules(threshold=THRESHOLD)), 200)
    told = explain(segmenter, IMAGES[0], PHRASES[:1])
    (found,) = segmenter.segment(IMAGES[:1], [PHRASES[:1]])
    assert [each.boxes for each in told] == [int((found.spans == each.span).all(axis=1).sum()) for each in told]
    assert {reason for each in told for reason in each.lost} <= {"tile-edge", "smaller-tile", "other-tile"}
    assert sum(each.lost.get("tile-edge", 0) for each in told) > 0
    with pytest.raises(InputError, match="segmenter plug-in"):
        check_explained(AnnotatorConfig.parse({"models": {"segmenter": "nobodys"}}))
    (alone,) = explain(GroundedSam(None, None), IMAGES[0], [Text("x")])
    assert (alone.reason, alone.boxes) == ("not-asked", 0)
