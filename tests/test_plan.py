"""The plan: everything comes back as it went in, the same bytes whatever happens, and errors for what is damaged."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import warm
from PIL import Image

from patchmint.config import UNTRAINED
from patchmint.config.build import BuildConfig
from patchmint.errors import (
    BuildError,
    ConfigError,
    ImageMissingError,
    PluginError,
    ShardError,
    StorageError,
    WeightsMissingError,
)
from patchmint.jobs.dry_run import _lines
from patchmint.pipeline.plan import (
    check_models,
    discard_plan,
    estimate,
    is_whole,
    library_versions,
    make,
    make_plan,
    make_retry_plan,
    record_models,
    sweep_unplanned,
    to_batches,
)
from patchmint.pipeline.plan.memory import estimate_memory, weights_of
from patchmint.samples import Fault, ImageRef, Part, SourceSample, SourceText, Turn
from patchmint.shards import plan_parts as parts
from patchmint.shards.plan import ModelRecord, load_plan, load_plans
from patchmint.shards.plan_parts import read_unit
from patchmint.storage import open_storage
from patchmint.types import Instance, Rle
from patchmint.weights.container import read_header
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate

PLAIN = [
    SourceSample(f"{number:06d}", (ImageRef(f"{number}.jpg"),), (SourceText(f"text {number}"),)) for number in range(25)
]
DRAWN = (
    Instance((0.5, 1, 1 / 3, 1e300)),
    Instance((0, 0, 3, 2), (8, 13), Rle(size=[2, 3], counts=b"06")),
    Instance((0, 0, 1, 1), (0, 5)),
)
RICH = [
    SourceSample("0", (ImageRef("a/b.jpg"),), (SourceText("a cat . a dog", ((0, 5), (8, 13)), DRAWN),)),
    SourceSample("1", (ImageRef("t.tar", 512, 1 << 40),), (SourceText(""), SourceText("猫\x00\n\U0001f600"))),
    SourceSample("2", (ImageRef("rows.parquet", 7),), (), (Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat."))),
    SourceSample("3", (ImageRef(""),), (), (), Fault("source", "text-missing", "no text; give one")),
    SourceSample(
        "4",
        (ImageRef("rows.parquet", 7, number=2), Fault("source", "path-outside-source", "no"), ImageRef("a.jpg")),
        (SourceText("Which?"), SourceText("This.")),
        parts=(Part(image=0, role="human"), Part(image=2), Part("Which?"), Part(image=1), Part("This.", role="gpt")),
        image_texts=((0, 1), (), (1,)),
    ),
]


def build_config(out="out", samples_per_shard=10, **changes):
    output = {"uri": str(out), "samples_per_shard": samples_per_shard}
    return BuildConfig.parse(
        {"source": {"kind": "folder", "uri": "photos"}, "output": output, "models": UNTRAINED} | changes
    )


def plan_into(out, samples=PLAIN, **settings):
    config = build_config(out, **settings)
    return make_plan(to_batches(samples), config, record_models(config), open_storage(out))


def everything(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def samples_in(storage, *units):
    return [planned.sample for unit in units for planned in read_unit(storage, unit)]


def test_everything_a_sample_holds_comes_back(tmp_path):
    plan = plan_into(tmp_path, RICH, samples_per_shard=3)
    planned = [sample for unit in plan.units for sample in read_unit(open_storage(tmp_path), unit)]
    assert [(sample.sample, sample.ordinal, sample.key) for sample in planned] == [
        (sample, number, str(number)) for number, sample in enumerate(RICH)
    ]


def test_units_are_slices_of_the_source(tmp_path):
    plan = plan_into(tmp_path)
    assert [(unit.id, unit.name, unit.samples, unit.first_ordinal, unit.row_group) for unit in plan.units] == [
        (0, "000000", 10, 0, 0),
        (1, "000001", 10, 10, 1),
        (2, "000002", 5, 20, 2),
    ]
    assert plan.total == 25
    for folder, plans in ((tmp_path, [plan]), (tmp_path / "elsewhere", [])):
        assert load_plan(open_storage(folder)) == (plans[0] if plans else None)
        assert load_plans(open_storage(folder)) == plans


def document(number, images):
    refs = tuple(ImageRef(f"{number}-{image}.jpg") for image in range(images))
    parts = tuple(Part(image=image) for image in range(images))
    return SourceSample(f"{number}", refs, (SourceText("a"),), parts=parts, image_texts=((0,),) * images)


def test_units_of_documents_end_at_samples_or_images(tmp_path, monkeypatch):
    for module in (make, sys.modules[to_batches.__module__]):
        monkeypatch.setattr(module, "_ROWS", 3)  # a unit ends within a batch, at its end, and behind it
    source = {"kind": "conversations", "uri": "x", "documents": True}
    images = [2, 2, 3, 9, 1, 1, 1, 1, 1, 1, 4]
    bad = PLAIN[18:25]  # of no images
    samples = [document(number, count) for number, count in enumerate(images)] + bad
    output = {"uri": str(tmp_path), "samples_per_shard": 6, "images_per_shard": 5}
    config = build_config(source=source, output=output)
    plan = make_plan(to_batches(samples), config, record_models(config), open_storage(tmp_path))
    told = [(unit.samples, unit.images, unit.first_ordinal) for unit in plan.units]
    assert told == [(2, 4, 0), (1, 3, 2), (1, 9, 3), (5, 5, 4), (6, 5, 9), (3, 0, 15)]
    assert (plan.images, plan.total) == (sum(images), len(samples))
    assert load_plan(open_storage(tmp_path)) == plan
    assert samples_in(open_storage(tmp_path), *plan.units) == samples
    retry = make_retry_plan(open_storage(tmp_path), [plan], range(2, 11))
    assert [(unit.samples, unit.images) for unit in retry.units] == [(1, 3), (1, 9), (5, 5), (2, 5)]
    assert replace(plan, units=[replace(unit, images=0) for unit in plan.units]).digest != plan.digest


def test_the_files_say_what_they_are(tmp_path):
    plan = plan_into(tmp_path)
    table = pq.read_table(tmp_path / "plan.parquet")
    assert table.schema.names == ["unit", "samples", "first_ordinal", "part", "row_group", "images"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "int64", "int64", "string", "int64", "int64"]
    metadata = table.schema.metadata
    assert metadata[b"patchmint.schema"] == b"patchmint.plan/2"
    assert metadata[b"patchmint.plan_digest"].decode() == plan.digest
    assert json.loads(metadata[b"patchmint.config"])["source"]["uri"] == "photos"
    assert json.loads(metadata[b"patchmint.models"])["masker"]["name"] == UNTRAINED
    assert json.loads(metadata[b"patchmint.versions"])["numpy"]
    assert str(tmp_path).encode() not in b"".join(metadata.values())
    (part,) = (tmp_path / "plan").iterdir()
    assert part.stem == hashlib.sha256(part.read_bytes()).hexdigest()[:16]
    assert pq.ParquetFile(part).num_row_groups == 3


def test_the_same_source_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "UNITS_A_PART", 2)
    config = build_config(tmp_path)
    first, second = plan_into(tmp_path / "a"), plan_into(tmp_path / "b", runner={"kind": "ray"})
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert len(everything(tmp_path / "a")) == 3
    assert first.digest == second.digest
    assert make_plan(to_batches(PLAIN), config, record_models(config), open_storage(tmp_path / "a")) == first


def test_another_process_plans_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "UNITS_A_PART", 2)
    code = f"from test_plan import *; parts.UNITS_A_PART = 2; plan_into({str(tmp_path / 'there')!r})"
    done = python(code, PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    plan_into(tmp_path / "here")
    assert everything(tmp_path / "there") == everything(tmp_path / "here")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": PLAIN[:-1]},
        {"samples": [*PLAIN[:-1], replace(PLAIN[-1], texts=(SourceText("other"),))]},
        {"samples_per_shard": 9},
        {"labels": {"box_threshold": 0.3}},
    ],
)
def test_the_digest_is_of_samples_and_settings(tmp_path, changes):
    assert plan_into(tmp_path / "a").digest != plan_into(tmp_path / "b", **changes).digest


@pytest.mark.parametrize(("units", "size"), [(2, 1 << 20), (100, 1)])
def test_parts_are_closed_in_time(tmp_path, monkeypatch, units, size):
    monkeypatch.setattr(parts, "UNITS_A_PART", units)
    monkeypatch.setattr(parts, "BYTES_A_PART", size)
    plan = plan_into(tmp_path, samples_per_shard=3)
    names = [unit.part for unit in plan.units]
    assert len(set(names)) == (5 if units == 2 else 9)
    assert [unit.id for unit in plan.units] == list(range(9))
    assert samples_in(open_storage(tmp_path), *plan.units) == PLAIN


def test_a_unit_is_read_without_the_rest_of_its_part(tmp_path, monkeypatch):
    noisy = [replace(PLAIN[0], texts=(SourceText(os.urandom(1000).hex()),)) for _ in range(1000)]
    plan = plan_into(tmp_path, noisy, samples_per_shard=50)
    storage = open_storage(tmp_path)
    read = []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    counting = Instead(storage, open=lambda path: Counted(storage.read(path)))
    assert len(read_unit(counting, plan.units[7])) == 50
    assert 0 < sum(read) < storage.size(plan.units[7].part) / 4


def failing():
    yield from PLAIN
    raise StorageError("the bucket is gone")


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ConfigError, r"there are no samples in photos: .*'folder'.*docs/sources.md"),
        (failing(), StorageError, "the bucket is gone"),
    ],
)
def test_a_source_that_gives_nothing_or_fails_leaves_no_plan(tmp_path, samples, error, message):
    with pytest.raises(error, match=message):
        plan_into(tmp_path, samples)
    assert everything(tmp_path) == {}


def test_what_is_no_unicode_becomes_a_fault(tmp_path):
    lone = "caf\udce9"
    hostile = [
        replace(PLAIN[0], id=lone),
        replace(PLAIN[0], images=(ImageRef(lone),)),
        replace(PLAIN[0], texts=(SourceText(lone),)),
        replace(PLAIN[0], conversation=(Turn("human", lone),)),
        replace(PLAIN[0], fault=Fault("source", "odd", lone)),
        PLAIN[1],
    ]
    plan = plan_into(tmp_path, hostile)
    planned = samples_in(open_storage(tmp_path), plan.units[0])
    assert [sample.fault and sample.fault.reason for sample in planned] == ["not-unicode"] * 5 + [None]
    assert planned[0].id == "caf\\udce9"
    assert planned[5] == PLAIN[1]


def test_another_build_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    plan = plan_into(tmp_path)
    with pytest.raises(ConfigError, match=r"other settings:\n  labels.box_threshold: 0.35 there, 0.3 here\n"):
        plan_into(tmp_path, labels={"box_threshold": 0.3})
    other = build_config(tmp_path, grid="seed-224")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds .*\n  grid: llava-1.5-finetune there, seed-224 here"):
        plan.check_same(other, record_models(other))
    same = build_config(tmp_path, runner={"workers": 2, "compile": False})
    plan.check_same(same, record_models(same))
    compiled = build_config(tmp_path, runner={"compile": True})
    with pytest.raises(ConfigError, match=r"other settings:\n  runner.compile: false there, true here\n"):
        plan.check_same(compiled, record_models(compiled))
    changed = record_models(same) | {"masker": ModelRecord("masker", UNTRAINED, sha256="ab" * 32)}
    with pytest.raises(ConfigError, match=r"models.masker: content untrained-tiny there, abab\w* here"):
        plan.check_same(same, changed)
    with pytest.raises(BuildError, match=r"of other samples \(25 samples there, 24 here\)"):
        plan_into(tmp_path, PLAIN[:-1])
    monkeypatch.setattr(make, "library_versions", lambda: library_versions() | {"numpy": "1.0"})
    with pytest.raises(BuildError, match=rf"other versions: numpy: {np.__version__} there, 1.0 here"):
        plan_into(tmp_path)


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path, monkeypatch):
    """A fresh output: a folder, a bucket."""
    if request.param == "local":
        return str(tmp_path / "out")
    return request.getfixturevalue("server").new_bucket(monkeypatch)


class Instead:
    """A storage of which some methods do something else."""

    def __init__(self, storage, **methods):
        self._storage = storage
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self._storage, name)


def names(storage):
    return {entry.path for entry in storage.list()}


def test_a_plan_of_which_nothing_is_finished_makes_room(out, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "UNITS_A_PART", 2)
    storage = open_storage(out)
    old = plan_into(out, [replace(sample, id=f"old-{sample.id}") for sample in PLAIN], samples_per_shard=3)
    for unit in (1, 7):
        storage.write(f"attempts/run-{unit:06d}-0011223344556677/shards-{unit:06d}.tar", b"half")
    assert is_whole(storage, old)
    storage.delete([old.units[0].part])
    assert not is_whole(storage, old)
    config = build_config(out)
    models = record_models(config)
    with pytest.raises(ConfigError, match="other settings"):
        make_plan(to_batches(PLAIN), config, models, storage)
    plan = make_plan(to_batches(PLAIN), config, models, storage, may_replace=lambda: True)
    assert load_plans(storage) == [plan]
    sweep_unplanned(storage, plan)
    kept = {name for name in names(storage) if name.startswith("attempts/")}
    assert kept == {"attempts/run-000001-0011223344556677/shards-000001.tar"}
    whole = plan_into(tmp_path / "whole", PLAIN)
    assert plan == whole
    assert names(storage) - kept == names(open_storage(tmp_path / "whole"))


@pytest.mark.parametrize("result", ["commits/000002.json", "shards/000000.tar", "rejects/000001.parquet"])
def test_a_plan_of_which_something_is_finished_stays(out, result):
    plan, storage = plan_into(out), open_storage(out)
    storage.write(result, b"{}")
    assert not discard_plan(storage)
    other = build_config(out, labels={"box_threshold": 0.3})
    with pytest.raises(ConfigError, match=r"other settings:\n  labels.box_threshold: 0.35 there, 0.3 here\n"):
        make_plan(to_batches(PLAIN), other, record_models(other), storage, may_replace=lambda: True)
    assert load_plans(storage) == [plan]


def test_a_unit_that_is_committed_while_its_plan_is_taken_away_brings_it_back(out):
    plan, storage = plan_into(out), open_storage(out)
    before = names(storage)

    def delete_and_commit(paths):
        storage.delete(paths)
        storage.create("commits/000000.json", b"{}")

    assert not discard_plan(Instead(storage, delete=delete_and_commit))
    assert load_plans(storage) == [plan]
    assert names(storage) == before | {"commits/000000.json"}


def test_two_planners_at_once_make_one_plan(tmp_path, monkeypatch):
    barrier, verdicts = threading.Barrier(4), []
    storage = open_storage(tmp_path)

    def create_together(path, data):
        barrier.wait(30)
        verdicts.append(storage.create(path, data))
        return verdicts[-1]

    config, together = build_config(tmp_path), Instead(storage, create=create_together)
    with ThreadPoolExecutor(4) as threads:
        plans = list(
            threads.map(lambda _: make_plan(to_batches(PLAIN), config, record_models(config), together), range(4))
        )
    assert sorted(verdicts) == [False, False, False, True]
    assert plans == [load_plan(storage)] * 4


def killed_at(step, after, out):
    """Plan in a process that ends itself before or after the n-th thing written."""
    storage, steps = open_storage(out), iter(range(100))

    def deadly(real):
        def call(*arguments):
            now = next(steps) == step
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = real(*arguments)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    parts.UNITS_A_PART = 2
    config = build_config(out)
    watched = Instead(storage, write=deadly(storage.write), create=deadly(storage.create))
    make_plan(to_batches(PLAIN), config, record_models(config), watched)


def python(code, **env):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run([sys.executable, "-c", code], check=False, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_killed_anywhere_it_ends_the_same(tmp_path, monkeypatch, step, after):
    out = tmp_path / "killed"
    code = f"import test_plan; test_plan.killed_at({step}, {after}, {str(out)!r})"
    died = warm.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (out / "plan.parquet").exists() == (step == 2 and after)
    monkeypatch.setattr(parts, "UNITS_A_PART", 2)
    assert plan_into(out) == plan_into(tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs can't be mounted here: {mounted.stderr.strip()}")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        noise = [replace(PLAIN[0], id=os.urandom(500).hex()) for _ in range(1000)]
        with pytest.raises(StorageError, match=f"the disk is full in {small}.*TMPDIR"):
            plan_into(tmp_path / "out", noise)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
    assert everything(tmp_path / "out") == {}


def test_wherever_it_is_a_plan_and_its_retry_come_back(out):
    plan, storage = plan_into(out), open_storage(out)
    assert plan_into(out) == plan == load_plan(storage)
    retry = make_retry_plan(storage, [plan], [3, 17])
    assert load_plans(storage) == [plan, retry]
    assert samples_in(storage, *retry.units) == [PLAIN[3], PLAIN[17]]


@pytest.mark.parametrize("name", ["plan.parquet", "part"])
def test_damage_is_an_error_not_a_wrong_plan(tmp_path, name):
    plan = plan_into(tmp_path)
    storage = open_storage(tmp_path)
    path = tmp_path / (plan.units[0].part if name == "part" else name)
    whole = path.read_bytes()

    def load():
        found = load_plan(storage)
        return found, [read_unit(storage, unit) for unit in plan.units]

    expected = load()
    damaged = [b"", b"PAR1", whole[: len(whole) // 2], b"<html>" * 100, b"version https://git-lfs.github.com/spec/v1\n"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ShardError, match=f"{path.name} in {tmp_path}"):
            load()
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert load() == expected, place  # a byte that nobody reads
        except ShardError:
            continue


def test_a_plan_of_another_version_or_of_another_program_is_refused(tmp_path):
    plan_into(tmp_path)
    path = tmp_path / "plan.parquet"
    table = pq.read_table(path)
    newer = {**table.schema.metadata, b"patchmint.schema": b"patchmint.plan/3"}
    for other, message in (
        (table.replace_schema_metadata(newer), "its schema is 'patchmint.plan/3', this version of patchmint reads"),
        (table.replace_schema_metadata(None), "its schema is None"),
        (table.slice(1), "isn't what its digest says"),
        (table.drop_columns("part"), "part"),
    ):
        pq.write_table(other, path)
        with pytest.raises(ShardError, match=message):
            load_plan(open_storage(tmp_path))


def test_a_part_with_other_rows_is_refused(tmp_path):
    plan = plan_into(tmp_path)
    storage, unit = open_storage(tmp_path), plan.units[0]
    with pytest.raises(ShardError, match="it has 10 samples of unit 000000, but the plan has 9"):
        read_unit(storage, replace(unit, samples=9))
    with pytest.raises(ShardError, match="damaged"):
        read_unit(storage, replace(unit, row_group=9))
    pq.write_table(pa.table({"a": range(10)}), tmp_path / unit.part)
    with pytest.raises(ShardError, match="holds other columns"):
        read_unit(storage, unit)


def test_trouble_with_the_storage_stays_that(tmp_path):
    """It must not look like damage: the unit is tried again, which would help nothing if the part were damaged."""
    unit, storage = plan_into(tmp_path).units[0], open_storage(tmp_path)

    class Cut(io.BytesIO):
        def read(self, size=-1):
            raise StorageError("the connection was cut")

    cutting = Instead(storage, open=lambda path: Cut(storage.read(path)))
    with pytest.raises(StorageError, match="the connection was cut"):
        read_unit(cutting, unit)
    (tmp_path / unit.part).unlink()
    with pytest.raises(StorageError, match=unit.part):
        read_unit(storage, unit)


def test_a_retry_plan_has_the_rejects_with_their_keys(tmp_path):
    samples = [*PLAIN, PLAIN[0], replace(PLAIN[1], id="Dotted.Name")]
    base = plan_into(tmp_path, samples, samples_per_shard=5)
    storage = open_storage(tmp_path)
    by_ordinal = {sample.ordinal: sample for unit in base.units for sample in read_unit(storage, unit)}
    rejected = [26, 25, 3, 0, 4, 7, 25]
    retry = make_retry_plan(storage, [base], rejected)
    assert (retry.generation, retry.total) == (1, 6)
    assert [(unit.id, unit.samples, unit.first_ordinal) for unit in retry.units] == [(6, 5, 0), (7, 1, 26)]
    planned = [sample for unit in retry.units for sample in read_unit(storage, unit)]
    assert planned == [by_ordinal[ordinal] for ordinal in (0, 3, 4, 7, 25, 26)]
    assert planned[4].key == "000000__000000025"
    again = make_retry_plan(storage, [base, retry], iter([4]))
    assert (again.generation, [unit.id for unit in again.units]) == (2, [8])
    assert load_plans(storage) == [base, retry, again]
    assert {path.name for path in tmp_path.glob("plan.*")} == {
        *("plan.parquet", "plan.retry-1.parquet", "plan.retry-2.parquet")
    }
    assert len({base.digest, retry.digest, again.digest}) == 3


def test_retry_plans_that_make_no_sense(tmp_path):
    base = plan_into(tmp_path)
    storage = open_storage(tmp_path)
    for wrong in ([25], [-1]):
        with pytest.raises(BuildError, match="belong to another plan"):
            make_retry_plan(storage, [base], wrong)
    with pytest.raises(BuildError, match="no rejects"):
        make_retry_plan(storage, [base], [])
    retry = make_retry_plan(storage, [base], [1])
    assert make_retry_plan(storage, [base], [1]) == retry
    with pytest.raises(BuildError, match="made meanwhile"):
        make_retry_plan(storage, [base], [1, 2])


def test_models_are_known_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    (tmp_path / "sam.pth").write_bytes(b"sam")
    (tmp_path / "used.npy").write_bytes(b"used")
    models = {"detector": UNTRAINED, "vocabulary": UNTRAINED, "masker": "./sam.pth", "tokenizer": UNTRAINED}
    config = build_config(models=models, tokens={"remap": "used.npy"})
    records = record_models(config)
    assert set(records) == {"detector", "vocabulary", "masker", "tokenizer", "remap"}
    assert records["masker"] == ModelRecord("masker", "./sam.pth", hashlib.sha256(b"sam").hexdigest(), 3)
    assert records["detector"] == ModelRecord("detector", UNTRAINED)
    check_models(config, records)
    (tmp_path / "used.npy").write_bytes(b"else")
    with pytest.raises(BuildError, match=r"the remap 'used.npy' on .* isn't the one that the plan was made with"):
        check_models(config, records)
    (tmp_path / "used.npy").unlink()
    with pytest.raises(WeightsMissingError, match=r"remap file used.npy can't be read"):
        record_models(config)
    with pytest.raises(WeightsMissingError, match="patchmint models pull sam-vit-b"):
        record_models(build_config(models=models | {"masker": "sam-vit-b"}))


def test_outside_models_are_known_by_their_package(tmp_path, monkeypatch):
    info = tmp_path / "toy_models-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-models\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text(
        "[patchmint.segmenters]\ntoy = toy:Toy\n[patchmint.tokenizers]\ntoy-1d = toy:T\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = build_config(models={"segmenter": "toy", "tokenizer": "toy-1d"})
    records = record_models(config)
    assert records["segmenter"] == ModelRecord("segmenter", "toy", distribution="toy-models 3.1")
    assert records["tokenizer"].fingerprint == "toy-models 3.1"
    with pytest.raises(BuildError, match="segmenter"):
        check_models(config, records | {"segmenter": replace(records["segmenter"], distribution="toy-models 3.0")})
    with pytest.raises(PluginError, match=r"no installed package offers 'toi' .*\(offered: toy\)"):
        record_models(build_config(models={"segmenter": "toi", "tokenizer": UNTRAINED}))


def test_versions_are_those_that_run():
    versions = library_versions()
    assert (versions["numpy"], versions["pyarrow"]) == (np.__version__, pa.__version__)
    assert "not installed" not in versions.values()


def test_planning_needs_no_torch():
    code = "import sys, patchmint.pipeline.plan, patchmint.config.build, patchmint.jobs.options;"
    done = python(f"{code} print({{'torch', 'ray', 'transformers'}} & set(sys.modules))")
    assert done.stdout.strip() == "set()"


def photo(width=64, height=48):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "JPEG")
    return buffer.getvalue().ljust(100_000, b"\0")


def test_an_estimate_counts_and_looks_at_some_images():
    samples = [replace(PLAIN[0], images=(ImageRef(f"{number}.jpg"),)) for number in range(1000)]
    samples += [replace(PLAIN[0], fault=Fault("source", "text-missing", "none")) for _ in range(50)]
    samples += [replace(PLAIN[0], texts=(SourceText(" "),)) for _ in range(30)]
    sound, lock, asked = photo(), threading.Lock(), []

    def read(image):
        with lock:
            asked.append(image.path)
        number = int(image.path.split(".")[0])
        if number % 4 == 0:
            raise ImageMissingError("gone")
        return sound[:300] if number % 4 == 1 else sound

    config = build_config(samples_per_shard=100, precision="float32", limits={"max_reject_share": 0.5})
    dry, looked = estimate(samples, config, read)
    assert (dry.samples, dry.units, dry.texts) == (1080, 11, 1080)
    assert dry.rejects == {"text-missing": 50, "text-empty": 30}
    assert dry.looked_at == len(looked) == len(set(asked)) == 200
    assert max(int(path.split(".")[0]) for path in asked) > 900
    assert [each.ordinal for each in looked] == sorted(each.ordinal for each in looked)
    damaged = {reason: sum(int(p.split(".")[0]) % 4 == rest for p in asked) for reason, rest in REASONS.items()}
    assert dry.looked_at_rejects == damaged
    assert dry.reject_share == pytest.approx((80 + 1000 * sum(damaged.values()) / 200) / 1080)
    sound_ones = 1000 * (1 - sum(damaged.values()) / 200)
    assert dry.image_bytes == pytest.approx(sound_ones * 100_000)
    assert dry.image_bytes < dry.output_bytes < 1.2 * dry.image_bytes
    assert dry.batch_size == 32
    without = estimate(samples, build_config(samples_per_shard=100, labels=None), read)[0]
    assert without.output_bytes < dry.output_bytes
    assert without.memory.worker < dry.memory.worker
    features, tokens = {"connector": "dci", "pool": 12}, {"tokenizer": UNTRAINED}
    featured = build_config(samples_per_shard=100, features=features, tokens=tokens, models="official")
    grown = estimate(samples, featured, read)[0].output_bytes - dry.output_bytes
    assert 0 <= grown - sound_ones * 144 * 3072 * 2 < 1_000_000


REASONS = {"image-missing": 0, "image-damaged": 1}


@pytest.mark.parametrize("drop", [False, True])
def test_an_estimate_of_documents(drop):
    """Of 40 documents of 3 images 4 have a bad path, 1 has nothing else, and 2 lack a file."""
    bad = Fault("source", "path-outside-source", "no")
    samples = [document(number, 3) for number in range(40)]
    for number in range(4):
        samples[number] = replace(samples[number], images=(bad, *samples[number].images[1:]))
    samples[4] = replace(samples[4], images=(bad, bad, bad))

    def read(image):
        if image.path in ("7-1.jpg", "8-2.jpg"):
            raise ImageMissingError("gone")
        return photo()

    source = {"kind": "conversations", "uri": "x", "documents": True}
    output = {"uri": "out", "samples_per_shard": 10, "images_per_shard": 20}
    config = build_config(source=source, output=output, on_bad_image="drop" if drop else "reject")
    dry, looked = estimate(samples, config, read)
    assert (dry.samples, dry.images, dry.units) == (40, 120, 6)
    assert dry.rejects == {"path-outside-source": 1 if drop else 5}
    assert dry.looked_at == len(looked) == (39 if drop else 35)
    assert dry.looked_at_rejects == ({} if drop else {"image-missing": 2})
    assert dry.dropped == ({"path-outside-source": 4} if drop else {})
    assert dry.looked_at_dropped == ({"image-missing": 2} if drop else {})
    assert dry.looked_at_images == (39 * 3 - 4 if drop else 35 * 3)
    good = 39 * 3 - 4 - 2 if drop else 33 * 3
    assert dry.image_bytes == pytest.approx(good * 100_000)
    lines = _lines(dry, config)
    assert lines[0] == "documents 40 of 120 images with 40 texts, in 6 units of up to 10, or 20 images"
    assert any(line.startswith("dropped   4 (4 path-outside-source)") for line in lines) == drop


def test_an_estimate_of_nothing_says_what_was_looked_at():
    with pytest.raises(ConfigError, match="there are no samples in photos: nothing in it is what a source"):
        estimate([], build_config(), pytest.fail)
    counts = []
    dry, _ = estimate(PLAIN[:5], build_config(samples_per_shard=2), lambda _: photo(), counts.append)
    assert counts == [2, 4]
    assert dry.image_bytes == 500_000


def test_the_memory_of_published_models_is_that_of_their_modules():
    """Without their files: sizes that the registry gives, or where a file holds more than its model, ones of ours."""
    from patchmint.features import model as vit_model
    from patchmint.features.arch import OFFICIAL as VITS
    from patchmint.labelers.sam.arch import OFFICIAL as SAMS
    from patchmint.labelers.sam.model import build_sam
    from patchmint.tokenizers.vqgan.arch import OFFICIAL as VQGANS
    from patchmint.tokenizers.vqgan.model import Vqgan

    with torch.device("meta"):
        made = {name: Vqgan(arch) for name, arch in VQGANS.items()}
        made |= {name: vit_model.Vit(arch) for name, arch in VITS.items()}
        made |= {"sam-vit-b": build_sam(SAMS["sam-vit-b"])}
    for name, model in made.items():
        numbers = sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
        assert weights_of(CHECKPOINTS[name].kind, name) == pytest.approx(4 * numbers, rel=0.001), name
    assert weights_of("masker", "demo-masker") == 4 * sum(
        prod(tensor.shape) for tensor in read_header(locate("demo-masker")).tensors.values()
    )


def test_memory_follows_what_a_build_holds():
    def worker(sizes=((480, 640),), samples=1000, **changes):
        return estimate_memory(build_config(**SMALL | changes), sizes, samples)

    usual = worker()
    assert worker(runner=CPU | {"workers": 3}).total - usual.total < 2 * usual.worker
    assert worker(sizes=((4000, 6000),)).images > 5 * usual.images
    assert worker(sizes=((4000, 6000),)).images < 2**31 + 2**28, "what waits is bounded in bytes"
    assert worker(samples=1).images < usual.images / 10
    assert worker(runner=CPU | {"batch_size": 1}).models < usual.models
    assert worker(tokens={"size": 512}).models - usual.models == 3 * 9 * 4 * 2 * 128 * 256**2
    halved = usual.models - worker(precision="bfloat16").models
    assert halved == round(0.46 * sum(CHECKPOINTS[name].size for name in ("groundingdino-swint-ogc", "sam-vit-b")))
    # the largest model is there twice while it is loaded
    large = worker(models="official", precision="bfloat16")
    assert large.worker == large.libraries + 2 * 2_564_550_879 + CHECKPOINTS["groundingdino-swint-ogc"].size
    gpu = worker(runner=CPU | {"device": "cuda"})
    assert (gpu.on_gpu, gpu.models, gpu.kept) == (True, 0, 0)
    assert gpu.weights == usual.weights
    outside = worker(models={"segmenter": "somebody's"}, tokens=None)
    assert (outside.unknown, outside.weights) == (("somebody's",), 0)


CPU = {"kind": "local", "device": "cpu"}
SMALL = {"models": "small", "runner": CPU, "precision": "float32"}
