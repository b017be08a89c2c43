"""Two drivers on one output: the second is turned away, or takes over from one that is silent; they never mix."""

import os
import signal

import builds
import pytest

pytestmark = pytest.mark.kill

TEXTS = [f"thing number {place}" for place in range(9)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A config, and what a build that nothing disturbs writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = builds.make_input(folder / "in", TEXTS, damaged=(2,))
    config = builds.make_config(folder / "config.yaml", source, folder / "out", 3)
    builds.run(config, folder / "out")
    return config, builds.digests(folder / "out")


def test_others_are_turned_away_while_a_driver_lives(undisturbed, tmp_path):
    config, expected = undisturbed
    out = tmp_path / "out"
    first = builds.start(config, out, "--runner.batch-size=1", STAND_IN_SLEEP="0.8")
    assert builds.wait_until(lambda: builds.is_mid_shard(out))
    for other in [builds.start(config, out) for _ in range(2)]:
        said = builds.ended(other, 1)
        assert f"the driver with pid {first.pid} on" in said.splitlines()[-1]
        assert f"is building into {out}; `patchmint status {out}` shows how far it is" in said.splitlines()[-1]
    builds.ended(first, 0)
    builds.check_finished(out, expected, 9, {"image-damaged": 1})


def test_a_driver_whose_plan_was_replaced_while_it_slept_commits_nothing(undisturbed, tmp_path):
    """Stopped in its first unit: nothing of its plan is finished, so other settings may take its place."""
    config, expected = undisturbed
    out = tmp_path / "out"
    first = builds.start(config, out, "--labels.min-coverage=0.5", "--runner.batch-size=1", STAND_IN_SLEEP="1")
    assert builds.wait_until(lambda: builds.is_mid_shard(out))
    os.killpg(first.pid, signal.SIGSTOP)
    said = builds.run(config, out, patience=3)
    assert f"the plan in {out}, of which nothing is finished, is replaced: it was made with other settings; " in said
    assert "labels.min_coverage: 0.5 there, 0.0 here" in said
    builds.check_finished(out, expected, 9, {"image-damaged": 1})
    os.killpg(first.pid, signal.SIGCONT)
    assert "another driver has taken over this output" in builds.ended(first, 1)
    builds.check_finished(out, expected, 9, {"image-damaged": 1})


def test_a_driver_stopped_in_the_middle_of_a_commit_does_no_harm_when_it_goes_on(undisturbed, tmp_path):
    """Stopped with its worker at unit 1: before the record, after it, in the middle of publishing."""
    config, expected = undisturbed
    steps = ["before link 2", "after link 2", "after rename 4"]
    outs = [tmp_path / step.replace(" ", "-") for step in steps]
    first = [
        builds.start_faulty(config, out, f"stop-group {step}", STAND_IN_SLEEP="0.2")
        for step, out in zip(steps, outs, strict=True)
    ]
    for build in first:
        assert builds.wait_until(lambda build=build: set(builds.members(build).values()) == {"T"})
    assert [len(builds.committed(out)) for out in outs] == [1, 2, 2]
    for out in outs:
        builds.check_half_done(out, expected)
    for build, out in zip([builds.start(config, out, patience=3) for out in outs], outs, strict=True):
        said = builds.ended(build, 0)
        assert "watching for up to 3 s whether it is alive" in said
        assert "is dead; taking over" in said
        assert {path: expected[path] for path in builds.digests(out)} == expected
    records = [builds.committed(out) for out in outs]
    for build in first:
        os.killpg(build.pid, signal.SIGCONT)
    for build in first:
        assert "another driver has taken over this output" in builds.ended(build, 1)
    assert [builds.committed(out) for out in outs] == records
    for out in outs:
        builds.check_files(out, expected)
    for build, out in zip([builds.start(config, out) for out in outs], outs, strict=True):
        builds.ended(build, 0)
        builds.check_finished(out, expected, 9, {"image-damaged": 1})
