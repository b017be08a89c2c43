"""Small finished data sets for the tests of training, through the real writer."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from shard_data import LAYOUT, make_dataset, make_sample, renamed

from patchmint.interfaces import FeatureSpec
from patchmint.shards.manifest import ModelEntry, read_manifest, write_manifest
from patchmint.storage import open_storage

GRID = {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}
FEATURES = FeatureSpec(
    encoder="tiny",
    connector="none",
    layers=((2,),),
    select_feature="cls_patch",
    pool="before",
    grid=(2, 3),
    leading=1,
    trailing=0,
    channels=5,
)
RICH = LAYOUT.model_copy(update={"features": FEATURES})
"""Labels, codes, and features that are pooled from 4 x 6 to 2 x 3."""
LOADER_WARNINGS = [
    # Forking beside threads (torch's, the S3 server's) is what torch's loader does; small machines have few cores.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def samples(count, *, layout=LAYOUT, prefix="s"):
    """Samples that differ in everything."""
    made = [renamed(make_sample(number, layout=layout), f"{prefix}{number:04}") for number in range(count)]
    if layout.features is None:
        return made
    rng = np.random.default_rng(0)
    shape = (layout.features.tokens, layout.features.channels)
    return [replace(sample, features=rng.normal(size=shape).astype(np.float16)) for sample in made]


def finished(folder, units, *, layout=LAYOUT, grid=GRID, model="one"):
    """A data set whose manifest names grid and models, as that of a build does."""
    make_dataset(folder, units, layout=layout)
    storage = open_storage(folder)
    entry = ModelEntry(name=model, sha256=hashlib.sha256(model.encode()).hexdigest(), size=1, licence="")
    changes = {
        "config": {"grid": grid, "limits": {"max_image_megapixels": 1}},
        "models": {"tokenizer": entry},
        "plan_digest": hashlib.sha256(folder.name.encode()).hexdigest(),
    }
    write_manifest(storage, read_manifest(storage).model_copy(update=changes))
    return folder


def cut(made, *sizes):
    """Units of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return [made[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def digest(*things):
    """Of all that batches or samples hold: equal exactly if everything in them is."""
    found = hashlib.sha256()
    for thing in things:
        for each in (thing, *thing.images, *thing.sequences.values()):
            for name, value in {"": each}.items() if torch.is_tensor(each) else vars(each).items():
                form = repr((value.shape, value.dtype)).encode() if torch.is_tensor(value) else repr(value).encode()
                found.update(name.encode() + form + (value.numpy().tobytes() if torch.is_tensor(value) else b""))
    return found.hexdigest()
