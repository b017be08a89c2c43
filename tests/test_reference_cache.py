"""The cache of what publishers' code answers: right when cold, warm, damaged, or asked about changed code."""

import numpy as np
import pytest
from reference_cache import cached


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Asks the cache; counts how often the answer was made."""
    monkeypatch.setenv("PATCHMINT_TEST_CACHE", str(tmp_path / "cache"))
    code = tmp_path / "code.py"
    code.write_text("one")
    made = []

    def make():
        made.append(None)
        return {"a": np.arange(1000), "b/c": np.ones((2, 3), np.float32)}

    def ask():
        found = cached("thing", code, make)
        assert sorted(found) == ["a", "b/c"]
        np.testing.assert_array_equal(found["a"], np.arange(1000))
        assert found["b/c"].dtype == np.float32
        return len(made)

    ask.code, ask.folder = code, tmp_path / "cache"
    return ask


def test_an_answer_is_made_once_for_each_state_of_the_code(asked):
    assert [asked(), asked()] == [1, 1]
    asked.code.write_text("two")
    assert [asked(), asked()] == [2, 2]
    assert len(list(asked.folder.iterdir())) == 2


@pytest.mark.parametrize("kept", [0, 1, 100, 4000, -1])
def test_a_cut_file_is_made_anew(asked, kept):
    asked()
    (file,) = asked.folder.iterdir()
    file.write_bytes(file.read_bytes()[:kept])
    assert [asked(), asked()] == [2, 2]


def test_a_damaged_file_is_made_anew(asked):
    asked()
    (file,) = asked.folder.iterdir()
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert [asked(), asked()] == [2, 2]
    file.write_bytes(b"<html>")
    assert [asked(), asked()] == [3, 3]
