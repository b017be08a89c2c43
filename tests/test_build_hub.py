"""Builds from the Hub and to it: the same data set as from a folder and to one, at one commit of the source."""

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builds import STAND_IN, asked, build_here, digests, make_config, patchmint
from source_files import image_bytes

from patchmint.config import BuildConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.run import resolved
from patchmint.training import StageDataset

SOURCE, TARGET = "hf://datasets/org/photos", "hf://datasets/org/labelled"


@pytest.fixture
def photos(tmp_path):
    """A folder of Parquet files as on the Hub."""
    (tmp_path / "photos" / "data").mkdir(parents=True)
    images = [{"bytes": image_bytes(kind=kind), "path": f"{kind}.x"} for kind in ("JPEG", "PNG", "JPEG", "PNG", "JPEG")]
    table = pa.table({"image": images, "text": [f"thing number {number}" for number in range(5)]})
    pq.write_table(table, tmp_path / "photos" / "data" / "train.parquet", row_group_size=2)
    return tmp_path / "photos"


def test_from_the_hub_to_the_hub(hub, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    name = "data/train.parquet"
    repo = hub.put("org/photos", {name: (photos / name).read_bytes()}, private=True)
    commit = repo.head
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(variable, value)
    settings = {"track": "wandb", "source": {"kind": "parquet", "uri": SOURCE}, "grid": "siglip-so400m-384"}
    config = make_config(tmp_path / "config.json", SOURCE, TARGET, 2, **settings)
    said = patchmint("build", config)
    assert "5 planned = 5 written" in said.stdout
    assert f"reading {SOURCE}@{commit}\n" in said.stderr
    assert f"/datasets/org/labelled; its copy in {tmp_path}/cache/staging/org--labelled may be deleted" in said.stdout
    built, labelled = tmp_path / "cache" / "staging" / "org--labelled", hub.repos["org/labelled"]
    assert labelled.private
    assert digests(built).items() <= digests_of(labelled.files).items()
    manifest = json.loads(labelled.files["dataset.json"])
    assert manifest["config"]["source"]["uri"] == f"{SOURCE}@{commit}"
    assert f"{SOURCE}@{commit}".encode() in labelled.files["README.md"]

    monkeypatch.syspath_prepend(str(STAND_IN))
    (told,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert re.search(rb"written.{1,4}5\b", told.read_bytes(), re.DOTALL)
    assert b"box_threshold" in told.read_bytes()

    build_here(config, tmp_path / "local", {"source.uri": str(photos)})
    tars = {path: digest for path, digest in digests(tmp_path / "local").items() if path.endswith(".tar")}
    assert tars.items() <= digests(built).items()
    here, there = StageDataset(tmp_path / "local", stage=1), StageDataset(TARGET, stage=1)
    assert len(here) == len(there) == 5
    for index in range(5):
        assert here[index].key == there[index].key
        for array in ("pixels", "selector", "codes"):
            assert np.array_equal(getattr(here[index], array), getattr(there[index], array))

    repo.commit({name: b"something else"})  # a build that is resumed goes on with what it began with
    assert resolved(BuildConfig.load(config, {"output.uri": str(built)})).source.uri == f"{SOURCE}@{commit}"
    assert resolved(BuildConfig.load(config, {"output.uri": str(tmp_path / "n")})).source.uri == f"{SOURCE}@{repo.head}"
    assert asked("status", TARGET, "--json")["state"] == "finished"
    several = [
        {"name": "hub", "kind": "parquet", "uri": SOURCE},
        {"name": "here", "kind": "folder", "uri": str(photos)},
    ]
    pinned = resolved(BuildConfig.parse({"sources": several, "output": {"uri": str(built)}})).sources
    assert [source.uri for source in pinned] == [f"{SOURCE}@{commit}", str(photos)]


def digests_of(files):
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def test_an_output_on_the_hub_is_for_one_machine(tmp_path):
    config = make_config(tmp_path / "config.json", tmp_path, TARGET)
    with pytest.raises(ConfigError, match="a cluster's workers don't share; build into a store"):
        BuildConfig.load(config, {"runner.kind": "ray"})
    with pytest.raises(ConfigError, match=f"patchmint push FOLDER {TARGET}"):
        resolved(BuildConfig.load(config))


def test_init_recognises_what_is_there(hub, photos, tmp_path):
    name = "data/train.parquet"
    hub.put("org/photos", {name: (photos / name).read_bytes()})
    patchmint("init", f"{SOURCE}@main", "--output-config", tmp_path / "c.yaml")
    config = BuildConfig.load(tmp_path / "c.yaml")
    assert (config.source.kind, config.source.uri, config.output.uri) == ("parquet", f"{SOURCE}@main", "out/photos")
