"""`patchmint models` list, pull and check, through a real command line and a real HTTP server."""

import dataclasses
import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest
import torch
from typer.testing import CliRunner, Result

from patchmint.annotate.preflight import check_loadable
from patchmint.cli import models
from patchmint.config import MODEL_PRESETS, AnnotatorConfig, ModelsConfig
from patchmint.errors import InputError, WeightsCorruptError, WeightsMissingError
from patchmint.features.towers import FAMILIES
from patchmint.labelers.grounding_dino.arch import Family
from patchmint.labelers.sam.arch import DESCRIBED
from patchmint.weights import store
from patchmint.weights.registry import CHECKPOINTS, FOLDERS, Checkpoint


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    torch.save({"weight": torch.arange(50_000)}, tmp_path / "served" / "toy.pth")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path / "weights"


@pytest.fixture
def toys(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Checkpoint]:
    """The official files can't be had in a test: two toys stand in for them."""
    content = (tmp_path / "served" / "toy.pth").read_bytes()
    figures = (len(content), hashlib.sha256(content).hexdigest())
    registry = {
        "toy": Checkpoint("toy", "sam", "toy.pth", address + "toy.pth", *figures, "none", "this test"),
        "gone": Checkpoint("gone", "sam", "gone.pth", address + "gone.pth", *figures, "none", "this test"),
    }
    monkeypatch.setattr(models, "CHECKPOINTS", registry)
    monkeypatch.setattr(store, "CHECKPOINTS", registry)
    return registry


def run(*words: str) -> Result:
    return CliRunner().invoke(models.models_app, list(words))


def test_list_shows_every_name_on_stdout() -> None:
    result = run("list")
    assert result.exit_code == 0
    for name in CHECKPOINTS:
        assert name in result.stdout
    assert result.stdout.count("not published") == 8  # sizes of one VQGAN of taming, LlamaGen's, IBQ's
    assert re.search(r"groundingdino-swint-ogc +│ grounding-dino +│ boxes, scores, spans", result.stdout)
    told = {role: families for role, _, families in FOLDERS}
    assert told["vit"] == ("clip", "siglip", *FAMILIES)
    assert told["detector"] == (*get_args(Family), "owlv2")
    assert told["masker"] == ("sam", *DESCRIBED)
    assert "  detector: grounding-dino, mm-grounding-dino, owlv2 (boxes, scores, spans)\n" in result.stderr


def test_list_as_json_has_all_figures(folder: Path) -> None:
    folder.mkdir()
    (folder / CHECKPOINTS["sam-vit-b"].filename).write_bytes(b"")
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert list(rows) == list(CHECKPOINTS)
    row = rows["sam-vit-b"]
    assert (row["kind"], row["gives"], row["size"], row["present"]) == ("sam", "masks", 375_042_383, True)
    assert rows["ibq-1024"]["rule"] == "dot"
    assert row["path"] == str(folder / "sam_vit_b_01ec64.pth")
    assert row["url"].startswith("https://")
    assert len(row["sha256"]) == 64
    assert row["licence"] == "Apache-2.0"
    assert rows["sam-vit-h"]["present"] is False


def test_pull_prints_the_path_and_nothing_else_on_stdout(folder: Path, toys: dict[str, Checkpoint]) -> None:
    result = run("pull", "toy")
    assert result.exit_code == 0
    assert result.stdout == f"{folder / 'toy.pth'}\n"
    assert "(100%)" in result.stderr
    again = run("pull", "toy")
    assert again.stdout == result.stdout
    assert "already there" in again.stderr


def test_pull_shows_a_bar_on_a_terminal(
    folder: Path, toys: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    result = run("pull", "toy")
    assert result.stdout == f"{folder / 'toy.pth'}\n"
    assert "━━━━" in result.stderr


def test_pull_to_another_folder_from_a_mirror(tmp_path: Path, toys: dict[str, Checkpoint]) -> None:
    result = run("pull", "gone", "--url", toys["toy"].url, "--to", str(tmp_path / "else"))
    assert result.exit_code == 0
    assert (tmp_path / "else" / "gone.pth").is_file()
    assert f"PATCHMINT_WEIGHTS={tmp_path / 'else'}" in result.stderr


def test_a_preset_stands_for_its_models(toys: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    toys["other"] = dataclasses.replace(toys["toy"], name="other", filename="other.pth")
    preset = ModelsConfig(detector="toy", vocabulary="toy", masker="toy", tokenizer="other")
    monkeypatch.setattr(models, "MODEL_PRESETS", {"small": preset})
    assert [Path(line).name for line in run("pull", "small", "toy").stdout.splitlines()] == ["toy.pth", "other.pth"]
    assert [row["status"] for row in json.loads(run("check", "small", "--json").stdout)] == ["ok", "ok"]
    assert "--url is for one NAME" in str(run("pull", "small", "--url", "http://x/").exception)


@pytest.mark.parametrize("preset", ["official", "small"])
def test_models_of_a_preset_fit_their_roles(preset: str, folder: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"Get them \((4\.2|over 1\.1) GB\)") as caught:
        check_loadable(AnnotatorConfig.parse({"models": preset}))
    assert caught.value.names == tuple(MODEL_PRESETS[preset].used(labels=True, tokens=True).values())


def test_pull_lets_errors_rise(toys: dict[str, Checkpoint], tmp_path: Path) -> None:
    assert isinstance(run("pull", "gone").exception, WeightsMissingError)
    assert isinstance(run("pull", "toi").exception, WeightsMissingError)
    assert isinstance(run("pull", "toy", "gone", "--url", "http://x/").exception, InputError)
    (tmp_path / "served" / "toy.pth").write_text("<html>moved</html>")
    assert isinstance(run("pull", "toy").exception, WeightsCorruptError)
    assert run("pull").exit_code == 2


def test_check_ends_with_one_on_findings_only(folder: Path, toys: dict[str, Checkpoint]) -> None:
    nothing = run("check")
    assert (nothing.exit_code, nothing.stdout.count("absent")) == (0, 2)
    assert run("check", "toy").exit_code == 1
    run("pull", "toy")
    assert run("check").exit_code == 0
    assert run("check", "toy").exit_code == 0
    good = (folder / "toy.pth").read_bytes()
    for content, status in (
        (good[:-1], "wrong size"),
        (good[:-1] + b"x", "wrong checksum"),
        (b"<html>", "not a checkpoint"),
    ):
        (folder / "toy.pth").write_bytes(content)
        result = run("check")
        assert (result.exit_code, status in result.stdout) == (1, True)
        assert "patchmint models pull toy" in result.stderr
        rows = {row["name"]: row["status"] for row in json.loads(run("check", "--json").stdout)}
        assert rows == {"toy": status, "gone": "absent"}
    assert isinstance(run("check", "toi").exception, WeightsMissingError)


@pytest.mark.parametrize("command", ["list", "pull", "check"])
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"patchmint models {command}" in result.stdout
