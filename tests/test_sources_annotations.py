"""COCO, Visual Genome, references, LLaVA: genuine layouts, and what is wrong in them."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from source_files import (
    FIXTURES,
    absent,
    drawn,
    faults,
    fixture,
    good,
    image_bytes,
    put,
    read,
    refused,
    samples_of,
    source,
    texts,
)

from patchmint.errors import ConfigError, ImageMissingError, MixedSplitsError, StorageError
from patchmint.geometry.rle import box_of, from_coco
from patchmint.samples import Absent, ImageRef, SourceText, Turn

VG, REFERENCES, LLAVA = FIXTURES / "visual_genome", FIXTURES / "references", FIXTURES / "llava"


def places(samples):
    return [(sample.id, sample.image.path) for sample in samples]


def coco(folder, document, name="captions"):
    return put(folder, {f"annotations/{name}_train2017.json": json.dumps(document)})


def test_coco_captions(tmp_path):
    root = fixture("coco", tmp_path)
    put(root, {"train2017/000000000009.jpg": image_bytes("chelsea")})
    opened = source("coco", root)
    samples = samples_of(opened)
    assert places(samples) == [(f"{number}", f"train2017/{number:012}.jpg") for number in (25, 9)]
    assert texts(samples[0]) == ["A woman in an orange suit smiles.", "An astronaut before a flag."]
    assert texts(samples[1]) == ["A cat lies beside a lamp.", "The cat looks into the camera. "]
    assert (faults(samples), absent("coco", root)) == ({}, {"not-annotated": 1})
    assert samples[1].record["file_name"] == "000000000009.jpg"
    assert opened.read_image(samples[1].image) == image_bytes("chelsea")
    with pytest.raises(ImageMissingError, match="000000000025"):
        opened.read_image(samples[0].image)


def test_coco_categories():
    samples = read("coco", FIXTURES / "coco", texts="categories")
    assert samples[0].texts == (
        SourceText(
            "person . teddy bear",
            phrases=((0, 6), (9, 19)),
            instances=drawn((10, 12.5, 30, 40), span=(9, 19)) + drawn((1, 1, 5, 5), (0, 40, 60, 60), span=(0, 6)),
        ),
    )
    assert samples[1].texts == (SourceText("cat", phrases=((0, 3),), instances=drawn((2, 3, 4, 9), span=(0, 3))),)
    assert (faults(samples), absent("coco", FIXTURES / "coco", texts="categories")) == ({}, {"not-annotated": 1})


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
    samples = read("coco", coco(tmp_path, document))
    assert good(samples) == [["good"]]
    assert faults(samples) == {
        "record-malformed": {"annotations-6", "annotations-7", "images-2", "images-3", "images-4", "1#fault-0"},
        "text-empty": {"1#fault-1", "2"},
        "text-not-unicode": {"1#fault-2"},
        "image-unlisted": {"image-77"},
    }
    messages = {sample.id: sample.fault.message for sample in samples if sample.fault}
    assert "annotation 1 in annotations/captions_train2017.json is None" in messages["1#fault-0"]


def test_coco_bad_boxes_and_categories(tmp_path):
    nan = float("nan")
    boxes = [[0, 0, size, 1] for size in (nan, float("inf"), -1, True, 10**400)]
    boxes += [[0, 0, 1], "0011", [nan, 0, 1, 1], None]
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": " "}],
        "annotations": [
            *({"image_id": 1, "category_id": 1, "bbox": box} for box in boxes),
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]},
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 1]},
            {"image_id": 2, "bbox": [0, 0, 0, 1]},
        ],
    }
    samples = read("coco", coco(tmp_path, document, "instances"), texts="categories")
    whole = [sample.texts for sample in samples if sample.fault is None]
    assert whole == [(SourceText("cat", ((0, 3),), drawn((0, 0, 0, 1), span=(0, 3))),)]
    last = f"annotations-{len(boxes) + 2}"
    assert faults(samples) == {"record-malformed": {"categories-1", "1#fault-0", last}}
    assert absent("coco", tmp_path, texts="categories") == {"box-malformed": len(boxes), "not-annotated": 1}


OUTSIDE = ("../../etc/passwd", "a/../../b.jpg", "/etc/passwd", "C:/x.jpg", "a\\..\\b.jpg", "a\0.jpg", ".")
PATHS = {
    "path-outside-source": (*OUTSIDE, "http://host/x.jpg", "file:///x.jpg"),
    "image-inline": ("data:image/png;base64,AAAA", "DATA:,"),
    "path-too-long": ("a" * 300, "a/" * 600 + "b.jpg"),
    "path-not-unicode": ("\udcff.jpg",),
    "record-malformed": ("", None, 5, []),
}


@pytest.mark.parametrize(("path", "reason"), [(path, reason) for reason in PATHS for path in PATHS[reason]])
def test_paths_stay_in_the_source(tmp_path, path, reason):
    document = {"images": [{"id": 1, "file_name": path}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (sample,) = source("coco", coco(tmp_path, document)).samples()
    assert (sample.fault.reason, sample.image, sample.texts) == (reason, ImageRef(""), ())
    assert sample.fault.message.isascii()
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    entry = {"id": "1", "image": path or [path], "conversations": turns}
    put(tmp_path, {"llava_v1_5_mix665k.json": json.dumps([entry])})
    (sample,) = source("llava", tmp_path).samples()
    assert sample.fault.reason == ("no-image" if path in ("", None) else reason)


def test_settings_stay_in_the_source(tmp_path):
    put(tmp_path, {"something": "else"})
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
    samples = read("visual-genome", VG)
    paths = {"1": "VG_100K_2/1.jpg", "2": "VG_100K/2.jpg", "2#fault-0": ""}
    assert places(samples) == list(paths.items())
    assert samples[0].texts == (
        SourceText("the clock is green in colour", instances=drawn((4, 5, 24, 35))),
        SourceText("shade is along the street ", instances=drawn((41, 12, 48, 21))),
    )
    assert texts(samples[1]) == ["man with a beard"]
    assert (faults(samples), absent("visual-genome", VG)) == ({"text-empty": {"2#fault-0"}}, {"not-annotated": 1})
    assert samples[1].record["coco_id"] == 547168


def test_visual_genome_objects(tmp_path):
    samples = read("visual-genome", VG, texts="objects", images="vg")
    assert samples[0].texts == (
        SourceText(
            "trees . clock",
            phrases=((0, 5), (8, 13)),
            instances=drawn((0, 0, 60, 30), span=(0, 5))
            + drawn((3, 4, 10, 13), span=(8, 13))
            + drawn((50, 20, 60, 30), span=(0, 5)),
        ),
    )
    assert samples[0].image.path == "vg/VG_100K_2/1.jpg"
    assert (faults(samples), absent("visual-genome", VG, texts="objects")) == ({}, {"not-annotated": 2})


def test_visual_genome_bad_records(tmp_path):
    root = fixture("visual_genome", tmp_path)
    region = {"x": 1, "y": 1, "width": 1, "height": 1, "phrase": "a hat"}
    objects = [{"names": []}, {"names": ["cap"]}, {"x": 1, "y": 1, "w": 1, "h": 1, "names": ["hat"]}, 3]
    images = [{"image_id": 1, "url": "https://h/../../1.jpg"}, {"image_id": 2}, {"url": "x"}, {"image_id": 1}]
    regions = [{"id": 1, "regions": [region]}, {"id": 9, "regions": [region]}, {"id": 2}, {"id": 2, "regions": [5]}]
    put(root, {"image_data.json": json.dumps(images), "region_descriptions.json": json.dumps(regions)})
    put(root, {"objects.json": json.dumps([{"image_id": 2, "objects": objects}])})
    assert faults(read("visual-genome", root)) == {
        "record-malformed": {"image-2", "image-3", "regions-2", "2", "2#fault-0"},
        "path-outside-source": {"1"},
        "image-unlisted": {"9"},
    }
    put(root, {"image_data.json": '[{"image_id": 2, "url": "https://h/VG_100K/2.jpg"}]'})
    samples = read("visual-genome", root, texts="objects")
    assert good(samples) == [["cap . hat"]]
    assert len(samples) == 1 + 2
    assert absent("visual-genome", root, texts="objects") == {"box-malformed": 1}


def test_references(tmp_path):
    samples = read("references", REFERENCES, split="all")
    assert places(samples) == [(f"{n}", f"train2014/COCO_train2014_{n:012}.jpg") for n in (581857, 1234)]
    assert samples[0].texts == (
        SourceText("the lady with the blue shirt", instances=drawn((1.5, 2, 11.5, 22))),
        SourceText("lady w back to us", instances=drawn((1.5, 2, 11.5, 22))),
        SourceText("man on right", instances=drawn((30, 2, 38, 22))),
    )
    assert absent("references", REFERENCES, split="val") == {"not-chosen-split": 2}
    (sample,) = read("references", REFERENCES, split="val")
    assert (sample.id, texts(sample)) == ("1234", ["left cat"])
    refused(r"is of the split 'test'; it has 'train', 'val'", "references", REFERENCES, split="test")
    assert len(read("references", REFERENCES, split="train+val")) == len(samples)
    refused("the splits train, val side by side", "references", REFERENCES)
    with pytest.raises(MixedSplitsError):
        source("references", REFERENCES).check()


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
    samples = read("references", root, split="all")
    assert good(samples) == [["a hat", "raw only"]]  # without a box a text is good all the same
    assert absent("references", root, split="all") == {"box-missing": 1}
    assert faults(samples) == {
        "record-malformed": {"ref-4", "ref-5", "1234#fault-0", "1234#fault-1"},
        "image-unlisted": {"6"},
        "text-missing": {"581857"},
    }


@pytest.mark.parametrize("kind", ["coco", "references", "grounding"])
def test_masks_are_read_where_they_are_wanted(tmp_path, kind):
    """COCO's polygons mean the size that the file gives; a bad mask leaves its box, and a bad box its mask."""
    shapes = [[[1, 2, 30, 4, 5, 16]], {"size": [40, 30], "counts": [200, 1000]}, None, [[1, 2]], [[1, 2, 9, 4, 5, 6]]]
    boxes = [*([1, 2, 29, 14 + n] for n in range(4)), None]
    records = [
        {"id": n, "image_id": 1, "category_id": 3, "bbox": box, "segmentation": shape, "tokens_positive": [[0, 3]]}
        for n, (shape, box) in enumerate(zip(shapes, boxes, strict=True))
    ]
    image = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 30, "caption": "cat"}
    file = {"images": [image], "annotations": records, "categories": [{"id": 3, "name": "cat"}]}
    refs = [{"image_id": 1, "split": "train", "ann_id": list(range(5)), "sentences": [{"sent": "cat"}]}]
    put(tmp_path, {"file.json": json.dumps(file), "refs.json": json.dumps(refs)})
    settings = {
        "coco": {"annotations": "file.json", "texts": "categories"},
        "references": {"instances": "file.json", "refs": "refs.json"},
        "grounding": {"annotations": "file.json"},
    }[kind]
    sample, *others = source(kind, tmp_path, masks=True, **settings).samples()
    expected = [from_coco(shape, (40, 30)) if shape in (shapes[0], shapes[1], shapes[4]) else None for shape in shapes]
    assert [each.mask for each in sample.texts[0].instances] == expected
    assert [each.box for each in sample.texts[0].instances] == [
        *((1, 2, 30, 16 + n) for n in range(4)),
        box_of(expected[4]),
    ]
    assert others == [Absent("mask-malformed"), Absent("box-malformed")]
    plain, *_ = source(kind, tmp_path, **settings).samples()
    assert [each.mask for each in plain.texts[0].instances] == [None] * 4


