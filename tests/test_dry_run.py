"""What a dry run says against what the build then does, and what it says where nothing can be built."""

import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builds import asked, make_config, make_input, patchmint
from PIL import Image

from patchmint.config import DEMO
from patchmint.demo.dataset import write_dataset
from patchmint.jobs.dry_run import size
from patchmint.jobs.trial import spread
from patchmint.pipeline.plan import LookedAt
from patchmint.pipeline.plan.keys import key_of
from patchmint.samples import Fault

FACTOR = 1.5


def folder(path):
    """Photographs of which one is damaged, and one has a text without words."""
    make_input(path, [f"thing number {place}" for place in range(12)] + [" "], damaged=[3])
    return {"kind": "folder", "uri": str(path)}


def coco(path):
    """The same photographs in COCO's layout, one of them missing, one of a kind that is no picture."""
    make_input(path / "val2017", ["."] * 12, damaged=[3])
    (path / "val2017/005.jpg").unlink()
    images = [{"id": place, "file_name": f"{place:03d}.jpg", "height": 48, "width": 50} for place in range(12)]
    captions = [{"id": place, "image_id": place % 12, "caption": f"thing number {place}"} for place in range(24)]
    (path / "annotations").mkdir()
    document = json.dumps({"images": images, "annotations": captions})
    (path / "annotations/captions_val2017.json").write_text(document)
    return {"kind": "coco", "uri": str(path), "split": "val2017"}


def said_and_done(config, out, *, cold):
    """The dry run, the build, and the bytes of its shards; that the first wrote nothing."""
    dry = asked("build", config, "--dry-run", "--json")
    assert not out.exists()
    built = json.loads(patchmint("build", config, "--profile", "--json", cold=cold).stdout)
    shards = sum(path.stat().st_size for path in out.glob("s*s/0*"))
    assert dry["samples"] == built["planned"]
    assert dry["units"] == built["units"]
    both = dry["rejects"].keys() | dry["looked_at_rejects"].keys()
    assert {r: dry["rejects"].get(r, 0) + dry["looked_at_rejects"].get(r, 0) for r in both} == built["rejects"]
    assert 1 / FACTOR < dry["output_bytes"] / shards < FACTOR
    return dry, built


@pytest.mark.parametrize(("make", "rejects"), [(folder, 2), (coco, 2)])
def test_rejects_and_disk_are_those_of_the_build(make, rejects, tmp_path):
    limits = {"max_reject_share": 1.0}
    config = make_config(tmp_path / "c.json", "", tmp_path / "out", source=make(tmp_path / "in"), limits=limits)
    dry, _ = said_and_done(config, tmp_path / "out", cold=False)
    assert sum(dry["rejects"].values()) + sum(dry["looked_at_rejects"].values()) == rejects
    assert dry["memory"]["unknown"] == ["stand-in", "stand-in"]


def test_memory_is_that_of_the_build(tmp_path):
    """The worker is a process of its own, as users have it: a fork's memory is partly its parent's."""
    write_dataset(tmp_path / "in", seed=7_200_003, count=8)
    source = {"kind": "coco", "uri": str(tmp_path / "in")}
    runner = {"kind": "local", "device": "cpu"}
    config = make_config(tmp_path / "c.json", "", tmp_path / "out", source=source, models=DEMO, runner=runner)
    dry, built = said_and_done(config, tmp_path / "out", cold=True)
    (worker,) = built["profile"]["workers"]
    assert 1 / FACTOR < dry["memory"]["worker"] / worker["peak_bytes"] < FACTOR
    parts = dry["memory"]
    assert parts["worker"] == sum(parts[part] for part in ("libraries", "weights", "models", "images", "kept"))


