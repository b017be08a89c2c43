import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from patchmint.errors import InputError
from patchmint.geometry import Fit, PatchGrid
from patchmint.geometry.rle import (
    MAX_MASK_PIXELS,
    ChosenMasks,
    RleMasks,
    area,
    bounding_box,
    decode_mask,
    encode_masks,
    from_coco,
    to_coco,
    union,
)
from patchmint.types import Rle


def random_masks(seed, count, height, width):
    """Masks of unlike density, the first empty, the last full."""
    rng = np.random.default_rng(seed)
    shares = np.linspace(0, 1, count)[:, None, None]
    return rng.random((count, height, width)) < shares


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (7, 5), (64, 48), (301, 403)])
def test_masks_survive_and_agree_with_pycocotools(height, width):
    masks = random_masks(0, 6, height, width)
    rles = encode_masks(masks)
    for mask, rle in zip(masks, rles, strict=True):
        assert rle == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        decoded = decode_mask(rle)
        assert decoded.dtype == np.uint8
        assert decoded.shape == (height, width)
        np.testing.assert_array_equal(decoded, mask)
        assert area(rle) == mask.sum()
        x, y, box_width, box_height = coco_mask.toBbox(rle)
        np.testing.assert_array_equal(bounding_box(rle), [x, y, x + box_width, y + box_height])
    np.testing.assert_array_equal(decode_mask(union(rles[:-1])), masks[:-1].any(axis=0))


def test_bounding_box_is_that_of_the_pixels():
    mask = np.zeros((1, 9, 12), dtype=bool)
    assert bounding_box(encode_masks(mask)[0]).tolist() == [0, 0, 0, 0]
    mask[0, 2:5, 3:10] = True
    assert bounding_box(encode_masks(mask)[0]).tolist() == [3, 2, 10, 5]
    assert bounding_box(encode_masks(mask)[0]).dtype == np.float32
    mask[0, 8, 4] = mask[0, 0, 5] = True  # one run over a column's end
    assert bounding_box(encode_masks(mask)[0]).tolist() == [3, 0, 10, 9]


def test_encoding_takes_any_memory_order_and_any_non_zero_value():
    masks = random_masks(1, 4, 30, 20)
    expected = encode_masks(masks)
    turned = np.ascontiguousarray(masks.transpose(0, 2, 1)).transpose(0, 2, 1)
    assert encode_masks(turned) == expected
    assert encode_masks(masks[:, ::-1][:, ::-1]) == expected
    values = np.random.default_rng(0).integers(1, 256, masks.shape).astype(np.uint8)
    assert encode_masks(np.where(masks, values, 0).astype(np.uint8)) == expected
    assert encode_masks(np.zeros((0, 30, 20), dtype=bool)) == ()


@pytest.mark.parametrize(
    "masks", [np.zeros((4, 4), bool), np.zeros((1, 4, 4), np.float32), np.zeros((1, 0, 4), bool), np.zeros(3, np.uint8)]
)
def test_encoding_refuses_what_is_no_stack_of_masks(masks):
    with pytest.raises(InputError):
        encode_masks(masks)


def test_union():
    masks = np.zeros((2, 4, 6), dtype=bool)
    masks[0, :2], masks[1, 1:3] = True, True
    rles = encode_masks(masks)
    assert area(union(rles)) == 18
    assert union(rles[:1]) == rles[0]
    with pytest.raises(InputError, match="at least one"):
        union([])
    with pytest.raises(InputError, match="one size"):
        union([rles[0], encode_masks(np.zeros((1, 6, 4), dtype=bool))[0]])


def test_a_mask_is_read_as_it_was_written():
    mask = np.zeros((1, 10, 8), dtype=bool)
    mask[0, 2:6, 3:7] = True
    rle = encode_masks(mask)[0]
    written = json.loads(json.dumps(to_coco(rle)))
    assert isinstance(written["counts"], str)
    assert from_coco(written) == from_coco(dict(rle)) == rle


