"""README.md, by which the folder is read; and what may lie beside the tars."""

import json

import yaml
from shard_data import DOCUMENTS, make_dataset, make_document, make_sample, members_of, write_shard
from training_data import RICH

from patchmint.shards.manifest import Manifest, Totals, read_manifest
from patchmint.shards.readme import metadata, write_readme
from patchmint.shards.records import ImageCounts
from patchmint.shards.verify import verify
from patchmint.storage import open_storage


def written(folder):
    make_dataset(folder, [[make_sample(0), make_sample(1)], [make_sample(2)]])
    storage = open_storage(folder)
    write_readme(storage, read_manifest(storage))
    return storage


def tars_of(readme):
    _, metadata, text = readme.read_text().split("---\n", 2)
    (config,) = yaml.safe_load(metadata)["configs"]
    ((split),) = config["data_files"]
    assert split["split"] == "train"
    return [path.name for path in readme.parent.glob(split["path"])], text


def test_it_names_the_tars_and_nothing_lies_beside_them(tmp_path):
    """Ray Data takes whatever lies in a folder for a tar."""
    written(tmp_path)
    tars, text = tars_of(tmp_path / "README.md")
    assert sorted(tars) == ["000000.tar", "000001.tar"] == sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert "3 images with 4 texts, in 2 WebDataset shards" in text


def test_documents_have_a_column_for_each_image_of_the_longest():
    layout = DOCUMENTS.model_copy(update={"features": RICH.features})
    images = ImageCounts(planned=9, written=9, most=3)
    totals = Totals.of([], 0, {}).model_copy(update={"images": images})
    manifest = Manifest.model_construct(layout=layout, totals=totals)
    columns = {entry["name"]: entry for entry in metadata(manifest)["dataset_info"]["features"]}
    assert tuple(columns) == (*layout.members_of(3), "__key__", "__url__")
    assert columns["2.jpg"] == {"name": "2.jpg", "dtype": "image"}
    assert columns["0.selector.npy"] == {"name": "0.selector.npy", "list": {"list": {"list": "uint8"}}}
    assert columns["2.vqgan.npy"]["list"] == {"list": "uint16"}
    assert columns["1.features.npy"]["list"] == {"list": "float16"}
    told = json.loads(dict(members_of(write_shard([make_document(1)], DOCUMENTS)[0]))["d0001.json"])
    assert fields(columns["json"]["struct"]) == shape(told)


def fields(struct):
    """Names, as far down as there are any."""
    return {
        entry["name"]: fields(entry["struct"])
        if "struct" in entry
        else fields(entry["list"])
        if isinstance(entry.get("list"), list)
        else None
        for entry in struct
    }


def shape(value):
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return shape(value[0]) if isinstance(value, list) and isinstance(value[0], dict) else None


def test_a_readme_of_ones_own_is_kept(tmp_path):
    storage = written(tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    (tmp_path / "README.md").write_text("my own")
    write_readme(storage, read_manifest(storage))
    assert (tmp_path / "README.md").read_text() == "my own"
    (tmp_path / "README.md").write_bytes(before.replace(b"3 images", b"no images"))
    write_readme(storage, read_manifest(storage))
    assert (tmp_path / "README.md").read_bytes() == before


def test_other_programs_indexes_may_lie_beside_the_tars(tmp_path):
    storage = written(tmp_path)
    shards = tmp_path / "shards"
    (shards / ".nv-meta").mkdir()
    for name in (".nv-meta/.info.json", ".nv-meta/index.sqlite", "000000.tar.idx", "index.json", "sizes.json"):
        (shards / name).write_text("{}")
    assert not list(verify(storage))
    (shards / "000009.tar").write_bytes(b"")
    (shards / "extra.parquet").write_bytes(b"")
    (tmp_path / "rejects").mkdir(exist_ok=True)
    (tmp_path / "rejects" / "notes.txt").write_text("x")
    (tmp_path / "sidecars" / "000009.parquet").write_bytes(b"")
    found = [(finding.shard, finding.code) for finding in verify(storage)]
    assert sorted(found) == [
        ("rejects/notes.txt", "file-stray"),
        ("shards/000009.tar", "file-stray"),
        ("shards/extra.parquet", "file-stray"),
        ("sidecars/000009.parquet", "file-stray"),
    ]
