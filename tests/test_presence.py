"""A second look (`labels.presence`): what it asks, what it drops, and that it is the same in any company."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from shard_data import make_dataset, make_sample

from patchmint.config import AnnotatorConfig, LabelsConfig, PresenceConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.demo import TUNING_SEED
from patchmint.demo.scenes import make_scene
from patchmint.demo.texts import DEMO_PRESENCE
from patchmint.errors import ConfigError, InputError
from patchmint.interfaces import Detections, PhraseBoxes
from patchmint.judging.calibrate import Calibration
from patchmint.judging.presence import learn_presence
from patchmint.judging.truth import ListedTruth, TrueImage, TruePhrase, TrueText, TrueThing, TruthEntry
from patchmint.labelers.build import check_segmenter
from patchmint.labelers.explain import explain
from patchmint.labelers.grounded_sam import GroundedSam, build_grounded_sam
from patchmint.labelers.phrases import ByPhrases
from patchmint.labelers.presence import Presence
from patchmint.labelers.tiled import TiledSegmenter
from patchmint.pipeline.plan import record_models
from patchmint.samples import SourceText
from patchmint.shards.schema import ImageDocument, PhraseDocument
from patchmint.types import Text
from patchmint.weights.store import bundled_folder
from tools.demo_training.evaluate import models_in

RED, BLUE = (200, 20, 20), (20, 20, 200)
SETTINGS = PresenceConfig(alternatives=(("red", "blue"),))


@dataclass
class Colours:
    """A detector that finds a square of a colour where a phrase names it, and, less surely, where it names another."""

    def find(self, images, phrases, threshold):
        return [self._boxes(image, own, threshold) for image, own in zip(images, phrases, strict=True)]

    @staticmethod
    def _boxes(image, phrases, threshold):
        rows = []
        for number, phrase in enumerate(phrases):
            for word, colour in (("red", RED), ("blue", BLUE)):
                y, x = np.nonzero((image == colour).all(axis=2))
                score = 0.9 if word in phrase else 0.5
                if len(y) and score > threshold:
                    rows.append(((x.min(), y.min(), x.max() + 1, y.max() + 1), score, number))
        boxes, scores, numbers = zip(*rows, strict=True) if rows else ((), (), ())
        return PhraseBoxes(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(numbers, np.int64)
        )


@pytest.fixture
def picture():
    image = np.full((40, 60, 3), 128, np.uint8)
    image[5:15, 5:15] = RED
    return image


def segmenter(presence):
    return GroundedSam(ByPhrases(Colours()), None, presence=Presence(presence) if presence else None)


def found(segmenter, image, *phrases):
    return [
        each.text
        for each in segmenter.segment([image], [[Text.from_phrases(phrases)]])[0].phrases([" . ".join(phrases)])
    ]


@pytest.mark.parametrize("margins", [(None,), (0.5, None)])
def test_what_only_resembles_its_phrase_is_dropped_and_the_reason_is_told(picture, margins):
    settings = SETTINGS.model_copy(update={"margins": margins})
    assert found(segmenter(None), picture, "red square", "blue square") == ["red square", "blue square"]
    assert found(segmenter(settings), picture, "red square", "blue square") == ["red square"]
    (red, blue) = explain(segmenter(settings), picture, [Text.from_phrases(["red square", "Blue  square"])])
    assert (red.reason, red.boxes) == ("found", 1)
    assert (blue.reason, blue.boxes, blue.lost) == ("presence", 0, {"presence": 1})
    strict = settings.model_copy(update={"thresholds": {"Red  Square": 0.95}})
    assert found(segmenter(strict), picture, "red square") == []


def test_tiles_are_looked_at_once_more_as_whole_images_are():
    image = np.full((120, 160, 3), 128, np.uint8)
    image[70:82, 100:112] = RED
    texts = [[Text.from_phrases(["red square"]), Text.from_phrases(["blue square"])]]
    for settings, kept in ((None, [0, 1]), (SETTINGS, [0])):
        tiled = TiledSegmenter(segmenter(settings), 40)
        answer = tiled.segment([image], texts)[0]
        assert answer.text_index.tolist() == kept
        np.testing.assert_array_equal(answer.boxes[0], [100, 70, 112, 82])
        # the same phrase in several tiles counts once
        assert answer.unconfirmed == (frozenset() if settings is None else {(1, 0, 11)})
    (red, blue) = explain(tiled, image, texts[0])
    assert (red.reason, blue.reason, blue.boxes) == ("found", "presence", 0)


def test_a_phrase_is_there_if_one_of_its_boxes_is(picture):
    boxes = np.array([[5, 5, 15, 15], [30, 20, 40, 30], [30, 20, 40, 30]], np.float32)
    spans = np.array([[0, 3], [0, 3], [6, 9]])
    found = Detections(boxes, np.ones(3, np.float32), spans, np.zeros(3, np.int64))
    texts = [[Text("red . red")]]
    (kept,) = Presence(SETTINGS).kept(ByPhrases(Colours()), [picture], texts, [found])
    np.testing.assert_array_equal(kept.spans, spans[:2])


def test_a_phrase_is_asked_against_each_other_word_of_a_group():
    groups = (("red", "blue"), ("square", "red thing", "thing"))
    presence = Presence(PresenceConfig(alternatives=groups))
    assert presence.against("a red square") == ["a blue square", "a red red thing", "a red thing"]
    assert presence.against("red thing") == ["blue thing", "square", "thing"]
    assert presence.against("redder squares") == []


def test_thresholds_are_learnt_from_what_is_absent(picture, tmp_path):
    content, file = "red square . blue square", io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    found = tuple(
        PhraseDocument(
            text=content[slice(*span)], text_index=0, start=span[0], end=span[1], box=(5, 5, 15, 15), score=0.5
        )
        for span in ((0, 10), (13, 24))
    )
    samples = []
    for number in range(4):
        made = make_sample(2 * number, kind="png")
        source = replace(made.planned.sample, texts=(SourceText(content),))
        planned = replace(made.planned, ordinal=number, sample=source)
        info = ImageDocument(width=60, height=40, format="png", mode="RGB", orientation=1)
        samples.append(replace(made, planned=planned, data=file.getvalue(), image=info, phrases=found))
    make_dataset(tmp_path / "ds", [samples])
    thing = TrueThing((5, 5, 15, 15))
    text = TrueText(content, (TruePhrase((0, 10), (thing,)), TruePhrase((13, 24), ())))
    truth = ListedTruth("truth", [TruthEntry(TrueImage((text,)), key=sample.planned.key) for sample in samples])
    opened, detector = open_dataset(tmp_path / "ds"), ByPhrases(Colours())
    alone = learn_presence(opened, truth, PresenceConfig(), detector=detector)
    assert alone.settings.threshold == pytest.approx(0.5)
    assert (alone.absent, alone.missed, alone.phrases) == ((1, 0), (0, 0), 8)
    against = learn_presence(opened, truth, SETTINGS, detector=detector)
    assert (against.settings.threshold, against.settings.alternatives) == (pytest.approx(-0.4), SETTINGS.alternatives)
    assert learn_presence(opened, truth, PresenceConfig(), detector=detector, most=1).absent == (1, 1)
    with pytest.raises(InputError, match="which detector made its labels"):
        learn_presence(opened, truth, SETTINGS)

    path = tmp_path / "calibration.json"
    path.write_text(Calibration(scores=(0, 1), shares=(0, 1), presence=alone.settings).model_dump_json())
    labels = {"presence": {"calibration": str(path)}}
    assert LabelsConfig(**labels).presence.learnt() == alone.settings
    config = AnnotatorConfig.parse({"labels": labels, "tokens": None, "models": "demo"})
    before = record_models(config)["presence"].sha256
    path.write_text("{}")
    assert record_models(config)["presence"].sha256 != before
    with pytest.raises(ConfigError, match="knows nothing of a second look"):
        check_segmenter(config.models, config.labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1}, "labels.presence.threshold"),
        ({"alternatives": [["red"]]}, "labels.presence.alternatives.0"),
        ({"calibration": "learnt.json", "margins": [1]}, "stands for all other settings"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AnnotatorConfig.parse({"labels": {"presence": settings}})


def test_any_company_gives_the_same():
    scenes = [make_scene(TUNING_SEED, number, size=(96, 128)) for number in range(2)]
    models = models_in(bundled_folder()).model_copy(update={"masker": None})
    labels = LabelsConfig(presence=DEMO_PRESENCE.model_copy(update={"margins": (1.0,)}))
    segmenter = build_grounded_sam(models, labels, "cpu", "float32")
    images = [scene.image for scene in scenes]
    texts = [[Text(scene.texts[0].content)] for scene in scenes]
    together = segmenter.segment(images, texts)
    assert any(map(len, together))
    for image, own, found in zip(images, texts, together, strict=True):
        (alone,) = segmenter.segment([image], [own])
        np.testing.assert_array_equal(alone.spans, found.spans)
        np.testing.assert_allclose(alone.boxes, found.boxes, rtol=1e-4, atol=1e-2)
    segmenter.rehearse(images[:1], texts[:1], 2)
