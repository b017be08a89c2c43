"""wids: random access to tars, by number. Raw members, then our own decoding."""

import random

from expected import Expected
from wids import ShardListDataset
from wids.wids_mmtar import MMIndexedTar

expected = Expected.from_command_line()
per_shard = [len({name.partition(".")[0] for name in MMIndexedTar(tar).names()}) for tar in expected.tars]
shards = [{"url": tar, "nsamples": count} for tar, count in zip(expected.tars, per_shard, strict=True)]
read = ShardListDataset(shards, transformations=[], localname=lambda url: url, keep=True)
order = list(range(len(read)))
random.Random(0).shuffle(order)
expected.check_members(
    (
        sample["__key__"],
        {name.removeprefix("."): data.read() for name, data in sample.items() if not name.startswith("__")},
    )
    for sample in (read[index] for index in order)
)
