"""Boxes and masks that come with texts: from annotators, or a user's own."""

import json
from io import BytesIO

import numpy as np
import pytest
from builds import build_here, make_config
from PIL import Image, ImageDraw

from patchmint.api import Annotator
from patchmint.datasets.dataset import open_dataset
from patchmint.demo import FRESH_SEED
from patchmint.demo.dataset import SPLIT, write_dataset
from patchmint.demo.scenes import make_scene
from patchmint.demo.score import f1_and_iou
from patchmint.errors import ConfigError, InputError, TextError
from patchmint.geometry import RleMasks, coverage_to_uint8
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.images.decode import decode_image
from patchmint.images.reading import with_boxes
from patchmint.inspection.diff.compare import compare
from patchmint.labelers.given import BoxMasks, JoinedMasks
from patchmint.samples import ImageRef, SourceSample, SourceText
from patchmint.shards.reader import iter_samples
from patchmint.shards.verify import verify
from patchmint.storage import open_storage
from patchmint.types import UNKNOWN_SCORE, Text

pytestmark = pytest.mark.filterwarnings("ignore::patchmint.DemoWarning")

ONLY_LABELS = {"models": "demo", "tokens": None}
SCENES = [make_scene(FRESH_SEED, number, texts=1) for number in (1, 3, 5, 7, 8, 9)]
"""In which things are that their text names."""


def objects_of(scene):
    """What the scene's text names, and its truth: boxes, a mask a thing."""
    (text,) = scene.texts
    things = sorted({thing for phrase in text.phrases for thing in phrase.objects})
    return text.content, scene.boxes()[things], np.array([scene.ids == thing for thing in things])


@pytest.fixture(scope="module")
def detecting():
    return Annotator.from_config(ONLY_LABELS, device="cpu")


@pytest.fixture(scope="module")
def given():
    """No detector."""
    return Annotator.from_config({**ONLY_LABELS, "labels": {"boxes": "annotators"}}, device="cpu")


def test_annotators_boxes_give_better_labels_than_the_detectors(detecting, given):
    scores = []
    for scene in SCENES:
        content, boxes, masks = objects_of(scene)
        found, own = detecting.annotate(scene.jpeg, content), given.annotate(scene.jpeg, content, boxes=boxes)
        truth = RleMasks(encode_masks(masks)).coverage(range(len(masks)), own.placement) > 0
        scores.append([f1_and_iou(each.selector[0] > 0, truth)[0] for each in (found, own)])
        assert {phrase.score for phrase in own.phrases} == {UNKNOWN_SCORE}
        np.testing.assert_allclose([phrase.box for phrase in own.phrases], boxes, atol=1e-3)
    found, own = np.mean(scores, axis=0)
    assert own > max(found, 0.93)


def test_own_masks_are_the_labels_exactly(given):
    content, _, masks = objects_of(SCENES[0])
    for forms in (masks, encode_masks(masks)):
        made = given.annotate(SCENES[0].jpeg, content, masks=forms)
        expected = RleMasks(encode_masks(masks)).coverage(range(len(masks)), made.placement)
        np.testing.assert_array_equal(made.coverage[0], coverage_to_uint8(expected))
        for phrase, mask in zip(made.phrases, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert phrase.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_texts_with_boxes_masks_or_none_share_an_image(detecting, given):
    scene = SCENES[1]
    content, boxes, masks = objects_of(scene)
    texts = [content, "a circle", content, Text(content, ((0, 1),))]
    made = detecting.annotate(scene.jpeg, texts, boxes=[boxes, None, None, boxes], masks=[None, None, masks, None])
    assert [phrase.text_index for phrase in made.phrases] == sorted(phrase.text_index for phrase in made.phrases)
    alone = [
        given.annotate(scene.jpeg, content, boxes=boxes),
        detecting.annotate(scene.jpeg, "a circle"),
        given.annotate(scene.jpeg, content, masks=masks),
        given.annotate(scene.jpeg, texts[3], boxes=boxes),
    ]
    for number, other in enumerate(alone):
        np.testing.assert_array_equal(made.selector[number], other.selector[0])
    assert {phrase.span for phrase in made.phrases if phrase.text_index == 3} == {(0, 1)}
    assert not given.annotate(scene.jpeg, "a circle").phrases


def test_labels_of_the_boxes_areas():
    annotator = Annotator.from_config(
        {**ONLY_LABELS, "models": {"masker": None}, "labels": {"boxes": "annotators"}}, device="cpu"
    )
    assert annotator.config.models_used == {}
    image = np.zeros((90, 120, 3), np.uint8)
    made = annotator.annotate(image, "things", boxes=[[10, 20, 40, 50], [30.6, 40, 60.4, 500], [5.1, 5.1, 5.2, 5.2]])
    expected = np.zeros((3, 90, 120), bool)
    expected[0, 20:50, 10:40] = expected[1, 40:, 31:60] = expected[2, 5, 5] = True
    np.testing.assert_array_equal([decode_mask(rle) for rle in made.masks], expected)
    share = RleMasks(encode_masks(expected)).coverage([0, 1, 2], made.placement)
    np.testing.assert_array_equal(made.coverage[0], coverage_to_uint8(share))


def test_joined_masks_are_one(given):
    boxes = np.array([[1, 1, 9, 9], [5, 5, 20, 20]], np.float32)
    both, one, other = (BoxMasks(each, (30, 40)) for each in (boxes, boxes[:1], boxes[1:]))
    joined, placement = JoinedMasks(one, other), given.annotate(np.zeros((30, 40, 3), np.uint8), "a").placement
    assert joined.rles() == both.rles()
    for members in ([], [0], [1], [0, 1]):
        np.testing.assert_array_equal(joined.coverage(members, placement), both.coverage(members, placement))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotators_boxes_are_turned_with_the_image(orientation):
    """They are drawn into the file's pixels."""
    image, box = Image.new("RGB", (40, 24)), (4, 2, 14, 8)
    ImageDraw.Draw(image).rectangle((4, 2, 13, 7), fill="white")
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    decoded = decode_image(file.getvalue())
    said = SourceText("a", boxes=(box, (3, 3, 3, 9)))
    (text,) = with_boxes([Text("a")], SourceSample("a", (ImageRef("a"),), (said,)), decoded)
    rows, columns = np.nonzero(decoded.pixels[..., 0])
    assert text.boxes == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),)