def test_a_trial_labels_draws_and_says_how_long_it_takes(tmp_path):
    source, overlays = (
        make_input(tmp_path / "in", [f"thing {place}" for place in range(9)], damaged=[4]),
        tmp_path / "o",
    )
    config = make_config(tmp_path / "c.json", source, tmp_path / "out")
    options = ("--dry-run", "--try", "3", "--try-out", overlays)
    trial = asked("build", config, *options, "--json")["trial"]
    assert trial["samples"] == 3
    assert 0 < trial["least"] <= trial["seconds"] <= trial["most"]
    least, mean, most = trial["build_seconds"]
    assert trial["start_seconds"] < least <= mean <= most
    assert mean == pytest.approx(trial["start_seconds"] + 8 * trial["seconds"])
    assert trial["peak_bytes"] > 10**8
    assert sorted(trial["overlays"]) == sorted(map(str, overlays.iterdir()))
    assert sorted(path.name for path in overlays.iterdir()) == [
        f"{key_of(f'{place:03d}.jpg')}-0.png" for place in (1, 5, 7)
    ]
    with Image.open(trial["overlays"][0]) as picture:
        assert picture.format == "PNG"
    text = patchmint("build", config, *options).stdout
    assert re.search(r"^time      about .* with 1 worker, of it \d+ s to start$", text, re.MULTILINE), text
    assert f"overlays  3 in {overlays}\n" in text
    assert "rejects   none for what source and texts say; 1 (1 image-damaged) of 9 images read and decoded" in text
    assert "would stop" not in text  # a single one stops no build
    assert not (tmp_path / "out").exists()


def test_it_says_that_the_build_would_stop(tmp_path):
    source = make_input(tmp_path / "in", ["a thing"] * 20, damaged=range(11))
    config = make_config(tmp_path / "c.json", source, tmp_path / "out")
    said = patchmint("build", config, "--dry-run").stdout
    assert "the build would stop: about 55% of the samples, and limits.max_reject_share is 5%" in said


def test_without_weights_everything_but_the_time_is_said(tmp_path):
    source = make_input(tmp_path / "in", ["a thing"] * 3)
    config = make_config(tmp_path / "c.json", source, tmp_path / "out", models="official")
    nowhere = {"PATCHMINT_WEIGHTS": str(tmp_path / "none")}
    text = patchmint("build", config, "--dry-run", "--try", "3", **nowhere).stdout
    assert "samples   3 with 3 texts" in text
    assert "3.56 GB weights" in text
    pull = "patchmint models pull groundingdino-swint-ogc bert-base-uncased-vocab sam-vit-h vqgan-imagenet-f16-16384"
    assert f"weights   missing, so nothing can be tried yet: {pull}\n" in text
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_ends_it_with_2(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg.txt").write_text("no image")
    config = make_config(tmp_path / "c.json", tmp_path / "in", tmp_path / "out")
    said = patchmint("build", config, "--dry-run", rc=2).stderr
    assert "there is no image (avif, bmp, gif" in said
    assert f"tiff, webp) in {tmp_path / 'in'}" in said
    (tmp_path / "p").mkdir()
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), tmp_path / "p/0.parquet"
    )
    empty = {"kind": "parquet", "uri": str(tmp_path / "p")}
    config = make_config(tmp_path / "d.json", "", tmp_path / "out", source=empty)
    said = patchmint("build", config, "--dry-run", rc=2).stderr
    assert f"there are no samples in {tmp_path / 'p'}" in said
    assert "Check source.uri and source.kind" in said
    assert "add --dry-run" in patchmint("build", config, "--try", "3", rc=2).stderr
    wrong = make_config(tmp_path / "e.json", "", tmp_path / "out", source=empty, models={"masker": "./gone.pth"})
    assert "gone.pth" in patchmint("build", wrong, "--dry-run", rc=2).stderr


def test_an_extension_is_foreseen_as_well(tmp_path):
    source = make_input(tmp_path / "in", ["a thing"] * 30)
    patchmint("build", make_config(tmp_path / "c.json", source, tmp_path / "out", 30))
    options = ("extend", tmp_path / "out", "--labels", "{}", "--runner.device", "cpu", "--json")
    dry = asked(*options, "--dry-run")
    built = asked(*options)
    assert (dry["samples"], dry["looked_at"], built["written"]) == (30, 30, 30)
    shards = sum(path.stat().st_size for path in (tmp_path / "out/columns/labels").glob("s*s/0*"))
    assert 1 / FACTOR < dry["output_bytes"] / shards < FACTOR


def test_samples_to_try_are_sound_and_spread():
    looked = [LookedAt(place, None, fault=Fault("read", "x", "") if place % 2 else None) for place in range(20)]
    assert [each.ordinal for each in spread(looked, 3)] == [2, 10, 16]
    assert [each.ordinal for each in spread(looked, 99)] == list(range(0, 20, 2))
    assert spread(looked[1:2], 3) == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (1_530_000_000, "1.53 GB"), (2e12, "2 TB")]
)
def test_sizes_have_three_digits(count, text):
    assert size(count) == text


def test_a_dry_run_without_a_trial_needs_no_torch():
    code = "import sys, patchmint.jobs.build; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
