"""Models from an outside package, really installed: a segmenter without boxes, a 1-D tokenizer, and broken ones."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
import transformers
import warm
from builds import build_here, make_config
from PIL import Image
from shard_data import joined
from skimage import data
from typer.testing import CliRunner

from patchmint import Annotator, plugins
from patchmint.annotate.preflight import check_loadable
from patchmint.cli.models import models_app
from patchmint.config import AnnotatorConfig
from patchmint.config.build import BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.demo import FRESH_SEED
from patchmint.demo.scenes import make_scene
from patchmint.errors import BuildError, ConfigError, PluginError, WeightsMissingError
from patchmint.geometry import grid_preset
from patchmint.geometry.rle import area
from patchmint.jobs import doctor
from patchmint.jobs.dry_run import describe_plan
from patchmint.jobs.extend import settings_of
from patchmint.pipeline.plan import record_models
from patchmint.pipeline.plan.models import check_models
from patchmint.pipeline.worker.finish import layout_of
from patchmint.shards.manifest import read_manifest
from patchmint.storage import open_storage
from patchmint.types import Text
from patchmint.weights.checksums import sha256_of
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import file_of

ROOT = Path(__file__).parent.parent

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "toy-models"
version = "1"
license = "MIT"
[tool.setuptools]
py-modules = ["toy_models"]
[project.entry-points."patchmint.detectors"]
toy-dino = "toy_models:Dino"
toy-phrases = "toy_models:ByPhrases"
toy-outside = "toy_models:Outside"
[project.entry-points."patchmint.maskers"]
toy-sam = "toy_models:sam"
toy-fewer = "toy_models:Fewer"
[project.entry-points."patchmint.segmenters"]
toy-brightness = "toy_models:Brightness"
toy-broken = "toy_models:broken"
toy-no-segmenter = "toy_models:NoSegmenter"
toy-liar = "toy_models:Liar"
toy-mute = "toy_models:Mute"
toy-wild = "toy_models:Wild"
toy-tuned = "toy_models:Tuned"
[project.entry-points."patchmint.tokenizers"]
toy-1d = "toy_models:Histogram"
toy-beyond = "toy_models:Beyond"
toy-ahead = "toy_models:Ahead"
[project.entry-points."patchmint.encoders"]
toy-colours = "toy_models:Colours"
toy-short = "toy_models:Short"
"""

