"""Where images are that annotations name: several folders, prefixes, other endings, the Hub's metadata."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import FIXTURES, absent, faults, fixture, put, read, refused, samples_of, source, texts

from patchmint.errors import ConfigError, ImageMissingError, MixedSplitsError
from patchmint.pipeline.sources.recognise import recognise
from patchmint.samples import ImageRef


def coco(folder, *names):
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [{"image_id": number, "caption": name} for number, name in enumerate(names)]
    return put(folder, {"my.json": json.dumps({"images": images, "annotations": captions})})


def contents(opened):
    found = {}
    for sample in samples_of(opened):
        try:
            found[sample.texts[0].content] = opened.read_image(sample.image)
        except ImageMissingError:
            found[sample.texts[0].content] = None
    return found


def test_folders_are_tried_in_order(tmp_path):
    coco(tmp_path, "a.jpg", "b.jpg", "x/c.jpg", "d.jpg")
    put(tmp_path, {"one/a.jpg": b"1a", "two/a.jpg": b"2a", "two/b.jpg": b"2b", "x/c.jpg": b"c"})
    opened = source("coco", tmp_path, annotations="my.json", images=["one", "two", ""])
    assert contents(opened) == {"a.jpg": b"1a", "b.jpg": b"2b", "x/c.jpg": b"c", "d.jpg": None}
    assert {sample.image.path.split("/")[0] for sample in samples_of(opened)} == {"one"}
    opened.check()
    with pytest.raises(ImageMissingError, match=r"'one/d.jpg'.* the other 2 places"):
        opened.read_image(samples_of(opened)[3].image)
    with pytest.raises(ConfigError, match="nothing in the folder 'three'"):
        source("coco", tmp_path, annotations="my.json", images=["one", "three"]).check()
    with pytest.raises(ConfigError, match="stay within"):
        source("coco", tmp_path, images=["one", "../two"])


def test_prefixes_come_off(tmp_path):
    coco(tmp_path, "/data/a.jpg", "s3://bucket/b.jpg", "c.jpg", "/etc/passwd", "/data/../d.jpg")
    put(tmp_path, {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    settings = {"annotations": "my.json", "images": "", "strip_prefix": ["/data", "s3://bucket/"]}
    samples = read("coco", tmp_path, **settings)
    assert [sample.image.path for sample in samples[:3]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert faults(samples) == {"path-outside-source": {"3", "4"}}
    coco(tmp_path, "COCO_train2014_c.jpg")
    stripped = source("coco", tmp_path, **settings | {"strip_prefix": "COCO_train2014_"})
    assert contents(stripped) == {"COCO_train2014_c.jpg": b"c"}


@pytest.mark.parametrize("name", ["/data/coco/train2017/a.jpg", "https://host/train2017/a.jpg", "coco/train2017/a.jpg"])
def test_prefixes_are_recognised(tmp_path, name):
    coco(tmp_path, name)
    put(tmp_path, {"pictures/train2017/a.jpg": b"a"})
    found = recognise(str(tmp_path)).source
    assert (found["images"], found["strip_prefix"]) == ("pictures", name.removesuffix("train2017/a.jpg"))
    assert contents(source(**found)) == {name: b"a"}


def test_several_folders_are_recognised(tmp_path):
    names = [f"{number}.jpg" for number in range(9)]
    coco(tmp_path, *names)
    put(tmp_path, {f"{'train' if number % 2 else 'val'}/{number}.jpg": b"x" for number in range(8)})
    found = recognise(str(tmp_path)).source
    assert found["images"] == ["train", "val"]
    assert list(contents(source(**found)).values()) == [b"x"] * 8 + [None]


def test_other_endings(tmp_path):
    coco(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d")
    put(tmp_path, {"one/a.jpg": b"a", "two/a.gif": b"no", "one/b.gif": b"b", "two/c.png": b"c", "one/d.gif": b"no"})
    settings = {"annotations": "my.json", "images": ["one", "two"]}
    assert contents(source("coco", tmp_path, **settings))["b.jpg"] is None
    opened = source("coco", tmp_path, annotations="my.json", images="one")
    with pytest.raises(ImageMissingError, match=r"set source\.other_endings"):
        opened.read_image(ImageRef("one/b.jpg"))
    found = contents(source("coco", tmp_path, other_endings=True, **settings))
    assert found == {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c", "d": None}


@pytest.mark.parametrize("kind", ["visual-genome", "references", "llava"])
def test_every_source_of_paths_has_folders(tmp_path, kind):
    folder = fixture({"visual-genome": "visual_genome"}.get(kind, kind), tmp_path)
    given = {"llava": {"annotations": "llava_v1_5_mix665k.json"}, "references": {"split": "all"}}
    settings = given.get(kind, {})
    first = read(kind, folder, images="", **settings)[0].image.path
    put(folder, {"one/x": b"", f"two/{first}": b"image"})
    opened = source(kind, folder, images=["one", "two"], **settings)
    assert opened.read_image(samples_of(opened)[0].image) == b"image"


def test_addresses_in_the_place_of_names(tmp_path):
    document = json.loads((FIXTURES / "coco/annotations/captions_train2017.json").read_text())
    for image in document["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{name}"
    put(tmp_path, {"annotations/captions_train2017.json": json.dumps(document), "train2017/x": b""})
    paths = [sample.image.path for sample in read("coco", tmp_path)]
    assert paths == ["val2017/000000000025.jpg", "val2017/000000000009.jpg"]
    assert read("coco", tmp_path, images="coco")[0].image.path == "coco/val2017/000000000025.jpg"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_image_folders_of_the_hub(tmp_path, ending):
    put(tmp_path, {"train/a.jpg": b"a", "train/x/b.png": b"b", "train/c.jpg": b"c", "test/a.jpg": b"test"})
    rows = [
        {"file_name": "a.jpg", "text": "one", "n": 1, "who": "x"},
        {"file_name": "x/b.png", "text": "two", "n": 2, "who": "y"},
    ]
    rows += [{"file_name": "gone.jpg", "text": "three", "n": 3, "who": "z"}]
    table = f"train/metadata.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / table)
    lines = ["file_name,text,n,who", *(",".join(map(str, row.values())) for row in rows)]
    put(
        tmp_path, {"csv": {table: "\n".join(lines)}, "jsonl": {table: "\n".join(map(json.dumps, rows))}}.get(ending, {})
    )
    opened = source("folder", tmp_path, table=table, id_column="n", where="who <> ''")
    samples = samples_of(opened)
    assert [(sample.id, sample.image.path) for sample in samples] == [
        *(("1", "train/a.jpg"), ("2", "train/x/b.png"), ("3", "train/gone.jpg"))
    ]
    assert opened.read_image(samples[0].image) == b"a"
    assert [sample.record["who"] for sample in samples] == ["x", "y", "z"]
    assert absent("folder", tmp_path, table=table) == {"not-annotated": 1}


def test_one_metadata_file_of_several_splits(tmp_path):
    table = "file_name,text\n" + "".join(f"{split}/a.jpg,{split}\n" for split in ("test", "train"))
    put(tmp_path, {"test/a.jpg": b"a", "train/a.jpg": b"b", "metadata.csv": table, "all.csv": table})
    refused("the splits test, train side by side", "folder", tmp_path, table="metadata.csv")
    with pytest.raises(MixedSplitsError):
        source("folder", tmp_path, table="metadata.csv").check()
    for settings, left in (({"split": "train"}, ["train"]), ({"split": "all"}, ["test", "train"])):
        assert [texts(sample) for sample in read("folder", tmp_path, table="metadata.csv", **settings)] == [
            [split] for split in left
        ]
    assert len(read("folder", tmp_path, table="all.csv")) == 2  # its folders may mean anything


def test_folders_of_a_table(tmp_path):
    put(tmp_path, {"lists/t.csv": "file_name,text\na.jpg,one\nb.jpg,two\n", "one/a.jpg": b"a", "two/b.jpg": b"b"})
    opened = source("folder", tmp_path, table="lists/t.csv", images=["one", "two"])
    assert contents(opened) == {"one": b"a", "two": b"b"}
    assert [sample.id for sample in samples_of(opened)] == ["one/a.jpg", "two/b.jpg"]


def test_a_json_list_as_a_table(tmp_path):
    records = [{"image": "a.jpg", "caption": ["one", "two"], "image_id": 9}, 5]
    put(tmp_path, {"t.json": json.dumps(records), "a.jpg": b"a"})
    settings = {"table": "t.json", "file_column": "image", "text_column": "caption", "id_column": "image_id"}
    samples = read("folder", tmp_path, **settings)
    assert [(sample.id, texts(sample)) for sample in samples if not sample.fault] == [("9", ["one", "two"])]
    assert faults(samples) == {"record-malformed": {"t.json:2"}}


def test_ids_of_a_parquet_column(tmp_path):
    image = pa.array([{"bytes": b"x", "path": "p.jpg"}] * 2)
    pq.write_table(pa.table({"image": image, "text": ["a", "b"], "n": [7, None]}), tmp_path / "a.parquet")
    assert [sample.id for sample in read("parquet", tmp_path, id_column="n")] == ["7", "a.parquet:2"]
    refused("no column 'm'", "parquet", tmp_path, id_column="m")
