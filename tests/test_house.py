"""The house: what starts quickly, what is exported, what must not be shadowed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import patchmint
from patchmint.cli import COMMANDS, app

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "import sys, json; print(json.dumps([m for m in ('torch', 'ray', 'transformers') if m in sys.modules]))"


@pytest.mark.parametrize(
    "code",
    [
        "import patchmint",
        "import patchmint; patchmint.Text('a'); patchmint.grid_preset('seed-224')",
        "import patchmint.cli",
        "import sys, patchmint.cli as c; sys.argv = ['patchmint', '--help']\ntry: c.main()\nexcept SystemExit: pass",
        "import sys, patchmint.cli as c; sys.argv = ['patchmint', 'label', '--help']\n"
        "try: c.main()\nexcept SystemExit: pass",
        "import sys, patchmint.cli as c; sys.argv = ['patchmint', 'models', 'list']\n"
        "try: c.main()\nexcept SystemExit: pass",
    ],
)
def test_starts_without_torch_and_ray(code):
    assert json.loads(python(f"{code}\n{LOADED}").splitlines()[-1]) == []


def test_the_check_above_can_fail():
    assert "torch" in json.loads(python(f"import patchmint; patchmint.Annotator\n{LOADED}"))


@pytest.mark.parametrize("name", ["tokenizers", "ray", "torch", "types"])
def test_no_top_level_name_is_shadowed(name):
    """`ray job submit --working-dir .` puts the repository first on every worker's path."""
    assert not (ROOT / name).exists()
    assert not (ROOT / f"{name}.py").exists()
    assert not (ROOT / "tests" / name).exists()


def test_hugging_faces_tokenizers_is_theirs():
    origin = python("from importlib.util import find_spec; print(find_spec('tokenizers').origin)").strip()
    assert not Path(origin).is_relative_to(ROOT / "patchmint")
    spec = find_spec("tokenizers")
    assert spec is not None
    assert spec.origin is not None
    assert "site-packages" in spec.origin


def every_command():
    yield ()
    for name, command in COMMANDS.items():
        yield (name,)
        group = command.load(name)
        yield from ((name, inner) for inner in getattr(group, "commands", {}))


def test_every_command_has_examples_in_its_help():
    commands = list(every_command())
    assert len(commands) > 20
    for names in commands:
        done = CliRunner().invoke(app, [*names, "--help"])
        assert done.exit_code == 0, done.output
        assert re.search(rf"Examples:\s+{' '.join(['patchmint', *names])}", done.output), done.output


def test_nothing_else_is_exported():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = patchmint.nothing_of_the_kind


def test_locks_name_no_registry_and_have_hashes():
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        assert "://" not in text, lock.name
        pins = [line for line in text.splitlines() if line[:1].isalnum()]
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
