"""The house: what starts quickly, what is exported, what must not be shadowed."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import patchmint
from patchmint.cli import COMMANDS, app
from tools import house

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    return run_python(code).stdout


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


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


NO_LIBGL = """
import sys
class NoLibGl:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cv2", "supervision"):
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, NoLibGl())
"""


def test_labels_where_neither_opencv_nor_supervision_can_be_imported(tmp_path):
    """Slim images lack libGL, which opencv-python needs. Upstream's visualizer imports it, and is never used.
    Nor is supervision, of which groundingdino-py wants version 0.6.0: any other may be there (docs/install.md).

    This is also the test of `label` in a fresh interpreter; those of test_cli_label.py run in forks.
    """
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    label = f"sys.argv = ['patchmint', 'label', {str(tmp_path / 'red.png')!r}, '--text', 'a red circle']"
    code = f"{NO_LIBGL}{label}\nimport patchmint.cli as c\ntry: c.main()\nexcept SystemExit as e: assert not e.code\n"
    done = run_python(f"{code}assert 'cv2' not in sys.modules\n{LOADED}")
    assert "codes: 16 x 16" in done.stdout
    assert "torch" in json.loads(done.stdout.splitlines()[-1])  # or `test_starts_without_torch_and_ray` couldn't fail
    assert "Warning" not in done.stderr
    with pytest.raises(AssertionError, match=r"libGL\.so\.1"):
        python(NO_LIBGL + "import groundingdino.util.visualizer")


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


def test_the_docker_build_is_sent_what_it_copies_and_nothing_else():
    copies = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:5] == "COPY "]
    copied = {source for sources in copies if not sources[0].startswith("--from") for source in sources}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line[:1] == "!"} == copied
    assert "*" in ignored


def test_users_get_the_tests_versions_and_nothing_that_only_tests_need():
    runtime, dev = (
        # without markers, which a second requirement may widen
        {tuple(line.split()[0].split("==")) for line in (ROOT / lock).read_text().splitlines() if line[:1].isalnum()}
        for lock in ("requirements.lock", "requirements-dev.lock")
    )
    assert runtime < dev
    assert {"torch", "ray"} <= {name for name, _ in runtime}
    assert {"moto", "playwright", "mypy", "pandas", "pytest"}.isdisjoint(name for name, _ in runtime)


def test_rooms_have_no_circle_and_the_pipelines_few_imports():
    figures = house.measure(ROOT)
    assert figures["circles_of_modules"] == figures["circles_of_rooms"] == []
    assert figures["pipeline_imports"] <= 15


@pytest.mark.parametrize(
    ("back", "circles"),
    [
        ("import patchmint.one.a", [["patchmint.one.a", "patchmint.two.b"]]),
        ("if TYPE_CHECKING:\n    from patchmint.one import a", [["patchmint.one.a", "patchmint.two.b"]]),
        ("def late():\n    from patchmint.one.a import x", []),  # no circle of modules, but of rooms
    ],
)
def test_circles_are_found(tmp_path, back, circles):
    for name, code in (
        ("one/__init__", ""),
        ("one/a", "from patchmint.two import b"),
        ("two/__init__", ""),
        ("two/b", back),
    ):
        path = tmp_path / "patchmint" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    figures = house.measure(tmp_path)
    assert figures["circles_of_modules"] == circles
    assert figures["circles_of_rooms"] == [["patchmint.one", "patchmint.two"]]
