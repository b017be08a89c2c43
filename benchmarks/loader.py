"""Samples a second of `StageLoader`, against webdataset's own pipeline over the same shards, side by side in one run.

    python benchmarks/loader.py              # some minutes on 2 cores
    python benchmarks/loader.py --json

webdataset's side: `WebDataset` with shuffled shards, split by worker, a shuffle buffer of 1000, raw members (its own
decoders unpickle). What is then made of the members (JSON, .npy, text; in other rows the image's pixels as well, fitted
to the patch grid) and of the batches is the same code on both sides. Both go through torch's DataLoader. Medians of
several rounds, the contestants taking turns; an epoch is timed as a whole, with opening the data set and
the start of its workers.

`ratio` is patchmint's rate over webdataset's, the least of all rows. With pixels, decoding and fitting an image takes
some thirty times as long as reading its sample, and is the same code on both sides.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import SampleRef
from patchmint.samples import ImageRef, PlannedSample, SourceSample, SourceText
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import Manifest, ModelEntry, Totals, describe_members, write_manifest
from patchmint.shards.paths import canonical_paths
from patchmint.shards.reader import StoredSample
from patchmint.shards.sample import ShardImage, ShardSample
from patchmint.shards.schema import ImageDocument
from patchmint.shards.writer import ShardWriter
from patchmint.storage import open_storage
from patchmint.training.dataset import StageDataset
from patchmint.training.fields import Field, SampleMaker, fields_of
from patchmint.training.loader import StageBatch, StageLoader, collate

SHARD = 500
BATCH = 32
BUFFER = 1000
PICTURES = 50
SIZE = (640, 480)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="of an epoch; with pixels an eighth of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for name, images, samples in (("members", False, arguments.samples), ("pixels", True, arguments.samples // 8)):
            data = make_dataset(Path(folder) / name, samples, min(SHARD, samples // 4))
            for workers in arguments.workers:
                rows[f"{name}, {workers} workers"] = measure(data, images, workers, samples, arguments.rounds)
    found = {"rows": rows, "ratio": min(row["ratio"] for row in rows.values())}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def show(found: dict) -> None:
    print(f"{'':22} {'patchmint':>10} {'webdataset':>10}  samples/s")
    for name, row in found["rows"].items():
        print(f"{name:22} {row['patchmint']:10.0f} {row['webdataset']:10.0f}  {row['ratio']:.2f}")
    print(f"ratio {found['ratio']:.2f} (least of all rows)")


def measure(data: Path, images: bool, workers: int, samples: int, rounds: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {"patchmint": [], "webdataset": []}
    for turn in range(rounds):
        for name, contestant in (("patchmint", our_batches), ("webdataset", their_batches)):
            start = time.perf_counter()
            batches = contestant(data, images, workers)
            seen = sum(len(batch) for batch in batches)
            rates[name].append(seen / (time.perf_counter() - start))
            if seen != samples:
                sys.exit(f"{name} gave {seen} of {samples} samples")
            print(f"round {turn + 1}: {name}, {workers} workers, {rates[name][-1]:.0f}/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {**medians, "ratio": medians["patchmint"] / medians["webdataset"]}


def our_batches(data: Path, images: bool, workers: int) -> Iterable[StageBatch]:
    return StageLoader(StageDataset(data, include=included(images)), BATCH, num_workers=workers)


def included(images: bool) -> tuple[Field, ...]:
    return ("pixels", "labels", "codes") if images else ("labels", "codes")


def their_batches(data: Path, images: bool, workers: int) -> Iterable[StageBatch]:
    tars = [str(tar) for tar in sorted((data / "shards").glob("*.tar"))]
    samples = webdataset.WebDataset(
        tars, shardshuffle=len(tars), workersplitter=webdataset.shardlists.split_by_worker, empty_check=False, seed=0
    )
    batches = samples.shuffle(BUFFER, initial=BUFFER).map(SameDecoding(data, images))
    return DataLoader(batches.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=workers)


class SameDecoding:
    """Raw members, as webdataset groups them -> the sample that `StageDataset` gives."""

    def __init__(self, data: Path, images: bool) -> None:
        datasets = [open_dataset(data)]
        self._maker = SampleMaker(datasets, fields_of(None, included(images), datasets), "random", seed=0)

    def __call__(self, sample: dict[str, bytes]):
        """Decode one sample."""
        members = {ending: data for ending, data in sample.items() if not ending.startswith("__")}
        return self._maker.make(SampleRef(0, 0, 0), StoredSample(sample["__key__"], 0, 0, members))


def make_dataset(folder: Path, samples: int, shard: int) -> Path:
    """A finished data set through the public writer: JPEGs of COCO's size, labels, codes."""
    layout = Layout(
        grid=GridLayout(rows=24, cols=24, patch_px=14, fit="pad"),
        min_coverage=0.0,
        tokens=TokensLayout(member="vqgan", grid=(16, 16), codebook_sizes=(16384,), preprocessing="pad-256-bicubic"),
        notice="",
    )
    storage, pictures, rng = open_storage(folder), make_pictures(), np.random.default_rng(0)
    firsts = range(0, samples, shard)
    size = 0
    for number, first in enumerate(firsts):
        _, table, name = canonical_paths(number)
        with (
            storage.new_file(name) as tar,
            storage.new_file(table) as sidecar,
            ShardWriter(tar, sidecar, layout) as writer,
        ):
            for ordinal in range(first, min(first + shard, samples)):
                writer.add(make_sample(ordinal, pictures[ordinal % PICTURES], rng))
        size += tar.size
    model = ModelEntry(name="made up", sha256="", size=0, licence="")
    totals = Totals(
        units=len(firsts),
        planned=samples,
        written=samples,
        rejected={},
        texts=samples,
        label_share=0.1,
        shards=len(firsts),
        bytes=size,
    )
    write_manifest(
        storage,
        Manifest(
            notice="",
            config={"grid": "llava-1.5-finetune"},
            config_digest="",
            plan_digest="",
            models={"tokenizer": model},
            versions={},
            layout=layout,
            members=describe_members(layout),
            totals=totals,
        ),
    )
    return folder


def make_sample(ordinal: int, picture: bytes, rng: np.random.Generator) -> ShardSample:
    coverage = rng.integers(0, 256, (1, 24, 24), dtype=np.uint8) * (rng.random((1, 24, 24)) < 0.2)
    name = f"thing-{ordinal:09d}"
    texts = (SourceText(f"a photograph of thing {ordinal}"),)
    image = ShardImage(
        data=picture,
        image=ImageDocument(width=SIZE[0], height=SIZE[1], format="jpeg", mode="RGB", orientation=1),
        selector=(coverage > 0).astype(np.uint8),
        coverage=coverage.astype(np.uint8),
        codes=rng.integers(0, 16384, (16, 16, 1)),
    )
    source = SourceSample(id=name, images=(ImageRef(f"{name}.jpg"),), texts=texts)
    return ShardSample(PlannedSample(ordinal, name, source), (image,))


def make_pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    return pictures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
