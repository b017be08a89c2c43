"""Small things in large images, found in tiles."""

import numpy as np
import pytest

from patchmint.api import Annotator
from patchmint.config import AnnotatorConfig
from patchmint.demo import FRESH_SEED
from patchmint.demo.scenes import make_scene
from patchmint.errors import ConfigError
from patchmint.geometry import RleMasks
from patchmint.geometry.rle import decode_mask, encode_masks
from patchmint.interfaces import Instances
from patchmint.judging.metrics import f1_and_iou
from patchmint.labelers.box_rules import overlaps
from patchmint.labelers.given import BoxMasks
from patchmint.labelers.tiled import Tile, _merged, tiles_of
from patchmint.types import Instance, Text

pytestmark = pytest.mark.filterwarnings("ignore::patchmint.DemoWarning")

SIDE = 320
SIZE = (700, 900)
SCENES = [make_scene(FRESH_SEED, number, texts=1) for number in (1, 5, 10)]


@pytest.fixture(scope="module")
def annotators():
    """Without tiles, and with."""
    settings = {"models": "demo", "tokens": None}
    return [Annotator.from_config({**settings, "labels": {"tiles": side}}, device="cpu") for side in (None, SIDE)]


def pasted(scene, place):
    """The scene in a large plain image; the boxes and masks of what its text names."""
    top, left = place
    canvas, ids = np.full((*SIZE, 3), scene.image[0, 0], np.uint8), np.full(SIZE, -1)
    height, width = scene.size
    canvas[top : top + height, left : left + width] = scene.image
    ids[top : top + height, left : left + width] = scene.ids
    things = sorted({thing for phrase in scene.texts[0].phrases for thing in phrase.objects})
    return canvas, scene.boxes()[things] + np.float32([left, top, left, top]), np.isin(ids, things)


def test_small_things_are_found_once_and_where_they_are(annotators):
    scores = []
    for scene, place in zip(SCENES, [(150, 300), (60, 110), (430, 470)], strict=True):
        canvas, boxes, truth = pasted(scene, place)
        texts = [Text("what isn't looked for", instances=(Instance((0, 0, 50, 50)),)), scene.texts[0].content]
        made = [annotator.annotate(canvas, texts) for annotator in annotators]
        expected = RleMasks(encode_masks(truth[None])).coverage([0], made[0].placement) > 0
        scores.append([f1_and_iou(each.selector[1] > 0, expected)[0] for each in made])
        assert [phrase.text_index for phrase in made[1].phrases[:2]] == [0, 1]
        found = np.float32([phrase.box for phrase in made[1].phrases[1:]])
        # of each thing one box, though it lies in several tiles
        assert ((overlaps(found, boxes) > 0.5).sum(axis=0) <= 1).all()
        assert (overlaps(found, boxes) > 0.5).any()
        for (left, top, right, bottom), mask in zip(
            found.astype(int), map(decode_mask, made[1].masks[1:]), strict=True
        ):
            assert mask[top:bottom, left:right].sum() > 0.5 * mask.sum() > 0
    plain, tiled = np.mean(scores, axis=0)
    assert tiled >= 0.85 > plain


def instances(*found, size=(300, 300)):
    """Of text 0: a box, a score and a phrase each."""
    boxes = np.float32([box for box, _, _ in found]).reshape(-1, 4)
    return Instances(
        size,
        BoxMasks(boxes, size),
        np.zeros(len(found), np.int64),
        np.float32([score for _, score, _ in found]),
        boxes,
        np.array([span for _, _, span in found], np.int64).reshape(-1, 2),
        ("model",) * len(found),
    )


def test_each_size_is_the_business_of_the_smallest_tile_that_has_it_whole():
    """Of a thing in two tiles the best stays; other words are other things; what is too large for a tile stays."""
    one, two = (0, 3), (4, 7)
    tiles = tiles_of((300, 300), 100)
    small = {(tile.left, tile.top): tile for tile in tiles if tile.side == 1}
    near, beside = ([110, 110, 140, 140], 0.5, one), ([112, 110, 142, 140], 0.6, one)
    large, merged = ([20, 20, 260, 250], 0.4, one), ([105, 105, 145, 160], 0.9, one)
    other = ([110, 110, 140, 140], 0.4, two)
    parts = [
        (Tile.of(9, 0, 0, 300, 300, (300, 300)), instances(merged, large)),
        (small[50, 50], instances(near)),
        (small[100, 100], instances(beside, other)),
    ]
    made = _merged(parts, tiles, np.array([0]))
    assert sorted(zip(made.boxes.tolist(), made.spans.tolist(), strict=True)) == sorted(
        (box, list(span)) for box, _, span in (beside, large, other)
    )
    assert made.scores.tolist() == sorted(made.scores.tolist(), reverse=True)
    assert len(_merged(parts, tiles, np.array([], np.int64))) == 4  # whole-image boxes of a text with its own stay


def test_seams_double_nothing_and_merge_nothing_that_lies_side_by_side():
    """Doubles within one tile are the detector's own, as in an image without tiles: `nms` is for them."""
    tiles = tiles_of((300, 300), 100)
    small = {(tile.left, tile.top): tile for tile in tiles if tile.side == 1}
    best, own, poor = (([x, 110, x + 30, 140], score, (0, 3)) for x, score in ((110, 0.6), (113, 0.5), (108, 0.4)))
    beside = [126, 110, 156, 140], 0.3, (0, 3)  # by less than half of it, in another tile
    parts = [
        (Tile.of(9, 0, 0, 300, 300, (300, 300)), instances()),
        (small[50, 50], instances(poor)),
        (small[100, 100], instances(best, own)),
        (small[100, 50], instances(beside)),
    ]
    made = _merged(parts, tiles, np.array([0]))
    assert made.boxes.tolist() == [box for box, _, _ in (best, own, beside)]


def test_images_no_larger_than_a_tile_have_the_same_labels(annotators):
    (scene,) = [scene for scene in SCENES if max(scene.size) <= SIDE]
    plain, tiled = (annotator.annotate(scene.jpeg, scene.texts[0].content) for annotator in annotators)
    assert plain.phrases == tiled.phrases != []
    assert plain.masks == tiled.masks
    np.testing.assert_array_equal(plain.coverage, tiled.coverage)


@pytest.mark.parametrize("size", [(64, 65), (100, 300), (333, 200), (64, 1000)])
def test_what_is_no_larger_than_half_a_tile_lies_whole_in_one(size):
    tiles = tiles_of(size, 64)
    for factor in {tile.side for tile in tiles}:
        some = [tile for tile in tiles if tile.side == factor]
        side, half = 64 * factor, 32 * factor
        assert all(
            (tile.bottom - tile.top, tile.right - tile.left) == (min(side, size[0]), min(side, size[1]))
            for tile in some
        )
        for top in range(max(1, size[0] - half + 1)):
            assert any(tile.top <= top and min(top + half, size[0]) <= tile.bottom for tile in some)
        for left in range(max(1, size[1] - half + 1)):
            assert any(tile.left <= left and min(left + half, size[1]) <= tile.right for tile in some)
    assert max(tile.side for tile in tiles) * 64 < max(size) <= max(tile.side for tile in tiles) * 128


def test_shares_of_the_image_are_refused_with_tiles():
    with pytest.raises(ConfigError, match="leave them out, or tiles"):
        AnnotatorConfig.parse({"labels": {"tiles": 640, "box_area": [0, 0.5]}})
