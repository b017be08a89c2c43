"""`patchmint.weights.registry` and `.store`: names, paths, verdicts on files."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from patchmint.errors import WeightsMissingError
from patchmint.weights.checksums import record_sha256, recorded_sha256, sha256_of
from patchmint.weights.registry import CHECKPOINTS, Checkpoint
from patchmint.weights.store import (
    check_file,
    locate,
    named_checkpoint,
    weights_folder,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def a_file(path):
    torch.save({"weight": torch.arange(5)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint("toy", "sam", path.name, "http://x/", path.stat().st_size, sha256, "none", "this test")


def test_the_registry_is_consistent():
    assert len(CHECKPOINTS) == 22
    assert len({checkpoint.filename for checkpoint in CHECKPOINTS.values()}) == 22
    for name, checkpoint in CHECKPOINTS.items():
        assert name == checkpoint.name
        assert urlsplit(checkpoint.url).scheme == ("" if checkpoint.bundled else "https")
        assert (checkpoint.size is None) == (checkpoint.sha256 is None)
        assert checkpoint.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", checkpoint.sha256)
        assert checkpoint.licence
        assert checkpoint.source


def test_the_folder_is_the_variable_or_the_users_cache(monkeypatch, folder):
    assert weights_folder() == folder
    monkeypatch.delenv("PATCHMINT_WEIGHTS")
    assert weights_folder().parts[-2:] == ("patchmint", "weights")


def test_a_name_is_its_file_in_the_folder(folder):
    with pytest.raises(WeightsMissingError, match="patchmint models pull sam-vit-b"):
        locate("sam-vit-b")
    (folder / "sam_vit_b_01ec64.pth").write_bytes(b"x")
    assert locate("sam-vit-b") == folder / "sam_vit_b_01ec64.pth"


def test_a_local_path_is_itself_and_must_be_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.pth").write_bytes(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "mine.pth"), "mine.pth", "plain"):
        assert locate(path) == Path(path)
    nothing = {path: f"no weights file at {path}" for path in ("nothing.pth", "some/where", "/no/such/file")}
    for path, message in (nothing | {str(tmp_path): "has no model.safetensors or"}).items():
        with pytest.raises(WeightsMissingError, match=message):
            locate(path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sam-vit-hh", "sam-vit-h"), ("SAM-VIT-L", "sam-vit-l"), ("vqgan-f16-16384", "vqgan-imagenet-f16-16384")],
)
def test_a_mistyped_name_gets_the_nearest_right_one(name, meant):
    for call in (locate, named_checkpoint):
        with pytest.raises(WeightsMissingError, match=f"did you mean '{meant}'"):
            call(name)


def test_a_name_like_nothing_gets_no_guess():
    with pytest.raises(WeightsMissingError) as caught:
        locate("qqqq")
    assert "did you mean" not in str(caught.value)
    assert "patchmint models list" in str(caught.value)


def test_verdicts(tmp_path):
    path = tmp_path / "toy.pth"
    known = a_file(path)
    good = path.read_bytes()
    assert check_file(path, known).status == "ok"
    assert check_file(path, None).status == "ok"
    path.write_bytes(good[:-1])
    assert check_file(path, known).status == "wrong size"
    path.write_bytes(good[:-1] + b"x")
    found = check_file(path, known)
    assert (found.status, found.sha256) == ("wrong checksum", sha256_of(path))
    path.write_bytes(b"<html>gone</html>")
    assert check_file(path, known).status == "not a checkpoint"
    assert "web page" in check_file(path, known).detail
    path.unlink()
    assert check_file(path, known).status == "absent"


def test_without_published_figures_structure_and_the_recorded_checksum_count(tmp_path):
    path = tmp_path / "toy.pth"
    known = replace(a_file(path), size=None, sha256=None)
    assert "no sha256 is recorded" in check_file(path, known).detail
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    assert check_file(path, known).status == "not a checkpoint"
    path.write_bytes(good)
    record_sha256(path, sha256_of(path), "http://x/")
    assert recorded_sha256(path) == sha256_of(path)
    assert "the one recorded" in check_file(path, known).detail
    torch.save({"weight": torch.arange(6)}, path)
    assert check_file(path, known).status == "wrong checksum"


@pytest.mark.parametrize("note", ["", "[]", '{"size": 1}', "\0"])
def test_a_damaged_record_counts_as_none(tmp_path, note):
    (tmp_path / "toy.pth.pulled.json").write_text(note)
    assert recorded_sha256(tmp_path / "toy.pth") is None


def test_a_vocabulary_is_text(folder):
    vocabulary = CHECKPOINTS["bert-base-uncased-vocab"]
    path = folder / vocabulary.filename
    path.write_text("[PAD]\n[unused0]\n" + "größe\n" * 100, encoding="utf-8")
    assert check_file(path, vocabulary).status == "wrong size"
    path.write_bytes(b"PK\x03\x04")
    assert check_file(path, vocabulary).status == "not a checkpoint"


def test_only_loading_imports_torch():
    code = (
        "import sys, patchmint.weights.download, patchmint.cli.models\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
