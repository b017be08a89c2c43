"""Patch labels: unions per text and per phrase, against a mask drawn by hand."""

from dataclasses import replace

import numpy as np
import pytest

from patchmint.errors import PluginError
from patchmint.geometry import Fit, PatchGrid, RleMasks
from patchmint.geometry.rle import encode_masks
from patchmint.interfaces import Instances
from patchmint.labelers.patches import label_phrases, label_texts, select_patches

PLACEMENT = PatchGrid(4, 4, 10, Fit.SQUASH).place((40, 40))


def instances(rectangles, texts=(0,), spans=((0, 1),), size=40):
    """Of an image of 40 x 40; their masks have this size."""
    n = len(rectangles)
    masks = np.zeros((n, size, size), np.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, rectangles, strict=True):
        mask[y0:y1, x0:x1] = 1
    return Instances(
        image_size=(40, 40),
        masks=RleMasks(encode_masks(masks)),
        text_index=np.array(texts, dtype=np.int64),
        scores=np.ones(n, np.float32),
        boxes=np.array(rectangles, np.float32).reshape(n, 4),
        spans=np.array(spans, dtype=np.int64).reshape(n, 2),
    )


def test_union_per_text_counts_an_overlap_once():
    found = instances([(0, 0, 10, 5), (0, 0, 10, 5), (0, 3, 10, 8), (35, 35, 40, 40)], [0, 0, 0, 2], [(0, 3)] * 4)
    labels = label_texts(found, 3, PLACEMENT, 0.0)
    assert labels.selector.shape == labels.coverage.shape == (3, 4, 4)
    assert labels.coverage[0, 0, 0] == 204  # 8 of 10 rows
    assert labels.selector[0].sum() == 1
    assert not labels.selector[1].any()  # a text without instances is a valid empty label
    assert labels.coverage[2, 3, 3] == 64  # a quarter, rounded up
    assert labels.selector.dtype == labels.coverage.dtype == np.uint8


@pytest.mark.parametrize(
    ("rectangle", "size", "kept"),
    [
        ((30, 0, 40, 10), 40, [[0, 3]]),
        ((9, 9, 10, 10), 40, [[0, 0]]),
        ((9, 9, 11, 11), 40, [[0, 0], [0, 1], [1, 0], [1, 1]]),
        ((4, 0, 6, 2), 8, [[0, 2]]),
    ],
    ids=["rows are y and columns x", "one pixel keeps a patch", "and each of four", "a mask smaller than the image"],
)
def test_which_patches_a_mask_keeps(rectangle, size, kept):
    labels = label_texts(instances([rectangle], size=size), 1, PLACEMENT, 0.0)
    assert np.argwhere(labels.selector[0]).tolist() == kept


@pytest.mark.parametrize(("min_coverage", "kept"), [(0.0, 3), (0.25, 2), (0.5, 1), (0.99, 1)])
def test_min_coverage_must_be_exceeded(min_coverage, kept):
    found = instances([(0, 0, 10, 10), (10, 0, 20, 5), (20, 0, 21, 1)], [0, 0, 0], [(0, 1)] * 3)
    labels = label_texts(found, 1, PLACEMENT, min_coverage)
    assert labels.selector.sum() == kept
    np.testing.assert_array_equal(labels.selector, select_patches(labels.coverage, min_coverage))


def test_phrases_are_unions_of_their_own_instances():
    found = instances([(0, 0, 10, 10), (30, 30, 40, 40), (0, 0, 40, 10)], [0, 0, 1], [(2, 5), (2, 5), (0, 4)])
    labels = label_phrases(found, PLACEMENT, 0.0)
    assert [(label.text_index, label.span) for label in labels] == [(0, (2, 5)), (1, (0, 4))]
    assert labels[0].selector.sum() == 2
    assert labels[1].selector[0].all()


def test_arrays_that_contradict_each_other_are_refused():
    good = instances([(0, 0, 10, 10)])
    with pytest.raises(PluginError, match="1 masks"):
        replace(good, text_index=np.zeros(2, np.int64))
    with pytest.raises(PluginError, match="several sizes"):
        RleMasks(good.masks.rles() + encode_masks(np.ones((1, 8, 8), np.uint8)))
