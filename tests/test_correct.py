"""Corrections: what somebody changed by hand is what is stored, and nothing else is."""

import io
import json

import numpy as np
import pytest

from patchmint.datasets.edits import Edit, edited, read_edits
from patchmint.errors import InputError
from patchmint.geometry.rle import decode_mask, encode_masks, to_coco
from patchmint.shards.schema import FoundDocument, MaskDocument

TEXTS = ("a Black  cat on a sofa", "the dog")


def rectangle(left, top, right, bottom, size=(20, 30)):
    mask = np.zeros((1, *size), np.uint8)
    mask[0, top:bottom, left:right] = 1
    return MaskDocument.of(encode_masks(mask)[0])


def instance(text, box, span=(0, 3)):
    return FoundDocument(
        text_index=text, start=span[0], end=span[1], box=box, score=0.5, origin="model", mask=rectangle(*map(int, box))
    )


FOUND = (instance(0, (0.0, 0.0, 4.0, 5.0)), instance(0, (5.0, 5.0, 9.0, 9.0)), instance(1, (1.0, 1.0, 3.0, 3.0)))


def after(own=(0, 1), **edit):
    (line,) = read_edits(io.BytesIO(b"\n" + json.dumps({"key": "k", **edit}).encode()), "f")
    assert line.number == 2
    assert Edit.model_validate_json(line.edit.to_line()) == line.edit
    return edited(FOUND, line.edit, TEXTS, own, (20, 30))


def test_an_edit_changes_what_it_names():
    moved, new = [2, 3, 12.4, 9], to_coco(rectangle(7, 8, 10, 20).rle)
    left = after(
        delete=[1],
        change=[{"instance": 0, "box": moved}, {"instance": 2, "phrase": "black CAT"}],
        add=[{"mask": new, "phrase": "sofa"}],
        at="2026-11-30T20:00:00Z",
    )
    assert [(each.text_index, each.start, each.end) for each in left] == [(0, 0, 3), (0, 2, 12), (0, 18, 22)]
    assert {(each.origin, each.score) for each in left} == {("corrected", -1.0)}
    first, relabelled, added = left
    assert first.box == tuple(moved)
    assert first.mask == rectangle(2, 3, 12, 9)
    assert (relabelled.box, relabelled.mask) == (FOUND[2].box, FOUND[2].mask)
    assert added.box == (7, 8, 10, 20)
    assert decode_mask(added.mask.rle).sum() == 36
    assert after(wrong=True) == FOUND
    # the whole text, and texts stay in order
    assert [(each.text_index, each.end) for each in after(add=[{"box": [0, 0, 1, 1], "text": 0}])][2] == (0, 22)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"delete": [3]}, "no instance 3"),
        ({"change": [{"instance": 0, "mask": to_coco(rectangle(0, 0, 1, 1, (30, 20)).rle)}]}, "size"),
        ({"change": [{"instance": 0, "mask": to_coco(rectangle(0, 0, 0, 0).rle)}]}, "empty"),
        ({"change": [{"instance": 0, "mask": {"size": [20, 30], "counts": "9"}}]}, "damaged"),
        ({"change": [{"instance": 0, "box": [40, 0, 50, 9]}]}, "nothing lies in the image"),
        ({"change": [{"instance": 0, "phrase": "horse"}]}, "no text of the image has the words 'horse'"),
        ({"change": [{"instance": 0, "text": 1, "phrase": "cat"}]}, "text 1 hasn't"),
        ({"change": [{"instance": 0, "span": [3, 99]}]}, "characters 3 to 99"),
        ({"add": [{"text": 2, "box": [0, 0, 1, 1]}]}, "no text 2"),
        ({"add": [{"phrase": "cat"}]}, "needs a box or a mask"),
        ({"delete": [0], "change": [{"instance": 0}]}, "twice"),
        ({"at": "2026-11-30T20:00:00"}, "line 2 .*timezone"),
        ({"colour": 1}, "line 2"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, told):
    with pytest.raises(InputError, match=told):
        after(**edit)
