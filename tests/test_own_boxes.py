"""Boxes and masks that come with texts: from annotators, or a user's own."""

import contextlib
import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from builds import build_here, make_config
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from shard_data import joined

from patchmint.api import Annotator
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.verify import verify_all
from patchmint.demo import FRESH_SEED
from patchmint.demo.dataset import SPLIT, write_dataset
from patchmint.demo.scenes import make_scene
from patchmint.errors import ConfigError, InputError, TextError
from patchmint.geometry import RleMasks, coverage_to_uint8
from patchmint.geometry.rle import decode_mask, encode_masks, from_coco
from patchmint.images.decode import decode_image
from patchmint.images.reading import with_instances
from patchmint.inspection.diff.compare import compare
from patchmint.inspection.gallery.remake import drawn_masks, offer_masks
from patchmint.judging.metrics import f1_and_iou
from patchmint.labelers.given import BoxMasks, JoinedMasks
from patchmint.samples import ImageRef, SourceSample, SourceText
from patchmint.shards.rejects import read_rejects
from patchmint.storage import open_storage
from patchmint.types import UNKNOWN_SCORE, Instance, Text

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
def test_annotators_boxes_and_masks_are_turned_with_the_image(orientation):
    """They are drawn into the file's pixels."""
    image, box = Image.new("RGB", (40, 24)), (4, 2, 14, 8)
    ImageDraw.Draw(image).rectangle((4, 2, 13, 7), fill="white")
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif)
    decoded = decode_image(file.getvalue())
    (mask,) = encode_masks(np.asarray(image)[None, ..., 0])
    said = SourceText("a", instances=(Instance(box, mask=mask), Instance((3, 3, 3, 9))))
    (text,) = with_instances([Text("a")], SourceSample("a", (ImageRef("a"),), (said,)), decoded, {"boxes", "masks"})
    white = decoded.pixels[..., 0]
    rows, columns = np.nonzero(white)
    (mask,) = encode_masks(white[None])
    assert text.instances == (Instance((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), mask=mask),)


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
    with pytest.raises(ConfigError, match="did you mean masks: annotators-else-masker"):
        Annotator.from_config({"labels": {"masks": "annotators", "boxes": "annotators-else-detector"}})
    with pytest.raises(ConfigError, match="leave one of the two out"):
        Annotator.from_config({"models": {"segmenter": "toy"}, "labels": {"masks": "annotators-else-masker"}})
    with pytest.raises(ConfigError, match="leave one of the two out"):
        Annotator.from_config({"models": {"segmenter": "toy"}, "labels": {"boxes": "annotators"}})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Five demo scenes as COCO, with masks in all its forms. Of image 2 neither a box nor a mask can be used."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, seed=FRESH_SEED, count=5)
    (instances,) = (folder / "annotations").glob("instances_*.json")
    file = json.loads(instances.read_text())
    for record in file["annotations"]:
        if record["image_id"] == 2:
            record |= {"bbox": None, "segmentation": [[1, 2]]}
        elif record["image_id"] == 3:
            x, y, width, height = record["bbox"]
            record["segmentation"] = [
                [x, y, x + width, y + 0.3, x + width / 2, y + height],
                [x, y, x + 4, y, x, y + 9.5],
            ]
        elif record["image_id"] == 4:
            mask = decode_mask(from_coco(record["segmentation"])).T.ravel()
            edges = np.flatnonzero(np.diff(mask, prepend=0, append=mask[-1] + 1))
            record["segmentation"]["counts"] = np.diff(edges, prepend=0).tolist()
    instances.write_text(json.dumps(file))
    return {"kind": "coco", "uri": str(folder), "texts": "categories", "split": SPLIT}


def built(source, out, **overrides):
    """The samples of a build without batches, by key; it is sound."""
    base = out.parents[1] if out.parent.name == "columns" else out
    config = make_config(base.with_name(f"{out.name}.yaml"), "", out, source=source, models="demo", tokens=None)
    dotted = {f"labels.{name}": value for name, value in overrides.items()}
    build_here(config, out, {"runner.batch_size": 1} | dotted)
    assert not list(verify_all(open_storage(str(base))))
    return {sample.key: sample for sample in joined(base, [out.name] if base != out else None)}


