"""Both lines of transformers: the tests that touch it, once more under 4.57."""

from __future__ import annotations

import pytest
from transformers4 import run_under_transformers4


def test_it_is_the_older_line():
    assert run_under_transformers4("-c", "import transformers; print(transformers.__version__)").startswith("4.57.")


@pytest.mark.parametrize(
    "file", ["test_grounding_dino.py", "test_geometry_processors.py", "test_vit.py", "test_vocabulary.py"]
)
def test_passes_under_transformers_4(file):
    output = run_under_transformers4("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}")
    assert " passed" in output
    assert "skipped" not in output
