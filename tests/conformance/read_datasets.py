"""Hugging Face `datasets`: streaming, and converted to Arrow on disk; no features given, so that it infers them."""

import tempfile

import datasets
from expected import Expected

expected = Expected.from_command_line()
datasets.disable_progress_bars()
with tempfile.TemporaryDirectory() as cache:
    for streaming in (True, False):
        read = datasets.load_dataset(
            "webdataset", data_files={"train": expected.tars}, split="train", streaming=streaming, cache_dir=cache
        )
        count = 0
        for row in read:
            count += 1
            key = row["__key__"]
            want = expected.samples[key]
            size = want["document"]["image"]["width"], want["document"]["image"]["height"]
            assert row["jpg"].size == size, (streaming, key)
            assert row["txt"] == want["caption"], (streaming, key)
            assert row["json"] == want["document"], (streaming, key)
            for ending in want["arrays"]:
                expected.check_array(key, ending, row[ending])
        expected.check_count(count)
