"""Hugging Face `datasets`, of a list of tars, of the data set's folder by its README.md, and of `shards/`.

Streaming, and converted to Arrow on disk; no features given, so that it infers them. Of documents it would leave out
the images that its first five samples haven't: README.md has their columns, which serve a list of tars, too.
"""

import tempfile
from itertools import product

import datasets
from expected import Expected

expected = Expected.from_command_line()
datasets.disable_progress_bars()
tars = {"path": "webdataset", "data_files": {"train": expected.tars}}
folder = {"path": str(expected.dataset)}
with tempfile.TemporaryDirectory() as cache:
    if expected.documents:
        features = datasets.load_dataset_builder(**folder, cache_dir=cache).info.features
        sources = (tars | {"features": features}, folder)
    else:
        sources = (tars, folder, {"path": str(expected.dataset / "shards")})
    for source, streaming in product(sources, (True, False)):
        read = datasets.load_dataset(**source, split="train", streaming=streaming, cache_dir=cache)
        count = 0
        for row in read:
            count += 1
            key = row["__key__"]
            want = expected.samples[key]
            for ending, size in want["sizes"].items():
                assert row[ending].size == tuple(size), (streaming, key)
            assert row["txt"] == want["caption"], (streaming, key)
            assert row["json"] == want["document"], (streaming, key)
            for ending in want["arrays"]:
                expected.check_array(key, ending, row[ending])
            held = {name for name, value in row.items() if value is not None and not name.startswith("__")}
            assert held == {"json", "txt", *want["sizes"], *want["arrays"]}, key
        expected.check_count(count)
expected.check_decoded(expected.samples_of("Hugging Face `datasets`"))
