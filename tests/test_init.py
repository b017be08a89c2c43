"""`patchmint init`: every kind of source is recognised, and the config that is written can be built."""

import json
import shutil
import tarfile
from contextlib import nullcontext

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from shard_data import configure, make_dataset, make_sample
from source_files import fixture, image_bytes, put, samples_of
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.config.build import BuildConfig
from patchmint.errors import ConfigError, InputError
from patchmint.pipeline.preflight import check_buildable
from patchmint.pipeline.sources import open_source

PHOTO = image_bytes()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


def init(*words):
    done = CliRunner().invoke(app, ["init", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def coco(here, texts="captions"):
    folder = fixture("coco", here)
    path = folder / "annotations" / f"{texts}_train2017.json"
    name = json.loads(path.read_text())["images"][1]["file_name"]
    for other in set(path.parent.iterdir()) - {path}:
        other.unlink()
    return put(folder, {f"train2017/{name}": PHOTO})


def my_coco(here):
    folder = coco(here)
    (folder / "train2017").rename(folder / "pictures")
    shutil.move(folder / "annotations" / "captions_train2017.json", folder / "mine.json")
    return folder


def visual_genome(here):
    folder = fixture("visual_genome", here)
    url = json.loads((folder / "image_data.json").read_text())[0]["url"]
    return put(folder, {"images/" + "/".join(url.split("/")[-2:]): PHOTO})


def references(here):
    folder = fixture("references", here)
    name = json.loads((folder / "instances.json").read_text())["images"][0]["file_name"]
    return put(folder, {f"images/train2014/{name}": PHOTO})


def llava(here):
    record = {"id": "1", "image": "7/a.jpg", "conversations": [{"role": "user", "content": "?"}]}
    record["conversations"].append({"role": "assistant", "content": "A cat."})
    return put(here / "mix", {"mine.json": json.dumps([{"id": "0"}, record]), "pictures/7/a.jpg": PHOTO})


def interleave(here):
    turns = [{"from": "human", "value": "<image><image> which is a cat?"}, {"from": "gpt", "value": "Both."}]
    record = {"sample_id": "1", "image": ["a.jpg", "b.jpg"], "conversations": turns}
    return put(here / "m4", {"m4.json": json.dumps([record]), "a.jpg": PHOTO, "b.jpg": PHOTO})


def tars(here):
    folder = put(here / "loose", {"a.jpg": PHOTO, "a.txt": "a cat"})
    (here / "tars").mkdir()
    with tarfile.open(here / "tars" / "00000.tar", "w") as tar:
        for name in ("a.jpg", "a.txt"):
            tar.add(folder / name, name)
    return here / "tars"


def test_one_of_several_splits_is_chosen(here):
    for split in ("test", "train"):
        folder = put(here / "splits" / split, {f"{split}.jpg": PHOTO, f"{split}.txt": "a text"})
    said = init(folder.parent)
    assert "with the splits test, train: source.split says which is read" in said
    config = BuildConfig.load("splits.yaml")
    assert config.source.split == "train"
    assert [found.id for found in samples_of(open_source(config.source))] == ["train/train.jpg"]


def parquet(here):
    (here / "hub").mkdir()
    rows = [{"picture": {"bytes": PHOTO, "path": "a.jpg"}, "words": "a cat"}]
    pq.write_table(pa.Table.from_pylist(rows), here / "hub" / "train.parquet")
    return here / "hub"


def json_lines(here):
    rows = ({"id": 1, "image": f"pictures/{name}.jpg", "caption": "a cat"} for name in ("gone", "a"))
    return put(here / "lines", {"all.jsonl": "\n".join(map(json.dumps, rows)), "pictures/a.jpg": PHOTO})


def dataset(here):
    settings = {"source": {"kind": "folder", "uri": "photos"}, "output": {"uri": "finished"}, "models": "demo"}
    folder = make_dataset(here / "finished", [[make_sample(0)]])
    return configure(folder, **BuildConfig.parse(settings).deciding())


def exported(here):
    """COCO files in the folders of their images, as Roboflow and others export them."""
    document = json.loads((coco(here, "instances") / "annotations/instances_train2017.json").read_text())
    name = document["images"][1]["file_name"]
    files = {f"{split}/_annotations.coco.json": json.dumps(document) for split in ("test", "train")}
    return put(here / "exported", files | {f"{split}/{name}": PHOTO for split in ("test", "train")})


def table_beside(here):
    files = {"results.csv": "image_name| comment_number| comment\na.jpg| 0| a cat\n", "flickr30k_images/a.jpg": PHOTO}
    return put(here / "flickr", files)


KINDS = {
    "folder": (lambda here: put(here / "photos", {"x/a.jpg": PHOTO, "x/a.txt": "a cat", "b.jpg": PHOTO}), "folder", {}),
    "json lines": (
        json_lines,
        "folder",
        {"table": "all.jsonl", "file_column": "image", "text_column": "caption"},
    ),
    "table of parquet": (
        lambda here: (
            pq.write_table(
                pa.Table.from_pylist([{"file_name": "a.jpg", "text": "a cat"}]),
                put(here / "photos", {"a.jpg": PHOTO}) / "table.parquet",
            )
            or here / "photos"
        ),
        "folder",
        {"table": "table.parquet"},
    ),
    "tars": (tars, "webdataset", {}),
    "coco": (coco, "coco", {"texts": "caption", "split": "train2017", "images": None}),
    "coco instances": (lambda here: coco(here, "instances"), "coco", {"texts": "categories"}),
    "coco as exported": (exported, "coco", {"annotations": "train/_annotations.coco.json", "images": "train"}),
    "table beside images": (
        table_beside,
        "folder",
        {"file_column": "image_name", "text_column": "comment", "images": "flickr30k_images"},
    ),
    "coco elsewhere": (my_coco, "coco", {"annotations": "mine.json", "images": "pictures"}),
    "visual genome": (visual_genome, "visual-genome", {"texts": "regions", "images": "images"}),
    "references": (references, "references", {"images": "images/train2014", "split": "train"}),
    "llava": (
        llava,
        "conversations",
        {"annotations": "mine.json", "images": "pictures", "missing_mark": "prepend"},
    ),
    "documents": (interleave, "conversations", {"documents": True, "id_column": "sample_id"}),
    "parquet": (parquet, "parquet", {"image_column": "picture", "text_columns": ("words",)}),
    "patchmint": (dataset, "patchmint", {}),
}


@pytest.mark.parametrize(("make", "kind", "settings"), KINDS.values(), ids=KINDS)
def test_every_kind_is_recognised(here, make, kind, settings):
    folder = make(here)
    shown = init(folder.name, "--models", "demo")
    path = here / f"{folder.name}.yaml"
    assert f"\n  patchmint build {path.name} --dry-run\n" in shown
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=patchmint.schema.json\n")
    jsonschema.validate(yaml.safe_load(text), json.loads((here / "patchmint.schema.json").read_text()))
    config = BuildConfig.load(path)
    assert (config.source.kind, config.source.uri) == (kind, folder.name)
    assert ("\non_bad_image: reject\n" in text) == config.gives_documents
    assert {key: getattr(config.source, key) for key in settings} == settings
    check_buildable(config)
    assert any(sample.fault is None for sample in samples_of(open_source(config.source)))


@pytest.mark.parametrize("data", ["captions_train2017.json", "{here}/coco/annotations/captions_train2017.json"])
def test_annotations_are_beside_the_images_folder(here, monkeypatch, data):
    monkeypatch.chdir(coco(here) / "annotations")
    with pytest.raises(ConfigError, match="point at the folder that holds both") if "/" not in data else nullcontext():
        init(data.format(here=here), "--models", "demo")
    monkeypatch.chdir(here / "coco")
    init("annotations/captions_train2017.json", "--models", "demo")
    config = BuildConfig.load("captions_train2017.yaml")
    assert (config.source.uri, config.source.split) == (".", "train2017")
    check_buildable(config)


@pytest.mark.parametrize(
    ("make", "file", "settings"),
    [
        (coco, "annotations/captions_train2017.json", {"uri": "coco", "split": "train2017"}),
        (llava, "mine.json", {"uri": "mix", "images": "pictures"}),
        (tars, "00000.tar", {"uri": "tars/00000.tar"}),
        (parquet, "train.parquet", {"uri": "hub/train.parquet"}),
        (json_lines, "all.jsonl", {"uri": "lines", "table": "all.jsonl"}),
    ],
)
def test_a_file_of_it_will_do(here, make, file, settings):
    folder = make(here)
    init(f"{folder.name}/{file}", "--models", "demo", "--output-config", "some.yaml")
    config = BuildConfig.load(here / "some.yaml")
    assert {key: getattr(config.source, key) for key in settings} == settings
    check_buildable(config)


def test_nothing_is_overwritten_and_the_output_stays_out_of_the_data(here, monkeypatch):
    folder = KINDS["folder"][0](here)
    monkeypatch.chdir(folder)
    shown = init()
    assert "  patchmint models pull small\n" in shown
    before = (folder / "photos.yaml").read_text()
    assert BuildConfig.load(folder / "photos.yaml").output.uri == f"{folder}-patchmint"
    with pytest.raises(InputError, match=r"photos\.yaml exists; --force"):
        init(".", "--models", "demo")
    assert (folder / "photos.yaml").read_text() == before
    init(".", "--models", "demo", "--out", "s3://bucket/out", "--force")
    assert BuildConfig.load(folder / "photos.yaml").output.uri == "s3://bucket/out"


def test_a_table_in_this_folder_puts_its_output_elsewhere(here, monkeypatch):
    monkeypatch.chdir(json_lines(here))
    init("all.jsonl", "--models", "demo")
    check_buildable(BuildConfig.load("all.yaml"))


def test_what_isnt_recognised_is_told_what_was_looked_for(here):
    put(here / "odd", {"notes.md": "no data", "a.json": '{"a": 1}', "b.csv": "x,y\n1,2\n", "c.jpg": PHOTO})
    with pytest.raises(
        ConfigError, match=r"(?s)a known kind.*webdataset .*conversations .*There is: 'a\.json', 'b\.csv'"
    ):
        init("odd")
    folder = coco(here)
    shutil.rmtree(folder / "train2017")
    with pytest.raises(ConfigError, match=r"captions_train2017\.json names images such as '0.*none of them"):
        init("coco")
    with pytest.raises(ConfigError, match="no folder"):
        init("nowhere")
    assert not list(here.glob("*.yaml"))
