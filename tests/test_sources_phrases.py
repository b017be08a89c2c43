"""Karpathy's sentences, Flickr30k Entities, ODVG and MDETR: what is wrong in them, and what is absent."""

import json

import pytest
from source_files import absent, drawn, faults, put, read, refused, samples_of, source, texts

from patchmint.errors import MixedSplitsError
from patchmint.pipeline.sources.flickr import entity_boxes, marked
from patchmint.samples import SourceText


def karpathy(folder, *splits):
    sentences = [{"raw": "a cat"}, {"raw": " "}, 5]
    images = [
        {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences[: 1 + 2 * (not number)]}
        for number, split in enumerate(splits)
    ]
    return put(folder, {"dataset_flickr30k.json": json.dumps({"images": [*images, {"imgid": 9}], "dataset": "x"})})


def test_karpathy(tmp_path):
    karpathy(tmp_path, "train", "val", "restval", "test")
    samples = read("karpathy", tmp_path, split="all")
    assert faults(samples) == {"record-malformed": {"image-4", "0#fault-1"}, "text-empty": {"0#fault-0"}}
    assert (samples[0].id, samples[0].image.path, texts(samples[0])) == ("0", "0.jpg", ["a cat"])
    assert samples[0].record["split"] == "train"
    chosen = read("karpathy", tmp_path, split="train+restval")
    assert [sample.id for sample in chosen if not sample.fault] == ["0", "2"]
    assert absent("karpathy", tmp_path, split="train+restval") == {"not-chosen-split": 2}
    refused("holds the splits train, val side by side", "karpathy", tmp_path)
    with pytest.raises(MixedSplitsError, match=r"restval, test, train, val side by side; take one \(split: train\)"):
        source("karpathy", tmp_path).check()
    refused("is of the split 'dev'; it has 'restval', 'test', 'train', 'val'", "karpathy", tmp_path, split="dev")
    put(tmp_path, {"dataset_coco.json": "{}"})
    refused(r"several dataset\*.json", "karpathy", tmp_path)


SENTENCE = "[/EN#1/people A man] and [/EN#1/people his brother] see [/EN#7/scene a field] .\n"
BOXES = "<annotation><object><name>1</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
BOXES += "</object></annotation>"


def flickr(folder, **annotations):
    sentences = {f"Sentences/{name}.txt": SENTENCE for name in annotations}
    return put(folder, sentences | {f"Annotations/{name}.xml": xml for name, xml in annotations.items() if xml})


def test_flickr_marks():
    text, things = marked(SENTENCE.strip(), {"1": [(0, 0, 1, 1)]})
    assert text == "A man and his brother see a field ."
    assert [(text[start:end], [each.box for each in found]) for ((start, end),), found in things] == [
        *(("A man", [(0, 0, 1, 1)]), ("his brother", [(0, 0, 1, 1)]), ("a field", []))
    ]
    assert marked("[not a mark] [/EN#0/notvisual it] [/EN#3/a/b ] x", {}) == ("[not a mark] it  x", [])


def test_flickr_files(tmp_path):
    flickr(tmp_path, a=BOXES.format(1), b=BOXES.format("x"), c=BOXES.format(9), d="<annotation>", e="")
    put(tmp_path, {"Sentences/f.txt": "\n", "train.txt": "b\na.jpg\nz\n"})
    samples = read("flickr30k-entities", tmp_path)  # of which there is one split only
    assert [sample.texts[0].instances for sample in samples if not sample.fault] == [
        drawn((1, 2, 3, 4), span=(0, 5)) + drawn((1, 2, 3, 4), span=(10, 21)),
        (),
        (),
        (),
        (),
    ]
    assert absent("flickr30k-entities", tmp_path) == {"boxes-malformed": 3}
    assert faults(samples) == {"text-missing": {"f"}}
    chosen = read("flickr30k-entities", tmp_path, split="train")
    assert ([sample.id for sample in chosen], faults(chosen)) == (["z", "a", "b"], {"text-missing": {"z"}})
    assert absent("flickr30k-entities", tmp_path, split="train") == {"not-chosen-split": 4, "boxes-malformed": 1}
    refused("no 'val.txt'", "flickr30k-entities", tmp_path, split="val")
    put(tmp_path, {"val.txt": "e"})
    assert [sample.id for sample in read("flickr30k-entities", tmp_path, split="train+val")] == ["z", "a", "b", "e"]
    for split, expected in (("all", 6), (None, "side by side")):
        opened = source("flickr30k-entities", tmp_path, split=split)
        if split is None:
            with pytest.raises(MixedSplitsError, match=expected):
                opened.check()
        else:
            assert len(samples_of(opened)) == expected


