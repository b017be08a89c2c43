"""Builds on this machine, as users start them: real files in, verified shards out, nothing lost."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import builds
import numpy as np
import pyarrow.parquet as pq
import pytest
import warm
from builds import asked, digests, make_config, make_input, patchmint
from PIL import Image

from patchmint.shards.reader import iter_samples
from patchmint.storage import open_storage

ROOT = Path(__file__).parent.parent


def stand_in_config(tmp_path, folder, **changes):
    runner = {"kind": "local", "num_cpus": 1, "device": "cpu", "batch_size": 4}
    return make_config(tmp_path / "config.yaml", folder, tmp_path / "out", 7, **{"runner": runner} | changes)


def fill(folder, count, captions=None):
    return make_input(folder, [(captions or {}).get(number, f"thing number {number}") for number in range(count)])


def rows(out, name):
    return [row for path in sorted(out.glob(name)) for row in pq.read_table(path).to_pylist()]


def counts(report):
    return report["planned"], report["written"], report["rejected"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The bundled photographs, in both forms."""
    folder = tmp_path_factory.mktemp("photographs")
    cold = partial(subprocess.run, capture_output=True, text=True, timeout=120, check=False)
    for kind, run in (("coco", cold), ("img2dataset", warm.run)):
        command = [sys.executable, str(ROOT / "examples" / "photographs.py"), str(folder / kind), "--format", kind]
        assert (done := run(command)).returncode == 0, done.stderr
    return folder


def test_photographs_as_coco_captions_through_real_models(photographs, tmp_path):
    out = tmp_path / "out"
    source = photographs / "coco"
    options = ["--source.uri", source, "--output.uri", out, "--runner.num-cpus", "2"]
    done = patchmint("build", ROOT / "examples" / "quickstart.yaml", *options)
    assert "15 planned = 15 written + 0 rejected" in done.stdout
    assert "untrained" in done.stderr
    patchmint("inspect", "verify", out, "--deep")
    samples = [sample for n in range(3) for sample in iter_samples(open_storage(out), f"shards/{n:06d}.tar")]
    assert len(samples) == 15
    assert [sample.document.texts for sample in samples][2] == (
        "a ginger cat looks at the camera",
        "the whiskers and green eyes of a cat",
    )
    annotations = json.loads((source / "annotations" / "captions_train2017.json").read_text())
    for sample, entry in zip(samples, annotations["images"], strict=True):
        assert sample.image == (source / "train2017" / entry["file_name"]).read_bytes()
        assert (sample.document.image.width, sample.document.image.height) == (entry["width"], entry["height"])
        assert sample.selector.shape == (len(sample.document.texts), 24, 24)
    assert max(sample.selector.max() for sample in samples) == 1


def test_a_build_labels_as_the_api_does(photographs, tmp_path):
    """One code path: what a shard holds is what `Annotator` says of the same image and texts."""
    from patchmint import Annotator

    out = tmp_path / "out"
    tar = photographs / "img2dataset" / "{00000..00000}.tar"
    options = ["--source.uri", tar, "--output.uri", out, "--output.prefix", "tiny-", "--source.kind", "webdataset"]
    patchmint("build", "--models", "untrained-tiny", *options, "--runner.num-cpus", "2", "--runner.batch-size", "1")
    with pytest.warns(UserWarning, match="untrained"):
        annotator = Annotator.from_preset("untrained-tiny", device="cpu")
    patchmint("inspect", "verify", out)
    samples = list(iter_samples(open_storage(out), "shards/tiny-000000.tar"))
    assert len(samples) == 6
    for sample in samples[:3]:
        annotation = annotator.annotate(sample.image, list(sample.document.texts))
        assert np.array_equal(annotation.coverage, sample.coverage)
        assert np.array_equal(annotation.codes, sample.codes)
        assert [phrase.text for phrase in annotation.phrases] == [phrase.text for phrase in sample.document.phrases]


def test_img2dataset_tars_end_verified_and_the_same_bytes_with_other_workers(photographs, tmp_path):
    source = {"kind": "webdataset", "uri": str(photographs / "img2dataset")}
    config = stand_in_config(tmp_path, "", source=source)
    patchmint("build", config)
    patchmint("inspect", "verify", tmp_path / "out", "--deep")
    patchmint("build", config, "--output.uri", tmp_path / "again", "--runner.workers", "2")
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    assert len(digests(tmp_path / "out")) == 3 * 2 + 2 + 2


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """A build of a folder with everything that goes wrong in one sample."""
    tmp_path = tmp_path_factory.mktemp("rough")
    source = fill(tmp_path / "in", 40, {3: "KILL me", 5: "a CROWD", 6: "ALONE", 9: "   ", 12: "\x1b[31mred\x07"})
    (source / "010.jpg").write_bytes((source / "010.jpg").read_bytes()[:300])
    (source / "011.jpg").write_bytes(b"<html>not found</html>")
    (source / "013.txt").unlink()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(source / "014.jpg", "png")
    Image.new("1", (12_000, 9_000)).save(source / "bomb.png")
    (source / "bomb.txt").write_text("too large")
    (source / "Sub Dir.v1").mkdir()
    for name in ("A.b.jpg", "a_b.jpg"):
        shutil.copy(source / "000.jpg", source / "Sub Dir.v1" / name)
        (source / "Sub Dir.v1" / name).with_suffix(".txt").write_text("dots and capitals")
    config = stand_in_config(tmp_path, source, limits={"max_reject_share": 0.5})
    done = patchmint("build", config, "--json")
    return config, tmp_path / "out", done


