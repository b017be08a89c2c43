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
pictures = webdataset.WebDataset(expected.tars, shardshuffle=False).decode("pil", only=["jpg"])
for picture in pictures:
    image = expected.samples[picture["__key__"]]["document"]["image"]
    assert picture["jpg"].size == (image["width"], image["height"]), picture["__key__"]
