"""`inspect show`: the files that it writes, and its help; help pages of all commands."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from shard_data import configure, make_dataset, make_sample
from typer.testing import CliRunner

from patchmint.cli.inspect import COMMANDS, inspect_app
from patchmint.errors import InputError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "d", [[make_sample(0), make_sample(1)]])


def run(*arguments: object):
    return CliRunner().invoke(inspect_app, ["show", *map(str, arguments)])


def test_pictures_are_there_before_anything_is_printed(dataset, tmp_path):
    """`| head` ends the command at the first write that finds no reader."""
    configure(dataset, grid={"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"})
    arguments = ["show", str(dataset), "#1", "--png", str(tmp_path / "o.png")]
    command = [sys.executable, "-m", "patchmint", "inspect", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["o-0.png", "o-1.png"]
    assert done.stderr.splitlines() == [f"wrote {tmp_path / 'o-0.png'}", f"wrote {tmp_path / 'o-1.png'}"]
    with Image.open(io.BytesIO((tmp_path / "o-0.png").read_bytes())) as image:
        assert image.format == "PNG"


def test_bad_names_are_found_before_the_work(dataset, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("o.jpg", "ends with .png"),
        ("o", "ends with .png"),
        ("no/o.png", "no folder"),
        ("folder.png", "it is a folder"),
    ):
        for target in (dataset, tmp_path / "nothing here"):
            done = run(target, "#0", "--png", tmp_path / name)
            assert isinstance(done.exception, InputError)
            assert words in str(done.exception)
            assert done.stdout == ""
    assert list(tmp_path.glob("o*")) == []


def test_help_pages_lose_no_brackets():
    """Square brackets are markup to rich, which drops them with what is in them."""
    for name, lazy in COMMANDS.items():
        command = lazy.load(name)
        page = CliRunner(env={"COLUMNS": "300"}).invoke(inspect_app, [name, "--help"]).stdout
        shown = " ".join(re.sub("│", " ", page).split())
        texts = [command.help, *lazy.examples, *(getattr(option, "help", "") or "" for option in command.params)]
        for line in "\n".join(texts).splitlines():
            assert " ".join(line.split()) in shown, name


def test_the_members_in_info_are_no_wider_than_the_terminal(dataset, monkeypatch):
    monkeypatch.setattr("patchmint.cli.inspect.info.console_for_data", lambda: Console(width=40))
    done = CliRunner().invoke(inspect_app, ["info", str(dataset)])
    members = done.stdout[done.stdout.index("members of a sample") :].splitlines()
    assert max(map(len, members)) <= 40
    assert "views: inputs" in " ".join(members)