def test_what_can_not_be_used_is_refused(given):
    image = np.zeros((30, 40, 3), np.uint8)
    for wrong, error in (
        ({"boxes": [[9, 9, 3, 3]]}, TextError),
        ({"boxes": [[0, 0, np.nan, 3]]}, TextError),
        ({"boxes": [1, 2, 3, 4]}, InputError),
        ({"boxes": "box"}, InputError),
        ({"masks": np.ones((1, 3, 4), bool)}, InputError),
        ({"masks": np.ones((30, 40), bool)}, InputError),
    ):
        with pytest.raises(error):
            given.annotate(image, "a", **wrong)
    with pytest.raises(InputError, match="2 texts and boxes of 1"):
        given.annotate(image, ["a", "b"], boxes=[[[0, 0, 3, 3]]])
    with pytest.raises(ConfigError, match="leave one of the two out"):
        Annotator.from_config({"models": {"segmenter": "toy"}, "labels": {"boxes": "annotators"}})


def test_a_coco_file_built_with_annotators_boxes_and_with_a_detector(tmp_path):
    write_dataset(tmp_path / "scenes", seed=FRESH_SEED, count=5)
    (instances,) = (tmp_path / "scenes/annotations").glob("instances_*.json")
    file = json.loads(instances.read_text())
    for record in file["annotations"]:
        if record["image_id"] == 2:
            record["bbox"] = None
    instances.write_text(json.dumps(file))
    source = {"kind": "coco", "uri": str(tmp_path / "scenes"), "texts": "categories", "split": SPLIT}
    found = {}
    for boxes in ("detector", "annotators", "annotators-else-detector"):
        out = tmp_path / boxes
        config = make_config(tmp_path / "c.yaml", "", out, source=source, models="demo", tokens=None)
        build_here(config, out, {"labels.boxes": boxes, "runner.batch_size": 1})
        assert not list(verify(open_storage(str(out))))
        found[boxes] = {sample.key: sample for sample in iter_samples(open_storage(str(out)), "shards/000000.tar")}
    detected, annotated, mixed = found.values()
    assert detected.keys() == annotated.keys() == mixed.keys()
    for number, key in enumerate(detected):
        phrases = annotated[key].document.phrases
        boxes = [box for said in annotated[key].document.annotators for box in said.boxes]
        assert ([phrase.box for phrase in phrases], {phrase.score for phrase in phrases}) == (
            (boxes, {UNKNOWN_SCORE}) if number != 2 else ([], set())
        )
        same = detected if number == 2 else annotated
        assert mixed[key].document.phrases == same[key].document.phrases
        np.testing.assert_array_equal(mixed[key].selector, same[key].selector)
    difference = compare(*(open_dataset(str(tmp_path / name)) for name in ("annotators", "annotators-else-detector")))
    assert "config.labels.boxes" in [change.field for change in difference.settings]
    assert (difference.texts.count, difference.phrases.count, difference.labels.changed) == (0, 1, 1)