BAD = {
    "not a mask": "abc",
    "nothing": None,
    "no size": {"counts": b"04"},
    "no counts": {"size": [2, 2]},
    "size of one": {"size": [4], "counts": [4]},
    "fractional size": {"size": [2.0, 2.0], "counts": [4]},
    "true as a size": {"size": [True, 4], "counts": [4]},
    "empty": {"size": [0, 4], "counts": []},
    "negative size": {"size": [-2, -2], "counts": [4]},
    "bomb": {"size": [2**20, 2**20], "counts": [2**40]},
    "a little over the limit": {"size": [1, MAX_MASK_PIXELS + 1], "counts": [MAX_MASK_PIXELS + 1]},
    "runs that fall short": {"size": [4, 4], "counts": [15]},
    "counts a number": {"size": [4, 4], "counts": 16},
    "no characters": {"size": [4, 4], "counts": b""},
    "wrong sum": {"size": [4, 4], "counts": b"1"},
    "negative compressed run": {"size": [4, 4], "counts": b"LL"},
    "cut compressed run": {"size": [4, 4], "counts": b"P"},
    "endless compressed run": {"size": [4, 4], "counts": b"ooooooooooooo"},
    "long compressed run": {"size": [4, 4], "counts": b"PPPPPPPP0"},
    "outside the alphabet": {"size": [4, 4], "counts": b"\x00"},
    "above the alphabet": {"size": [4, 4], "counts": "é"},
    "lone surrogate": {"size": [4, 4], "counts": "\ud800"},
    "polygons": [[0, 0, 4, 0, 4, 4]],
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_masks_are_refused(name):
    with pytest.raises(InputError):
        from_coco(BAD[name])


@pytest.mark.parametrize(
    "counts",
    [b"", b"P", b"1", b"d0L", b"`0" + b"0" * 40, b"`PPPPP0"],
    ids=["nothing", "cut", "sum too small", "20 and -4", "16 and forty empty runs", "16 in seven characters"],
)
def test_every_reader_checks_what_it_is_given(counts):
    good = encode_masks(np.ones((1, 4, 4), dtype=bool))[0]
    bad = Rle(size=[4, 4], counts=counts)
    for read in (decode_mask, area, bounding_box, lambda rle: union([rle]), lambda rle: union([good, rle])):
        with pytest.raises(InputError):
            read(bad)


@pytest.mark.parametrize("runs", [[0, 0, 1, 29], [3, 0, 2, 4, 0, 21], [4, 0, 0, 6, 20], [10, 20, 0], [0, 0, 0, 30]])
def test_empty_runs_hide_nothing_from_a_union(runs):
    """Lawful, though nobody writes them."""
    mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(5, 6).T.astype(bool)
    odd, other = coco_mask.frPyObjects({"size": [6, 5], "counts": runs}, 6, 5), np.zeros((6, 5), bool)
    other[2:4, 1:3] = True
    rle = Rle(size=[6, 5], counts=odd["counts"])
    assert (decode_mask(rle) == mask).all()
    assert union([rle]) == encode_masks(mask[None])[0]
    assert union([rle, encode_masks(other[None])[0]]) == encode_masks((mask | other)[None])[0]


def check_reads_well_or_is_refused(segmentation):
    """Either a named error, or a mask whose every view agrees; C code reading out of bounds would end the process."""
    try:
        rle = from_coco(segmentation)
    except InputError:
        return
    mask = decode_mask(rle)
    assert mask.shape == tuple(rle["size"])
    assert area(rle) == mask.sum()
    assert union([rle, rle]) == encode_masks(mask[None])[0]
    assert from_coco(to_coco(rle)) == rle


ALPHABET = bytes(range(48, 112)).decode()


@given(st.one_of(st.text(ALPHABET), st.binary(), st.text()))
@example("0" * 29 + "N")
def test_fuzzed_counts(counts):
    check_reads_well_or_is_refused({"size": [6, 5], "counts": counts})


@given(st.data())
def test_fuzzed_changes_to_good_counts(data):
    """Near misses: random counts seldom get past the first check."""
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=30, max_size=30))).reshape(1, 6, 5)
    counts = bytearray(encode_masks(mask)[0]["counts"])
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(counts) - 1))
        counts[place : place + data.draw(st.integers(0, 1))] = data.draw(st.sampled_from(ALPHABET)).encode()
    check_reads_well_or_is_refused({"size": [6, 5], "counts": bytes(counts)})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_fuzzed_json(value):
    check_reads_well_or_is_refused(value)
    check_reads_well_or_is_refused({"size": value, "counts": value})
    check_reads_well_or_is_refused({"size": [6, 5], "counts": value})


def test_some_masks_of_others_each_as_often_as_named():
    placement = PatchGrid(2, 2, 4, Fit.SQUASH).place((8, 8))
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0, :4, :4] = masks[1, 4:, :4] = masks[2, :4, 4:] = 1
    others = RleMasks(encode_masks(masks))
    chosen = ChosenMasks(others, (2, 0, 2))
    assert len(chosen) == 3
    assert chosen.rles() == tuple(others.rles()[number] for number in (2, 0, 2))
    np.testing.assert_array_equal(chosen.coverage([0, 2], placement), [[0, 1], [0, 0]])
    np.testing.assert_array_equal(chosen.coverage([0, 1], placement), [[1, 1], [0, 0]])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_masks_of_coco_files_are_as_pycocotools_has_them():
    height, width = 40, 56
    triangle = [3.2, 4.1, 30.7, 6.0, 12.5, 33.3]
    runs = [100, 30, 10, 25, height * width - 165]
    forms = [
        [triangle],
        [triangle, [40, 5, 70.5, 5, 70.5, 60, 40, 60], [-9.5, 30, 8, 30, 8, 39, -9.5, 39]],
        {"size": [height, width], "counts": runs},
    ]
    compressed = coco_mask.frPyObjects(forms[2], height, width)["counts"].decode()
    forms.append({"size": [height, width], "counts": compressed})
    reference = COCO()
    reference.imgs = {1: {"height": height, "width": width}}
    for form in forms:
        expected = reference.annToMask({"image_id": 1, "segmentation": form})
        np.testing.assert_array_equal(decode_mask(from_coco(form, (height, width))), expected)
    assert area(from_coco(forms[2])) == runs[1] + runs[3]
    assert from_coco([triangle, [1, 1, 5, 5]], (height, width)) == from_coco([triangle], (height, width))


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [[1, 1, 5, 5]],
        [[1, 2, 3]],
        [["a"] * 6],
        [3],
        [[0, 0, 1e9, 0, 0, 1e9]],
        [[0, 0, float("nan"), 0, 1, 1]],
    ],
)
def test_what_is_no_polygon_is_refused(polygons):
    with pytest.raises(InputError):
        from_coco(polygons, (40, 56))
    with pytest.raises(InputError, match="mapping"):
        from_coco([[0, 0, 9, 0, 9, 9]])
    for counts in ([5, -1, 1], [5, True, 0], [2, 2], [2.5, 2.5], [10**30]):
        with pytest.raises(InputError):
            from_coco({"size": [1, 5], "counts": counts})
