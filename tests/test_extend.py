"""Extending finished data sets: what is asked for is made, everything else is carried over to the last byte."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from builds import check_files, committed, digests, make_config, make_input, patchmint, run
from shard_data import stored
from typer.testing import CliRunner

from patchmint.annotate.models import AnnotationModels
from patchmint.cli.inspect import inspect_app
from patchmint.config import AnnotatorConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery.remake import offer_decoded, offer_masks
from patchmint.jobs import extend
from patchmint.shards.manifest import held_settings, read_manifest
from patchmint.shards.verify import verify
from patchmint.storage import open_storage

# Ids too long for a key, unlawful as one, and alike: their keys mustn't be made from keys again.
IDS = ["a", "b" * 70, "C", "d.e", "f", "g/a", "a"]
OPTIONS = ("--features.connector", "dci", "--features.pool", 12, "--models.vit", "untrained-tiny")


def told(*arguments, rc=0):
    """All that the command printed."""
    done = patchmint(*arguments, rc=rc)
    return done.stdout + done.stderr


def samples(out):
    """All samples by key."""
    return {sample.key: sample for sample in stored(out)}


def source_of(folder):
    """LLaVA's layout: conversations must survive too. One image is cut off: a reject of the first build."""
    names = [f"{place:03d}.jpg" for place in range(len(IDS))]
    make_input(folder / "images", [""] * len(names), damaged={3})
    records = []
    for own, image in zip(IDS, names, strict=True):
        said = ("<image>\nWhat is it?", f"thing {image}", "And?", "<img src=x> & \u202e more")
        turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(said)]
        records.append({"id": own, "image": image, "conversations": turns})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished data set of six samples in three shards, and one reject."""
    folder = tmp_path_factory.mktemp("base")
    source = source_of(folder / "source")
    config = make_config(folder / "config.yaml", source, folder / "out", 3, limits={"max_reject_share": 0.5})
    run(config, folder / "out", "--source.kind", "llava")
    assert any(key.startswith("a__") for key in samples(folder / "out"))
    return folder / "out"


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory):
    """The same with features of a tiny vision encoder."""
    out = tmp_path_factory.mktemp("extended") / "out"
    said = told("extend", base, out, *OPTIONS)
    assert "6 planned = 6 written + 0 rejected" in said
    assert "untrained" in said
    return out


def test_features_are_added_and_the_rest_is_carried_over(base, extended):
    before, after = samples(base), samples(extended)
    assert list(before) == list(after)
    manifest = read_manifest(open_storage(str(extended)))
    form = manifest.layout.features
    assert (form.connector, form.grid, form.pool) == ("dci", (12, 12), "before")
    for key, sample in after.items():
        old = before[key]
        changed = {ending for ending in sample.members if sample.members[ending] != old.members.get(ending)}
        assert changed == {"json", "features.npy"}
        fields, kept = sample.document.model_dump(), old.document.model_dump()
        assert {name for name in fields if fields[name] != kept[name]} == {"features_json", "notice"}
        assert sample.features.shape == (144, form.channels)
        assert sample.features.dtype == np.float16
        assert sample.document.features == form
    assert before["a"].document.conversation == after["a"].document.conversation != ()
    assert list(verify(open_storage(str(extended)))) == []


def test_features_are_those_of_the_image(base, extended):
    """Each sample got its own image's features."""
    settings = {"labels": None, "tokens": None, "features": {"connector": "dci", "pool": 12}}
    models = AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny", **settings}), "cpu")
    before, after = samples(base), samples(extended)
    for key in before:
        pixels = decode_image(before[key].image).pixels
        expected = models.annotate([pixels], [[]])[0].features
        np.testing.assert_allclose(after[key].features.astype(np.float32), expected.astype(np.float32), atol=2e-2)
        others = [float(np.abs(after[other].features - after[key].features).mean()) for other in before if other != key]
        own = float(np.abs(after[key].features - expected).mean())
        assert own < min(others) / 5


