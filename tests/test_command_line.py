"""The command line as a whole: shell completion, and the page of environment variables."""

import ast
import os
import pwd
import re
from pathlib import Path

import pytest

import patchmint
from patchmint.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
NO_VARIABLES = {"SHA256", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"}
"""Other words in capitals in modules that read the environment."""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", [*COMMANDS]),
        ("ins", ["inspect"]),
        ("models pull --t", ["--to"]),
        ("build --labels.box-t", ["--labels.box-threshold"]),
        ("inspect ga", ["gallery"]),
    ],
)
def test_the_shell_completes_commands_that_arent_imported_yet(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv("_PATCHMINT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"patchmint {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) or 1))
    with pytest.raises(SystemExit) as ended:
        app(prog_name="patchmint")
    assert (ended.value.code, capsys.readouterr().out.split()) == (0, offered)


def variables_read():
    """Words in capitals in each module that uses `os.environ` or `os.getenv`."""
    for path in (ROOT / "patchmint").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        if any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in nodes):
            words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            yield from (word for word in words if re.fullmatch(r"[A-Z][A-Z0-9_]{3,}", word))


def test_the_page_of_environment_variables_is_whole():
    page = (ROOT / "docs" / "environment.md").read_text().partition("Libraries read")[0]
    named = set(re.findall(r"`([A-Z][A-Z0-9_]{3,})`", page))
    assert named == set(variables_read()) - NO_VARIABLES


def test_without_a_home_it_is_the_root_as_in_containers(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setenv("HOME", "/home/me")
    patchmint._have_home()
    assert os.environ["HOME"] == "/home/me"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    patchmint._have_home()
    assert Path.home() == Path("/")