def test_expressions_of_several_things_or_none(tmp_path):
    root = fixture("references", tmp_path)
    given = {"both": [1719310, 1719311], "none": [-1], "one gone": [1719310, 5]}
    refs = [{"image_id": 581857, "ann_id": ids, "sentences": [{"sent": sent}]} for sent, ids in given.items()]
    (root / "refs(unc).json").unlink()
    put(root, {"grefs(unc).json": json.dumps(refs)})
    (sample,) = read("references", root, split="all")
    assert [(text.content, len(text.instances)) for text in sample.texts] == [("both", 2), ("none", 0), ("one gone", 1)]
    assert absent("references", root, split="all") == {"box-missing": 1}


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
        said = str(refused("never opened", "references", root, **settings))
    advice = textwrap.dedent(said.partition("\n")[2])
    ran = subprocess.run([sys.executable, "-c", advice], cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "not loaded" in ran.stderr
    assert not (root / "opened").exists()
    put(root, {"refs(unc).p": pickle.dumps(refs, protocol=0)})
    subprocess.run([sys.executable, "-c", advice], cwd=root, check=True)
    assert [sample.id for sample in read("references", root, split="all")] == ["581857", "1234"]
    assert textwrap.indent(advice.strip(), " " * 4) in (Path(__file__).parents[1] / "docs/sources.md").read_text()


def test_references_by_two_names(tmp_path):
    root = fixture("references", tmp_path)
    put(root, {"refs(google).json": "[]"})
    refused(r"several refs\*.json", "references", root)
    assert len(read("references", root, refs="refs(unc).json", split="all")) == 2


def test_llava_pretrain(tmp_path):
    name = "blip_laion_cc_sbu_558k.json"
    root = put(tmp_path / "llava", {name: (LLAVA / name).read_bytes()})
    samples = read("llava", root)
    assert places(samples) == [(f"{n:09}", f"images/00{n // 10_000}/{n:09}.jpg") for n in (4539375, 2239345)]
    assert texts(samples[1]) == ["a grey watch with an army style strap"]
    assert samples[1].conversation == (Turn("human", "<image>"), Turn("gpt", "a grey watch with an army style strap"))
    asked = read("llava", root, texts="questions")
    assert texts(asked[0]) == ["Render a clear and concise summary of the photo."]
    assert faults(asked) == {"text-missing": {"002239345"}}


def test_llava_finetune(tmp_path):
    opened = source("llava", LLAVA, annotations="llava_v1_5_mix665k.json")
    samples = samples_of(opened)
    assert [sample.id for sample in samples] == ["000000033471", "1", "000000033471"]
    assert [sample.image.path for sample in samples[:2]] == ["coco/train2017/000000033471.jpg", "vg/VG_100K_2/1.jpg"]
    assert texts(samples[0]) == ["The bus in the image is white and red.", "Yes"]
    assert texts(samples[2]) == ["B"]
    assert len(samples[0].conversation) == 4
    assert (faults(samples), absent("llava", LLAVA, annotations="llava_v1_5_mix665k.json")) == ({}, {"text-only": 1})
    with pytest.raises(ImageMissingError):
        opened.read_image(samples[0].image)
    every = texts(read("llava", LLAVA, annotations="llava_v1_5_mix665k.json", texts="all")[0])
    assert every[:2] == ["What are the colors of the bus in the image?", "The bus in the image is white and red."]


def test_llava_which_file(tmp_path):
    put(tmp_path, {"something": "else"})
    refused(r"several JSON files \(blip", "llava", LLAVA)
    refused("neither JSON nor Parquet files", "llava", tmp_path)
    refused(r"there is no 'x\.json'", "llava", tmp_path, annotations="x.json")


def test_llava_bad_records(tmp_path):
    sound, image = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}], "a.jpg"
    entries = [
        {"id": "a", "image": image, "conversations": [{"from": "bot", "value": "x"}]},
        {"id": "b", "image": image, "conversations": [{"from": "gpt", "value": None}]},
        {"id": "c", "image": image},
        {"id": "d", "image": image, "conversations": sound[:1]},
        {"id": "e", "image": image, "conversations": [{"from": "gpt", "value": ""}, *sound]},
        {"id": "f", "image": image, "conversations": [{"from": "human", "value": "\udc80"}, *sound]},
        {"id": "\ud800", "image": image, "conversations": sound},
        {"image": image, "conversations": sound},
        {"id": "g", "image": ["a.jpg", "b.jpg"], "conversations": sound},
        [],
    ]
    put(tmp_path, {"llava_v1_5_mix665k.json": json.dumps(entries)})
    samples = read("llava", tmp_path)
    assert faults(samples) == {
        "record-malformed": {"entry-0", "entry-1", "entry-2", "entry-9"},
        "several-images": {"g"},
        "text-missing": {"d"},
        "text-empty": {"e#fault-0"},
        "text-not-unicode": {"f"},
    }
    assert [sample.id for sample in samples if sample.fault is None] == ["e", "\\ud800", "entry-7"]
    assert all(not sample.conversation for sample in samples if sample.fault)


