"""Data sets made up for `inspection.py`: real sidecars of sparse tars, in each of which one sample is real."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from patchmint.samples import ImageRef, PlannedSample, SourceSample, SourceText
from patchmint.shards.codec import tar_end
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import Manifest, Totals, describe_members, write_manifest
from patchmint.shards.paths import SHARDS, SIDECARS, canonical_paths
from patchmint.shards.sample import ShardImage, ShardSample
from patchmint.shards.schema import ImageDocument, PhraseDocument
from patchmint.shards.shard_list import ListedUnit, write_shard_list
from patchmint.shards.sidecar import PARQUET_OPTIONS, SCHEMA
from patchmint.shards.writer import ShardWriter
from patchmint.storage import open_storage

CODES, CELLS = 16384, (16, 16)
CODE, OFTEN = 4568, 60
SLOT = 1 << 17
SIZE = (640, 480)
LAYOUT = Layout(
    grid=GridLayout(rows=24, cols=24, patch_px=14, fit="pad"),
    min_coverage=0.0,
    tokens=TokensLayout(member="vqgan", grid=CELLS, codebook_sizes=(CODES,), preprocessing="crop-256-bicubic"),
    notice="",
)


def make_shards(folder: Path, shards: int) -> Path:
    """Only what a listing sees."""
    for room in (SHARDS, SIDECARS):
        (folder / room).mkdir(parents=True)
    for unit in range(shards):
        _, sidecar, tar = canonical_paths(unit)
        (folder / tar).write_bytes(b"tar")
        (folder / sidecar).write_bytes(b"table")
    write_documents(folder, [990] * shards)
    return folder


def make_samples(folder: Path, samples: int, per_shard: int) -> tuple[Path, tuple[str, str, int, int]]:
    """Real sidecars, sparse tars with one real sample each; and the place of one of those."""
    for room in (SHARDS, SIDECARS):
        (folder / room).mkdir(parents=True)
    rng, drawn, picture = np.random.default_rng(0), zipf_draws(), make_picture()
    counts = [min(per_shard, samples - first) for first in range(0, samples, per_shard)]
    place = ("", "", 0, 0)
    for unit, count in enumerate(counts):
        row, (_, sidecar, name) = count // 2, canonical_paths(unit)
        ordinal = unit * per_shard + row
        tar, table = write([make_sample(ordinal, picture, rng, OFTEN)])
        real = table.set_column(3, SCHEMA.field("offset"), pa.array([row * SLOT], pa.int64()))
        size = real["size"][0].as_py()
        made = made_up_rows(unit * per_shard, count, rng, drawn)
        rows = pa.concat_tables([made.slice(0, row), real, made.slice(row + 1)])
        pq.write_table(rows.combine_chunks(), folder / sidecar, **PARQUET_OPTIONS)
        with (folder / name).open("wb") as file:
            file.seek(row * SLOT)
            file.write(tar[:size])
            file.seek(count * SLOT)
            file.write(tar_end(count * SLOT))
        place = (real["key"][0].as_py(), name, row * SLOT, size) if unit == len(counts) // 2 else place
    write_documents(folder, counts)
    return folder, place


def make_whole(folder: Path, samples: int) -> None:
    """Four tars in full."""
    (folder / "shards").mkdir(parents=True)
    rng, picture = np.random.default_rng(0), make_picture()
    for unit, ordinals in enumerate(np.array_split(np.arange(samples), 4)):
        tar, _ = write([make_sample(int(ordinal), picture, rng, 0) for ordinal in ordinals])
        (folder / f"shards/{unit:06d}.tar").write_bytes(tar)


def write(samples: list[ShardSample]) -> tuple[bytes, pa.Table]:
    tar, sidecar = io.BytesIO(), io.BytesIO()
    with ShardWriter(tar, sidecar, LAYOUT) as writer:
        for sample in samples:
            writer.add(sample)
    return tar.getvalue(), pq.read_table(sidecar).cast(SCHEMA)


def zipf_draws() -> np.ndarray:
    """Codes in proportion to Zipf's law, to be drawn from with equal chances."""
    share = 1 / np.arange(1, CODES + 1)
    ends = np.cumsum(share) / share.sum()
    return np.searchsorted(ends, (np.arange(1 << 20) + 0.5) / (1 << 20)).astype(np.uint32)