def test_every_bad_sample_is_rejected_alone_with_its_reason(rough):
    _, out, done = rough
    found = {row["id"].rsplit("/")[-1].removesuffix(".jpg"): row["reason"] for row in rows(out, "rejects/*")}
    assert found.pop("009") in ("text-empty", "text-missing")
    assert found == {
        "003": "kills-worker",
        "006": "out-of-memory",
        "010": "image-damaged",
        "011": "image-damaged",
        "013": "text-missing",
        "bomb.png": "image-too-large",
    }
    report = json.loads(done.stdout)
    assert (*counts(report), report["missing"]) == (43, 36, 7, 0)
    assert "worker died" in done.stderr
    patchmint("inspect", "verify", out)


def test_images_of_12_bits_that_dont_say_so_are_counted(rough):
    _, _, done = rough
    assert "nearly black images: 1. They have 16 bits" in done.stderr


def test_keys_are_lawful_and_unique_and_the_id_is_kept(rough):
    _, out, _ = rough
    written = rows(out, "sidecars/*.parquet")
    keys = [row["key"] for row in written]
    assert len(set(keys)) == len(keys) == 36
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for key in keys)
    assert {row["id"] for row in written} >= {"Sub Dir.v1/A.b.jpg", "Sub Dir.v1/a_b.jpg"}


def test_status_tells_the_same_and_hides_nothing(rough):
    _, out, _ = rough
    status = asked("status", out, "--json")
    assert status["state"] == "finished"
    assert status["planned"] == status["written"] + status["rejected"] == 43
    assert status["rejects"]["kills-worker"] == 1
    assert "kills-worker" in patchmint("status", out).stdout


def test_the_same_command_again_does_nothing_twice_and_another_config_is_refused(rough):
    config, out, _ = rough
    before = digests(out)
    report = asked("build", config, "--json")
    assert report["done_before"] == report["units"]
    assert digests(out) == before
    done = patchmint("build", config, "--labels.min-coverage", "0.3", rc=2)
    assert "labels.min_coverage: 0.0 there, 0.3 here" in done.stderr
    assert (out / "dataset.json").exists()


def test_mended_samples_are_taken_up_in_new_shards(tmp_path):
    source = fill(tmp_path / "in", 16)
    damaged = (source / "004.jpg").read_bytes()
    (source / "004.jpg").write_bytes(damaged[:200])
    (source / "011.jpg").write_bytes(b"")
    config = stand_in_config(tmp_path, source)
    out = tmp_path / "out"
    patchmint("build", config)
    before = digests(out)
    (source / "004.jpg").write_bytes(damaged)
    report = asked("build", config, "--retry-failed", "--json")
    assert (*counts(report), report["rejects"]) == (16, 15, 1, {"image-damaged": 1})
    after = digests(out)
    assert {path: digest for path, digest in before.items() if not path.endswith(".json")}.items() <= after.items()
    assert "shards/000003.tar" in after
    patchmint("inspect", "verify", out)
    assert counts(asked("status", out, "--json")) == (16, 15, 1)


@pytest.mark.kill
def test_a_retry_that_is_broken_off_goes_on_and_counts_close(tmp_path):
    source = fill(tmp_path / "in", 30, dict.fromkeys(range(30), "slow"))
    whole = {number: (source / f"{number:03d}.jpg").read_bytes() for number in (*range(1, 30, 3), 29)}
    for number in whole:
        (source / f"{number:03d}.jpg").write_bytes(b"nothing")
    config, out = stand_in_config(tmp_path, source, limits={"max_reject_share": 0.4}), tmp_path / "out"
    patchmint("build", config)
    first = set(out.glob("runs/*"))
    for number in list(whole)[:5]:
        (source / f"{number:03d}.jpg").write_bytes(whole[number])
    # a stand-in that sleeps an hour an image: the retry is stopped in its first unit
    retry = builds.start(config, out, "--retry-failed", STAND_IN_SLEEP="3600")
    while not any(json.loads(run.read_text())["state"] == "building" for run in {*out.glob("runs/*")} - first):
        assert retry.poll() is None
        time.sleep(0.1)
    status = asked("status", out, "--json")
    assert (status["state"], *counts(status), status["left"]) == ("building", 30, 19, 0, 11)
    retry.send_signal(signal.SIGTERM)
    assert retry.wait(60) == 143
    assert asked("status", out, "--json")["state"] == "stopped"
    assert counts(asked("build", config, "--json")) == (30, 24, 6)
    for number in list(whole)[5:]:
        (source / f"{number:03d}.jpg").write_bytes(whole[number])
    report = asked("build", config, "--retry-failed", "--json")
    assert (*counts(report), report["missing"]) == (30, 30, 0, 0)
    assert (out / "plan.retry-2.parquet").exists()
    patchmint("inspect", "verify", out, "--deep")


