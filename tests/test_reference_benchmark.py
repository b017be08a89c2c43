"""The yardstick of benchmarks/reference.py: its reference gives our labels, and nothing of ours speeds it up."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builds import benchmark_modules
from torch import nn

from patchmint import Annotator
from patchmint.errors import DemoWarning
from patchmint.geometry import coverage_to_uint8

IMAGES = 6


@pytest.fixture(scope="module")
def yardstick():
    """`reference.py`, its loop and its weights."""
    return benchmark_modules("reference", "reference_loop", "reference_weights")


@pytest.fixture(scope="module")
def made(yardstick, tmp_path_factory):
    """Demo scenes with two texts each, and the reference's tars of them."""
    _, loop, weights = yardstick
    folder = tmp_path_factory.mktemp("contest")
    contest = weights.demo_contest(folder, IMAGES, 2)
    found = loop.run(contest, folder / "theirs", 2, torch.get_num_threads())
    assert found["boxes"] > 0
    assert set(found["stages"]) == {"read", "detect", "encode", "masks", "label", "tokens", "write"}
    assert 0 < sum(found["stages"].values()) <= found["seconds"]
    return folder


def test_the_reference_gives_what_patchmint_gives(yardstick, made):
    reference, _, _ = yardstick
    theirs = dict(reference.arrays(made / "theirs"))
    assert len(theirs) == IMAGES
    assert len(list((made / "theirs").glob("*.tar"))) == IMAGES // 2
    document = json.loads((made / "data" / "annotations" / "captions_train2017.json").read_text())
    with pytest.warns(DemoWarning):
        annotator = Annotator.from_config({"precision": "float32"}, device="cpu")
    kept = other = 0
    for name, arrays in theirs.items():
        texts = [each["caption"] for each in document["annotations"] if each["image_id"] == int(name)]
        ours = annotator.annotate(made / "data" / "train2017" / f"{name}.jpg", texts)
        assert ours.selector.shape == arrays["selector"].shape
        np.testing.assert_array_equal(ours.codes, arrays["vqgan"])
        kept += arrays["selector"].sum()
        other += (ours.selector != arrays["selector"]).sum()
    assert kept > 100  # else agreement would mean little
    # Upstream doesn't cut boxes at the border, and lets "." claim some.
    assert other <= 0.02 * kept


def test_agreement_is_the_share_that_is_equal(yardstick, made, tmp_path):
    reference, _, _ = yardstick
    theirs = made / "theirs"
    same = reference.agreement(theirs, theirs)
    assert (same["patches"], same["codes"]) == (1, 1)
    for path in theirs.glob("*.tar"):
        with tarfile.open(path) as old, tarfile.open(tmp_path / path.name, "w") as new:
            for member in old:
                data = old.extractfile(member).read()
                if member.name.endswith("selector.npy"):
                    data = data[:-24] + bytes(1 - value for value in data[-24:])  # one row of the last text's grid
                new.addfile(member, io.BytesIO(data))
    other = reference.agreement(theirs, tmp_path)
    assert other["patches"] == pytest.approx(1 - 24 / (2 * 24 * 24))
    assert other["codes"] == 1
    next(tmp_path.glob("*.tar")).unlink()
    with pytest.raises(RuntimeError, match="one side only"):
        reference.agreement(theirs, tmp_path)


def test_ratios_are_by_the_number_of_texts(yardstick):
    reference, _, _ = yardstick
    runs = [
        {"settings": {"texts": texts}} | {name: {"seconds": seconds} for name, seconds in times.items()}
        for texts, times in (
            (1, {"reference": 8, "local": 2, "transformers": 5}),
            (5, {"reference": 40, "local": 8, "transformers": 24}),
        )
    ]
    assert reference.ratios(runs) == {"to_reference": {"1": 4, "5": 5}, "to_transformers": {"1": 2.5, "5": 3}}


def test_labels_are_what_the_mask_touches(yardstick):
    _, loop, _ = yardstick
    mask = np.zeros((48, 96), dtype=bool)  # cells of 4 pixels, 24 rows of padding above and below
    mask[0, 3:5] = True
    labels = loop.label(mask)
    assert np.argwhere(labels).tolist() == [[6, 0], [6, 1]]
    mask = np.zeros((50, 50), dtype=bool)  # pixel 2 lies in two cells of 2.08 pixels
    mask[0, 2] = mask[2, 49] = True
    assert np.argwhere(loop.label(mask)).tolist() == [[0, 0], [0, 1], [0, 23], [1, 23]]


def test_a_sped_up_upstream_is_refused(yardstick, monkeypatch):
    _, loop, _ = yardstick
    loop.refuse_patches(nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="weight: torch"):
        loop.refuse_patches(nn.Linear(1, 1).bfloat16())
    patched = nn.Linear(1, 1)
    patched.forward = lambda x: x
    with pytest.raises(RuntimeError, match="no longer upstream's own"):
        loop.refuse_patches(patched)
    import segment_anything.modeling.image_encoder as upstream

    monkeypatch.setattr(upstream.Attention, "forward", coverage_to_uint8)
    with pytest.raises(RuntimeError, match="Attention"):
        loop.refuse_patches(nn.Linear(1, 1))


def test_random_queries_are_told_apart_where_pictures_are_not(yardstick):
    _, _, weights = yardstick
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 1, 16).repeat(3, 1, 1)
    spread[0, 0, 8:] /= 4  # the directions of most difference are those of other pictures
    queries = torch.randn(3, 200, 16, generator=generator) * spread + 5 * torch.randn(3, 1, 16, generator=generator)
    along = queries @ weights._telling(queries)
    assert along.mean(dim=1).std() < 1e-3
    assert (along - along.mean()).std() == pytest.approx(1, rel=1e-2)
    cut = along.flatten().sort(descending=True).values[3 * weights.BOXES]
    assert all(2 <= found <= 8 for found in (along > cut).sum(dim=1))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_that_of_all_descendants(yardstick):
    reference, _, _ = yardstick
    hold = "x = bytearray(64 << 20); print(1, flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 64 < reference.tree_mb(process.pid) < 200
        process.communicate(b"\n")
