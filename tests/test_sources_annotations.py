"""COCO, Visual Genome, references, LLaVA: genuine layouts, and what is wrong in them."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from source_files import FIXTURES, faults, fixture, image_bytes, put, source, texts

from patchmint.errors import ConfigError, ImageMissingError, StorageError
from patchmint.samples import ImageRef, SourceText, Turn


def coco(folder, document, name="captions"):
    return put(folder, {f"annotations/{name}_train2017.json": json.dumps(document)})


def test_coco_captions(tmp_path):
    root = fixture("coco", tmp_path)
    put(root, {"train2017/000000000009.jpg": image_bytes("chelsea")})
    opened = source("coco", root)
    samples = list(opened.samples())
    assert [(sample.id, sample.image.path) for sample in samples] == [
        ("25", "train2017/000000000025.jpg"),
        ("9", "train2017/000000000009.jpg"),
        ("30", "train2017/000000000030.jpg"),
    ]
    assert texts(samples[0]) == ["A woman in an orange suit smiles.", "An astronaut before a flag."]
    assert texts(samples[1]) == ["A cat lies beside a lamp.", "The cat looks into the camera. "]
    assert faults(samples) == {"30": "text-missing"}
    assert opened.read_image(samples[1].image) == image_bytes("chelsea")
    with pytest.raises(ImageMissingError, match="000000000025"):
        opened.read_image(samples[0].image)


def test_coco_categories(tmp_path):
    samples = list(source("coco", FIXTURES / "coco", texts="categories").samples())
    assert samples[0].texts == (
        SourceText(
            "person . teddy bear",
            phrases=((0, 6), (9, 19)),
            boxes=((10.0, 12.5, 30.0, 40.0), (1.0, 1.0, 5.0, 5.0), (0.0, 40.0, 60.0, 60.0)),
        ),
    )
    assert samples[1].texts == (SourceText("cat", phrases=((0, 3),), boxes=((2.0, 3.0, 4.0, 9.0),)),)
    assert faults(samples) == {"30": "text-missing"}


def test_coco_other_places(tmp_path):
    document = {"images": [{"id": 1, "file_name": "a/./b.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    put(tmp_path, {"my.json": json.dumps(document), "pictures/a/b.jpg": b"bytes"})
    opened = source("coco", tmp_path, annotations="my.json", images="pictures/")
    (sample,) = opened.samples()
    assert (sample.image.path, opened.read_image(sample.image)) == ("pictures/a/b.jpg", b"bytes")
    (sample,) = source("coco", tmp_path, annotations="./my.json", images="").samples()
    assert sample.image.path == "a/b.jpg"


def test_coco_bad_records_are_counted_and_good_ones_stay(tmp_path):
    document = {
        "annotations": [
            {"image_id": 1, "caption": "good"},
            {"image_id": 1, "caption": None},
            {"image_id": 1, "caption": "  "},
            {"image_id": 1, "caption": "\ud83d alone"},
            {"image_id": 2, "caption": ""},
            {"image_id": 77, "caption": "of nothing"},
            {"caption": "of nothing"},
            "text",
        ],
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 1}, {"file_name": "x"}, 5],
    }
    samples = list(source("coco", coco(tmp_path, document)).samples())
    assert [texts(sample) for sample in samples if sample.fault is None] == [["good"]]
    assert faults(samples) == {
        "annotations-6": "record-malformed",
        "annotations-7": "record-malformed",
        "images-2": "record-malformed",
        "images-3": "record-malformed",
        "images-4": "record-malformed",
        "1#fault-0": "record-malformed",
        "1#fault-1": "text-empty",
        "1#fault-2": "text-not-unicode",
        "2": "text-empty",
        "image-77": "image-unlisted",
    }
    messages = {sample.id: sample.fault.message for sample in samples if sample.fault}
    assert "annotation 1 in annotations/captions_train2017.json is None" in messages["1#fault-0"]


def test_coco_bad_boxes_and_categories(tmp_path):
    boxes = [
        [0, 0, 1],
        "0011",
        [0, 0, float("nan"), 1],
        [float("nan"), 0, 1, 1],
        [0, 0, float("inf"), 1],
        [0, 0, -1, 1],
        [0, 0, True, 1],
        [0, 0, 10**400, 1],
        None,
    ]
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": " "}],
        "annotations": [
            *({"image_id": 1, "category_id": 1, "bbox": box} for box in boxes),
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 1]},
        ],
    }
    samples = list(source("coco", coco(tmp_path, document, "instances"), texts="categories").samples())
    assert [sample.texts for sample in samples if sample.fault is None] == [
        (SourceText("cat", ((0, 3),), ((0.0, 0.0, 0.0, 1.0),)),)
    ]
    assert len(faults(samples)) == len(boxes) + 2


PATHS = [
    ("../../etc/passwd", "path-outside-source"),
    ("a/../../b.jpg", "path-outside-source"),
    ("/etc/passwd", "path-outside-source"),
    ("C:/x.jpg", "path-outside-source"),
    ("a\\..\\b.jpg", "path-outside-source"),
    ("http://host/x.jpg", "path-outside-source"),
    ("file:///x.jpg", "path-outside-source"),
    ("data:image/png;base64,AAAA", "path-outside-source"),
    ("a\0.jpg", "path-outside-source"),
    (".", "path-outside-source"),
    ("a" * 300, "path-too-long"),
    ("a/" * 600 + "b.jpg", "path-too-long"),
    ("\udcff.jpg", "path-not-unicode"),
    ("", "record-malformed"),
    (None, "record-malformed"),
    (5, "record-malformed"),
    ([], "record-malformed"),
]


@pytest.mark.parametrize(("path", "reason"), PATHS)
def test_paths_stay_in_the_source(tmp_path, path, reason):
    document = {"images": [{"id": 1, "file_name": path}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (sample,) = source("coco", coco(tmp_path, document)).samples()
    assert (sample.fault.reason, sample.image, sample.texts) == (reason, ImageRef(""), ())
    assert sample.fault.message.isascii()
    entry = {"id": "1", "image": path, "conversations": [{"from": "gpt", "value": "x"}]}
    put(tmp_path, {"llava_v1_5_mix665k.json": json.dumps([entry])})
    (sample,) = source("llava", tmp_path).samples()
    assert sample.fault.reason == ("no-image" if path is None else reason)


def test_settings_stay_in_the_source(tmp_path):
    for settings in ({"annotations": "../a.json"}, {"images": "../x"}, {"split": "../../x"}, {"images": "/etc"}):
        with pytest.raises(ConfigError, match="stay within"):
            source("coco", tmp_path, **settings)


def test_missing_images_are_told_from_trouble(tmp_path):
    put(tmp_path, {"a/file.jpg": b"x"})
    opened = source("coco", tmp_path)
    assert opened.read_image(ImageRef("a/file.jpg")) == b"x"
    for path in ("none.jpg", "a", "a/file.jpg/b.jpg"):
        with pytest.raises(ImageMissingError, match="no image"):
            opened.read_image(ImageRef(path))
    (tmp_path / "a/file.jpg").unlink()
    (tmp_path / "a").rmdir()
    tmp_path.rmdir()
    with pytest.raises(StorageError, match="there is no folder") as trouble:
        opened.read_image(ImageRef("a/file.jpg"))
    assert not isinstance(trouble.value, ImageMissingError)
    with pytest.raises(ConfigError, match="mounts it"):
        source("coco", tmp_path)


def test_workers_never_read_annotations(tmp_path):
    put(tmp_path, {"train2017/1.jpg": b"x", "llava_v1_5_mix665k.json": "no json"})
    for kind in ("coco", "visual-genome", "references", "llava", "folder", "webdataset", "parquet"):
        opened = source(kind, tmp_path)
        if kind != "parquet":
            assert opened.read_image(ImageRef("train2017/1.jpg")) == b"x"


def test_visual_genome_regions(tmp_path):
    samples = list(source("visual-genome", FIXTURES / "visual_genome").samples())
    assert [(sample.id, sample.image.path) for sample in samples] == [
        ("1", "VG_100K_2/1.jpg"),
        ("2", "VG_100K/2.jpg"),
        ("2#fault-0", ""),
        ("3", "VG_100K/3.jpg"),
    ]
    assert samples[0].texts == (
        SourceText("the clock is green in colour", boxes=((4.0, 5.0, 24.0, 35.0),)),
        SourceText("shade is along the street ", boxes=((41.0, 12.0, 48.0, 21.0),)),
    )
    assert texts(samples[1]) == ["man with a beard"]
    assert faults(samples) == {"2#fault-0": "text-empty", "3": "text-missing"}


def test_visual_genome_objects(tmp_path):
    samples = list(source("visual-genome", FIXTURES / "visual_genome", texts="objects", images="vg").samples())
    assert samples[0].texts == (
        SourceText(
            "trees . clock",
            phrases=((0, 5), (8, 13)),
            boxes=((0.0, 0.0, 60.0, 30.0), (3.0, 4.0, 10.0, 13.0), (50.0, 20.0, 60.0, 30.0)),
        ),
    )
    assert samples[0].image.path == "vg/VG_100K_2/1.jpg"
    assert faults(samples) == {"2": "text-missing", "3": "text-missing"}


def test_visual_genome_bad_records(tmp_path):
    root = fixture("visual_genome", tmp_path)
    region = {"x": 1, "y": 1, "width": 1, "height": 1, "phrase": "a hat"}
    objects = [{"names": []}, {"names": ["hat"]}, {"x": 1, "y": 1, "w": 1, "h": 1, "names": ["hat"]}, 3]
    put(
        root,
        {
            "image_data.json": json.dumps(
                [{"image_id": 1, "url": "https://h/../../1.jpg"}, {"image_id": 2}, {"url": "x"}, {"image_id": 1}]
            ),
            "region_descriptions.json": json.dumps(
                [{"id": 1, "regions": [region]}, {"id": 9, "regions": [region]}, {"id": 2}, {"id": 2, "regions": [5]}]
            ),
            "objects.json": json.dumps([{"image_id": 2, "objects": objects}]),
        },
    )
    assert faults(list(source("visual-genome", root).samples())) == {
        "image-2": "record-malformed",
        "image-3": "record-malformed",
        "1": "path-outside-source",
        "9": "image-unlisted",
        "regions-2": "record-malformed",
        "2": "record-malformed",
        "2#fault-0": "record-malformed",
    }
    put(root, {"image_data.json": '[{"image_id": 2, "url": "https://h/VG_100K/2.jpg"}]'})
    samples = list(source("visual-genome", root, texts="objects").samples())
    assert texts(samples[0]) == ["hat"]
    assert len(faults(samples)) == 3


def test_references(tmp_path):
    samples = list(source("references", FIXTURES / "references").samples())
    assert [(sample.id, sample.image.path) for sample in samples] == [
        ("581857", "train2014/COCO_train2014_000000581857.jpg"),
        ("1234", "train2014/COCO_train2014_000000001234.jpg"),
    ]
    assert samples[0].texts == (
        SourceText("the lady with the blue shirt", boxes=((1.5, 2.0, 11.5, 22.0),)),
        SourceText("lady w back to us", boxes=((1.5, 2.0, 11.5, 22.0),)),
        SourceText("man on right", boxes=((30.0, 2.0, 38.0, 22.0),)),
    )


def test_references_of_one_split(tmp_path):
    (sample,) = source("references", FIXTURES / "references", split="val").samples()
    assert (sample.id, texts(sample)) == ("1234", ["left cat"])
    with pytest.raises(ConfigError, match=r"no references of 'test'; it has 'train', 'val'"):
        list(source("references", FIXTURES / "references", split="test").samples())


def test_references_bad_records(tmp_path):
    root = fixture("references", tmp_path)
    sentence = [{"sent": "a hat"}]
    refs = [
        {"image_id": 1234, "ann_id": 5, "sentences": sentence},
        {"image_id": 1234, "ann_id": 77, "sentences": [{"raw": "raw only"}, {}, "x"]},
        {"image_id": 6, "ann_id": 77, "sentences": sentence},
        {"image_id": 581857, "ann_id": 1719310, "sentences": []},
        {"image_id": 1234},
        None,
    ]
    put(root, {"refs(unc).json": json.dumps(refs)})
    samples = list(source("references", root).samples())
    assert [texts(sample) for sample in samples if sample.fault is None] == [["raw only"]]
    assert faults(samples) == {
        "ref-4": "record-malformed",
        "ref-5": "record-malformed",
        "1234#fault-0": "record-malformed",
        "1234#fault-1": "record-malformed",
        "1234#fault-2": "record-malformed",
        "6": "image-unlisted",
        "581857": "text-missing",
    }


class Dangerous:
    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


def test_pickled_references_are_refused_and_the_advice_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = fixture("references", tmp_path)
    refs = json.loads((root / "refs(unc).json").read_text())
    (root / "refs(unc).json").unlink()
    put(root, {"refs(unc).p": pickle.dumps(Dangerous())})
    for settings in ({}, {"refs": "refs(unc).p"}):
        with pytest.raises(ConfigError, match="never opened") as refused:
            list(source("references", root, **settings).samples())
    advice = textwrap.dedent(str(refused.value).partition("\n")[2])
    ran = subprocess.run([sys.executable, "-c", advice], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "not loaded" in ran.stderr
    assert not (root / "opened").exists()
    put(root, {"refs(unc).p": pickle.dumps(refs, protocol=0)})
    subprocess.run([sys.executable, "-c", advice], cwd=root, check=True)
    assert [sample.id for sample in source("references", root).samples()] == ["581857", "1234"]
    assert textwrap.indent(advice.strip(), " " * 4) in (Path(__file__).parents[1] / "docs/sources.md").read_text()


def test_references_by_two_names(tmp_path):
    root = fixture("references", tmp_path)
    put(root, {"refs(google).json": "[]"})
    with pytest.raises(ConfigError, match=r"several refs\*.json"):
        list(source("references", root).samples())
    assert len(list(source("references", root, refs="refs(unc).json").samples())) == 2


def test_llava_pretrain(tmp_path):
    root = tmp_path / "llava"
    put(root, {name: (FIXTURES / "llava" / name).read_bytes() for name in ["blip_laion_cc_sbu_558k.json"]})
    samples = list(source("llava", root).samples())
    assert [(sample.id, sample.image.path) for sample in samples] == [
        ("004539375", "images/00453/004539375.jpg"),
        ("002239345", "images/00223/002239345.jpg"),
    ]
    assert texts(samples[1]) == ["a grey watch with an army style strap"]
    assert samples[1].conversation == (Turn("human", "<image>"), Turn("gpt", "a grey watch with an army style strap"))
    asked = list(source("llava", root, texts="questions").samples())
    assert texts(asked[0]) == ["Render a clear and concise summary of the photo."]
    assert faults(asked) == {"002239345": "text-missing"}


def test_llava_finetune(tmp_path):
    opened = source("llava", FIXTURES / "llava", annotations="llava_v1_5_mix665k.json")
    samples = list(opened.samples())
    assert [sample.id for sample in samples] == ["000000033471", "1", "wgByO4Y_0", "000000033471"]
    assert [sample.image.path for sample in samples[:2]] == ["coco/train2017/000000033471.jpg", "vg/VG_100K_2/1.jpg"]
    assert texts(samples[0]) == ["The bus in the image is white and red.", "Yes"]
    assert texts(samples[3]) == ["B"]
    assert len(samples[0].conversation) == 4
    assert faults(samples) == {"wgByO4Y_0": "no-image"}
    with pytest.raises(ImageMissingError):
        opened.read_image(samples[0].image)
    every = next(source("llava", FIXTURES / "llava", annotations="llava_v1_5_mix665k.json", texts="all").samples())
    assert texts(every)[:2] == [
        "What are the colors of the bus in the image?",
        "The bus in the image is white and red.",
    ]


def test_llava_which_file(tmp_path):
    with pytest.raises(ConfigError, match="both blip"):
        list(source("llava", FIXTURES / "llava").samples())
    with pytest.raises(ConfigError, match="neither of LLaVA's files"):
        list(source("llava", tmp_path).samples())
    with pytest.raises(ConfigError, match=r"there is no 'x\.json'"):
        list(source("llava", tmp_path, annotations="x.json").samples())


def test_llava_bad_records(tmp_path):
    good, image = [{"from": "gpt", "value": "x"}], "a.jpg"
    entries = [
        {"id": "a", "image": image, "conversations": [{"from": "bot", "value": "x"}]},
        {"id": "b", "image": image, "conversations": [{"from": "gpt", "value": None}]},
        {"id": "c", "image": image},
        {"id": "d", "image": image, "conversations": []},
        {"id": "e", "image": image, "conversations": [{"from": "gpt", "value": ""}, *good]},
        {"id": "f", "image": image, "conversations": [{"from": "human", "value": "\udc80"}, *good]},
        {"id": "\ud800", "image": image, "conversations": good},
        {"image": image, "conversations": good},
        {"id": "g", "image": ["a.jpg", "b.jpg"], "conversations": good},
        [],
    ]
    put(tmp_path, {"llava_v1_5_mix665k.json": json.dumps(entries)})
    samples = list(source("llava", tmp_path).samples())
    assert faults(samples) == {
        "entry-0": "record-malformed",
        "entry-1": "record-malformed",
        "entry-2": "record-malformed",
        "d": "text-missing",
        "e#fault-0": "text-empty",
        "f": "text-not-unicode",
        "g": "record-malformed",
        "entry-9": "record-malformed",
    }
    assert [sample.id for sample in samples if sample.fault is None] == ["e", "\\ud800", "entry-7"]
    assert all(not sample.conversation for sample in samples if sample.fault)


@pytest.mark.parametrize("kind", ["coco", "visual-genome", "references"])
def test_missing_annotation_files_say_what_was_expected(tmp_path, kind):
    if kind == "references":
        put(tmp_path, {"refs.json": "[]"})
    with pytest.raises(ConfigError, match=r"there is no '.*expected .*jpg"):
        list(source(kind, tmp_path).samples())


def test_captions_file_in_the_place_of_instances(tmp_path):
    root = fixture("coco", tmp_path)
    with pytest.raises(ConfigError, match="no categories: it isn't a COCO file of instances"):
        list(source("coco", root, texts="categories", annotations="annotations/captions_train2017.json").samples())


def test_order_and_contents_are_the_same_each_time(tmp_path):
    for kind, name in (("coco", "coco"), ("visual-genome", "visual_genome"), ("references", "references")):
        assert list(source(kind, FIXTURES / name).samples()) == list(source(kind, FIXTURES / name).samples())