def test_the_manifest_tells_where_it_comes_from(base, extended):
    before, after = read_manifest(open_storage(str(base))), read_manifest(open_storage(str(extended)))
    assert after.layout.min_coverage == before.layout.min_coverage
    assert after.layout.tokens == before.layout.tokens
    assert after.models["segmenter"] == before.models["segmenter"]
    assert after.models["extended"].name == str(base)
    assert after.models["extended"].sha256 == digests(base)["dataset.json"]
    assert after.models["vit"].name == "untrained-tiny"
    assert "untrained" in after.notice
    assert after.totals.planned == after.totals.written == before.totals.written
    assert next(member.shape for member in after.members if member.ending == "features.npy")[0] == "144"


def inspected(*arguments, code=0):
    done = CliRunner().invoke(inspect_app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_inspection_speaks_of_what_the_shards_hold(base, extended):
    """Not of the last command's settings, in which all that was carried over is null."""
    before, after = (json.loads(inspected("info", folder, "--json"))["held"] for folder in (base, extended))
    assert before["labels"]["min_coverage"] == read_manifest(open_storage(str(base))).layout.min_coverage
    for name in ("labels", "tokens", "source", "grid"):
        assert after[name] == before[name] is not None
    assert (before["features"], after["features"]["connector"]) == (None, "dci")
    assert after["models"] == before["models"] | {"vit": "untrained-tiny"}
    shown = [inspected("info", folder).splitlines() for folder in (base, extended)]
    first, second = ({line[:10].strip(): line[10:] for line in lines} for lines in shown)
    assert first["labels"] == second["labels"] != "none"
    assert first["tokens"] == second["tokens"] != "none"
    assert first["features"] == "none" != second["features"]
    found = json.loads(inspected("diff", base, extended, "--json", code=1))["settings"]
    changed = {change["field"] for change in found if change["field"].startswith("config.")}
    assert {field.split(".")[1] for field in changed} == {"features", "models"}
    assert {field for field in changed if field.startswith("config.models")} == {"config.models.vit"}
    for offer in (offer_masks, offer_decoded):
        assert offer(open_dataset(extended), True) == offer(open_dataset(base), True)


def test_labels_and_codes_can_be_made_anew(extended, tmp_path):
    """Settings that aren't named are those of the first build: the same segmenter gives the same coverage."""
    out = tmp_path / "out"
    told("extend", extended, out, "--labels.min-coverage", 0.5, "--models.tokenizer", "untrained-tiny")
    before, after = samples(extended), samples(out)
    manifest = read_manifest(open_storage(str(out)))
    assert manifest.layout.min_coverage == 0.5
    used = {role: entry.name.split()[0] for role, entry in manifest.models.items() if role != "extended"}
    assert used == {"segmenter": "stand-in", "tokenizer": "untrained-tiny", "vit": "untrained-tiny"}
    assert manifest.notice.count("untrained") == 1
    for key, sample in after.items():
        assert sample.members["features.npy"] == before[key].members["features.npy"]
        assert sample.members["coverage.npy"] == before[key].members["coverage.npy"]
        assert sample.selector.sum() < before[key].selector.sum()
        assert sample.codes.shape != before[key].codes.shape
        assert "vqgan.npy" in sample.members
        assert "stand-in.npy" not in sample.members
    assert list(verify(open_storage(str(out)))) == []
    held, last = held_settings(manifest), held_settings(read_manifest(open_storage(str(extended))))
    assert held["labels"] == last["labels"] | {"min_coverage": 0.5}
    assert held["features"] == last["features"] != manifest.config["features"]
    assert held["models"] == last["models"] | {"tokenizer": "untrained-tiny"}


def test_the_same_command_goes_on_and_ends_with_the_same_bytes(base, extended):
    expected = digests(extended)
    for path in ("commits/000001.json", "shards/000001.tar", "sidecars/000001.parquet", "dataset.json"):
        (extended / path).unlink()
    assert "6 planned = 6 written" in told("extend", base, extended, *OPTIONS)
    check_files(extended, expected)
    assert len(committed(extended)) == 2


def test_a_base_that_has_changed_is_refused(base, extended):
    manifest = base / "dataset.json"
    held = manifest.read_text()
    manifest.write_text(held.replace('"licence": ""', '"licence": "other"', 1))
    try:
        said = told("extend", base, extended, *OPTIONS, rc=2)
    finally:
        manifest.write_text(held)
    assert "other settings" in said
    assert "models.extended" in said


def test_a_damaged_sample_is_a_reject(base, tmp_path):
    """Its place in the shard still holds a sample, but not what it said."""
    damaged = shutil.copytree(base, tmp_path / "base")
    tar = damaged / "shards" / "000000.tar"
    data = tar.read_bytes()
    assert data.count(b'"annotators_json":"[') > 1
    tar.write_bytes(data.replace(b'"annotators_json":"[', b'"annotators_json":"{', 1))
    said = told("extend", damaged, tmp_path / "out", "--models.tokenizer", "untrained-tiny", "--tokens.size", 64)
    assert "6 planned = 5 written + 1 rejected (1 sample-damaged)" in said
    table = pq.read_table(tmp_path / "out" / "rejects" / "000000.parquet").to_pylist()
    assert table[0]["key"] in samples(base)
    assert "inspect verify" in table[0]["message"]


def settings_after(*configs, made):
    """What the command takes over from data sets that were built one from the other, the first one first."""
    config = None
    for each in configs:
        config = BASE | each | ({"extended": config} if config else {})
    manifest = SimpleNamespace(config=config)
    return extend.settings_of(manifest, "in", "out", made)


def test_held_settings_of_manifests_that_others_wrote(base):
    manifest = read_manifest(open_storage(str(base)))
    for config in ({}, {"labels": 5, "models": None, "extended": 7}, {"labels": {}, "models": {"other": "x"}}):
        held = held_settings(manifest.model_copy(update={"config": config}))
        assert (held["labels"], held["tokens"], held["features"], held["models"]) == ({}, {}, None, {})


BASE = {"output": {"samples_per_shard": 7}, "grid": "seed-224", "limits": {"max_image_megapixels": 400}, "models": {}}
BASE |= dict.fromkeys(("labels", "tokens", "features"))
LABELLED = {"labels": {"min_coverage": 0.1}, "models": {"segmenter": "plugged"}}
AGAIN = {"labels": {"min_coverage": 0.2}, "models": {"detector": "d", "vocabulary": "v", "masker": "m"}}
CODED = {"tokens": {"size": 64}, "models": {"tokenizer": "t"}}


def test_settings_are_those_that_made_it_last():
    settings = settings_after(LABELLED, AGAIN, CODED, made={"labels"})
    assert settings["models"] == {"detector": "d", "vocabulary": "v", "masker": "m", "tokenizer": "t"}
    assert settings["labels"] == {"min_coverage": 0.2}
    assert settings["tokens"] is settings["features"] is None
    assert (settings["limits"], settings["grid"]) == (BASE["limits"], "seed-224")
    assert settings["output"] == {"uri": "out", "samples_per_shard": 7}
    # what was never made gets default settings
    assert settings_after(CODED, made={"features"})["features"] == {}
    tiny = {"tokens": {"size": 64}, "models": {"tokenizer": "untrained-tiny"}}
    assert settings_after(tiny, made={"features"})["models"]["vit"] == "untrained-tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to make"),
        (("--features.connector", "none", "--grid", "seed-224"), "labels that are carried over"),
        (("--features.connector", "ddci"), "features.connector"),
    ],
)
def test_what_makes_no_sense_is_refused(base, tmp_path, options, message):
    said = " ".join(told("extend", base, tmp_path / "out", *options, rc=2).split())
    assert message in said
    assert not (tmp_path / "out").exists()


def test_only_finished_data_sets_can_be_extended(base, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    (half / "dataset.json").unlink()
    assert "only a finished data set" in told("extend", half, tmp_path / "out", "--tokens", "{}", rc=2)
    lost = shutil.copytree(base, tmp_path / "lost")
    (lost / "sidecars" / "000001.parquet").unlink()
    said = told("extend", lost, tmp_path / "out", "--tokens", "{}", rc=2)
    assert "name 3 samples" in said or "inspect verify" in said
