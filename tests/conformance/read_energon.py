"""Megatron Energon: its commands on a copy (it writes beside the tars), its own loader, and a cooker with ours."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from expected import Expected
from megatron.energon import WorkerConfig, get_loader, get_val_dataset

CRUDE = """
__module__: megatron.energon
__class__: CrudeWebdataset
decoder: null
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


def main():
    expected = Expected.from_command_line()
    with tempfile.TemporaryDirectory() as folder:
        whole = shutil.copytree(expected.dataset, Path(folder) / "dataset")
        copy = str(whole / "shards")
        energon(
            *("prepare", "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample"),
            *("--field-map", FIELDS, copy),
        )
        count = len(expected.samples)
        assert f"{count} samples in {len(expected.tars)} shards" in energon("info", copy)
        for command in ("lint", "preview"):
            printed = energon(command, copy)
            assert not TROUBLE.search(printed), f"{printed}\nenergon {command} reports trouble"
            assert command != "lint" or f"{count}/{count}" in printed, printed
        config = WorkerConfig(rank=0, world_size=1, num_workers=0)
        read = 0
        for sample in get_loader(get_val_dataset(copy, split_part="train", worker_config=config, batch_size=None)):
            want = expected.samples[sample.__key__]
            image = want["document"]["image"]
            assert sample.caption == want["caption"], sample.__key__
            assert tuple(sample.image.shape) == (3, image["height"], image["width"]), sample.__key__
            read += 1
        expected.check_count(read)
        (whole / "shards" / ".nv-meta" / "dataset.yaml").write_text(CRUDE)
        endless = Expected(whole, Path(sys.argv[2])).samples_of("Energon")
        expected.check_decoded(islice(endless, count))
        expected.check_no_strays(whole)


if __name__ == "__main__":
    main()
