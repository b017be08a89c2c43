"""The demo's weights: in the package, known by their bytes, used where no model is named, never without a notice."""

import json
import shutil
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from builds import build_here, make_config, make_input
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from patchmint import Annotator
from patchmint.annotate.preflight import check_loadable
from patchmint.api import DemoWarning
from patchmint.cli import main, models
from patchmint.config import DEMO, DEMO_NOTICE, MODEL_PRESETS, UNTRAINED, UNTRAINED_NOTICE, AnnotatorConfig
from patchmint.config.build import BuildConfig
from patchmint.errors import ConfigError, WeightsCorruptError, WeightsMissingError
from patchmint.jobs import doctor
from patchmint.pipeline.plan import record_models
from patchmint.shards.manifest import read_manifest
from patchmint.shards.reader import iter_samples
from patchmint.storage import open_storage
from patchmint.weights import store
from patchmint.weights.checksums import sha256_of
from patchmint.weights.loading import load_named
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import REINSTALL, bundled_folder, locate

ROOT = Path(__file__).parent.parent
BUNDLED = {name: checkpoint for name, checkpoint in CHECKPOINTS.items() if checkpoint.bundled}
ROLES = {"detector": "grounding-dino", "vocabulary": "vocabulary", "masker": "sam", "tokenizer": "vqgan", "vit": "vit"}


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    """A machine on which nothing was ever pulled."""
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path / "weights"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A copy of the package's folder, to be broken."""
    folder = shutil.copytree(bundled_folder(), tmp_path / "bundled")
    monkeypatch.setattr(store, "bundled_folder", lambda: folder)
    return folder


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    image = Image.new("RGB", (160, 120), (120, 115, 110))
    ImageDraw.Draw(image).ellipse((30, 30, 80, 80), fill=(210, 30, 30))
    image.save(path)
    return path