@pytest.mark.parametrize("kind", ["coco", "visual-genome", "references"])
def test_missing_annotation_files_say_what_was_expected(tmp_path, kind):
    put(tmp_path, {"refs.json" if kind == "references" else "something": "[]"})
    refused(r"there is no '.*expected .*jpg", kind, tmp_path)


def test_captions_file_in_the_place_of_instances():
    settings = {"texts": "categories", "annotations": "annotations/captions_train2017.json"}
    refused("no categories: it isn't a COCO file of instances", "coco", FIXTURES / "coco", **settings)


def test_instances_in_the_place_of_captions():
    settings = {"annotations": "annotations/instances_train2017.json"}
    refused("holds instances, not captions.*source.texts: categories", "coco", FIXTURES / "coco", **settings)


def test_ids_that_pandas_made_floats_join(tmp_path):
    document = {
        "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 1e3, "file_name": "1000.jpg"}, {"id": 1.5}],
        "annotations": [{"image_id": 9.0, "caption": "nine"}, {"image_id": "1000", "caption": "thousand"}],
    }
    samples = read("coco", coco(tmp_path, document))
    assert [(sample.id, texts(sample)) for sample in samples if not sample.fault] == [
        ("9", ["nine"]),
        ("1000", ["thousand"]),
    ]
    assert faults(samples) == {"record-malformed": {"images-2"}}


def test_json_lines_in_the_place_of_lists(tmp_path):
    for name, folder, kind in (
        ("region_descriptions.json", VG, "visual-genome"),
        ("refs(unc).json", REFERENCES, "references"),
    ):
        copied = fixture(folder.name, tmp_path)
        records = json.loads((copied / name).read_text())
        put(copied, {name: "\n".join(map(json.dumps, records))})
        given = {"split": "all"} if kind == "references" else {}
        assert read(kind, copied, **given) == read(kind, folder, **given)


def test_order_and_contents_are_the_same_each_time():
    for kind, folder, given in (
        ("coco", FIXTURES / "coco", {}),
        ("visual-genome", VG, {}),
        ("references", REFERENCES, {"split": "all"}),
    ):
        assert read(kind, folder, **given) == read(kind, folder, **given)
