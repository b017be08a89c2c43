"""Reading a source for its plan: little of it, side by side, and none of it twice after a kill."""

import io
import os
import random
import signal
import tarfile
import threading
from importlib import import_module
from itertools import count
from types import SimpleNamespace

import builds
import pytest
from builds import exit_code, fork
from flaky_proxy import KINDS, Fault
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from source_files import image_bytes, put, source
from test_plan import Instead, everything

from patchmint.config import UNTRAINED
from patchmint.config.build import BuildConfig
from patchmint.errors import BuildError, StorageError
from patchmint.jobs.dry_run import _lines
from patchmint.pipeline.plan import Sampled, estimate, make_plan, reading, record_models, to_batches
from patchmint.pipeline.sources import base, folder, open_source
from patchmint.shards.plan import load_plan
from patchmint.storage import open_storage, patience
from patchmint.storage.ranges import LEAST, open_ranges

PHOTOGRAPH = (100_000, 200_000)
THUMBNAIL = (10_000, 30_000)


def tar(number, samples, sizes):
    """As img2dataset writes it, with random bytes for images."""
    dice, file = random.Random(number), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for place in range(samples):
            key = f"{number:05}{place:04}"
            image = dice.randbytes(dice.randint(*sizes))
            facts = b'{"caption": "photo", "exif": "%s"}' % (b"x" * dice.randint(500, 1500))
            for ending, data in (("jpg", image), ("json", facts), ("txt", b"photo " + key.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                writer.addfile(member, io.BytesIO(data))
    return file.getvalue()


def tars(root, count, samples, sizes=(10, 2000)):
    return put(root, {f"{number:05}.tar": tar(number, samples, sizes) for number in range(count)})


def config_of(uri, out, kind="webdataset"):
    output = {"uri": str(out), "samples_per_shard": 7}
    return BuildConfig.parse({"source": {"kind": kind, "uri": str(uri)}, "output": output, "models": UNTRAINED})


def plan_of(config, *, storage=None, opened=None, progress=lambda _: None, told=None):
    """As a driver plans."""
    storage = storage or open_storage(config.output.uri)
    said = [] if told is None else told
    with reading(parts(config, opened), storage, progress, said.append) as read:
        return make_plan(read, config, record_models(config), storage, absent=read.absent)


def parts(config, opened=None):
    """The only source, with its settings."""
    return [(opened or open_source(config.source), config.deciding()["source"])]


def without_kept(out):
    return {path: data for path, data in everything(out).items() if not path.startswith("planning/")}


def read_sections(opened):
    """The source, and a list of the files of each section that is read."""
    taken = []

    def in_section(section):
        taken.append([file.path for file in section])
        return opened.in_section(section)

    return Instead(opened, in_section=in_section), taken


@pytest.fixture
def small_sections(monkeypatch):
    """Each tar is a section, and each few images of a folder."""
    monkeypatch.setattr(base, "_SECTION_BYTES", 1)
    monkeypatch.setattr(folder, "_SECTION_FILES", 10)


@given(st.data())
@settings(max_examples=60)
def test_a_skipping_file_reads_what_is_there(data):
    content = random.Random(0).randbytes(300_000)
    ranges = []

    def read_range(start, length):
        assert length > 0
        assert start + length <= len(content)
        ranges.append(length)
        return content[start : start + length]

    file, plain = open_ranges(read_range, len(content), "x", buffer=0), io.BytesIO(content)
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            jump = data.draw(st.integers(0, 150_000) | st.integers(0, 5000))
            back = data.draw(st.booleans())
            target = max(0, plain.tell() - jump) if back else plain.tell() + jump
            file.seek(target)
            plain.seek(target)
        length = data.draw(st.integers(0, 2000) | st.just(100_000))
        assert file.read(length) == plain.read(length)
        assert file.tell() == plain.tell()


def test_small_gaps_are_read_through_and_large_ones_left_out():
    content = bytes(8 << 20)
    for gap, requests, share in ((1000, 16, 1), (60_000, 16, 1), (70_000, 120, 0.07), (150_000, 57, 0.04)):
        ranges = []

        def read_range(start, length, ranges=ranges):
            ranges.append(length)
            return content[start : start + length]

        file = open_ranges(read_range, len(content), "x", buffer=0)
        for start in range(0, len(content), gap + 1024):
            file.seek(start)
            assert len(file.read(1024)) == min(1024, len(content) - start)
        assert len(ranges) <= requests, gap
        assert sum(ranges) <= share * len(content), gap
    assert set(ranges[1:-1]) == {LEAST}


def served(server, monkeypatch, proxy, files):
    """A bucket with these files, behind the proxy, whose counts start at 0; and how many bytes it holds."""
    bucket = server.new_bucket(monkeypatch)
    for path, data in files.items():
        open_storage(bucket).write(path, data)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.env(proxy.port)["AWS_ENDPOINT_URL"])
    proxy.seen.clear()
    proxy.bytes_sent = 0
    return bucket, sum(map(len, files.values()))


@pytest.mark.parametrize(
    ("sizes", "samples", "share", "a_sample"), [(PHOTOGRAPH, 14, 0.04, 1.4), (THUMBNAIL, 60, 1.02, 0.3)]
)
def test_tars_on_a_store_are_read_by_their_headers(
    server, proxy, monkeypatch, tmp_path, sizes, samples, share, a_sample
):
    files = {f"{number}.tar": tar(number, samples, sizes) for number in range(5)}
    bucket, size = served(server, monkeypatch, proxy, files)
    proxy.latency = 0.05
    monkeypatch.setattr(base, "_SECTION_BYTES", 1)
    plan = plan_of(config_of(bucket, tmp_path / "there"))
    assert plan.total == 5 * samples
    assert proxy.bytes_sent < share * size
    assert len(proxy.seen) < a_sample * plan.total + 20
    assert proxy.most_waiting == 5
    assert len(list((tmp_path / "there/planning").iterdir())) == 5
    local = plan_of(config_of(put(tmp_path / "in", files), tmp_path / "here"))
    assert [(unit.part, unit.samples) for unit in local.units] == [(unit.part, unit.samples) for unit in plan.units]


def test_captions_on_a_store_are_read_many_at_once(server, proxy, monkeypatch, tmp_path):
    monkeypatch.setattr(folder, "_SECTION_FILES", 40)
    files = {f"{place:03}.{ending}": b"x" for place in range(60) for ending in ("jpg", "txt")}
    bucket, _ = served(server, monkeypatch, proxy, files)
    proxy.latency = 0.2
    assert plan_of(config_of(bucket, tmp_path / "there", "folder")).total == 60
    assert proxy.most_waiting > 16  # as many as one section's threads


def dying(storage, step, after):
    """A storage that ends the process before or after the n-th thing that is written."""
    lock, steps = threading.Lock(), iter(range(1000))

    def deadly(real):
        def call(*arguments):
            with lock:
                now = next(steps) == step
                if now and after:
                    real(*arguments)
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

        return call

    return Instead(storage, write=deadly(storage.write), create=deadly(storage.create))


# six sections, one part, the index
@pytest.mark.parametrize(("step", "after"), [(0, True), (3, False), (5, True), (6, True)])
@pytest.mark.parametrize("kind", ["webdataset", "folder"])
def test_a_planner_that_is_killed_goes_on_after_what_it_has_read(tmp_path, small_sections, kind, step, after):
    root = tmp_path / "in"
    if kind == "webdataset":
        tars(root, 6, 5)
    else:
        put(root, {f"{n:03}.{ending}": f"thing {n}" for n in range(30) for ending in ("jpg", "txt")})
    config, out = config_of(root, tmp_path / "out", kind), tmp_path / "out"
    pid = fork(lambda: plan_of(config, storage=dying(open_storage(out), step, after)))
    assert exit_code(pid) == -signal.SIGKILL
    kept = len(list(out.glob("planning/*.arrow")))
    assert kept == min(6, step + after)
    opened, taken = read_sections(open_source(config.source))
    told = []
    plan = plan_of(config, opened=opened, told=told)
    assert len(taken) == 6 - kept
    assert told == ([f"planning goes on: {kept} sections of the source were read before"] if kept else [])
    whole = plan_of(config_of(root, tmp_path / "whole", kind))
    assert plan.digest == whole.digest
    assert without_kept(out) == without_kept(tmp_path / "whole")
    assert list(to_bytes(to_batches(open_source(config.source).samples()))) == list(to_bytes(kept_rows(out, config)))


def to_bytes(batches):
    return (row for batch in batches for row in batch.to_pylist())


def kept_rows(out, config):
    """What is kept of the source, in its order."""
    with reading(parts(config), open_storage(out), print, print) as read:
        yield from read


def test_what_has_changed_since_is_read_again(tmp_path, small_sections):
    root, out = tars(tmp_path / "in", 4, 3), tmp_path / "out"
    config = config_of(root, out)
    plan_of(config)
    (out / "plan.parquet").unlink()
    (root / "00001.tar").write_bytes(tar(7, 4, (10, 20)))
    facts = (root / "00002.tar").stat()
    os.utime(root / "00002.tar", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    opened, taken = read_sections(open_source(config.source))
    plan = plan_of(config, opened=opened)
    assert sorted(taken) == [["00001.tar"], ["00002.tar"]]
    assert plan.digest == plan_of(config_of(root, tmp_path / "whole")).digest
    for kept in out.glob("planning/*"):
        kept.write_bytes(kept.read_bytes()[:-100])
    taken.clear()
    assert plan_of(config, opened=opened).digest == plan.digest
    assert len(taken) == 4


def test_an_end_is_noticed_within_a_section(tmp_path, small_sections):
    config = config_of(tars(tmp_path / "in", 3, 5), tmp_path / "out")
    opened, release = open_source(config.source), threading.Event()
    begun = []

    def in_section(section):
        for sample in opened.in_section(section):
            begun.append(sample.id)
            yield sample
            release.wait(10)

    def stop(samples):
        if samples == 3:  # one of each section
            release.set()
            raise BuildError("stopped")

    with pytest.raises(BuildError, match="stopped"):
        plan_of(config, opened=Instead(opened, in_section=in_section), progress=stop)
    assert 3 <= len(begun) <= 6
    assert everything(tmp_path / "out") == {}


def test_an_outage_of_the_store_is_sat_out(server, proxy, monkeypatch, tmp_path, small_sections):
    monkeypatch.setattr(patience, "PATIENCE", 0.2)
    monkeypatch.setattr(import_module(reading.__module__), "_RESTS", (0.2, 0.2))
    files = {f"{number}.tar": tar(number, 3, (10, 20)) for number in range(2)}
    bucket, _ = served(server, monkeypatch, proxy, files)
    config, told, counts = config_of(bucket, tmp_path / "out"), [], []
    in_first = KINDS["get"]
    proxy.faults.append(Fault(lambda *request: in_first(*request) and "/0.tar" in request[1], "refuse", times=10**6))
    with pytest.raises(StorageError, match=r"0\.tar"):
        plan_of(config, told=told, progress=counts.append)
    assert [line.partition(" from ")[2].partition(" on: ")[0] for line in told] == ["0.tar"] * 2
    assert max(counts) <= 3
    proxy.faults.clear()
    opened, failed = open_source(config.source), []

    def in_section(section):
        for number, sample in enumerate(opened.in_section(section)):
            if number == 2 and not failed:
                failed.append(sample)
                raise StorageError("the store is busy") from GenericError("in the test's words")
            yield sample

    plan = plan_of(config, opened=Instead(opened, in_section=in_section), told=told, progress=counts.append)
    assert plan.total == counts[-1] == 6
    assert told[-1] == "reading a part of the source again in 0.2 s, from 0.tar on: the store is busy"


def test_progress_counts_what_threads_have_read(tmp_path, small_sections):
    config, counts = config_of(tars(tmp_path / "in", 3, 5), tmp_path / "out"), []
    plan_of(config, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 15
    plan_of(config, progress=counts.append)
    assert counts[-1] == 15


def test_a_build_sweeps_what_its_planning_kept(tmp_path, small_sections):
    root = put(tmp_path / "in", {f"{n:03}.{ending}": f"{n}" for n in range(12) for ending in ("jpg", "txt")})
    config = builds.make_config(tmp_path / "c.json", root, tmp_path / "out", limits={"max_reject_share": 1.0})
    parsed = BuildConfig.load(config)
    with builds.warmed(), pytest.raises(BuildError):
        plan_of(parsed, progress=failing_at(12))
    assert len(list((tmp_path / "out/planning").iterdir())) == 3
    with builds.warmed():
        report = builds.build_here(config, tmp_path / "out")
    assert (report.planned, report.rejects) == (12, {"image-damaged": 12})
    assert not (tmp_path / "out/planning").exists()
    assert load_plan(open_storage(tmp_path / "out")).total == 12


def failing_at(count):
    def progress(samples):
        if samples == count:
            raise BuildError("stopped")

    return progress


def test_a_dry_run_reads_a_part_where_time_is_short(tmp_path, small_sections, monkeypatch):
    root = tars(tmp_path / "in", 40, 10)
    opened = source("webdataset", root)
    everything_read = Sampled([opened])
    assert len({sample.id for sample in everything_read}) == 400
    assert (everything_read.share, everything_read.listed) == (1.0, True)
    assert [sample.id for sample in Sampled([opened])] == [sample.id for sample in Sampled([opened])]
    opened.source.at_once = 1
    clock = count()
    a_second_a_look = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(import_module(Sampled.__module__), "time", a_second_a_look)
    some = Sampled([opened], 100)
    assert 60 <= len(samples := list(some)) <= 110
    assert some.listed
    assert len(samples) / some.share == pytest.approx(400, rel=0.2)
    config = config_of(root, tmp_path / "out")
    dry, _ = estimate(Sampled([opened], 100), config, lambda _: image_bytes())
    assert dry.samples == pytest.approx(400, rel=0.2)
    assert (dry.texts, dry.units) == (dry.samples, -(-dry.samples // 7))
    assert dry.image_bytes == pytest.approx(dry.samples * len(image_bytes()), rel=0.01)
    samples, told, *_ = _lines(dry, config)
    assert samples.startswith(f"samples   about {dry.samples} with {dry.texts} texts, in {dry.units} units")
    assert told.strip() == f"{dry.share:.2g} of the source was read, here and there; these figures follow from it"
    few = Sampled([opened], 10)
    assert 5 <= len(samples := list(few)) <= 20
    assert not few.listed
    assert len(samples) / few.share == pytest.approx(110, rel=0.5)  # of the eleven that were listed
