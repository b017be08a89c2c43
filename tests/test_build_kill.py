"""Builds that are killed, stopped or run out of disk anywhere: the same command again ends with the same bytes."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import builds
import pyarrow.parquet as pq
import pytest

from patchmint.storage.local import is_temporary

pytestmark = pytest.mark.kill

SCRIPTS = 3
"""How many scripts share the states: a driver that takes over a lease sleeps half a second."""
SCENES = ("fresh", "committed", "replaced")
TEXTS = [f"thing number {place}" for place in range(9)]
DAMAGED = (2,)
REJECTS = {"image-damaged": 1}


# A kill leaves what is on the disk at that moment, so the steps between which nothing changes there are one case.
# Scripts record the state before each step of undisturbed builds; others then kill a build at the first step of each
# state, see that it left that state, and go on with it. Each build is a fork with the real driver and worker in it.


def killed_in_every_state(config, whole, folder, scene, share):
    """Kill a build in each recorded state of the disk in turn, go on with it, compare; how many steps and states.

    `whole` is the output of an undisturbed build.
    """
    expected = builds.digests(whole)
    states, first_steps = recorded_states(folder, scene)
    for number in first_steps[share::SCRIPTS]:
        out = folder / f"{scene}-{number}"
        if scene != "fresh":
            shutil.copytree(folder / scene, out)
        assert builds.exit_code(builds.fork(partial(_killed, config, out, number))) == -signal.SIGKILL, number
        _check_same_state(_state(out), states[number], f"killed before step {number}")
        assert builds.exit_code(builds.fork(partial(_gone_on, config, out, expected, scene))) == 0, number
        shutil.rmtree(out)
    return len(states), len(first_steps)


def record_states(config, folder, scene):
    """Write which state of the disk a build finds before each step, to FOLDER/SCENE.json.

    The build is "fresh"; or "committed", one that finds a unit committed but not published; or "replaced", one that
    finds the plan of other settings, and what was begun with it. What they find is in FOLDER/SCENE. Of these two only
    the steps before they write a shard count: the others are as in the first.
    """
    begun, out = folder / scene, folder / f"{scene}-watched"
    if scene == "committed":
        assert builds.exit_code(builds.fork(lambda: _killed_when_committed(config, begun))) == -signal.SIGKILL
        assert (begun / "commits" / "000001.json").exists()
        assert not (begun / "shards" / "000001.tar").exists()
    elif scene == "replaced":
        assert builds.exit_code(builds.fork(lambda: _killed_with_other_settings(config, begun))) == -signal.SIGKILL
        assert builds.is_mid_shard(begun)
        assert not builds.committed(begun)
    if scene != "fresh":
        shutil.copytree(begun, out)
    steps = []

    def on_step(when, name):
        if when == "before":
            steps.append((name, _state(out)))

    import faults

    faults.watch(on_step)
    builds.build_here(config, out)
    names, states = zip(*steps, strict=True)
    (folder / f"{scene}.json").write_text(json.dumps(states[: None if scene == "fresh" else names.index("write")]))


def recorded_states(folder, scene):
    """The state before each step, and the first step of each distinct one."""
    states = json.loads((folder / f"{scene}.json").read_text())
    return states, sorted({state: number for number, state in reversed([*enumerate(states)])}.values())


def _check_same_state(left, recorded, when):
    left, recorded = (set(map(tuple, json.loads(state))) for state in (left, recorded))
    assert left == recorded, f"{when}, it left other files than were recorded: {left ^ recorded}"


_RUN = re.compile(r"[0-9]{8}t[0-9]{6}-[0-9a-f]{8}(-[0-9]{6}-)?(?(1)[0-9a-f]{16})")


def _state(out):
    """All that is on the disk but for what chance and clocks decide: attempts' names, seconds, lease, run records."""
    found = []
    for path in sorted(out.rglob("*")):
        name = "temporary" if is_temporary(path.name) else path.name
        told = path.parent.name == "runs" or name in ("lease.json", "temporary")
        data = path.read_bytes() if path.is_file() and not told else b""
        if path.parent.name == "commits" and data:
            data = json.dumps(json.loads(_RUN.sub(r"run\1", data.decode())) | {"seconds": 0}).encode()
        place = _RUN.sub(r"run\1", str(path.parent.relative_to(out)))
        found.append((place, _RUN.sub("run", name), hashlib.sha256(data).hexdigest()))
    return json.dumps(found)


def _killed(config, out, number):
    """Kill this process before its step of that number, which is also after the one before."""
    import faults

    steps = 0

    def on_step(when, name):
        nonlocal steps
        if when == "before":
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    faults.watch(on_step)
    builds.build_here(config, out)


