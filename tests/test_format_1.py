"""Data sets of format 1, as patchmint wrote them before format 2 (`shards/versions`): read, verified and extended.

`fixtures/format1` was built by that code from three photographs and a damaged one, with stand-ins' labels and codes.
"""

import json
import shutil
from pathlib import Path

import pytest
from builds import asked, make_config, make_input, patchmint
from inspect_data import answer
from shard_data import joined, stored

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.rows import iter_tables
from patchmint.datasets.verify import verify_all
from patchmint.errors import ShardError
from patchmint.shards.manifest import read_manifest
from patchmint.shards.plan import load_plan
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.schema import read_key_json
from patchmint.shards.verify import verify
from patchmint.storage import open_storage
from patchmint.training import StageDataset

OLD = Path(__file__).parent / "fixtures/format1"


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def test_it_is_read(old):
    storage = open_storage(old)
    assert read_manifest(storage).schema_ == "patchmint.dataset/1"
    assert read_manifest(storage).to_bytes() == (old / "dataset.json").read_bytes()
    samples = list(stored(old))
    assert {sample.document.schema_ for sample in samples} == {"patchmint.sample/1"}
    assert {sample.document.source.name for sample in samples} == {""}
    assert [sample.selector.shape[0] for sample in samples] == [1, 1, 1]
    plan = load_plan(storage)
    assert (plan.version, plan.absent, plan.total) == (1, {}, 4)
    assert [planned.sample.image.source for planned in read_unit(storage, plan.units[0])] == ["", "", ""]
    tables = [table for _, table in iter_tables(open_dataset(old), ["source_name"])]
    assert [name for table in tables for name in table["source_name"].to_pylist()] == ["", "", ""]
    assert len(StageDataset(str(old), stage=1)) == 3


@pytest.mark.parametrize(
    "gone", [(), ("shards.json",), ("shards.json", "dataset.json"), ("shards.json", "plan", "plan.parquet", "commits")]
)
def test_its_sidecars_lie_beside_the_tars(old, gone):
    for name in gone:
        shutil.rmtree(old / name) if (old / name).is_dir() else (old / name).unlink()
    for opened in (open_dataset(old), open_dataset(old, check_files=False), open_dataset(f"{old}/shards/000000.tar")):
        assert opened.shards[0].sidecar == "shards/000000.parquet"
        assert sum(table.num_rows for _, table in iter_tables(opened, ["key"])) == 3


def test_it_verifies_and_is_searched(old):
    assert list(verify(open_storage(old))) == []
    assert answer("find", old, "--where", "source_name = '' and source_path <> ''")["found"] == 3
    assert answer("find", old, "--rejects", "--reason", "image-damaged")["found"] == 1
    assert answer("info", old)["totals"]["absent"] == {}
    assert answer("ls", old)["samples"] == 3
    assert (found := asked("status", old, "--json"))["absent"] == {}
    assert (found["state"], found["written"], found["rejects"]) == ("finished", 3, {"image-damaged": 1})
    (old / "shards/000000.parquet").write_bytes(b"no table")
    assert any(finding.code == "table-form" for finding in verify(open_storage(old)))


def test_it_is_extended_and_made_into_format_2(old, tmp_path):
    options = ("--features.connector", "dci", "--features.pool", 12, "--models.vit", "untrained-tiny")
    patchmint("extend", old, *options)
    assert list(verify_all(open_storage(old))) == []
    assert all(sample.features is not None for sample in joined(old))
    patchmint("compact", old, tmp_path / "new")
    assert list(verify(open_storage(tmp_path / "new"))) == []
    before, after = list(stored(old)), list(stored(tmp_path / "new"))
    assert [sample.members["features.npy"] for sample in after] == [s.members["features.npy"] for s in joined(old)]
    assert [sample.members["selector.npy"] for sample in after] == [sample.members["selector.npy"] for sample in before]
    assert {sample.document.schema_ for sample in after} == {"patchmint.sample/2"}
    assert read_manifest(open_storage(tmp_path / "new")).schema_ == "patchmint.dataset/2"


def test_its_build_is_not_gone_on_with(old, tmp_path):
    said = patchmint(
        "build", make_config(tmp_path / "c.json", make_input(tmp_path / "in", ["a thing"]), old), rc=2
    ).stderr
    assert "was begun by an earlier patchmint, in format 1" in said
    for done in ("commits", "shards", "rejects", "dataset.json", "shards.json"):
        shutil.move(old / done, tmp_path / done)
    said = patchmint("build", tmp_path / "c.json")
    assert "nothing is finished, is replaced: it is of format 1" in said.stderr
    assert "1 planned = 1 written" in said.stdout


def test_a_document_of_2_has_all_of_2(old):
    (first, *_) = stored(old)
    document = json.loads(first.members["json"])
    newer = {**document, "schema": "patchmint.sample/2"}
    with pytest.raises(ShardError, match=r"source\.name"):
        read_key_json(json.dumps(newer).encode())
    newer["source"]["name"] = "photos"
    assert read_key_json(json.dumps(newer).encode()).source.name == "photos"