MODELS = '''
"""A segmenter that finds whatever is bright, and a tokenizer whose codes have no place in the image."""
import numpy as np
from pydantic import BaseModel, Field
from patchmint.geometry import RleMasks
from patchmint.geometry.rle import bounding_box, encode_masks
from patchmint.types import UNKNOWN_SCORE, Text
from patchmint.config import LabelsConfig, ModelsConfig
from patchmint.errors import ConfigError
from patchmint.interfaces import FeatureSpec, Instances, PhraseBoxes, TokenizerSpec, Tokens
from patchmint.labelers.grounded_sam import build_grounded_sam, build_masker


class Brightness:
    """No boxes, no scores, no spans: the least that a text-prompted segmenter can know."""

    def __init__(self, device):
        self.device = device

    def segment(self, images, texts):
        return [self._one(image, image_texts) for image, image_texts in zip(images, texts)]

    def _one(self, image, texts):
        masks = encode_masks(np.stack([image.mean(axis=2) > 100 + 20 * n for n in range(len(texts))]))
        n = len(texts)
        return Instances(
            image_size=image.shape[:2],
            masks=RleMasks(masks),
            text_index=np.arange(n),
            scores=np.full(n, UNKNOWN_SCORE, np.float32),
            boxes=np.array([bounding_box(mask) for mask in masks], np.float32).reshape(n, 4),
            spans=np.array([(0, len(text.content)) for text in texts]),
        )


class Histogram:
    """32 codes: the commonest brightness levels, quantised."""

    spec = TokenizerSpec("toy-1d", (32,), (64,), None, "histogram-32")

    def __init__(self, device):
        self.device = device

    def tokenize(self, images):
        return [Tokens((np.histogram(i, 32, (0, 256))[0][:, None] * 63 // i.size).astype(np.int32)) for i in images]

    def decode(self, tokens):
        raise NotImplementedError


class Ahead(Histogram):
    def prepare(self, image):
        return np.histogram(image, 32, (0, 256))[0]

    def tokenize(self, images, prepared=None):
        sizes = [image.size for image in images]
        return [Tokens((n[:, None] * 63 // size).astype(np.int32)) for n, size in zip(prepared, sizes, strict=True)]


class Beyond(Histogram):
    def tokenize(self, images):
        return [Tokens(np.full((32, 1), 64, np.int32)) for _ in images]


class Dino:
    """Patchmint's own, as another package would wrap it."""

    class Settings(BaseModel, extra="forbid"):
        text_threshold: float = 0.25

    def __init__(self, device, precision, checkpoint, settings):
        models = ModelsConfig(detector=str(checkpoint), vocabulary="demo-vocabulary", masker=None)
        labels = LabelsConfig(text_threshold=settings.text_threshold)
        self.model = build_grounded_sam(models, labels, device, precision).detector
        self.prepare, self.batch_key = self.model.prepare, self.model.batch_key

    def detect(self, images, texts, threshold, prepared):
        return self.model.detect(images, texts, threshold, prepared)


class ByPhrases:
    """The same without spans, and without work ahead."""

    def __init__(self, device, precision, checkpoint):
        self.model = Dino(device, precision, checkpoint, Dino.Settings()).model

    def find(self, images, phrases, threshold):
        assert all(len(set(own)) == len(own) > 0 for own in phrases)
        texts = [Text.from_phrases(own) for own in phrases]
        found = self.model.detect(images, [[text] for text in texts], threshold)
        numbers = [[text.phrases.index(tuple(s)) for s in one.spans.tolist()] for one, text in zip(found, texts)]
        return [PhraseBoxes(one.boxes, one.scores, np.array(own, np.int64)) for one, own in zip(found, numbers)]


class Outside:
    def __init__(self, device):
        pass

    def find(self, images, phrases, threshold):
        return [PhraseBoxes(np.float32([[0, 0, 1, 9999]]), np.float32([1]), np.array([0])) for _ in images]


def sam(device, precision, checkpoint):
    return build_masker(ModelsConfig(masker=str(checkpoint)), LabelsConfig(), device, precision)


class Fewer:
    def __init__(self, device):
        pass

    def masks(self, images, boxes):
        return [RleMasks(encode_masks(np.zeros((0, *image.shape[:2]), bool))) for image in images]


def broken(device):
    raise RuntimeError("out of luck")


class NoSegmenter:
    def __init__(self, device):
        pass


class Colours:
    """Mean colours of the cells of whichever grid."""

    spec = FeatureSpec(
        encoder="toy-colours",
        connector="none",
        layers=((0,),),
        select_feature="patch",
        pool="",
        grid=(0, 0),
        leading=0,
        trailing=0,
        channels=3,
    )

    def __init__(self, device, grid):
        self.grid = grid
        if grid.fit == "crop":
            raise ConfigError("toy-colours looks at whole images")

    def encode(self, images):
        return [self._one(image) for image in images]

    def _one(self, image):
        placement = self.grid.place(image.shape[:2])
        return np.concatenate([self._view(image, *placement.edges(view)) for view in placement.views])

    def _view(self, image, ys, xs):
        tops, lefts = (edges[:-1].astype(int).clip(0, side - 1) for edges, side in zip((ys, xs), image.shape))
        return image[np.ix_(tops, lefts)].reshape(-1, 3).astype(np.float16)


class Short(Colours):
    def encode(self, images):
        return [features[1:] for features in super().encode(images)]
class Tuned(Brightness):
    """With a threshold in its settings, and what its checkpoint adds to it."""

    class Settings(BaseModel):
        level: int = Field(ge=0, le=255)

    def __init__(self, device, precision, checkpoint, settings):
        assert precision == "float32"
        self.level = settings.level + int(checkpoint.read_text())

    def segment(self, images, texts):
        return super().segment([((image > self.level) * 255).astype(np.uint8) for image in images], texts)


class Liar(Brightness):
    def segment(self, images, texts):
        return super().segment(images, texts)[:-1]


class Mute(Brightness):
    def segment(self, images, texts):
        return None


class Wild(Brightness):
    def segment(self, images, texts):
        found = super().segment(images, texts)
        found[0].boxes[:] = 9999
        return found
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The plug-in package, built and installed by the real installer into a folder of its own."""
    project = tmp_path_factory.mktemp("toy")
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "toy_models.py").write_text(MODELS)
    target = project / "site"
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--offline", "--target", target, project], check=True, capture_output=True)
    return target


def label(installed: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    photo = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()[::2, ::2]).save(photo)
    command = [sys.executable, "-m", "patchmint", "label", photo, "--models", "untrained-tiny", *arguments]
    return warm.run(command, env={**os.environ, "PYTHONPATH": str(installed)}, cwd=ROOT)


def test_outside_models_take_part(installed, tmp_path):
    models = ("--models.segmenter", "toy-brightness", "--models.tokenizer", "toy-1d")
    texts = ("--text", "bright", "--text", "brighter")
    done = label(installed, tmp_path, *models, *texts, "--out", str(tmp_path / "o.png"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads((ROOT / "docs" / "schemas" / "annotation.schema.json").read_text()))
    assert len(document["codes"]) == 32
    assert document["notice"] == ""
    assert document["models"] == {"segmenter": "toy-brightness", "tokenizer": "toy-1d"}
    assert [phrase["score"] for phrase in document["phrases"]] == [-1.0, -1.0]
    assert [phrase["text"] for phrase in document["phrases"]] == ["bright", "brighter"]
    kept = [sum(map(sum, grid)) for grid in document["selector"]]
    assert kept[0] > kept[1] > 0
    assert label(installed, tmp_path, *models, *texts).returncode == 0


def test_one_that_works_ahead_gives_the_same_codes(installed, tmp_path):
    codes = []
    for name in ("toy-1d", "toy-ahead"):
        arguments = ("--models.segmenter", "toy-brightness", "--models.tokenizer", name, "--text", "bright")
        done = label(installed, tmp_path, *arguments, "--out", str(tmp_path / "o.png"), "--json")
        assert done.returncode == 0, done.stderr
        codes.append(json.loads(done.stdout)["codes"])
    assert codes[0] == codes[1]
    assert any(codes[0])


@pytest.mark.parametrize("grid", ["qwen3-vl", "internvl3"])
def test_an_outside_encoder_gets_the_grid(installed, tmp_path, grid):
    encoder = ("--models.segmenter", "toy-brightness", "--models.vit", "toy-colours", "--features", "{}")
    done = label(installed, tmp_path, *encoder, "--grid", grid, "--text", "bright")
    assert done.returncode == 0, done.stderr
    tokens = sum(view.rows * view.cols for view in grid_preset(grid).place((150, 226)).views)
    assert f"features: {tokens} x 3" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy-short",), "'toy-colours' must give float16 features of shape (576, 3)"),
        (("toy-colours", "--grid", "llava-1.5-hf"), "toy-colours looks at whole images"),
        (("toy-colours", "--features.pool", "3"), "features.pool is for patchmint's own encoders"),
        (("toy-color",), "did you mean 'toy-colours'"),
    ],
)
def test_what_an_outside_encoder_does_wrong_is_named(installed, tmp_path, arguments, message):
    given = () if "--features.pool" in arguments else ("--features", "{}")
    done = label(
        installed, tmp_path, "--text", "a", "--models.segmenter", "toy-brightness", *given, "--models.vit", *arguments
    )
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy-broken", "out of luck"),
        ("toy-no-segmenter", "lacks a method"),
        ("toy-liar", "answered 0 times for 1 images"),
        ("toy-mute", "NoneType"),
        ("toy-beyond", "outside its codebooks"),
        ("toy-wild", "out of the image"),
        ("toy-absent", "toy-brightness"),
        ("toy-outside", "a detector gave boxes that reach out of the image"),
        ("toy-fewer", "a masker gave 0 masks for"),
    ],
)
def test_broken_ones_are_named(installed, tmp_path, name, message):
    roles = {"toy-beyond": "tokenizer", "toy-outside": "detector", "toy-fewer": "masker"}
    role = f"--models.{roles.get(name, 'segmenter')}"
    done = label(installed, tmp_path, role, name, "--text", "bright", "--labels.box-threshold", "0")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_one_gets_its_settings_and_checkpoint_which_the_record_tells(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    (tmp_path / "weights.txt").write_text("20")

    def config(name="toy-tuned", plugin="toy-tuned", labels=None, **settings):
        given = {"checkpoint": str(tmp_path / "weights.txt"), "settings": {"level": 100}} | settings
        models = {"segmenter": name, "plugins": {plugin: given}}
        return AnnotatorConfig.parse({"models": models, "labels": labels or {}, "tokens": None, "precision": "float32"})

    image = data.chelsea()[::2, ::2]
    found = [
        Annotator(config(settings={"level": level}), "cpu").annotate(image, "bright").masks for level in (100, 101, 100)
    ]
    assert found[0] == found[2] != found[1]
    record = record_models(config())["segmenter"]
    assert record.sha256 == hashlib.sha256(b"20").hexdigest()
    assert (record.name, record.distribution, record.licence, record.size) == ("toy-tuned", "toy-models 1", "MIT", 2)
    with pytest.raises(BuildError, match=r"toy-models 1 here.*toy-models 2 in the plan"):
        check_models(config(), {"segmenter": replace(record, distribution="toy-models 2")})
    for settings, error, message in (
        (
            {"settings": {"level": 300}},
            ConfigError,
            r"toy-tuned\.settings\.level: .*less than",
        ),
        ({"checkpoint": "none.txt"}, WeightsMissingError, "no weights file at none.txt"),
        ({"name": "toy-brightness", "plugin": "toy-brightness"}, PluginError, "takes no checkpoint"),
        ({"name": "toy-brightness"}, ConfigError, "toy-tuned is none of the models"),
        ({"labels": {"nms": 0.5}}, ConfigError, r"labels\.nms is for detectors and maskers"),
    ):
        with pytest.raises(error, match=message):
            check_loadable(config(**settings))


SCENE = make_scene(FRESH_SEED, 1, texts=2)  # a green circle, a star, diamonds


def with_plugins(**roles):
    """Models of the demo, some of them from outside: a config's `models`."""
    files = {"toy-dino": "demo-detector", "toy-phrases": "demo-detector", "toy-sam": "demo-masker"}
    given = {name: {"checkpoint": str(file_of(CHECKPOINTS[files[name]]))} for name in roles.values()}
    demo = {"detector": "demo-detector", "masker": "demo-masker", "tokenizer": "toy-1d"}
    return demo | roles | {"plugins": given}


def annotator_of(models, **labels):
    settings = {"models": models, "labels": labels, "tokens": None, "grid": "seed-224", "precision": "float32"}
    return Annotator.from_config(settings, device="cpu")


@pytest.mark.filterwarnings("ignore::patchmint.DemoWarning")
def test_detectors_and_maskers_from_outside_give_what_patchmints_own_give(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    rules = {"nms": 0.4, "negative_phrases": ["a square"], "box_threshold": 0.1}
    detector, masker = {"detector": "toy-dino"}, {"masker": "toy-sam"}
    for labels, combinations in ((rules, [detector, masker]), ({"tiles": 300, "instances": True}, [detector | masker])):
        own, *others = (annotator_of(with_plugins(**roles), **labels) for roles in ({}, *combinations))
        texts = [text.content for text in SCENE.texts]
        expected = own.annotate(SCENE.image, texts)
        assert len(expected.phrases) > 1
        for other in others:
            found = other.annotate(SCENE.image, texts)
            assert (found.phrases, found.masks) == (expected.phrases, expected.masks)
            assert (found.coverage == expected.coverage).all()
            if labels is rules:
                assert other.explain(SCENE.image, texts) == own.explain(SCENE.image, texts)


@pytest.mark.filterwarnings("ignore::patchmint.DemoWarning")
def test_a_detector_is_told_phrases(installed, monkeypatch):
    """Those between full stops, or else the whole text; each once, whichever texts have it."""
    monkeypatch.syspath_prepend(str(installed))
    whole, cut = "a green diamond", "a star. a green circle."
    for prompt, texts, same in (
        ("caption", [whole, whole], Text(whole, ((0, len(whole)),))),
        ("phrases", [cut, "a green circle"], cut),
    ):
        found, expected = (
            annotator_of(with_plugins(**roles), prompt=prompt, box_threshold=0.1).annotate(SCENE.image, asked).phrases
            for roles, asked in (({"detector": "toy-phrases"}, texts), ({}, same))
        )
        firsts = [phrase for phrase in found if phrase.text_index == 0]
        assert [phrase.span for phrase in firsts] == [phrase.span for phrase in expected] != []
        for one, other in zip(firsts, expected, strict=True):
            assert (one.score, *one.box) == pytest.approx((other.score, *other.box), abs=0.02)
        again = [(phrase.box, phrase.score) for phrase in found if phrase.text_index == 1]
        assert again == [(phrase.box, phrase.score) for phrase in firsts if phrase.text == texts[1]]


@pytest.mark.filterwarnings("ignore::patchmint.DemoWarning")
def test_a_build_records_all_of_them_and_keeps_their_masks(installed, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(installed))
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(SCENE.jpeg)
    (folder / "a.txt").write_text(SCENE.texts[0].content)
    models = with_plugins(detector="toy-dino", masker="toy-sam")
    settings = {"models": models, "labels": {"instances": True}, "tokens": None, "grid": "seed-224"}
    config = make_config(tmp_path / "c.yaml", folder, out, precision="float32", **settings)
    plugins._installed.cache_clear()
    told = {finding.what: finding for finding in doctor._checks(BuildConfig.load(config))}
    assert told["model files"].detail == "detector toy-dino (toy-models 1), masker toy-sam (toy-models 1)"
    describe_plan(BuildConfig.load(config))
    said = capsys.readouterr().out
    assert "without what toy-dino, toy-sam compute with" in said
    build_here(config, out)
    column = f"{out}/columns/codes"
    extension = settings_of(read_manifest(open_storage(str(out))), str(out), column, {"tokens"})
    (tmp_path / "extension.yaml").write_text(json.dumps(extension))
    build_here(tmp_path / "extension.yaml", column, {"models.tokenizer": "toy-1d"})
    (sample,) = joined(out)
    found = annotator_of(models, instances=True).annotate(SCENE.image, SCENE.texts[0].content)
    assert [each.mask.rle for each in sample.images[0].instances] == list(found.masks) != []
    entries = open_dataset(out).manifest.models
    for role, name in (("detector", "demo-detector"), ("masker", "demo-masker"), ("tokenizer", None)):
        entry, weights = entries[role], CHECKPOINTS.get(name)
        assert entry.name == f"{models[role]} (toy-models 1)"
        assert (entry.sha256, entry.size) == ((weights.sha256, weights.size) if weights else ("", 0))
        assert entry.licence == (weights.licence if weights else "MIT")
    assert "vocabulary" not in entries
    listed = json.loads(CliRunner().invoke(models_app, ["list", "--json"]).stdout)
    assert {(each["name"], each["gives"], each["licence"]) for each in listed} >= {
        ("toy-dino", "boxes, scores", "MIT"),
        ("toy-sam", "masks", "MIT"),
    }
    assert plugins._installed.cache_info().misses == 1


def test_an_extension_keeps_what_plugins_were_given():
    models = {"segmenter": "a", "tokenizer": "b", "plugins": {name: {"settings": {"level": 1}} for name in "ab"}}
    past = {"models": models, "labels": {}, "tokens": {}, "features": None, "grid": "seed-224", "limits": {}}
    past |= {"output": {"samples_per_shard": 10}}
    settings = settings_of(SimpleNamespace(config=past), "there", "there/columns/codes", {"tokens"})
    config = BuildConfig.parse(settings)
    assert (config.models_used, config.labels) == ({"tokenizer": "b"}, None)
    assert config.models.plugins["b"].settings == {"level": 1}


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    """A folder with a tiny SAM 3 of transformers, and the module that docs/plugins.md shows."""
    folder = tmp_path_factory.mktemp("sam3")
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = {"model_type": "sam3_vit_model", **small, "num_hidden_layers": 2, "image_size": 112, "window_size": 4}
    backbone |= {"global_attn_indexes": [1], "pretrain_image_size": 56}
    sizes = {"fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    text = {"model_type": "clip_text_model", "vocab_size": 64, **small, "num_hidden_layers": 2, "projection_dim": 32}
    config = transformers.Sam3Config(
        vision_config={"model_type": "sam3_vision_model", "backbone_config": backbone, **sizes},
        text_config=text | {"max_position_embeddings": 32, "bos_token_id": 52, "eos_token_id": 53},
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 8},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Sam3Model(config).save_pretrained(folder)
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    words = transformers.CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    pictures = transformers.Sam3ImageProcessor(size={"height": 112, "width": 112})
    transformers.Sam3Processor(pictures, words).save_pretrained(folder)
    install(folder, "my_sam3", "[patchmint.segmenters]\nsam3 = my_sam3:Sam3\n")
    return folder


def install(folder, module, points):
    """Put a module of docs/plugins.md into a folder as a package with entry points."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    (folder / f"{module}.py").write_text(page.split(f"# {module}.py\n")[1].split("```")[0])
    (info := folder / f"{module}-1.dist-info").mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points)


def test_the_package_that_the_page_shows(tmp_path, monkeypatch):
    groups = {"detectors": "Detector", "maskers": "Masker", "tokenizers": "Tokenizer"}
    install(tmp_path, "my_package", "\n".join(f"[patchmint.{g}]\nmine = my_package:My{c}" for g, c in groups.items()))
    monkeypatch.syspath_prepend(str(tmp_path))
    models = {"detector": "mine", "masker": "mine", "tokenizer": "mine"}
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 20:60] = 200
    found = Annotator.from_config({"models": models}, device="cpu").annotate(image, "what is bright")
    assert [(phrase.text, phrase.box) for phrase in found.phrases] == [("what is bright", (20, 10, 60, 30))]
    assert area(found.masks[0]) == pytest.approx(np.pi * 20 * 10, rel=0.01)
    assert found.codes.shape == (32,)


def test_sam3_as_the_page_shows_it(sam3, monkeypatch):
    monkeypatch.syspath_prepend(str(sam3))
    plugins = {"sam3": {"checkpoint": str(sam3), "settings": {"threshold": 0.2}}}
    models = {"segmenter": "sam3", "plugins": plugins}
    annotator = Annotator(AnnotatorConfig.parse({"models": models, "tokens": None}), "cpu")
    image = data.chelsea()[::3, ::3]
    (found,) = annotator.annotate_batch([image], [["a cat", Text.from_phrases(["fur", "an ear"])]])
    segmenter = annotator._models.segmenter
    pixels = segmenter.processor(images=image, return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = segmenter.model(pixel_values=pixels, **segmenter.processor(text="a cat", return_tensors="pt"))
    scores = expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid()
    assert 0 < (scores > 0.2).sum() == sum(phrase.text == "a cat" for phrase in found.phrases)
    assert {phrase.text for phrase in found.phrases} == {"a cat", "fur", "an ear"}
    record = record_models(annotator.config)["segmenter"]
    assert (record.sha256, record.distribution) == (sha256_of(sam3 / "model.safetensors"), "my_sam3 1")
    wrong = models | {"plugins": {"sam3": {"settings": {"treshold": 1}}}}
    with pytest.raises(ConfigError, match=r"sam3\.settings\.treshold: Extra inputs"):
        check_loadable(AnnotatorConfig.parse({"models": wrong, "tokens": None}))


def test_a_tokenizer_beyond_what_the_format_holds_is_refused():
    spec = SimpleNamespace(
        name="toy", grid_shape=(4, 4), codebook_sizes=(1 << 25,), preprocessing="none", can_decode=False, rule=""
    )
    models = SimpleNamespace(grid=grid_preset("seed-224"), tokenizers={"toy": SimpleNamespace(spec=spec)}, encoder=None)
    build = BuildConfig.parse({"source": {"kind": "folder", "uri": "in"}, "output": {"uri": "out"}})
    with pytest.raises(BuildError, match=r"what the models make can't be stored: .*codebook"):
        layout_of(build, models, None)
