"""The build's settings: files, overrides, errors that say what to write, and what decides the bytes."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.config import MODEL_PRESETS, UNTRAINED
from patchmint.config.build import BuildConfig, LocalRunner, RayRunner, json_schema
from patchmint.errors import ConfigError
from patchmint.json_values import differences

ROOT = Path(__file__).parents[1]
BASE = {"source": {"kind": "coco", "uri": "data/coco"}, "output": {"uri": "out"}, "models": UNTRAINED}


def parse(**changes):
    return BuildConfig.parse(BASE | changes)


def test_defaults():
    config = parse()
    assert config.output.samples_per_shard == 1000
    assert config.runner == LocalRunner(workers=1, num_cpus=None, device="auto", batch_size=None)
    assert (config.limits.max_reject_share, config.limits.max_image_megapixels) == (0.05, 100)
    assert config.features is None
    assert parse(runner={"kind": "ray"}).runner == RayRunner(
        address=None, min_actors=1, max_actors=8, num_gpus=1, num_cpus=4, batch_size=None
    )
    assert parse(runner={"workers": 2}).runner == LocalRunner(workers=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": {"kind": "ray", "max_actor": 3}}, "max_actor: there is no such setting; did you mean 'max_actors'"),
        ({"runner": {"kind": "local", "max_actors": 3}}, "runner.max_actors: .*have it: ray .known: kind, workers"),
        ({"source": {"kind": "coco", "uri": "x", "documents": True}}, "source.documents: .*; kinds that have it: webd"),
        ({"runner": {"kind": "rya"}}, "runner.kind: there is no kind 'rya'; did you mean 'ray'.*local, ray"),
        ({"runner": {"kind": "ray", "min_actors": 9}}, r"runner: max_actors \(8\) is less than min_actors \(9\)"),
        ({"runner": {"kind": "ray", "num_gpus": 1.5}}, "runner.num_gpus: .*whole number"),
        ({"runner": {"device": "tpu"}}, "runner.device"),
        ({"runner": 3}, "runner: it must be a mapping"),
        ({"source": {"uri": "x"}}, "source.kind: it must be given.*folder.*coco"),
        ({"source": {"kind": "coco"}}, "source.uri: it must be given"),
        ({"source": {"kind": "coco", "uri": "x", "split_": "y"}}, "source.split_: .*did you mean 'split'"),
        ({"outputs": {}}, "outputs: there is no such setting; did you mean 'output'"),
        ({"output": {"uri": "x", "samples_per_shard": 0}}, "output.samples_per_shard"),
        ({"output": None}, r"output: it must be a mapping \(keys: uri, samples_per_shard, images_per_shard, prefix\)"),
        ({"grid": {"rows": 2, "colums": 2}}, "grid.colums: there is no such setting; did you mean 'cols'"),
        ({"grid": {"rows": 2, "cols": 2, "patch_px": 14}}, "^grid.fit: it must be given$"),
        ({"features": {"connector": "cdi"}}, "features.connector"),
        ({"features": {"pool": [12]}}, "features.pool"),
        ({"limits": {"max_reject_share": 1.5}}, "limits.max_reject_share"),
        ({"labels": None, "tokens": None}, "nothing to make"),
        ({"source": {"kind": "parquet", "uri": "x", "image_texts": "own"}}, "source: image_texts is about documents"),
        ({"source": {"kind": "interleaved", "uri": "x", "dedupe": "image"}}, "source.dedupe: it compares pictures"),
        ({"output": {"uri": "x", "images_per_shard": 9}}, "output.images_per_shard is about documents"),
        (
            {
                "source": None,
                "sources": [
                    {"kind": "interleaved", "uri": "x", "name": "a"},
                    {"kind": "coco", "uri": "x", "name": "b"},
                ],
            },
            "sources: some give documents, some pictures",
        ),
    ],
)
def test_errors_name_the_setting(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "s3://key@bucket/x", "az://container/x?sig=secret"])
@pytest.mark.parametrize("section", ["source", "output"])
def test_credentials_have_no_place_in_a_config(section, uri):
    with pytest.raises(ConfigError, match=f"{section}.uri must not carry") as caught:
        parse(**{section: BASE[section] | {"uri": uri}})
    assert "secret" not in str(caught.value)
    parse(**{section: BASE[section] | {"uri": "photos@home/what?"}})


def test_a_file_is_read(tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text("source: {kind: coco, uri: data}\noutput: {uri: out}\nmodels: official\ntokens: null\n")
    config = BuildConfig.load(path)
    assert config.models == MODEL_PRESETS["official"]
    assert config.tokens is None
    assert config.source.uri == "data"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: [1", "build.yaml.*line 1: this isn't valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", "build.yaml.*line 3: .*the key 'a' is there twice"),
        (b"a:\n  b: 1\n  b: 2\n", "build.yaml.*line 3: .*the key 'b' is there twice"),
        (b"", "build.yaml.*must hold a mapping .* not nothing"),
        (b"- 1\n", "build.yaml.*not a list"),
        (b"a: !!python/object/apply:os.system [ls]\n", "build.yaml.*line 1"),
        (b"a: \x00", "build.yaml.*isn't valid YAML"),
        (b"a: \xff", "isn't UTF-8"),
        (None, "there is no config file"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, data, message):
    path = tmp_path / "build.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        BuildConfig.load(path)
    with pytest.raises(ConfigError, match="can't be read"):
        BuildConfig.load(tmp_path)


FROM_OPTIONS = {"source.kind": "coco", "source.uri": "data", "output.uri": "out", "models": UNTRAINED}


def test_options_go_over_the_file(tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text(
        "source: {kind: coco, uri: data, split: val2017}\noutput: {uri: out, samples_per_shard: 7}\nmodels: official\n"
        "labels: {box_threshold: 0.4}\ntokens: null\ngrid: seed-224\n"
        "runner: {kind: local, workers: 3, num_cpus: 2, batch_size: 5}\n"
    )

    def load(**overrides):
        return BuildConfig.load(path, {key.replace("__", "."): value for key, value in overrides.items()})

    assert load(labels__min_coverage=0.5).labels.box_threshold == 0.4
    assert load(labels=None, tokens={}).labels is None
    assert load(tokens__size=128).tokens.size == 128
    assert load(models__masker="sam-vit-b").models.masker == "sam-vit-b"
    assert load(models__masker="sam-vit-b").models.detector == MODEL_PRESETS["official"].detector
    assert load(models=UNTRAINED, models__masker="sam-vit-b").models.detector == UNTRAINED
    assert load(runner__kind="ray", runner__max_actors=2).runner == RayRunner(max_actors=2, num_cpus=2, batch_size=5)
    assert load(runner__kind="local").runner.workers == 3
    assert load(source__kind="folder").source.model_dump(exclude_defaults=True) == {"kind": "folder", "uri": "data"}
    grid = {"rows": 2, "cols": 3, "patch_px": 14, "fit": "pad"}
    assert load(**{f"grid__{key}": value for key, value in grid.items()}).grid.cols == 3
    assert load(grid=grid, grid__cols=4).grid.cols == 4


def test_options_alone_are_checked_like_the_file():
    assert BuildConfig.load(None, FROM_OPTIONS) == parse(source={"kind": "coco", "uri": "data"})
    without_kind = {name: value for name, value in FROM_OPTIONS.items() if name != "source.kind"}
    for settings, message in (
        (FROM_OPTIONS | {"labels": None, "labels.box_threshold": 0.3}, "box_threshold and labels = None contradict"),
        (FROM_OPTIONS | {"runner.kind": "rya"}, "runner.kind: there is no kind 'rya'"),
        (FROM_OPTIONS | {"labels.box_treshold": 0.3}, "labels.box_treshold: .*did you mean 'box_threshold'"),
        (without_kind, "source.kind: it must be given"),
    ):
        with pytest.raises(ConfigError, match=message):
            BuildConfig.load(None, settings)


DECIDING = [
    {"source": {"kind": "coco", "uri": "other"}},
    {"source": {"kind": "coco", "uri": "data/coco", "split": "val2017"}},
    {"output": {"uri": "out", "samples_per_shard": 999}},
    {"models": MODEL_PRESETS[UNTRAINED].model_copy(update={"masker": "sam-vit-b"}).model_dump()},
    {"labels": {"box_threshold": 0.3}},
    {"labels": None},
    {"grid": "seed-224"},
    {"grids": ["llava-1.5-finetune", "seed-224"]},
    {"tokens": {"size": 128}},
    {"tokens": None},
    {"limits": {"max_image_megapixels": 99}},
]
NOT_DECIDING = [
    {"output": {"uri": "elsewhere"}},
    {"runner": {"kind": "ray"}},
    {"runner": {"batch_size": 2}},
    {"limits": {"max_reject_share": 0.5}},
    {"limits": {"max_image_megapixels": 100}},
    {"models": MODEL_PRESETS[UNTRAINED].model_dump()},
    {"labels": {}},
    {"grids": ["llava-1.5-finetune"]},
    {"track": "wandb"},
]


def test_the_digest_is_of_what_decides_the_bytes():
    digest = parse().digest({"masker": "1"})
    assert len(digest) == 64
    assert all(parse(**changes).digest({"masker": "1"}) == digest for changes in NOT_DECIDING)
    others = [parse(**changes).digest({"masker": "1"}) for changes in DECIDING]
    others.append(parse().digest({"masker": "2"}))
    assert len({digest, *others}) == len(DECIDING) + 2
    assert BuildConfig.model_fields.keys() == set(parse().deciding()) | {
        *("runner", "track", "sources", "on_bad_image", "grids")
    }
    source = {"kind": "parquet", "uri": "x", "documents": True}
    decided = parse(source=source).deciding()
    assert (decided["on_bad_image"], decided["limits"]["max_images"]) == ("reject", 100)
    others = [{"on_bad_image": "drop"}, {"limits": {"max_images": 9}}, {"source": source | {"image_texts": "own"}}]
    others.append({"output": BASE["output"] | {"images_per_shard": 9}})
    digests = [parse(**({"source": source} | changes)).digest({}) for changes in ({}, *others)]
    assert len({*digests, parse(source=source | {"documents": False}).digest({})}) == 6


def test_an_unused_model_decides_nothing():
    other = MODEL_PRESETS[UNTRAINED].model_copy(update={"masker": "sam-vit-b"}).model_dump()
    assert parse(labels=None).digest({}) == parse(labels=None, models=other).digest({})


def test_differences_are_told_key_by_key():
    there = parse(labels={"box_threshold": 0.35}, grid="seed-224").deciding()
    here = parse(labels={"box_threshold": 0.3}, tokens=None, source={"kind": "folder", "uri": "data/coco"}).deciding()
    assert set(differences(there, here)) >= {
        "labels.box_threshold: 0.35 there, 0.3 here",
        "grid: seed-224 there, llava-1.5-finetune here",
        'tokens: {"size": 256, "fit": "pad", "remap": null, "rule": null} there, null here',
        "source.kind: coco there, folder here",
        "source.split: train2017 there, not set here",
    }
    assert differences(there, there) == []


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam.pth").write_bytes(b"")
    models = MODEL_PRESETS[UNTRAINED].model_copy(update={"masker": "sam.pth"}).model_dump()
    config = parse(models=models, tokens={"remap": "used.npy"}).absolute()
    (tmp_path / "dino").mkdir()
    plugins = {"outside": {"checkpoint": "sam.pth"}}
    others = {"detector": "./dino", "masker": "sam.pth#ema", "tokenizer": "outside", "plugins": plugins}
    other = parse(models=others).absolute().models
    assert (other.detector, other.masker) == (str(tmp_path / "dino"), f"{tmp_path / 'sam.pth'}#ema")
    assert (other.vocabulary, other.plugins["outside"].checkpoint) == (
        str(tmp_path / "dino"),
        str(tmp_path / "sam.pth"),
    )
    hub = parse(models={"detector": "hub:org/name@main"}).absolute().models
    assert (hub.detector, hub.vocabulary) == ("hub:org/name@main", "hub:org/name@main")
    paths = (config.source.uri, config.output.uri, config.models.masker, config.tokens.remap)
    assert paths == tuple(str(tmp_path / name) for name in ("data/coco", "out", "sam.pth", "used.npy"))
    assert config.models.detector == UNTRAINED
    assert config.absolute() == config
    stored = parse(source=BASE["source"] | {"uri": "s3://bucket/x"}, output={"uri": "gs://bucket/y"}).absolute()
    assert (stored.source.uri, stored.output.uri) == ("s3://bucket/x", "gs://bucket/y")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert parse(output={"uri": "~/out"}).absolute().output.uri == str(tmp_path / "out")


def test_the_kept_json_schema_is_current():
    assert (ROOT / "docs" / "schemas" / "build.schema.json").read_text() == json_schema()


@pytest.mark.parametrize(
    "changes",
    [
        *({"models": preset} for preset in MODEL_PRESETS),
        {"models": {"masker": "sam-vit-b"}, "labels": None, "features": {"pool": 12}},
        {
            "features": {"pool": [12, 8], "layers": [[3], [4, 5]]},
            "grid": {"rows": 2, "cols": 2, "patch_px": 14, "fit": "pad"},
        },
        {"runner": {"num_cpus": 2, "batch_size": 8}},
        {"runner": {"kind": "ray", "num_cpus": 2}},
        {"source": {"kind": "parquet", "uri": "x", "text_columns": "words"}},
        *({"models": wrong} for wrong in ("offical", 3, None, {"detektor": "x"})),
        {"runner": {"kind": "local", "max_actors": 3}},
        {"source": {"uri": "x"}},
        {"source": {"kind": "coco", "uri": "x", "split_": "y"}},
        {"outputs": {}},
        {"features": {"pool": [12]}},
        {"limits": {"max_reject_share": 1.5}},
    ],
    ids=str,
)
def test_the_schema_takes_what_a_build_takes(changes):
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    try:
        parse(**changes)
    except ConfigError:
        assert not validator.is_valid(BASE | changes)
    else:
        validator.validate(BASE | changes)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("[mq]*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_shown_with_its_defaults(path):
    done = CliRunner().invoke(app, ["config", "show", str(path), "--output.uri", "elsewhere"], catch_exceptions=False)
    shown = yaml.safe_load(done.stdout)
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema()))
    assert BuildConfig.load(shown) == BuildConfig.load(path, {"output.uri": "elsewhere"})
    assert shown["limits"]["max_image_megapixels"] == 100
