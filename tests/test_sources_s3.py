"""Sources on an object store and on the Hub: the same samples and bytes as from a folder, over the real protocols."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from shard_data import copy
from source_files import fixture, image_bytes, put, read, refused, samples_of, source

from patchmint.config.build import BuildConfig
from patchmint.errors import ImageMissingError
from patchmint.pipeline.sources import open_sources
from patchmint.pipeline.sources.recognise import recognise
from patchmint.samples import ImageRef


@pytest.fixture(params=["s3", "hub"])
def brought(request, monkeypatch):
    """A function that brings a folder there, and says where."""
    if request.param == "s3":
        bucket = request.getfixturevalue("server").new_bucket(monkeypatch)
        return lambda root: copy(root, bucket)
    hub = request.getfixturevalue("hub")

    def put_there(root):
        hub.put("org/name", {f"in/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*.*")})
        return "hf://datasets/org/name/in"

    return put_there


def data_set(kind, folder):
    match kind:
        case "folder":
            return put(folder, {"a.jpg": image_bytes(), "a.txt": "one", "a b/é.png": b"x", "a b/é.json": '"two"'})
        case "webdataset":
            for shard in range(2):
                with webdataset.TarWriter(str(folder / f"{shard:05}.tar")) as writer:
                    for key in "ab":
                        writer.write({"__key__": key, "jpg": image_bytes(), "txt": f"{key} {shard}"})
            return folder
        case "parquet":
            images = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": "2.jpg"}]
            pq.write_table(pa.table({"image": images, "text": ["a", "b"]}), folder / "a.parquet", row_group_size=1)
            return folder
        case "coco":
            return put(fixture("coco", folder), {f"train2017/{n:012}.jpg": b"image %d" % n for n in (9, 25)})
        case "visual-genome":
            return put(fixture("visual_genome", folder), {"VG_100K/2.jpg": b"2", "VG_100K_2/1.jpg": b"1"})
        case "references":
            images = {f"train2014/COCO_train2014_{n:012}.jpg": b"x" for n in (581857, 1234)}
            return put(fixture("references", folder), images)
        case _:
            turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "hello"}]
            entry = {"id": 1, "image": "a.jpg", "conversations": turns}
            return put(folder, {"llava_v1_5_mix665k.json": json.dumps([entry]), "a.jpg": b"x"})


@pytest.mark.parametrize(
    "kind", ["folder", "webdataset", "parquet", "coco", "visual-genome", "references", "conversations"]
)
def test_the_same_as_from_a_folder(tmp_path, brought, kind):
    root = data_set(kind, tmp_path)
    bucket = brought(root)
    given = {"split": "all"} if kind == "references" else {}
    here, there = source(kind, root, **given), source(kind, bucket, **given)
    samples = samples_of(here)
    assert [(s.id, s.image, s.texts) for s in samples_of(there)] == [(s.id, s.image, s.texts) for s in samples]
    recognised = dict(recognise(bucket).source)
    assert (recognised["kind"], recognised["uri"]) == (kind, bucket)
    assert read(**recognised, **given) == samples
    good = [sample.image for sample in samples if sample.fault is None]
    assert good
    assert [there.read_image(ref) for ref in good] == [here.read_image(ref) for ref in good]
    if kind not in ("webdataset", "parquet"):
        with pytest.raises(ImageMissingError):
            there.read_image(ImageRef("none.jpg"))


def test_ranges_and_single_files(tmp_path, brought):
    bucket = brought(data_set("webdataset", tmp_path))
    assert len(read("webdataset", f"{bucket}/{{00000..00001}}.tar")) == 4
    assert len(read("webdataset", f"{bucket}/00001.tar")) == 2
    refused("1 of 3 tars", "webdataset", f"{bucket}/{{00000..00002}}.tar")


def test_several_sources_in_stores_and_folders(tmp_path, brought):
    """Of equal ids each reads its own image."""
    for name in ("one", "two"):
        put(tmp_path / name, {"a.jpg": name, "a.txt": name})
    given = [{"name": "one", "uri": brought(tmp_path / "one")}, {"name": "two", "uri": str(tmp_path / "two")}]
    config = {"sources": [{"kind": "folder"} | each for each in given], "output": {"uri": str(tmp_path / "out")}}
    sources = open_sources(BuildConfig.parse(config | {"models": "demo"}))
    sources.check()
    samples = samples_of(sources)
    assert [(sample.id, sources.read_image(sample.image)) for sample in samples] == [
        ("a.jpg", b"one"),
        ("a.jpg", b"two"),
    ]