def test_a_shard_that_somebody_deleted_is_missed_and_built_again(tmp_path):
    config, out = stand_in_config(tmp_path, fill(tmp_path / "in", 20)), tmp_path / "out"
    patchmint("build", config)
    before = digests(out)
    (out / "shards" / "000001.tar").unlink()
    done = patchmint("build", config, rc=1)
    assert "shards/000001.tar" in done.stderr
    assert "delete commits/000001.json" in done.stderr
    (out / "commits" / "000001.json").unlink()
    patchmint("build", config)
    assert digests(out) == before
    (out / "plan.parquet").unlink()
    assert "another plan" in patchmint("build", config, "--labels.min-coverage", "0.5", rc=1).stderr


def test_memory_for_two_images_is_enough_for_all(tmp_path):
    source = fill(tmp_path / "in", 12, dict.fromkeys(range(12), "a CROWD of things"))
    config = stand_in_config(tmp_path, source)
    assert "12 planned = 12 written + 0 rejected" in patchmint("build", config, "--runner.batch-size", "8").stdout


def test_a_wrong_config_does_not_eat_a_data_set(tmp_path):
    source = make_input(tmp_path / "in", ["thing"] * 60, damaged=range(30))
    config = stand_in_config(tmp_path, source)
    done = patchmint("build", config, rc=1)
    assert "max_reject_share" in done.stderr
    assert not (tmp_path / "out" / "dataset.json").exists()
    patchmint("build", config, rc=1)  # at once again, and not one unit further
    assert "30 rejected" in patchmint("build", config, "--limits.max-reject-share", "1").stdout


def test_mistakes_are_named_with_the_right_name(tmp_path):
    config = stand_in_config(tmp_path, tmp_path, limits={"max_reject_shar": 0.1})
    assert "did you mean 'max_reject_share'" in patchmint("build", config, rc=2).stderr
    assert "--dry-run" in patchmint("build", "--help").stdout
    patchmint("status", tmp_path, rc=2)


def test_doctor_says_what_fails_and_what_mends_it(tmp_path):
    config = stand_in_config(tmp_path, fill(tmp_path / "in", 1), models="official")
    # no address, or doctor would find other tests' cluster, and try for 25 s to get in
    nothing = {"PATCHMINT_WEIGHTS": str(tmp_path / "none"), "RAY_ADDRESS": "nowhere"}
    done = patchmint("doctor", config, "--json", rc=1, **nothing)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["model files"]["status"] == "fail"
    assert found["model files"]["remedy"].startswith("patchmint models pull groundingdino-swint-ogc")
    assert found["torch"]["status"] == found["source"]["status"] == found["output"]["status"] == "ok"
    assert found["Ray cluster"]["remedy"]


def test_a_sample_at_which_a_model_has_a_mistake_is_rejected_and_the_others_are_written(tmp_path):
    texts = ["WRONG" if place in (3, 12) else f"thing number {place}" for place in range(20)]
    source = builds.make_input(tmp_path / "in", texts)
    config = builds.make_config(tmp_path / "config.json", source, tmp_path / "out", 10)
    builds.run(config, tmp_path / "out", "--runner.batch-size=8")
    records = builds.committed(tmp_path / "out")
    assert [record["rejects"] for record in records.values()] == [{"model-error": 1}] * 2
    rows = [row for path in sorted((tmp_path / "out").glob("rejects/*")) for row in pq.read_table(path).to_pylist()]
    assert [row["ordinal"] for row in rows] == [3, 12]
    assert re.fullmatch(
        r"the models failed at it: IndexError: index 3 is out of bounds \(stand_in_models.py, line \d+\)",
        rows[0]["message"],
    )


@pytest.mark.parametrize(("count", "committed", "samples"), [(4, 0, 4), (40, 1, 8)])
def test_models_that_fail_at_everything_stop_the_build_with_words(tmp_path, count, committed, samples):
    """At once, or after a unit that was well."""
    texts = [f"thing number {place}" if committed and place < 10 else "WRONG" for place in range(count)]
    source = builds.make_input(tmp_path / "in", texts)
    config = builds.make_config(tmp_path / "config.json", source, tmp_path / "out", 10)
    said = builds.run(config, tmp_path / "out", rc=1)
    assert f"error: the models failed at {samples} samples, one after another; the last one was " in said
    assert "IndexError: index 3 is out of bounds" in said
    assert len(builds.committed(tmp_path / "out")) == committed
