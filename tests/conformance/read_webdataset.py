"""webdataset, without its decoders: raw members, then our own decoding."""

import webdataset
from expected import Expected

expected = Expected.from_command_line()
seen = webdataset.WebDataset(expected.tars, shardshuffle=False)
expected.check_members(
    (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}) for sample in seen
)
pictures = webdataset.WebDataset(expected.tars, shardshuffle=False).decode("pil", only=["jpg"])
for picture in pictures:
    image = expected.samples[picture["__key__"]]["document"]["image"]
    assert picture["jpg"].size == (image["width"], image["height"]), picture["__key__"]
