"""Errors name their subject for programs, and keep it where they cross processes."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import patchmint.errors as errors
from patchmint import Annotator
from patchmint.config.build import BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.images.decode import decode_image
from patchmint.plugins import load_plugin
from patchmint.shards.plan import load_plan
from patchmint.shards.reader import iter_samples, read_sample
from patchmint.shards.rejects import read_rejects
from patchmint.storage import open_storage
from patchmint.weights.store import locate, named_checkpoint

CLASSES = [found for found in vars(errors).values() if inspect.isclass(found) and issubclass(found, Exception)]
SUBJECTS = {
    errors.ImageError: {"path": "a.jpg", "index": 3},
    errors.ConfigError: {"problems": ("a: wrong", "b: wrong")},
    errors.InputError: {"index": 3},
    errors.WeightsMissingError: {"names": ("sam-vit-h",)},
    errors.PluginError: {"name": "stand-in"},
    errors.StorageError: {"uri": "s3://bucket/data"},
    errors.ShardError: {"uri": "s3://bucket/data"},
    Exception: {},
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copies_and_pickles_keep_the_subject(kind, again):
    subjects = next(subjects for base, subjects in SUBJECTS.items() if issubclass(kind, base))
    for given in ({}, subjects):
        error = kind("what failed", **given)
        found = again(error)
        assert type(found) is kind
        assert str(found) == "what failed"
        assert vars(found) == vars(error)
        assert vars(error).items() >= given.items()


def test_attributes_are_by_keyword_and_have_defaults():
    assert errors.ImageError("x").path is errors.ImageError("x").index is None
    assert errors.ConfigError("only one").problems == ("only one",)
    assert errors.WeightsMissingError("x").names == ()
    with pytest.raises(TypeError):
        errors.StorageError("x", "s3://bucket/data")


def raised(kind, action, *arguments, **options):
    with pytest.raises(kind) as caught:
        action(*arguments, **options)
    return caught.value


def test_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    official = raised(errors.WeightsMissingError, Annotator.from_preset, "official", device="cpu", tokens=None)
    assert official.names == ("groundingdino-swint-ogc", "bert-base-uncased-vocab", "sam-vit-h")
    for name in ("sam-vit-h", "no-such-name", "no/such.pth", str(tmp_path)):
        assert raised(errors.WeightsMissingError, locate, name).names == (name,)
    assert raised(errors.WeightsMissingError, named_checkpoint, "no-such-name").names == ("no-such-name",)


def test_every_wrong_setting_is_a_problem():
    settings = {"source": {"kind": "folder", "uri": "a"}, "output": {"uri": "b"}, "gird": 1, "labels": {"prompt": "x"}}
    found = raised(errors.ConfigError, BuildConfig.parse, settings)
    assert len(found.problems) == 2
    assert "\n".join(found.problems) == str(found)


def test_images_are_named(tmp_path):
    path = tmp_path / "a.jpg"
    assert raised(errors.ImageDecodeError, decode_image, path).path == str(path)
    path.write_bytes(b"no image")
    assert raised(errors.ImageDecodeError, decode_image, str(path)).path == str(path)
    assert raised(errors.ImageDecodeError, decode_image, path.read_bytes()).path is None


def test_plugins_are_named():
    assert raised(errors.PluginError, load_plugin, "patchmint.segmenters", "nobodys", object, "cpu").name == "nobodys"


def test_files_are_named(tmp_path):
    storage = open_storage(tmp_path)
    assert raised(errors.NotFoundError, storage.read, "a.tar").uri == str(tmp_path / "a.tar")
    assert raised(errors.StorageError, open_storage, "ftp://me:secret@host/x?token=1").uri == "ftp://host/x"
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "plan.parquet").write_bytes(b"no table")
    (tmp_path / "dataset.json").write_bytes(b"{}")
    for name, action, *more in [
        ("a.tar", lambda *it: list(iter_samples(*it))),
        ("a.tar", read_sample, 0, 1024),
        ("a.tar", read_rejects),
    ]:
        assert raised(errors.ShardError, action, storage, name, *more).uri == str(tmp_path / name)
    assert raised(errors.ShardError, load_plan, storage).uri == str(tmp_path / "plan.parquet")
    assert raised(errors.ShardError, open_dataset, str(tmp_path)).uri


def test_an_outside_model_that_breaks_its_contract_is_named(monkeypatch):
    class Broken:
        def segment(self, images, texts):
            return ["nothing"] * len(images)

    monkeypatch.setattr("patchmint.labelers.build.check_plugin", lambda *_, **__: None)
    monkeypatch.setattr("patchmint.labelers.build.load_plugin", lambda *_, **__: Broken())
    annotator = Annotator.from_config({"models": {"segmenter": "broken"}, "tokens": None}, device="cpu")
    assert raised(errors.PluginError, annotator.annotate, np.zeros((8, 8, 3), np.uint8), "a cat").name == "broken"