def _killed_when_committed(config, out):
    import faults

    def on_step(when, name):
        if (when, name) == ("after", "link") and (out / "commits" / "000001.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    faults.watch(on_step)
    builds.build_here(config, out)


def _killed_with_other_settings(config, out):
    """Kill it in its first shard; one more was begun by a worker elsewhere."""
    import faults

    def on_step(when, name):
        if (when, name) == ("after", "write"):
            shutil.copytree(next(out.glob("attempts/*")), out / "attempts" / "elsewhere-000004-0123456789abcdef")
            os.kill(os.getpid(), signal.SIGKILL)

    faults.watch(on_step)
    builds.build_here(config, out, {"output.samples_per_shard": 2, "labels.min_coverage": 0.3})


def _gone_on(config, out, expected, scene="fresh"):
    from patchmint.shards.verify import verify
    from patchmint.storage import open_storage

    if scene != "replaced":  # there the plan may still be the other one
        builds.check_half_done(out, expected)
    report = builds.build_here(config, out)
    assert (report.planned, report.written, report.rejects, report.missing) == (9, 8, REJECTS, 0)
    builds.check_files(out, expected)
    assert list(verify(open_storage(out))) == []


def full_at_any_moment(config, whole, disk):
    """Build on a disk of each size that is too small, then make it larger and go on; returns the number of sizes."""
    expected = builds.digests(whole)
    for number in range(200):
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        size = f"{(1 + 3 * number) * 4}k"
        resize(disk, size)
        if builds.exit_code(builds.fork(partial(_full, config, disk))) == 0:
            return number
        resize(disk, "8m")
        assert builds.exit_code(builds.fork(partial(_gone_on, config, disk, expected))) == 0, size
    raise AssertionError("the disk is always full")


def resize(disk, size):
    """Make a mounted disk larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _full(config, out):
    from patchmint.errors import BuildError, StorageError

    try:
        builds.build_here(config, out)
    except (BuildError, StorageError) as error:
        os._exit(3 if "the disk is full" in str(error) else 4)


def in_a_script(*arguments):
    """Start one of the functions above in a process without threads."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return builds.watched(command, dict(os.environ))


def answer(script):
    """What a script has counted."""
    said, complaints = script.communicate(timeout=500)
    assert script.returncode == 0, said + complaints[-6000:]
    return [int(number) for number in said.split()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A config, and the output of a build that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = builds.make_input(folder / "in", TEXTS, DAMAGED)
    config = builds.make_config(folder / "config.yaml", source, folder / "out", 3)
    builds.run(config, folder / "out", cold=True)
    builds.check_finished(folder / "out", builds.digests(folder / "out"), 9, REJECTS)
    builds.check_with_commands(folder / "out", 9, REJECTS)
    return config, folder / "out"


def test_killed_in_every_state(undisturbed, tmp_path):
    config, _ = undisturbed
    for script in [in_a_script("record", config, tmp_path, scene) for scene in SCENES]:
        answer(script)
    scripts = [in_a_script("killed", *undisturbed, tmp_path, share) for share in range(SCRIPTS)]
    for script in scripts:
        counts = answer(script)
        (steps, states), *others = zip(counts[::2], counts[1::2], strict=True)
        assert steps >= 120
        assert 40 <= states < steps
        for (steps, states), least in zip(others, (15, 30), strict=True):
            assert steps >= least
            assert 4 <= states < steps


def go_on(undisturbed, outs):
    """The same command again, in several outputs at once; each must end as if nothing had happened."""
    config, whole = undisturbed
    expected = builds.digests(whole)
    for out in outs:
        builds.check_half_done(out, expected)
    said = [builds.ended(build, 0) for build in [builds.start(config, out) for out in outs]]
    for out in outs:
        builds.check_finished(out, expected, 9, REJECTS)
    return said


def broken(undisturbed, tmp_path, steps):
    """Builds in which something happens in the worker at a step; the outputs and the builds."""
    outs = [tmp_path / step.replace(" ", "-") for step in steps]
    return outs, [builds.start_faulty(undisturbed[0], out, step) for step, out in zip(steps, outs, strict=True)]


def test_driver_and_worker_killed_at_steps_of_the_commit(undisturbed, tmp_path):
    steps = [f"kill-both {step}" for step in ("before write 9", "before link 2", "after link 2", "after rename 4")]
    outs, started = broken(undisturbed, tmp_path, steps)
    for build in started:
        builds.ended(build, -signal.SIGKILL)
    assert [len(builds.committed(out)) for out in outs] == [1, 1, 2, 2]
    go_on(undisturbed, outs)


def test_a_killed_worker_is_replaced_in_the_same_run(undisturbed, tmp_path):
    steps = [f"kill-worker {step}" for step in ("before write 9", "before link 2", "after link 2", "after rename 4")]
    outs, started = broken(undisturbed, tmp_path, steps)
    for build, out in zip(started, outs, strict=True):
        assert " cpu, and is replaced; the unit is tried again" in builds.ended(build, 0)
        assert out.with_suffix(".hit").exists()
        builds.check_finished(out, builds.digests(undisturbed[1]), 9, REJECTS)


def test_signals_in_the_middle_of_a_shard(undisturbed, tmp_path):
    config, _ = undisturbed
    outs = {sent: tmp_path / sent.name for sent in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}
    one = "--runner.batch-size=1"  # so that the first sample is written two seconds before the second is annotated
    started = {sent: builds.start(config, out, one, STAND_IN_SLEEP="2") for sent, out in outs.items()}
    for sent, build in started.items():
        assert builds.wait_until(lambda out=outs[sent]: builds.is_mid_shard(out))
        assert len(builds.members(build)) > 1
        # Ctrl-C in a terminal reaches every process of the group
        (os.killpg if sent == signal.SIGINT else os.kill)(build.pid, sent)
    for sent, build in started.items():
        build.wait(30)
        assert builds.wait_until(lambda build=build: not builds.members(build), 10), "a worker outlives its driver"
        assert not builds.committed(outs[sent]), "its worker has gone on without it"
        said = builds.ended(build, -sent if sent == signal.SIGKILL else 128 + sent)
        if sent != signal.SIGKILL:
            assert f"stopped by {sent.name}; run the same command to resume; " in said
            assert "annotated samples are saved for it" in said
            assert list((outs[sent] / "saved").iterdir())
            assert not (outs[sent] / "attempts").exists()
            assert not (outs[sent] / "lease.json").exists()
    assert builds.is_mid_shard(outs[signal.SIGKILL])
    said = go_on(undisturbed, outs.values())
    builds.check_with_commands(outs[signal.SIGKILL], 9, REJECTS)
    assert "is dead; taking over" in said[0]
    assert "watching for" not in said[0], "it waits although the dead driver is known to be dead"


@pytest.fixture
def disks(tmp_path):
    """Makes small disks."""
    mounted = []

    def make(name, size):
        folder = tmp_path / name
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"small disks can't be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield make
    builds.end_all()
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_fills_anywhere(undisturbed, disks):
    assert answer(in_a_script("full", *undisturbed, disks("disk", "8m")))[0] >= 8


def test_the_disk_fills_in_the_middle_of_a_shard(undisturbed, tmp_path, disks):
    """With images so large that buffers don't hide it until the end."""
    source = builds.make_input(tmp_path / "in", TEXTS, DAMAGED)
    for path in source.glob("*.jpg"):
        path.write_bytes(path.read_bytes() + os.urandom(400_000))
    config = builds.make_config(tmp_path / "config.yaml", source, tmp_path / "whole", 3)
    builds.run(config, tmp_path / "whole")
    out = disks("disk", "3m")
    said = builds.run(config, out, rc=1)
    assert "the disk is full" in said.splitlines()[-1]
    assert not (out / "attempts").exists()
    assert not (out / "lease.json").exists()
    expected = builds.digests(tmp_path / "whole")
    builds.check_half_done(out, expected)
    assert len(builds.committed(out)) < 3
    resize(out, "20m")
    builds.run(config, out)
    builds.check_finished(out, expected, 9, REJECTS)


def rejected(out):
    """(id, stage, reason) of every reject."""
    rows = [row for path in sorted(out.glob("rejects/*")) for row in pq.read_table(path).to_pylist()]
    return [(row["id"], row["stage"], row["reason"]) for row in rows]


# in units of eight: one alone; the first, two of one unit, the last
@pytest.mark.parametrize(("killers", "workers"), [((21,), (1, 2)), ((0, 17, 21, 39), (2,))])
def test_samples_that_kill_are_rejected_alone(tmp_path, killers, workers):
    texts = ["KILL me" if place in killers else f"thing number {place}" for place in range(40)]
    source = builds.make_input(tmp_path / "in", texts)
    outs = [tmp_path / f"workers-{count}" for count in workers]
    config = builds.make_config(tmp_path / "config.yaml", source, outs[0], 8)
    options = ["--runner.batch-size=4"]
    started = [
        builds.start(config, out, *options, f"--runner.workers={count}")
        for count, out in zip(workers, outs, strict=True)
    ]
    for build, out in zip(started, outs, strict=True):
        builds.ended(build, 0)
        assert rejected(out) == [(f"{place:03d}.jpg", "worker", "kills-worker") for place in killers]
        builds.check_finished(out, builds.digests(outs[0]), 40, {"kills-worker": len(killers)})


def test_a_sample_that_hangs_is_rejected_and_the_others_are_written(tmp_path):
    texts = ["HANG" if place == 30 else f"thing number {place}" for place in range(50)]
    source = builds.make_input(tmp_path / "in", texts)
    config = builds.make_config(tmp_path / "config.yaml", source, tmp_path / "out", 50)
    said = builds.run(config, tmp_path / "out", "--runner.batch-size=8", "--limits.sample-timeout=2")
    assert said.count("it hung: no sample was finished for 2 s in annotate") == 2
    (record,) = builds.committed(tmp_path / "out").values()
    assert (record["written"], record["rejects"]) == (49, {"hangs-worker": 1})
    (rejected,) = pq.read_table(tmp_path / "out" / "rejects" / "000000.parquet").to_pylist()
    assert rejected["ordinal"] == 30
    assert "limits.sample_timeout" in rejected["message"]


if __name__ == "__main__":
    what, given, *paths = sys.argv[1:]
    with builds.warmed():
        if what == "record":
            record_states(Path(given), Path(paths[0]), paths[1])
        elif what == "killed":
            whole, folder, share = paths
            for scene in SCENES:
                print(*killed_in_every_state(Path(given), Path(whole), Path(folder), scene, int(share)))
        else:
            print(full_at_any_moment(Path(given), *map(Path, paths)))
