"""Megatron Energon: its commands on a copy (it writes beside the tars), its own loader, and a cooker with ours."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from expected import Expected
from megatron.energon import WorkerConfig, get_loader, get_train_dataset, get_val_dataset

CRUDE = """
__module__: megatron.energon
__class__: CrudeWebdataset
decoder: null
"""
INTERLEAVED = """
sample_type:
  __module__: megatron.energon
  __class__: InterleavedSample
sample_loader: sample_loader.py:sample_loader
part_filter: sample_loader.py:part_filter
"""
FIELDS = '{"image":"jpg","caption":"txt"}'
# `lint` ends with 0 on a corrupt JPEG, so what it prints is read too.
TROUBLE = re.compile(r"traceback|error|exception|cannot identify|truncated|skipping .*sample", re.IGNORECASE)


def energon(*arguments):
    command = [str(Path(sys.executable).parent / "energon"), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},  # they speak of errors too
        capture_output=True,
        text=True,
        input="n\n" * 3,
        timeout=300,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def check_sequence(sample, want):
    """Texts as they are, and an image of the right size at each place."""
    parts = want["document"]["sequence"]
    assert len(sample.sequence) == len(parts), sample.__key__
    for piece, part in zip(sample.sequence, parts, strict=True):
        if part["image"] < 0:
            assert piece == part["text"], sample.__key__
        else:
            width, height = want["sizes"][f"{part['image']}.jpg"]
            assert tuple(piece.shape) == (3, height, width), sample.__key__


def main():
    expected = Expected.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        whole = shutil.copytree(expected.dataset, Path(folder) / "dataset")
        copy = str(whole / "shards")
        form = ["CrudeWebdataset"] if expected.documents else ["CaptioningSample", "--field-map", FIELDS]
        energon("prepare", "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", *form, copy)
        meta = whole / "shards" / ".nv-meta"
        if expected.documents:
            (meta / "sample_loader.py").write_text(expected.block_of("Energon's interleaved samples"))
            (meta / "dataset.yaml").write_text(INTERLEAVED)
        count = len(expected.samples)
        assert f"{count:,} samples in {len(expected.tars)} shards" in energon("info", copy)
        for command in ("lint", "preview"):
            printed = energon(command, copy)
            assert not TROUBLE.search(printed), f"{printed}\nenergon {command} reports trouble"
            assert command != "lint" or f"{count}/{count}" in printed, printed
        config = WorkerConfig(rank=0, world_size=1, num_workers=0)
        read = 0
        for sample in get_loader(get_val_dataset(copy, split_part="train", worker_config=config, batch_size=None)):
            want = expected.samples[sample.__key__]
            if expected.documents:
                check_sequence(sample, want)
            else:
                width, height = want["sizes"]["jpg"]
                assert sample.caption == want["caption"], sample.__key__
                assert tuple(sample.image.shape) == (3, height, width), sample.__key__
            read += 1
        expected.check_count(read)
        (meta / "dataset.yaml").write_text(CRUDE)
        endless = Expected(whole, Path(sys.argv[2])).samples_of("Energon")
        expected.check_decoded(islice(endless, count))
        if not expected.documents:
            check_join(whole, expected)
        expected.check_no_strays(whole)


def check_join(whole, expected):
    """A column's members come with the base's, by the file in docs/training.md."""
    column = whole / "columns" / "codes" / "shards"
    energon("prepare", "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", str(column))
    (column / ".nv-meta" / "dataset.yaml").write_text(CRUDE)
    page = expected.page.partition("**Energon's own join**")[2]
    joined = whole / "joined.yaml"
    joined.write_text(page.partition("```yaml\n")[2].partition("```")[0].replace("columns/features", "columns/codes"))
    (whole / "joiner.py").write_text(re.search(r"`(joined = .*?)`", page)[1] + "\n")
    sys.path.insert(0, str(whole))
    os.environ["PYTHONPATH"] = f"{whole}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    energon("prepare", str(joined))
    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    settings = {"shuffle_buffer_size": None, "max_samples_per_sequence": None, "repeat": False}
    samples = list(get_loader(get_train_dataset(joined, worker_config=config, batch_size=None, **settings)))
    expected.check_count(len(samples))
    for sample in samples:
        want = expected.samples[sample["__key__"]]
        assert {"other.npy", *want["arrays"]} <= sample.keys(), sample["__key__"]
        assert hashlib.sha256(sample["jpg"]).hexdigest() == want["images"]["jpg"], sample["__key__"]


if __name__ == "__main__":
    main()
