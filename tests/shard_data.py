"""Small data sets in our format, made through the real writer, for the tests of shards and for the conformance run."""

import io
import json
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from s3_server import shared_server

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import sample_at
from patchmint.samples import Fault, ImageRef, Part, PlannedSample, Reject, SourceSample, SourceText, Turn
from patchmint.shards.codec import tar_end, tar_member
from patchmint.shards.commit import Attempt, read_records
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import Manifest, Totals, describe_members, write_manifest
from patchmint.shards.paths import plan_path
from patchmint.shards.plan import Plan, Unit, load_plans, write_index
from patchmint.shards.reader import iter_samples
from patchmint.shards.records import ImageCounts, mean_share
from patchmint.shards.rejects import write_rejects
from patchmint.shards.sample import ShardImage, ShardSample
from patchmint.shards.schema import ImageDocument, PhraseDocument
from patchmint.shards.shard_list import write_shard_list
from patchmint.shards.writer import ShardWriter
from patchmint.storage import open_storage
from patchmint.types import Instance

LAYOUT = Layout(
    grid=GridLayout(rows=4, cols=6, patch_px=14, fit="squash"),
    min_coverage=0.1,
    tokens=TokensLayout(member="vqgan", grid=(4, 4), codebook_sizes=(16384,), preprocessing="pad-64-bicubic"),
    notice="",
)
CAPTIONS = (
    "a cat on a sofa",
    "eine Straße in Zürich",
    "猫がソファに座る",
    "قطة على الأريكة",
    "a 🐈 & <b>bold</b>\n\t'quote'",
)


@dataclass(frozen=True, eq=False)
class Picture(ShardImage):
    """A sample and its only image in one, which `replace` changes."""

    planned: PlannedSample | None = None

    @property
    def images(self):
        return (self,)


def image_bytes(ordinal, kind, size=(40, 30)):
    pixels = np.random.default_rng(ordinal).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind.upper())
    return file.getvalue()


def make_sample(ordinal, *, layout=LAYOUT, phrases=True, kind="jpeg"):
    """A sample with one or two texts; the same ordinal always gives the same."""
    rng = np.random.default_rng(ordinal)
    texts = [CAPTIONS[ordinal % len(CAPTIONS)], "second text"][: 1 + ordinal % 2]
    shape = (len(texts), layout.grid.rows, layout.grid.cols)
    coverage = rng.integers(0, 60, shape).astype(np.uint8)
    found = PhraseDocument(text=texts[0][:3], text_index=0, start=0, end=3, box=(0.0, 1.5, 20.25, 30.0), score=0.4375)
    spans, drawn = (((0, 3),), (Instance((1.0, 2.0, 3.0, 4.0), (0, 3)),)) if phrases else ((), ())
    source = SourceSample(
        id=f"Source/{ordinal}.é",
        images=(ImageRef(f"images/{ordinal}.{kind}"),),
        texts=tuple(SourceText(text, spans, drawn) for text in texts),
        conversation=(Turn("human", "<image>\nwhat?"), Turn("gpt", "a cat")) if phrases else (),
    )
    codes = None
    if tokens := layout.tokens:
        codes = rng.integers(0, min(tokens.codebook_sizes), (*tokens.grid, len(tokens.codebook_sizes)))
    return Picture(
        planned=PlannedSample(ordinal, f"s{ordinal:04}", source),
        data=image_bytes(ordinal, kind),
        image=ImageDocument(width=40, height=30, format=kind, mode="RGB", orientation=1),
        phrases=(found,) if phrases and layout.min_coverage is not None else (),
        selector=(coverage > layout.threshold).astype(np.uint8) if layout.threshold is not None else None,
        coverage=coverage if layout.threshold is not None else None,
        codes=codes,
    )


DOCUMENTS = LAYOUT.model_copy(update={"documents": True})


def make_document(ordinal, images=2, *, layout=DOCUMENTS, turns=True, kind="jpeg"):
    """A document whose last image is shown twice; odd images are labelled by the second text alone.

    With `turns` a conversation, else texts and images that nobody speaks. The same ordinal always gives the same.
    """
    rng = np.random.default_rng(1000 + ordinal)
    asked, told = CAPTIONS[ordinal % len(CAPTIONS)], f"The answer to {ordinal}."
    shown = [Part(image=number) for number in range(images)]
    parts = [*shown, Part(asked), shown[-1], Part(told)]
    if turns:
        parts = [replace(parts[0], role="human"), *parts[1:-1], replace(parts[-1], role="gpt")]
    image_texts = tuple((0, 1) if number % 2 == 0 else (1,) for number in range(images))
    source = SourceSample(
        id=f"Document/{ordinal}.é",
        images=tuple(ImageRef(f"images/{ordinal}-{number}.{kind}") for number in range(images)),
        texts=(SourceText(asked, ((0, 3),), (Instance((1.0, 2.0, 3.0, 4.0)),)), SourceText(told)),
        parts=tuple(parts),
        image_texts=image_texts,
    )
    made = []
    for number, texts in enumerate(image_texts):
        coverage = rng.integers(0, 60, (len(texts), layout.grid.rows, layout.grid.cols)).astype(np.uint8)
        box, score = (0.0, 1.5, 20.25, 30.0), 0.25 + number / 1000
        found = PhraseDocument(text=told[:3], text_index=1, start=0, end=3, box=box, score=score)
        picture = make_sample(1000 * ordinal + number, layout=layout, kind=kind)
        form = layout.features
        features = rng.normal(size=(form.tokens, form.channels)).astype(np.float16) if form else None
        made.append(
            ShardImage(
                data=picture.data,
                image=picture.image,
                phrases=(found,) if layout.threshold is not None else (),
                selector=(coverage > layout.threshold).astype(np.uint8) if layout.threshold is not None else None,
                coverage=coverage if layout.threshold is not None else None,
                codes=picture.codes,
                features=features,
            )
        )
    return ShardSample(PlannedSample(ordinal, f"d{ordinal:04}", source), tuple(made))


