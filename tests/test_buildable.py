"""Wrong settings are refused before the source is read: the same words from each command, and nothing written."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builds import STAND_IN, SameProcess, build_here, make_config, make_input, patchmint
from safetensors.torch import save_file
from shard_data import copy
from source_files import fixture, put, source

from patchmint.annotate.preflight import check_loadable
from patchmint.cli import main
from patchmint.config import UNTRAINED, AnnotatorConfig
from patchmint.config.build import BuildConfig, apply_overrides
from patchmint.errors import BuildError, ConfigError, WeightsCorruptError, WeightsMismatchError, WeightsMissingError
from patchmint.features import arch as vit_arch
from patchmint.features.model import untrained_vit
from patchmint.geometry import grid_preset
from patchmint.jobs import doctor
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino.model import untrained as untrained_dino
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam.model import untrained as untrained_sam
from patchmint.pipeline.plan import discard_plan, make_plan, record_models, to_batches
from patchmint.pipeline.preflight import CHECKS, check_buildable
from patchmint.pipeline.run import resolved
from patchmint.pipeline.sources import open_source
from patchmint.storage import open_storage
from patchmint.tokenizers.vqgan.arch import TINY
from patchmint.tokenizers.vqgan.model import untrained_vqgan
from patchmint.weights.architecture import ARCH_METADATA_KEY

NAMED = {
    "grid": ({"grid": "llava-1.5-fintune"}, "grid: there is no grid preset 'llava-1.5-fintune'; did you mean 'llava-1"),
    "size": ({"tokens.size": 100}, "tokens.size: 100 px can't be cut into cells of 8 px"),
    "coverage": ({"labels.min_coverage": 0.997}, "labels.min_coverage: over 254/255 (0.996078) not even a fully"),
    "plug-in": ({"models.segmenter": "stand-inn"}, "no installed package offers 'stand-inn' in the entry point group"),
    "source": ({"source.uri": "/nowhere/at/all"}, "there is no folder /nowhere/at/all on"),
}
"""What is changed in a config that is right, and what is said."""

FURTHER = {
    "plug-in's name": ({"models.segmenter": "stand-inn"}, "did you mean 'stand-in'? (offered: stand-in)"),
    "tokenizer": ({"models.tokenizer": "stand-inn"}, "models.tokenizer: no weights are called 'stand-inn'"),
    "role": ({"models.tokenizer": "sam-vit-b"}, "models.tokenizer: sam-vit-b is of the kind sam; choose one of vqgan-"),
    "threshold": ({"labels.box_threshold": 1.0}, "labels.box_threshold: Input should be less than 1"),
    "not square": ({"grid": {"rows": 8, "cols": 9, "patch_px": 14, "fit": "crop"}}, "grid: fit crop needs a square"),
    "huge": ({"grid": {"rows": 1024, "cols": 9, "patch_px": 1024, "fit": "pad"}}, "an input of 1048576 x 9216 px"),
    "codes": ({"tokens.remap": "no.npy"}, "tokens.remap: "),
    "codes of others": ({"tokens.remap": "a.npy", "models.tokenizer": "stand-in"}, "tokens.remap is for VQGAN, but"),
    "layers": ({"features.layers": [[9]], "models.vit": UNTRAINED}, "features.layers are a connector's"),
    "encoder": ({"features": {}, "models.vit": "siglip-so400m-384"}, "grids that fit: siglip-so400m-384"),
    "kind": ({"source.kind": "coco"}, "there is no 'annotations/captions_train2017.json' in"),
    "table": ({"source.table": "a.csv"}, "there is no 'a.csv' in"),
    "no tars": ({"source.kind": "webdataset"}, "source.uri: there is no .tar in"),
    "nothing seen": ({"limits.max_image_megapixels": 1e-9}, "limits.max_image_megapixels"),
    "float16": ({"precision": "float16", "runner.device": "auto"}, "precision: float16 is for GPUs"),
}


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process, with stand-in models: it must end with `code` and say `says`; all it said."""
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setattr(doctor, "_PACKAGES", {})
    monkeypatch.setattr(doctor, "_ray_cluster", lambda config: doctor.Finding("Ray cluster", "ok", "not asked"))

    def run(*words, code, says):
        monkeypatch.setattr(sys, "argv", ["patchmint", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = " ".join("".join(capsys.readouterr()).split())
        assert (ended.value.code, says in said) == (code, True), said
        return said

    return run


@pytest.fixture
def right(tmp_path):
    """A config file of a build that succeeds, into `out` beside it."""
    photos = make_input(tmp_path / "in", [f"thing number {place}" for place in range(3)])
    models = {"segmenter": "stand-in", "tokenizer": UNTRAINED}
    return make_config(tmp_path / "config.yaml", photos, tmp_path / "out", 2, models=models)


def process(*words, rc):
    """The command line as a user's process; all that it says."""
    done = patchmint(*words, rc=rc)
    return " ".join((done.stdout + done.stderr).split())


def options(changes):
    """The same settings as options of a command."""
    for key, value in changes.items():
        yield f"--{key.replace('_', '-')}"
        yield value if isinstance(value, str) else json.dumps(value)


def changed(path, changes):
    """A config file with other settings, beside the one that there is."""
    settings = apply_overrides(BuildConfig, json.loads(path.read_text()), changes)
    wrong = path.with_name("wrong.yaml")
    wrong.write_text(json.dumps(settings))
    return wrong


@pytest.mark.parametrize(("changes", "message"), (NAMED | FURTHER).values(), ids=NAMED | FURTHER)
def test_each_command_refuses_it_in_the_same_words_and_writes_nothing(changes, message, right, command, tmp_path):
    if "precision" in changes and torch.cuda.is_available():
        pytest.skip("float16 is right here: there is a GPU")
    wrong = changed(right, changes)
    before = set(tmp_path.rglob("*"))
    for words in (("build", right, *options(changes)), ("build", wrong, "--dry-run")):
        command(*words, code=2, says=message)
    assert "FAIL" in command("doctor", wrong, code=1, says=message)
    assert set(tmp_path.rglob("*")) == before


def test_after_every_refusal_the_right_settings_build_into_the_same_folder(right, tmp_path):
    """As a user does it: processes of their own."""
    for changes, message in NAMED.values():
        assert message in process("build", right, *options(changes), rc=2)
        assert not (tmp_path / "out").exists()
    wrong = changed(right, NAMED["size"][0])
    assert NAMED["size"][1] in process("build", wrong, "--dry-run", rc=2)
    assert NAMED["size"][1] in process("doctor", wrong, rc=1)
    assert not (tmp_path / "out").exists()
    assert "3 planned = 3 written + 0 rejected" in process("build", right, rc=0)


@pytest.mark.parametrize("wrong", ["grid", "size", "coverage", "plug-in"])
def test_extending_is_refused_in_the_same_words(wrong, right, command, tmp_path):
    build_here(right, tmp_path / "base")
    changes, message = NAMED[wrong]
    extra = {"models.tokenizer": UNTRAINED} if wrong == "size" else {"labels": {}}
    before = set(tmp_path.rglob("*"))
    for more in ((), ("--dry-run",)):
        command("extend", tmp_path / "base", *options(extra | changes), *more, code=2, says=message)
    only = "only a finished data set of patchmint can be extended"
    command("extend", tmp_path / "nothing", *options(extra), code=2, says=only)
    assert set(tmp_path.rglob("*")) == before


def test_label_refuses_a_grid_in_the_same_words(command, tmp_path):
    (photo,) = make_input(tmp_path / "in", ["a thing"]).glob("*.jpg")
    words = ("label", photo, "--text", "a thing", "--models", UNTRAINED, "--grid", "llava-1.5-fintune")
    command(*words, code=2, says=NAMED["grid"][1].removeprefix("grid: "))


def test_all_that_is_wrong_is_told_at_once(right, command):
    problems = NAMED["grid"][0] | NAMED["coverage"][0]
    with pytest.raises(ConfigError) as caught:
        BuildConfig.load(right, problems)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["labels.min_coverage", "grid"]
    said = command("doctor", changed(right, problems), "--json", code=1, says="")
    findings = json.loads(said[said.index("[") :])
    assert [found["detail"] for found in findings if found["what"] == "settings"] == list(caught.value.problems)


def test_the_largest_coverage_that_keeps_a_covered_patch_is_allowed():
    assert AnnotatorConfig.parse({"labels": {"min_coverage": 254 / 255}}).labels.min_coverage == 254 / 255
    with pytest.raises(ConfigError, match="every label would be empty"):
        AnnotatorConfig.parse({"labels": {"min_coverage": 254.001 / 255}})


def test_a_worker_whose_plan_was_replaced_commits_nothing(right, command, tmp_path):
    out = tmp_path / "out"
    other = BuildConfig.load(right, {"labels.min_coverage": 0.5})

    class Late(SameProcess):
        def submit(self, worker, order):
            storage = open_storage(out)
            assert discard_plan(storage)
            make_plan(to_batches(open_source(other.source).samples()), other, record_models(other), storage)
            super().submit(worker, order)

    with pytest.raises(BuildError, match="isn't the plan that this build goes by any more"):
        build_here(right, out, pool=Late)
    assert not (out / "commits").exists()
    assert not (out / "attempts").exists()
    command("build", right, code=0, says="labels.min_coverage: 0.5 there, 0.0 here")
    other = f"{out} holds a build with other settings: labels.min_coverage: 0.0 there"
    command("build", right, "--labels.min-coverage", 0.5, code=2, says=other)


def test_outputs_that_would_eat_their_source_or_are_no_folder(right, command, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "file").write_text("")
    before = set(tmp_path.rglob("*"))
    for out, message in (
        (tmp_path / "in", "lies in the source"),
        (tmp_path / "in" / "deep" / "out", "lies in the source"),
        (tmp_path / "link" / "out", "lies in the source"),
        (f"file://{tmp_path}/in/out", "lies in the source"),
        (tmp_path / "file", f"{tmp_path}/file is a file; give a folder"),
        (tmp_path / "file" / "out", f"{tmp_path}/file is a file; give a folder"),
    ):
        command("build", right, "--output.uri", out, code=2, says=message)
    assert set(tmp_path.rglob("*")) == before
    check_buildable(BuildConfig.load(right, {"output.uri": str(tmp_path / "in-2")}))
    for out, inside in (("s3://b/a/", True), ("s3://b/a/out", True), ("s3://b/ab", False), ("s3://b", False)):
        with pytest.raises(ConfigError, match="lies in the source") if inside else nullcontext():
            CHECKS["output folder"](BuildConfig.load(right, {"source.uri": "s3://b/a", "output.uri": out}))


def test_a_build_that_is_done_needs_its_source_no_more(right, command, tmp_path):
    build_here(right, tmp_path / "out")
    shutil.rmtree(tmp_path / "in")
    command("build", right, code=0, says="3 planned = 3 written")
    command("build", right, "--labels.min-coverage", 0.5, code=2, says="there is no folder")


def test_doctor_leaves_no_folder_behind(right, command, tmp_path):
    command("doctor", right, "--out", tmp_path / "a" / "b", code=0, says="can be written")
    assert not (tmp_path / "a").exists()


def saved(folder, name, model, arch):
    tensors = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors", {ARCH_METADATA_KEY: arch.to_json()})
    return str(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints of one's own, by what they are."""
    folder = tmp_path_factory.mktemp("files")
    grid = grid_preset("seed-224")
    found = {
        "detector": saved(folder, "detector", untrained_dino(dino_arch.TINY), dino_arch.TINY),
        "masker": saved(folder, "masker", untrained_sam(sam_arch.TINY, seed=0), sam_arch.TINY),
        "tokenizer": saved(folder, "tokenizer", untrained_vqgan(TINY, seed=0), TINY),
        "vit": saved(folder, "vit", untrained_vit(vit_arch.untrained_arch(grid), 0), vit_arch.untrained_arch(grid)),
    }
    checkpoint = folder / "last.ckpt"
    torch.save({"state_dict": untrained_vqgan(TINY, seed=0).state_dict(), "epoch": 3}, checkpoint)
    for name, used in (("used", range(64)), ("beyond", range(2, 65))):
        np.save(folder / f"{name}.npy", np.array(used))
        found[name] = str(folder / f"{name}.npy")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?"]))
    (folder / "cut.safetensors").write_bytes((folder / "vit.safetensors").read_bytes()[:1000])
    return found | {each.stem: str(each) for each in (checkpoint, folder / "vocab.txt", folder / "cut.safetensors")}


def check(models, **settings):
    every = dict.fromkeys(("detector", "vocabulary", "masker", "tokenizer", "vit"), UNTRAINED)
    check_loadable(AnnotatorConfig.parse({"models": every | models, "tokens": None, "grid": "seed-224", **settings}))


def test_right_settings_of_files_are_found_right(files):
    check({role: files[role] for role in ("detector", "masker")})
    for name, rule in (("tokenizer", None), ("last", "nearest")):
        check({"tokenizer": files[name]}, tokens={"size": 72, "remap": files["used"], "rule": rule})
    check({"vit": files["vit"]}, features={"pool": 8})


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ({"tokenizer": "tokenizer"}, {"tokens": {"size": 100}}, "tokens.size: 100 px can't be cut into cells of 8 px"),
        ({"tokenizer": "last"}, {"tokens": {}}, r"last.ckpt: .* rule .* `tokens: {rule: nearest}`"),
        (
            {"tokenizer": "last"},
            {"tokens": {"size": 100, "rule": "dot"}},
            r"cells of 8 px, which .*last.ckpt has; .* such as 96",
        ),
        (
            {"tokenizer": "last"},
            {"tokens": {"remap": "beyond", "rule": "dot"}},
            r"tokens.remap: .*beyond.npy: .*from 0 to 63",
        ),
        ({"tokenizer": "tokenizer"}, {"tokens": {"rule": "dot"}}, "tokens.rule is dot, .* of the rule nearest; leave"),
        ({"tokenizer": "demo-tokenizer"}, {"tokens": {"rule": "cosine"}}, "tokens.rule is cosine"),
        (
            {"tokenizer": UNTRAINED},
            {"tokens": {"rule": "dot"}},
            "tokens.rule is dot, but .*untrained-tiny has the rule",
        ),
        ({"tokenizer": UNTRAINED}, {"tokens": {"remap": "beyond"}}, r"tokens.remap: .*from 0 to 63"),
        ({"vit": "vit"}, {"features": {}, "grid": "llava-1.6"}, "reads 224 x 224 px in 16 x 16 patches"),
        ({"vit": "vit"}, {"features": {"select_layer": 5}}, "features.select_layer: this encoder has"),
        ({"tokenizer": "masker"}, {"tokens": {}}, "masker.safetensors: .* describes no VQGAN"),
        ({"masker": "detector"}, {}, "detector.safetensors: .* describes no SAM"),
        ({"detector": "tokenizer"}, {}, "tokenizer.safetensors: .* describes no Grounding DINO"),
        ({"detector": "last"}, {}, r"last.ckpt: the file isn't a Grounding DINO"),
        ({"vit": "last"}, {"features": {}}, r"last.ckpt: the file holds no vision encoder"),
        ({"vit": "cut"}, {"features": {}}, "cut.safetensors is a cut or damaged"),
        ({"vocabulary": "vocab"}, {}, "the vocabulary has 6 pieces, the model's embedding 256"),
        ({"vocabulary": "cut"}, {}, "a vocabulary|BERT text encoder's vocabulary"),
        ({"masker": "gone.pth"}, {}, "models.masker: there is no weights file at gone.pth"),
    ],
)
def test_files_are_told_from_their_headers(files, models, settings, message):
    settings = dict(settings)
    if settings.get("tokens"):
        settings["tokens"] = {key: files.get(value, value) for key, value in settings["tokens"].items()}
    with pytest.raises((ConfigError, WeightsMismatchError, WeightsMissingError, WeightsCorruptError), match=message):
        check({role: files.get(name, name) for role, name in models.items()}, **settings)


def test_nothing_heavy_is_imported_to_tell(files):
    code = (
        "import sys, json; from patchmint.annotate.preflight import check_loadable as c;"
        "from patchmint.config import AnnotatorConfig as A;"
        "m, t = json.loads(sys.argv[1]), {'rule': 'dot'};"
        "c(A.parse({'models': m, 'grid': 'seed-224', 'features': {}, 'tokens': t}));"
        "print({'torch', 'transformers', 'taming', 'segment_anything', 'groundingdino'} & set(sys.modules))"
    )
    models = {role: files[role] for role in ("detector", "masker", "vit")} | {"tokenizer": files["last"]}
    command = [sys.executable, "-c", code, json.dumps(models | {"vocabulary": UNTRAINED})]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def written(folder, name, **columns):
    pq.write_table(pa.table(columns), folder / name)
    return folder


def sources(kind, folder):
    """A data set of each kind that is right, for `check`."""
    match kind:
        case "folder":
            return put(folder, {"a.jpg": b"x", "a.txt": "one", "t.csv": "file_name,text\na.jpg,b\n", "t.jsonl": "{}\n"})
        case "webdataset":
            return put(folder, {"0.tar": bytes(1024), "1.tar": bytes(1024)})
        case "coco":
            return put(fixture("coco", folder), {"train2017/1.jpg": b"x", "empty.json": "[]"})
        case "visual-genome":
            return put(fixture("visual_genome", folder), {"VG_100K/1.jpg": b"x"})
        case "references":
            return put(fixture("references", folder), {"train2014/1.jpg": b"x"})
        case "llava":
            return put(fixture("llava", folder), {"images/1.jpg": b"x"})
        case "parquet":
            return written(folder, "a.parquet", image=pa.array([b"x"], pa.binary()), text=["a"], number=[1])


ONE = {"annotations": "llava_v1_5_mix665k.json"}
GIVEN = {"llava": ONE, "references": {"split": "all"}}


@pytest.mark.parametrize(
    ("kind", "settings", "wrong", "message"),
    [
        ("folder", {}, {"table": "T.csv"}, r"no 'T.csv' in .*; did you mean 't.csv'\?"),
        ("folder", {}, {"table": "a.txt"}, "its name must end with .csv"),
        ("folder", {"table": "t.csv"}, {"table": "t.csv", "text_column": "caption"}, "no column 'caption'"),
        ("folder", {}, {"table": "t.jsonl"}, "no column 'file_name'"),
        ("webdataset", {}, {"uri": "{0..2}.tar"}, "1 of 3 tars aren't in .*: 2.tar"),
        ("webdataset", {"uri": "{0..1}.tar"}, {"uri": "2.tar"}, "1 of 1 tars aren't in"),
        ("coco", {}, {"split": "val2017"}, r"no 'annotations/captions_val2017.json' in .*; did you mean 'annot"),
        ("coco", {"texts": "categories"}, {"annotations": "empty.json"}, "empty.json in .* an object with lists"),
        ("coco", {}, {"images": "val2017"}, "there is nothing in the folder 'val2017' of"),
        ("visual-genome", {"texts": "objects"}, {"images": "photos"}, "there is nothing in the folder 'photos' of"),
        (
            "references",
            {"split": "all"},
            {"refs": "refs.json"},
            r"no 'refs.json' in .*; did you mean 'refs\(unc\).json'",
        ),
        ("references", {"split": "train"}, {"split": "vol"}, "is of the split 'vol'; it has '"),
        ("references", {"split": "all"}, {"split": "all", "instances": "gone.json"}, "no 'gone.json'"),
        (
            "references",
            {"split": "all"},
            {"split": "all", "images": "train"},
            "there is nothing in the folder 'train' of",
        ),
        ("llava", ONE, {"annotations": "mix.json"}, "no 'mix.json' in"),
        ("llava", ONE, {}, r"several JSON files \(blip_laion_cc_sbu_558k.json, llava_v1_5_mix665k.json\) in"),
        ("llava", ONE, ONE | {"images": "pictures"}, "there is nothing in the folder 'pictures' of"),
        ("parquet", {}, {"image_column": "picture"}, "no column 'picture'"),
        ("parquet", {}, {"text_columns": "number"}, "column 'number' of .* is of type int64, not strings"),
        ("parquet", {}, {"uri": "b.parquet"}, "there is no b.parquet in"),
    ],
)
def test_sources_are_looked_at_before_they_are_read(kind, settings, wrong, message, tmp_path):
    folder = sources(kind, tmp_path)

    def opened(uri="", **given):
        return source(kind, folder / uri, **given)

    opened(**settings).check()
    with pytest.raises(ConfigError, match=message):
        opened(**wrong).check()


@pytest.mark.parametrize("kind", ["folder", "webdataset", "coco", "visual-genome", "references", "llava", "parquet"])
def test_there_is_nothing_at_an_address(kind, tmp_path, monkeypatch, server):
    uri = server.new_bucket(monkeypatch)
    with pytest.raises(ConfigError, match=r"there (is|are) (no|neither) "):
        source(kind, f"{uri}/no/such/prefix").check()
    source(kind, copy(sources(kind, tmp_path), uri), **GIVEN.get(kind, {})).check()


@pytest.mark.parametrize("key", ["source.uri", "output.uri"])
def test_relative_paths_are_refused_in_every_ray_job(key, monkeypatch, tmp_path):
    """Also in one without a working directory, where they would start at the folder in which Ray was started."""
    uris = {"source.uri": str(tmp_path), "output.uri": "s3://bucket/out"} | {key: "here"}
    config = BuildConfig.load(None, {"source.kind": "folder", "models": UNTRAINED, **uris})
    assert resolved(config)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=f"{key} 'here' is relative, which in a Ray job"):
        resolved(config)
