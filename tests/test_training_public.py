"""What `patchmint.training` exports; and its data sets as sequences of samples."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_data import LAYOUT
from test_training_dataset import damaged, overwrite
from training_data import cut, digest, finished, samples

from patchmint import training
from patchmint.errors import ShardError
from patchmint.training import StageDataset

ROOT = Path(__file__).parent.parent
IMPORT = re.compile(r"from (patchmint\.training[\w.]*) import (\([^)]*\)|.*)")
PUBLIC = set(training.__all__)


def test_no_other_names():
    assert all(getattr(training, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = training.nothing_of_the_kind


def test_nothing_heavy_is_loaded_before_use():
    code = "import sys, patchmint.training; print(*({'torch', 'numpy', 'tokenizers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_documents_and_examples_need_no_other_names():
    """Nobody is sent to a module inside of the package."""
    paths = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]
    used = [found for path in paths for found in IMPORT.findall(path.read_text())]
    assert used
    for module, names in used:
        assert module == "patchmint.training"
        assert {name.strip() for name in names.strip("(,\n )").split(",")} <= PUBLIC, names


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Nine samples in two shards with a unit between that has none, and four in another data set."""
    folder = tmp_path_factory.mktemp("two")
    one = finished(folder / "one", [*cut(samples(9), 4), [], samples(9)[4:]])
    return one, finished(folder / "other", [samples(4, prefix="t")])


def test_by_position(two):
    dataset = StageDataset(list(two), 1, shuffle=False, text="first")
    whole = list(dataset)
    assert len(dataset) == len(whole) == 13
    assert [sample.key for sample in whole] == [f"s{n:04}" for n in range(9)] + [f"t{n:04}" for n in range(4)]
    for position in (*range(13), *range(-13, 0), np.int64(7)):
        assert digest(dataset[position]) == digest(whole[position])
    for position in (13, -14, 10**30):
        with pytest.raises(IndexError, match=rf"no sample {position}.* 13 samples"):
            _ = dataset[position]
    with pytest.raises(TypeError, match="slice"):
        _ = dataset[1:3]
    assert dataset.state_dict()["position"] == 0


def test_positions_are_those_of_the_shards_whatever_the_order(two):
    shuffled = StageDataset(two[0], 1, rank=1, world_size=2, seed=3)
    assert len(shuffled) == len(list(shuffled)) == 4, "of this rank"
    assert [shuffled[position].key for position in range(-9, 9)] == 2 * [f"s{n:04}" for n in range(9)]
    assert shuffled[1].text == shuffled[-8].text


def test_a_damaged_sample_by_position(tmp_path, two):
    data = damaged(two[0], tmp_path / "set", "s0005", "json", overwrite(512, b"no json"))
    dataset = StageDataset(data, 1, on_error="skip")
    with pytest.raises(ShardError, match=r"sample 's0005' of .* KEY.json isn't of the form"):
        _ = dataset[5]
    assert dataset.skipped == 0
    assert dataset[6].selector.shape == (1, LAYOUT.grid.rows, LAYOUT.grid.cols)