def test_xml_that_declares_entities_is_not_expanded():
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation><object><name>&b;</name></object></annotation>'
    with pytest.raises(ValueError, match="entities"):
        entity_boxes(bomb.encode())
    with pytest.raises(ValueError, match="entities"):
        entity_boxes(b'<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>')


def odvg(folder, *records):
    return put(folder, {"a.jsonl": "".join(f"{json.dumps(record)}\n" for record in records), "x.jpg": b"x"})


def region(caption, **region):
    return {"filename": "x.jpg", "grounding": {"caption": caption, "regions": [region]}}


@pytest.mark.parametrize(
    ("record", "text", "missing"),
    [
        (region("A Cat sits", bbox=[0, 0, 1, 1], phrase="a cat"), (((0, 5),), drawn((0, 0, 1, 1), span=(0, 5))), {}),
        (
            region("cats", bbox=[[0, 0, 1, 1], [2, 2, 3, 3]], phrase=["cats"]),
            (((0, 4),), drawn((0, 0, 1, 1), (2, 2, 3, 3), span=(0, 4))),
            {},
        ),
        (
            region("a cat", bbox=[0, 0, 1, 1], tokens_positive=[[2, 5], [0, 99]]),
            (((2, 5),), drawn((0, 0, 1, 1), span=(2, 5))),
            {"span-missing": 1},
        ),
        (region("a cat", bbox=[0, 0, 1, 1], phrase="a dog"), ((), drawn((0, 0, 1, 1))), {"span-missing": 1}),
        (region("a cat", bbox=[5, 0, 1, 1], phrase="cat"), (((2, 5),), ()), {"box-malformed": 1}),
        (region("a cat"), ((), ()), {"span-missing": 1, "box-malformed": 1}),
    ],
)
def test_regions(tmp_path, record, text, missing):
    odvg(tmp_path, record)
    (sample,) = read("grounding", tmp_path, annotations="a.jsonl")
    assert sample.texts == (SourceText(record["grounding"]["caption"], *text),)
    assert absent("grounding", tmp_path, annotations="a.jsonl") == missing


def test_lines_of_one_image_are_one_sample(tmp_path):
    odvg(
        tmp_path,
        region("one"),
        region("two"),
        {"filename": "y.jpg"},
        5,
        region("three"),
        {"grounding": {"caption": "x"}},
    )
    samples = read("grounding", tmp_path, annotations="a.jsonl")
    assert [texts(sample) for sample in samples if not sample.fault] == [["one", "two"], ["three"]]
    assert faults(samples) == {"text-missing": {"y.jpg"}, "record-malformed": {"line-3", "line-5"}}


def test_a_list_is_odvg_too(tmp_path):
    put(tmp_path, {"a.json": json.dumps([region("one"), region("two")])})
    assert [texts(sample) for sample in read("grounding", tmp_path, annotations="a.json")] == [["one", "two"]]


def test_detections(tmp_path):
    instances = [{"category": "cat", "bbox": [0, 0, 1, 1]}, {"category": "dog"}, {"bbox": [0, 0, 1, 1], "label": 3}]
    odvg(tmp_path, {"filename": "x.jpg", "detection": {"instances": instances}})
    samples = read("grounding", tmp_path, annotations="a.jsonl")
    assert samples[0].texts == (SourceText("cat . dog", ((0, 3), (6, 9)), drawn((0, 0, 1, 1), span=(0, 3))),)
    assert faults(samples) == {"record-malformed": {"x.jpg#fault-0"}}
    assert absent("grounding", tmp_path, annotations="a.jsonl") == {"box-malformed": 1}


def test_mdetr(tmp_path):
    images = [{"id": number, "file_name": f"{number // 2}.jpg", "caption": f"cat {number}"} for number in range(4)]
    images += [{"id": 4, "file_name": "4.jpg"}]
    annotations = [
        {"image_id": 0, "bbox": [0, 0, 1, 1], "tokens_positive": [[0, 3]]},
        {"image_id": 1, "bbox": [0, 0, -1, 1], "tokens_positive": [[0, 30]]},
        {"image_id": 9, "bbox": [0, 0, 1, 1], "tokens_positive": []},
    ]
    put(tmp_path, {"m.json": json.dumps({"images": images, "annotations": annotations, "categories": []})})
    samples = read("grounding", tmp_path, annotations="m.json")
    assert samples[0].texts == (SourceText("cat 0", ((0, 3),), drawn((0, 0, 1, 1), span=(0, 3))), SourceText("cat 1"))
    assert texts(samples[1]) == ["cat 2", "cat 3"]
    assert faults(samples) == {"record-malformed": {"4"}, "image-unlisted": {"image-9"}}
    assert absent("grounding", tmp_path, annotations="m.json") == {"box-malformed": 1, "span-missing": 1}
