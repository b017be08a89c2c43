"""Builds from several sources, and from chosen samples: names in the data set, counts, and what commands say."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builds import asked, build_here, digests, make_config, make_input, patchmint, warmed
from inspect_data import answer
from shard_data import joined, stored

from patchmint.datasets.dataset import open_dataset
from patchmint.errors import BuildError
from patchmint.jobs.card import make_card
from patchmint.pipeline.driver import build as driver
from patchmint.shards.manifest import read_manifest
from patchmint.shards.verify import verify
from patchmint.storage import open_storage


@pytest.fixture
def stand_ins():
    with warmed():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of photographs, and the same ones in Parquet with other texts, under the same names."""
    root = tmp_path_factory.mktemp("data")
    photos = make_input(root / "photos", [f"thing {n}" for n in range(6)])
    (root / "table").mkdir()
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "a": f"table {n}", "b": None, "score": n}
        for n, path in enumerate(sorted(photos.glob("*.jpg"))[::-1])
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("a", pa.string()), ("b", pa.string()), ("score", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "table/0.parquet", row_group_size=2)
    return root


def two(data, **changes):
    """The settings of both sources."""
    photos = {"name": "photos", "kind": "folder", "uri": str(data / "photos")}
    table = {"name": "table", "kind": "parquet", "uri": str(data / "table"), "text_columns": ["a", "b"]}
    return [photos, table | {"where": "score >= 2"} | changes]


def config_of(path, out, sources):
    """A config of several sources."""
    config = json.loads(make_config(path, "", out, 4).read_text())
    del config["source"]
    path.write_text(json.dumps(config | {"sources": sources}))
    return path


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """A data set of both, and what the build said."""
    folder = tmp_path_factory.mktemp("built")
    said = patchmint("build", config_of(folder / "c.json", folder / "out", two(data))).stdout
    return folder / "out", said


def test_samples_say_which_source_they_are_of(data, built):
    out, said = built
    assert "10 planned = 10 written + 0 rejected, in 3 units\nabsent: 6 text-null; not chosen: 2 where\n" in said
    samples = list(stored(out))
    documents = [sample.document for sample in samples]
    assert [document.source.name for document in documents] == ["photos"] * 6 + ["table"] * 4
    names = [document.id for document in documents]
    assert names[6:] == ["003.jpg", "002.jpg", "001.jpg", "000.jpg"]
    images = {path.name: path.read_bytes() for path in (data / "photos").glob("*.jpg")}
    assert [sample.image for sample in samples] == [images[name] for name in names]
    assert documents[6].texts == ("table 2",)
    assert len({sample.key for sample in samples}) == 10
    assert list(verify(open_storage(out))) == []


def test_counts_and_names_are_found(built):
    out, _ = built
    counts = {"not-chosen-where": 2, "text-null": 6}
    assert answer("find", out, "--where", "source_name = 'table'")["found"] == 4
    assert asked("status", out, "--json")["absent"] == counts
    told = answer("info", out)
    assert told["totals"]["absent"] == counts
    assert [source["name"] for source in told["held"]["source"]] == ["photos", "table"]
    assert "absent: 6 text-null; not chosen: 2 where" in patchmint("status", out).stdout
    shown = patchmint("inspect", "info", out).stdout
    assert "besides   absent: 6 text-null; not chosen: 2 where" in shown
    assert "name photos" in shown
    storage = open_storage(out)
    card = make_card(open_dataset(out), read_manifest(storage), "org/x", "")["README.md"].decode()
    assert "Not among them: absent: 6 text-null; not chosen: 2 where." in card
    assert "where: score >= 2" in card
    assert str(out.parent) not in card
    document = json.loads((out / "dataset.json").read_text())
    assert (document["schema"], document["totals"]["absent"]) == ("patchmint.dataset/2", counts)
    document["totals"]["absent"] = {}
    (out / "dataset.json").write_text(json.dumps(document))
    assert [finding.code for finding in verify(open_storage(out))] == ["counts"]
    patchmint("build", out.parent / "c.json")
    assert list(verify(open_storage(out))) == []


@pytest.mark.usefixtures("stand_ins")
def test_a_build_of_several_sources_is_resumed_to_the_same_bytes(data, built, tmp_path, monkeypatch):
    out, _ = built
    config = config_of(tmp_path / "c.json", tmp_path / "out", two(data))
    reports = []

    def stop(progress, result, *_):
        if result is not None:
            reports.append(result)
            raise BuildError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_report", stop)
        with pytest.raises(BuildError, match="stopped"):
            build_here(config, tmp_path / "out")
    report = build_here(config, tmp_path / "out")
    assert (len(reports), report.done_before, report.planned, report.missing) == (1, 1, 10, 0)
    shards = {path: digest for path, digest in digests(out).items() if path.startswith("shards/")}
    assert shards.items() <= digests(tmp_path / "out").items()


def test_another_choice_is_another_build(data, built):
    out, _ = built
    changed = config_of(out.parent / "d.json", out, two(data, take=1))
    said = patchmint("build", changed, rc=2).stderr
    assert "holds a build with other settings" in said
    assert "sources" in said


def test_an_extension_keeps_the_names(built, tmp_path):
    out, _ = built
    options = ("--labels", "{}", "--source.where", "source_name = 'table'")
    patchmint("extend", out, *options[:2])
    assert [sample.document.source.name for sample in joined(out, ["labels"])] == ["photos"] * 6 + ["table"] * 4
    part = make_config(tmp_path / "c.json", out, out / "columns" / "part")
    patchmint("build", part, "--source.kind", "patchmint", *options[2:])
    assert [sample.document.source.name for sample in joined(out, ["part"])] == ["table"] * 4


def test_a_dry_run_counts_both_and_shows_why(data, tmp_path):
    config = config_of(tmp_path / "c.json", tmp_path / "out", two(data, where="", dedupe="image"))
    (data / "photos/bad.jpg").write_bytes(b"no image")
    (data / "photos/bad.txt").write_text("x")
    try:
        said = patchmint("build", config, "--dry-run").stdout
        found = asked("build", config, "--dry-run", "--json", "--source.take", "2")
    finally:
        for path in (data / "photos").glob("bad.*"):
            path.unlink()
    assert "samples   13 with 13 texts" in said
    assert "besides   absent: 6 text-null" in said
    assert "dedupe isn't tried" in said
    assert "1 (1 image-damaged) of 13 images" in said
    assert "image-damaged, such as bad.jpg: bad.jpg: " in said
    assert (found["samples"], found["share"]) == (4, 1.0)


@pytest.mark.usefixtures("stand_ins")
def test_a_share_of_rejects_is_one_of_samples(tmp_path):
    """Bad texts beside good ones, many of them, don't stop a build; what was written nothing of is shown how to see."""
    root = make_input(tmp_path / "in", ["x"] * 6)
    for path in root.glob("*.txt"):
        path.unlink()
        path.with_suffix(".json").write_text(json.dumps({"texts": ["good", *[" "] * 9]}))
    config = make_config(tmp_path / "c.json", root, tmp_path / "out", 3)
    assert asked("build", config, "--dry-run", "--json")["reject_share"] == 0
    report = build_here(config, tmp_path / "out")
    assert (report.written, report.rejects) == (6, {"part-text-empty": 54})
    for path in root.glob("*.json"):
        path.write_text('{"texts": [" "]}')
    said = patchmint("build", config, "--output.uri", tmp_path / "none", rc=1).stderr
    assert f"this shows why: patchmint inspect find {tmp_path / 'none'} --rejects" in said
    assert answer("find", tmp_path / "none", "--rejects")["found"] == 6
