"""README.md, by which the folder is read; and what may lie beside the tars."""

import yaml
from shard_data import make_dataset, make_sample

from patchmint.shards.manifest import read_manifest
from patchmint.shards.readme import write_readme
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
