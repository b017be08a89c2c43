"""Both lines of transformers: the tests that touch it, once more under 4.57, in one process."""

import re

import pytest
from transformers4 import run_under_transformers4

FILES = ["test_grounding_dino.py", "test_geometry_processors.py", "test_vit.py", "test_vocabulary.py"]
OURS = "million or fitted_without or any_batch or depend_on_the_batch or share_its_backbone or more_queries or extreme"
"""Costly tests in them of which transformers does nothing that the others don't ask of it."""
PROGRAM = "import sys, pytest, transformers; print(transformers.__version__); sys.exit(pytest.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def told():
    options = [
        "-v",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        f"not ({OURS})",
        *(f"tests/{file}" for file in FILES),
    ]
    return run_under_transformers4("-c", PROGRAM, *options)


def test_it_is_the_older_line(told):
    assert told.startswith("4.57.")


@pytest.mark.parametrize("file", FILES)
def test_passes_under_transformers_4(told, file):
    results = re.findall(rf"^tests/{file}::.* (\w+) +\[", told, re.MULTILINE)
    assert len(results) > 5
    assert set(results) == {"PASSED"}
