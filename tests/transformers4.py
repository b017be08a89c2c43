"""Runs Python under transformers 4.57, laid over the environment of the tests by `make setup-dev`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OVERLAY = ROOT / ".venv-transformers4"


def run_under_transformers4(*arguments, timeout=600):
    """Run the interpreter with these arguments; its output, or an AssertionError that shows it."""
    assert OVERLAY.is_dir(), "run `make setup-dev` first: it installs transformers 4.57 beside the environment"
    paths = [str(OVERLAY), str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