def make_reject(ordinal):
    return Reject(ordinal, f"s{ordinal:04}", f"Source/{ordinal}", Fault("read", "image-missing", "it isn't there"))


def write_shard(samples, layout=LAYOUT):
    """Bytes of the tar and of its sidecar."""
    tar, sidecar = io.BytesIO(), io.BytesIO()
    with ShardWriter(tar, sidecar, layout) as writer:
        for sample in samples:
            writer.add(sample)
    return tar.getvalue(), sidecar.getvalue()


def members_of(tar):
    """Name and content of each file in the bytes of a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def tar_of(members):
    data = b"".join(tar_member(name, member) for name, member in members)
    return data + tar_end(len(data))


def write_plan(folder, units, generation=0, images=(), **config):
    """The plan's index, or that of a retry; there are no parts."""
    counts = images or [0] * len(units)
    listed = [Unit(unit, samples, 0, "none", 0, n) for (unit, samples), n in zip(units.items(), counts, strict=True)]
    plan = Plan(generation, listed, config=config, config_digest="", models={}, versions={})
    open_storage(folder).write(plan_path(generation), write_index(plan))


def commit_unit(folder, unit, samples, rejects, *, layout=LAYOUT, damage=bytes, prefix=""):
    """Write and publish a unit as a worker does; `damage` changes the tar before it is hashed."""
    storage = open_storage(folder)
    (plan,) = (plan for plan in load_plans(storage) if unit in {planned.id for planned in plan.units})
    attempt = Attempt(storage, unit, "run", prefix)
    table, own, name = attempt.paths
    tar, sidecar = write_shard(samples, layout)
    files = {name: damage(tar), own: sidecar} if samples else {}
    for name, data in files.items():
        with attempt.new_file(name) as file:
            file.write(data)
    reasons = {"image-missing": len(rejects)} if rejects else {}
    if rejects:
        with attempt.new_file(table) as file:
            write_rejects(file, rejects)
    selectors = [image.selector for sample in samples for image in sample.images if image.selector is not None]
    share = mean_share([float(np.float32(share)) for one in selectors for share in one.mean(axis=(1, 2))])
    texts = sum(len(sample.planned.sample.texts) for sample in samples)
    written = [len(sample.images) for sample in samples]
    images = ImageCounts(sum(written), sum(written), 0, max(written, default=0)) if layout.documents else None
    counts = {"texts": texts, "label_share": share, "images": images}
    attempt.commit(len(samples) + len(rejects), len(samples), reasons, plan.digest, **counts)
    attempt.drop()


def finish(folder, units, planned, rejected, layout=LAYOUT):
    """Write shards.json and dataset.json from the records."""
    storage = open_storage(folder)
    plans, records = load_plans(storage), read_records(storage, units)
    rejects = {"image-missing": rejected} if rejected else {}
    totals = Totals.of(records, planned, rejects, images=plans[0].images)
    manifest = Manifest(
        notice=layout.notice,
        config={"source": {"kind": "folder"}},
        config_digest="c",
        plan_digest=plans[0].digest,
        models={},
        versions={"patchmint": "0"},
        layout=layout,
        members=describe_members(layout),
        totals=totals,
    )
    write_shard_list(storage, len(plans), [record.listed() for record in records], records[0].prefix if records else "")
    write_manifest(storage, manifest)


def make_dataset(folder, units, rejects=None, *, layout=LAYOUT, damage=None):
    """A whole, finished data set."""
    rejects = rejects or {}
    planned = {unit: len(samples) + len(rejects.get(unit, [])) for unit, samples in enumerate(units)}
    images = [sum(len(sample.images) for sample in samples) * layout.documents for samples in units]
    write_plan(folder, planned, images=images)
    for unit, samples in enumerate(units):
        change = (damage or {}).get(unit, bytes)
        commit_unit(folder, unit, samples, rejects.get(unit, []), layout=layout, damage=change)
    planned = sum(map(len, units)) + sum(map(len, rejects.values()))
    finish(folder, list(range(len(units))), planned, sum(map(len, rejects.values())), layout)
    return folder


def renamed(sample, key):
    return replace(sample, planned=replace(sample.planned, key=key))


def stored(folder):
    """All samples, in order."""
    storage = open_storage(folder)
    tars = sorted(entry.path for entry in storage.list("shards") if entry.path.endswith(".tar"))
    return [sample for tar in tars for sample in iter_samples(storage, tar)]


def joined(folder, columns=None):
    """All samples, in order, with columns."""
    opened = open_dataset(folder, columns=columns)
    return [sample_at(opened, index) for index in range(opened.samples)]


def configure(folder, *, entries=None, **settings):
    """Put settings, and entries of models, into the manifest of a data set."""
    manifest = folder / "dataset.json"
    document = json.loads(manifest.read_bytes())
    document["config"] |= settings
    document["models"] |= entries or {}
    manifest.write_text(json.dumps(document))
    return folder


def copy(folder, uri):
    """Bring a data set to an object store."""
    target = open_storage(uri)
    for entry in open_storage(folder).list():
        target.write(entry.path, (folder / entry.path).read_bytes())
    return uri


@contextmanager
def on_a_store(folder):
    """The address of a copy in an object store, which ends with the block."""
    with pytest.MonkeyPatch.context() as patch:
        yield copy(folder, shared_server().new_bucket(patch))
