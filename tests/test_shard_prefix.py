"""`output.prefix`: other names of shards, and the same data set."""

import json
import re
import shutil

import pytest
from inspect_data import answer
from shard_data import LAYOUT, commit_unit, finish, make_reject, make_sample, write_plan

from patchmint.config import BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import ConfigError, ShardError
from patchmint.shards.paths import PREFIX, prefix_and_unit
from patchmint.shards.shard_list import read_shard_list
from patchmint.shards.verify import verify
from patchmint.storage import open_storage
from patchmint.training import shard_urls


@pytest.fixture
def folder(tmp_path):
    """Three units, of which the second wrote nothing."""
    out = tmp_path / "out"
    write_plan(out, {0: 3, 1: 1, 2: 1}, output={"prefix": "coco2017-"})
    samples = [[make_sample(0), make_sample(1)], [], [make_sample(2)]]
    rejects = [[make_reject(3)], [make_reject(4)], []]
    for unit in range(3):
        commit_unit(out, unit, samples[unit], rejects[unit], prefix="coco2017-")
    finish(out, [0, 1, 2], 5, 2, LAYOUT)
    return out


def test_shards_begin_with_it_and_are_found(folder):
    for room, ending in (("shards", "tar"), ("sidecars", "parquet")):
        names = {path.name for path in (folder / room).iterdir()}
        assert names == {f"coco2017-00000{unit}.{ending}" for unit in (0, 2)}
    assert not list(verify(open_storage(folder)))
    assert read_shard_list(open_storage(folder)).prefix == "coco2017-"
    assert [url.rpartition("/")[2] for url in shard_urls(folder)] == ["coco2017-000000.tar", "coco2017-000002.tar"]
    shown = answer("ls", folder)
    assert [shard["name"] for shard in shown["shards"]] == [
        "shards/coco2017-000000.tar",
        None,
        "shards/coco2017-000002.tar",
    ]


@pytest.mark.parametrize("gone", [("shards.json",), ("shards.json", "plan.parquet", "plan", "commits", "rejects")])
def test_without_the_list_and_in_a_copy_of_the_shards_only(folder, gone):
    for name in gone:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    opened = open_dataset(folder)
    assert [shard.tar for shard in opened.shards if shard.samples] == [
        "shards/coco2017-000000.tar",
        "shards/coco2017-000002.tar",
    ]
    assert opened.samples == 3


def test_names_that_dont_do(folder):
    def config(prefix):
        source = {"kind": "folder", "uri": "in"}
        return BuildConfig.parse({"source": source, "output": {"uri": "out", "prefix": prefix}, "models": "demo"})

    for prefix in ("coco-", "a", "2017_x", ""):
        assert re.fullmatch(PREFIX, config(prefix).output.prefix)
        assert prefix_and_unit(f"shards/{prefix}000012.tar") == (prefix, 12)
    for prefix in ("coco2017", "A-", "a/b-", "../", "x" * 41, "a\n"):
        with pytest.raises(ConfigError, match="prefix"):
            config(prefix)
        assert not re.fullmatch(PREFIX, prefix)
    assert "prefix" not in config("").deciding()["output"]
    assert config("coco-").deciding()["output"]["prefix"] == "coco-"
    document = json.loads((folder / "shards.json").read_bytes())
    (folder / "shards.json").write_text(json.dumps(document | {"prefix": "../../x-"}))
    with pytest.raises(ShardError, match="can't begin"):
        read_shard_list(open_storage(folder))
