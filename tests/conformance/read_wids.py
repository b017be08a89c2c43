"""wids: random access to tars, by number, by an index beside them. Raw members, then our own decoding."""

import json
import random

from expected import Expected
from wids import ShardListDataset
from wids.wids_mmtar import MMIndexedTar

expected = Expected.from_command_line()
per_shard = [len({name.partition(".")[0] for name in MMIndexedTar(tar).names()}) for tar in expected.tars]
shards = [{"url": tar, "nsamples": count} for tar, count in zip(expected.tars, per_shard, strict=True)]
index = expected.dataset / "shards" / "index.json"
index.write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
read = ShardListDataset(str(index), transformations=[], localname=lambda url: url, keep=True)
order = list(range(len(read)))
random.Random(0).shuffle(order)
expected.check_members(
    (
        sample["__key__"],
        {name.removeprefix("."): data.read() for name, data in sample.items() if not name.startswith("__")},
    )
    for sample in (read[number] for number in order)
)
expected.check_no_strays(expected.dataset)
