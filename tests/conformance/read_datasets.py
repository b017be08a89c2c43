"""Hugging Face `datasets`, of a list of tars, of the data set's folder by its README.md, and of `shards/`.

Streaming, and converted to Arrow on disk; no features given, so that it infers them.
"""

import tempfile
from itertools import product

import datasets
from expected import Expected

expected = Expected.from_command_line()
datasets.disable_progress_bars()
sources = (
    {"path": "webdataset", "data_files": {"train": expected.tars}},
    {"path": str(expected.dataset)},
    {"path": str(expected.dataset / "shards")},
)
with tempfile.TemporaryDirectory() as cache:
    for source, streaming in product(sources, (True, False)):
        read = datasets.load_dataset(**source, split="train", streaming=streaming, cache_dir=cache)
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
expected.check_decoded(expected.samples_of("Hugging Face `datasets`"))
