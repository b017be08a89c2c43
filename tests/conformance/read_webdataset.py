"""webdataset, without its decoders: raw members, then our own decoding; and the list of tars where a unit has none."""

import webdataset
from expected import Expected

from patchmint.training import shard_urls

expected = Expected.from_command_line()
seen = webdataset.WebDataset(expected.tars, shardshuffle=False)
expected.check_members(
    (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}) for sample in seen
)
urls = shard_urls(expected.dataset)
assert urls == expected.tars
expected.check_decoded(expected.samples_of("webdataset"))
endings = sorted({ending for sample in expected.samples.values() for ending in sample["sizes"]})
for sample in webdataset.WebDataset(expected.tars, shardshuffle=False).decode("pil", only=endings):
    for ending, size in expected.samples[sample["__key__"]]["sizes"].items():
        assert sample[ending].size == tuple(size), sample["__key__"]