def test_a_coco_file_built_with_annotators_boxes_and_with_a_detector(scenes, tmp_path):
    detected, annotated, mixed = (
        built(scenes, tmp_path / boxes, boxes=boxes) for boxes in ("detector", "annotators", "annotators-else-detector")
    )
    assert detected.keys() == annotated.keys() == mixed.keys()
    for number, key in enumerate(detected):
        document = annotated[key].document
        drawn = [(each.box, document.texts[0][slice(*each.span)]) for each in document.annotators[0].instances]
        assert [(phrase.box, phrase.text) for phrase in document.phrases] == drawn
        assert {(phrase.score, phrase.origin) for phrase in document.phrases} <= {(UNKNOWN_SCORE, "mixed")}
        assert bool(drawn) == (number != 2)
        same = detected if number == 2 else annotated
        assert mixed[key].document.phrases == same[key].document.phrases
        np.testing.assert_array_equal(mixed[key].selector, same[key].selector)
    difference = compare(*(open_dataset(str(tmp_path / name)) for name in ("annotators", "annotators-else-detector")))
    assert "config.labels.boxes" in [change.field for change in difference.settings]
    assert (difference.texts.count, difference.phrases.count, difference.labels.changed) == (0, 1, 1)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_coco_files_masks_become_labels_exactly(scenes, tmp_path, given):
    """As pycocotools reads them, for each category and for all; neither detector nor masker is loaded."""
    made, plain = built(scenes, tmp_path / "masks", masks="annotators"), built(scenes, tmp_path / "plain")
    assert open_dataset(str(tmp_path / "masks")).manifest.models == {}
    with contextlib.redirect_stdout(None):
        coco = COCO(next(Path(scenes["uri"], "annotations").glob("instances_*.json")))
    for key, sample in made.items():
        document, records = sample.document, coco.imgToAnns[int(sample.document.id)]
        masks = [] if document.id == "2" else np.array([coco.annToMask(record) for record in records], bool)
        placement = given.annotate(sample.image, "a").placement
        share = RleMasks(encode_masks(masks)).coverage(range(len(masks)), placement) if len(masks) else 0
        np.testing.assert_array_equal(sample.coverage[0], coverage_to_uint8(np.broadcast_to(share, placement.shape)))
        names = [coco.cats[record["category_id"]]["name"] for record in records[: len(masks)]]
        assert [phrase.text for phrase in document.phrases] == names
        assert {phrase.origin for phrase in document.phrases} <= {"annotator"}
        assert (document.texts, sample.image) == (plain[key].document.texts, plain[key].image)
        assert all(each.mask is None for said in plain[key].document.annotators for each in said.instances)
        assert drawn_masks(sample.images[0]) == (dict(enumerate(encode_masks(masks))) if len(masks) else {})
    assert offer_masks(open_dataset(str(tmp_path / "masks")), True).available
    # a finished data set has kept them
    extended = built(
        {"kind": "patchmint", "uri": str(tmp_path / "masks")}, tmp_path / "masks/columns/again", masks="annotators"
    )
    assert all((extended[key].coverage == sample.coverage).all() for key, sample in made.items())


def test_masks_with_boxes_and_a_detector_for_the_rest(scenes, tmp_path):
    both = built(scenes, tmp_path / "both", masks="annotators-else-masker")
    for key, (number, sample) in zip(both, enumerate(both.values()), strict=True):
        assert {phrase.origin for phrase in sample.document.phrases} == {"model" if number == 2 else "annotator"}, key


def test_masks_of_another_size_are_rejected_in_words(scenes, tmp_path):
    folder, out = tmp_path / "resized", tmp_path / "out"
    shutil.copytree(scenes["uri"], folder)
    path = next((folder / SPLIT).glob("*1.jpg"))
    Image.open(path).resize((100, 80)).save(path)
    assert len(built(scenes | {"uri": str(folder)}, out, masks="annotators")) == 4
    (reject,) = read_rejects(open_storage(str(out)), "rejects/000000.parquet")
    assert reject.fault.reason == "mask-misfit"
    assert "and the image is 80 x 100" in reject.fault.message