@pytest.fixture
def patchmint(monkeypatch, capsys):
    """The command in this process: what it ends with, and what it writes."""

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["patchmint", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run_main


def run(*words):
    return CliRunner().invoke(models.models_app, list(words))


def parse(models, **settings):
    return AnnotatorConfig.parse({"models": models, **settings})


def build_config(**settings):
    return BuildConfig.load(None, {"source.kind": "folder", "source.uri": "a", "output.uri": "b", **settings})


def test_the_package_holds_these_files_and_no_others():
    files = {path.name: path for path in bundled_folder().iterdir()}
    assert files.keys() == {checkpoint.filename for checkpoint in BUNDLED.values()}
    for checkpoint in BUNDLED.values():
        path = files[checkpoint.filename]
        assert (path.stat().st_size, sha256_of(path)) == (checkpoint.size, checkpoint.sha256), checkpoint.name
        assert path.stat().st_size < 12e6
    assert sum(path.stat().st_size for path in files.values()) <= 20e6


def test_the_files_are_part_of_what_is_installed():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = metadata["tool"]["setuptools"]["package-data"]["patchmint.weights"]
    for path in bundled_folder().iterdir():
        assert any(fnmatch(str(path.relative_to(ROOT / "patchmint" / "weights")), pattern) for pattern in patterns)


def test_the_presets_models_are_the_registrys():
    used = MODEL_PRESETS[DEMO].used(labels=True, tokens=True, features=True)
    assert {role: BUNDLED[name].kind for role, name in used.items()} == ROLES
    assert set(used.values()) == BUNDLED.keys()


def test_a_bundled_file_is_the_packages_whatever_lies_in_the_weights_folder(empty):
    empty.mkdir()
    for name, checkpoint in BUNDLED.items():
        (empty / checkpoint.filename).write_bytes(b"another")
        assert locate(name) == bundled_folder() / checkpoint.filename
    assert load_named("demo-masker").metadata["patchmint.arch"]


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize(("damage", "error"), [("missing", WeightsMissingError), ("cut", WeightsCorruptError)])
def test_a_broken_installation_says_so(installed, name, damage, error):
    path = installed / BUNDLED[name].filename
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    whole = build_config(features={})
    for use in (lambda: locate(name), lambda: check_loadable(whole), lambda: record_models(whole)):
        with pytest.raises(error) as caught:
            use()
        assert name in str(caught.value)
        assert REINSTALL in str(caught.value)
        assert "models pull" not in str(caught.value)


def test_list_says_that_they_are_there(installed):
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    for name, checkpoint in BUNDLED.items():
        assert rows[name]["bundled"] is rows[name]["present"] is True
        assert rows[name]["path"] == str(installed / checkpoint.filename)
        assert (rows[name]["sha256"], rows[name]["licence"]) == (checkpoint.sha256, "Apache-2.0")
        assert "model-card" in rows[name]["source"]
    assert rows["sam-vit-b"]["bundled"] is rows["sam-vit-b"]["present"] is False
    assert run("list").stdout.count("bundled") == len(BUNDLED)
    (installed / BUNDLED["demo-masker"].filename).unlink()
    assert run("list").stdout.count("bundled") == len(BUNDLED) - 1


def test_check_looks_at_them_too(installed):
    rows = {row["name"]: row["status"] for row in json.loads(run("check", "--json").stdout)}
    assert {name: rows[name] for name in BUNDLED} == dict.fromkeys(BUNDLED, "ok")
    assert run("check").exit_code == run("check", *BUNDLED).exit_code == 0
    path = installed / BUNDLED["demo-tokenizer"].filename
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (installed / BUNDLED["demo-vocabulary"].filename).unlink()
    found = run("check")  # nothing is named: what isn't pulled may be absent, what comes with the package may not
    assert found.exit_code == 1
    assert "demo-vocabulary, demo-tokenizer" in found.stderr
    assert REINSTALL in found.stderr
    assert "models pull" not in found.stderr


def test_pull_has_nothing_to_do(installed, empty, tmp_path):
    for options in ((), ("--to", str(tmp_path / "else"))):
        result = run("pull", "demo-detector", *options)
        assert result.exit_code == 0
        assert result.stdout == f"{installed / 'demo-detector.safetensors'}\n"
        assert "comes with patchmint" in result.stderr
        assert "PATCHMINT_WEIGHTS" not in result.stderr
    assert not empty.exists()
    assert not (tmp_path / "else").exists()
    path = installed / "demo-detector.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    error = run("pull", "demo-detector").exception
    assert isinstance(error, WeightsCorruptError)
    assert REINSTALL in str(error)


def test_no_models_named_means_the_demos():
    assert AnnotatorConfig.parse({}).models == MODEL_PRESETS[DEMO]
    assert AnnotatorConfig.parse({}).notice == DEMO_NOTICE
    assert build_config().models == MODEL_PRESETS[DEMO]
    # one model named: the others are official, as in a mapping
    official = MODEL_PRESETS["official"]
    assert build_config(**{"models.masker": "sam-vit-b"}).models.detector == official.detector
    assert parse({"masker": "sam-vit-b"}).models == official.model_copy(update={"masker": "sam-vit-b"})


@pytest.mark.parametrize(
    ("models", "settings", "notice"),
    [
        (DEMO, {}, DEMO_NOTICE),
        ({"tokenizer": "demo-tokenizer"}, {}, DEMO_NOTICE),
        ({"masker": "demo-masker"}, {"tokens": None}, DEMO_NOTICE),
        ({"detector": "demo-detector"}, {}, DEMO_NOTICE),
        ({"tokenizer": "demo-tokenizer", "masker": UNTRAINED}, {}, UNTRAINED_NOTICE),
        ({"tokenizer": "demo-tokenizer"}, {"tokens": None}, ""),
        ({"detector": "demo-detector", "segmenter": "toy"}, {}, ""),
        ("official", {}, ""),
    ],
)
def test_the_notice_appears_where_a_demo_model_takes_part(models, settings, notice):
    assert parse(models, **settings).notice == notice


def test_the_demos_detector_and_vocabulary_go_together():
    assert parse({"detector": "demo-detector"}).models.vocabulary == "demo-vocabulary"
    assert parse({"masker": "demo-masker"}).models.vocabulary == "bert-base-uncased-vocab"
    # what isn't used decides nothing
    parse({"vocabulary": "demo-vocabulary"}, labels=None)
    parse({"vocabulary": "demo-vocabulary", "segmenter": "toy"})


@pytest.mark.parametrize(
    "named",
    [
        {"detector": "demo-detector", "vocabulary": "bert-base-uncased-vocab"},
        {"detector": "demo-detector", "vocabulary": "mine/vocab.txt"},
        {"detector": "demo-detector", "vocabulary": UNTRAINED},
        {"vocabulary": "demo-vocabulary"},
        {"vocabulary": "demo-vocabulary", "detector": "mine/detector.pth"},
        {"vocabulary": "demo-vocabulary", "detector": UNTRAINED},
        MODEL_PRESETS[DEMO].model_dump() | {"detector": "groundingdino-swint-ogc"},
    ],
)
def test_the_demos_detector_and_vocabulary_go_with_nothing_else(named):
    with pytest.raises(ConfigError, match=r"models\.vocabulary: .* demo-detector reads demo-vocabulary"):
        parse(named)


def test_missing_official_weights_point_to_the_demo(empty):
    with pytest.raises(WeightsMissingError, match="models preset demo") as caught:
        check_loadable(parse({"tokenizer": "demo-tokenizer"}))
    assert "demo-tokenizer" not in str(caught.value)


def test_a_plan_knows_them_by_their_bytes_and_licence():
    records = record_models(build_config())
    assert {role: record.name for role, record in records.items()} == MODEL_PRESETS[DEMO].used(labels=True, tokens=True)
    for record in records.values():
        wanted = BUNDLED[record.name]
        assert (record.sha256, record.size, record.licence) == (wanted.sha256, wanted.size, "Apache-2.0")


def test_the_api_warns_and_labels(scene):
    with pytest.warns(DemoWarning, match="drawn scenes"):
        annotator = Annotator.from_config({}, device="cpu")
    annotation = annotator.annotate(scene, "a red circle")
    assert annotation.notice == annotation.to_document().notice == DEMO_NOTICE
    assert annotation.selector.shape == (1, 24, 24)
    assert annotation.codes.shape == (16, 16)


def test_label_without_models_works_after_an_install(scene, patchmint):
    code, out, err = patchmint("label", scene, "--text", "a red circle", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["models"] == MODEL_PRESETS[DEMO].used(labels=True, tokens=True)
    assert (document["notice"], err) == (DEMO_NOTICE, f"warning: {DEMO_NOTICE}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models.masker", "sam-vit-b"), "groundingdino-swint-ogc, bert-base-uncased-vocab, sam-vit-b, vqgan"),
        (("--models", "demo", "--models.masker", "sam-vit-b"), "this machine: sam-vit-b. Get"),
        (("--models", "demo", "--models.detector", "groundingdino-swint-ogc"), "demo-detector reads demo-vocabulary"),
        (("--models", "demos"), "presets: official, small, demo, untrained-tiny"),
    ],
)
def test_label_with_single_models(scene, options, message, patchmint):
    code, _, err = patchmint("label", scene, "--text", "a red circle", *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_build_without_models_says_which_it_takes(tmp_path, patchmint):
    source = make_input(tmp_path / "in", ["a red circle"])
    options = ("--source.kind", "folder", "--source.uri", source, "--output.uri", tmp_path / "out")
    code, out, err = patchmint("build", *options, "--dry-run")
    assert code == 0, err
    assert f"warning: {DEMO_NOTICE}" in err
    assert "detector demo-detector, vocabulary demo-vocabulary, masker demo-masker" in out


def test_samples_and_manifest_of_a_build_carry_the_notice(tmp_path):
    source = make_input(tmp_path / "in", ["a red circle", "a blue square"])
    features = {"connector": "dci", "pool": 6}
    config = make_config(tmp_path / "build.yaml", source, tmp_path / "out", models=DEMO, features=features)
    build_here(config, tmp_path / "out")
    storage = open_storage(tmp_path / "out")
    samples = list(iter_samples(storage, "shards/000000.tar"))
    assert [sample.document.notice for sample in samples] == [DEMO_NOTICE] * 2
    assert [sample.features.shape for sample in samples] == [(36, 3 * 128)] * 2
    manifest = read_manifest(storage)
    assert manifest.notice == DEMO_NOTICE
    digests = {role: BUNDLED[f"demo-{role}"].sha256 for role in ROLES}
    assert {role: entry.sha256 for role, entry in manifest.models.items()} == digests


def test_doctor_looks_at_them(installed, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", {})
    monkeypatch.setattr(doctor, "_ray_cluster", lambda config: doctor.Finding("Ray cluster", "ok", "not asked"))

    def found(config):
        return {finding.what: finding for finding in doctor.examine(config, None)}

    assert found(None)["demo models"].status == "ok"
    monkeypatch.setattr(doctor, "_output", lambda uri: iter(()))
    named = found(build_config())["model files"]
    assert named.status == "note"
    assert DEMO_NOTICE in named.detail
    (installed / "demo-vocab.txt").write_text("[PAD]\n")
    broken = found(build_config())
    for what in ("demo models", "model files"):
        assert (broken[what].status, broken[what].remedy) == ("fail", REINSTALL)
