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

from patchmint.errors import StorageError, WeightsMissingError
from patchmint.weights.checksums import record_sha256, recorded_sha256, sha256_of
from patchmint.weights.folder import notes_beside
from patchmint.weights.hub import snapshot
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
    assert len(CHECKPOINTS) == 23
    assert len({checkpoint.filename for checkpoint in CHECKPOINTS.values()}) == 23
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


@pytest.fixture
def hub_cache(hub, tmp_path, monkeypatch):
    """An empty cache of the Hub's client, on a machine that finds the test's Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot.cache_clear()
    yield hub
    snapshot.cache_clear()


CONFIG = b'{"model_type": "sam"}'
FILES = {"model.safetensors": b"weights", "config.json": CONFIG, "vocab.txt": b"[PAD]", "big.bin": b"x"}


def test_a_model_on_the_hub_is_fetched_once_at_one_commit(hub_cache, monkeypatch):
    repo = hub_cache.put("org/name", FILES)
    first = repo.head
    found = locate("hub:org/name")
    assert (found.name, found.read_bytes(), found.parent.name) == ("model.safetensors", b"weights", first)
    assert notes_beside(found) == {"config.json": CONFIG.decode()}
    assert locate("hub:org/name", "vocabulary").read_bytes() == b"[PAD]"
    assert not (found.parent / "big.bin").exists()
    repo.commit({"model.safetensors": b"newer"})
    assert locate("hub:org/name") == found  # this process stays with what it has seen
    snapshot.cache_clear()
    asked = len(hub_cache.seen)
    assert locate(f"hub:org/name@{first}").read_bytes() == b"weights"
    assert len(hub_cache.seen) == asked  # a commit that is here needs no Hub
    assert locate("hub:org/name@main").read_bytes() == b"newer"
    snapshot.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub_cache.seen)
    assert locate("hub:org/name").read_bytes() == b"newer"
    with pytest.raises(WeightsMissingError, match="HF_HUB_OFFLINE forbids to fetch it"):
        locate("hub:org/other")
    assert len(hub_cache.seen) == asked


def test_models_that_the_hub_does_not_give_are_errors_with_a_way_out(hub_cache, monkeypatch):
    hub_cache.put("org/gated", FILES, gated=True)
    hub_cache.put("org/empty", {"README.md": b"hello"})
    hub_cache.put("org/parts", {"model.safetensors.index.json": b"{}"})
    hub_cache.put("org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"})
    for name, message in (
        ("hub:org/gated", rf"accept its terms at http://127\.0\.0\.1:{hub_cache.port}/org/gated, and set HF_TOKEN"),
        ("hub:org/none", "no such repository, or it is private"),
        ("hub:org/empty", r"has no model\.safetensors or pytorch_model\.bin"),
        ("hub:org/parts", r"org/parts can't be used: its weights lie in several files .*max_shard_size"),
        ("hub:org/adapter", r"adapter_config\.json, so it is a LoRA adapter; merge it"),
        ("hub:org/empty@v1", "no such revision"),
        ("hub:name", r"isn't of the form hub:ORG/NAME"),
        ("hub:org/name/../../x", r"isn't of the form hub:ORG/NAME"),
    ):
        with pytest.raises(WeightsMissingError, match=message) as caught:
            locate(name)
        assert caught.value.names == (name,)
    monkeypatch.setenv("HF_ENDPOINT", "http://example.com")
    with pytest.raises(StorageError, match="isn't https://"):
        locate("hub:org/other")