def made_up_rows(first: int, count: int, rng: np.random.Generator, drawn: np.ndarray) -> pa.Table:
    codes = np.sort(drawn[rng.integers(0, len(drawn), (count, CELLS[0] * CELLS[1]))], axis=1)
    begins = np.concatenate([np.ones((count, 1), bool), codes[:, 1:] != codes[:, :-1]], axis=1)
    starts = np.flatnonzero(begins)
    repeats = np.diff(np.append(starts, codes.size)).astype(np.uint32)
    ends = np.concatenate([[0], np.cumsum(begins.sum(axis=1))]).astype(np.int32)
    ordinals = np.arange(first, first + count)
    ones = np.arange(count + 1, dtype=np.int32)
    twos = 2 * ones

    def lists(offsets: np.ndarray, values: pa.Array, name: str) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), values, type=SCHEMA.field(name).type)

    phrases = pa.array(["thing", "photograph"] * count)
    columns = {
        "key": pa.array([f"k{ordinal:09d}" for ordinal in ordinals]),
        "id": pa.array([f"thing-{ordinal}" for ordinal in ordinals]),
        "ordinal": pa.array(ordinals, pa.int64()),
        "offset": pa.array((ordinals - first) * SLOT, pa.int64()),
        "size": pa.array(np.full(count, SLOT), pa.int64()),
        "width": pa.array(np.full(count, SIZE[0]), pa.int32()),
        "height": pa.array(np.full(count, SIZE[1]), pa.int32()),
        "format": pa.array(["jpeg"] * count),
        **{name: pa.array([1] * count, pa.int32()) for name in ("rows", "cols", "views")},
        "texts": lists(ones, pa.array([f"a photograph of thing {ordinal}" for ordinal in ordinals]), "texts"),
        "label_shares": lists(ones, pa.array(rng.random(count, np.float32)), "label_shares"),
        "phrases": lists(twos, phrases, "phrases"),
        "phrase_texts": lists(twos, pa.array(np.zeros(2 * count, np.int32)), "phrase_texts"),
        "scores": lists(twos, pa.array(rng.random(2 * count, np.float32)), "scores"),
        "origins": lists(twos, pa.array(["model"] * 2 * count), "origins"),
        "codes": lists(ends, pa.array(codes.ravel()[starts]), "codes"),
        "code_counts": lists(ends, pa.array(repeats), "code_counts"),
        "source_name": pa.array([""] * count),
        "source_path": pa.array([f"{ordinal:09d}.jpg" for ordinal in ordinals]),
        "source_start": pa.array(np.full(count, -1), pa.int64()),
    }
    return pa.table(columns, schema=SCHEMA)


def make_sample(ordinal: int, picture: bytes, rng: np.random.Generator, often: int) -> ShardSample:
    coverage = (rng.integers(0, 256, (1, 24, 24)) * (rng.random((1, 24, 24)) < 0.2)).astype(np.uint8)
    codes = rng.integers(0, CODES, CELLS)
    codes.flat[:often] = CODE
    name, text = f"k{ordinal:09d}", f"a photograph of thing {ordinal}"
    source = SourceSample(id=f"thing-{ordinal}", images=(ImageRef(f"{name}.jpg"),), texts=(SourceText(text),))
    found = PhraseDocument(text="thing", text_index=0, start=16, end=21, box=(10.0, 20.0, 300.0, 200.0), score=0.5)
    image = ShardImage(
        data=picture,
        image=ImageDocument(width=SIZE[0], height=SIZE[1], format="jpeg", mode="RGB", orientation=1),
        phrases=(found,),
        selector=(coverage > 0).astype(np.uint8),
        coverage=coverage,
        codes=codes,
    )
    return ShardSample(PlannedSample(ordinal, name, source), (image,))


def make_picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_documents(folder: Path, written: list[int]) -> None:
    """shards.json and dataset.json; of each unit ten samples were rejected."""
    units, rejected = len(written), 10 * len(written)
    totals = Totals(
        units=units,
        planned=sum(written) + rejected,
        written=sum(written),
        rejected={"image-missing": rejected},
        texts=sum(written),
        label_share=0.2,
        shards=units,
        bytes=0,
    )
    manifest = Manifest(
        notice="",
        config={"grid": "llava-1.5-finetune"},
        config_digest="",
        plan_digest="made up",
        models={},
        versions={},
        layout=LAYOUT,
        members=describe_members(LAYOUT),
        totals=totals,
    )
    (folder / "rejects").mkdir()
    for unit in range(units):
        (folder / f"rejects/{unit:06d}.parquet").write_bytes(b"table")
    storage = open_storage(folder)
    listed = (
        ListedUnit(unit, count, 10, 3, 5, f"{unit:064x}", count, unit / units) for unit, count in enumerate(written)
    )
    write_shard_list(storage, 1, listed)
    write_manifest(storage, manifest)
