"""`patchmint.build` from Python: scripts without a guard, no terminal, threads, errors and interrupts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import builds
import pytest
import warm

import patchmint
from patchmint.config import BuildConfig
from patchmint.errors import BuildError, ConfigError
from patchmint.pipeline.pools import local

ROOT = Path(__file__).parent.parent
SCRIPT = """
import json, threading
from pathlib import Path
import patchmint

with Path("started").open("a") as file:
    file.write("once\\n")
reports = []
work = lambda: reports.append(patchmint.build("config.yaml"))
if {in_thread}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
print(json.dumps([reports[0].planned, reports[0].written, reports[0].rejects]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return builds.make_input(tmp_path_factory.mktemp("source") / "in", [f"thing {n}" for n in range(8)], damaged=[3])


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """What the command makes of it."""
    folder = tmp_path_factory.mktemp("command")
    builds.run(builds.make_config(folder / "config.yaml", source, folder / "out"), folder / "out")
    return builds.digests(folder / "out")


@pytest.fixture
def settings(source, tmp_path, monkeypatch):
    """A config as a mapping, and the stand-in models where this process finds them."""
    monkeypatch.syspath_prepend(builds.STAND_IN)
    return json.loads(builds.make_config(tmp_path / "config.yaml", source, tmp_path / "out").read_text())


@pytest.mark.parametrize("way", ["script", "stdin, in a thread"])
def test_a_script_needs_no_guard(source, expected, tmp_path, way):
    builds.make_config(tmp_path / "config.yaml", source, "out", runner={"kind": "local", "workers": 1, "num_cpus": 1})
    code = SCRIPT.format(in_thread=way != "script")
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py" if way == "script" else "-"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{builds.STAND_IN}{os.pathsep}{ROOT}"},
        input=code if way != "script" else "",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout), done.stderr) == ([8, 7, {"image-damaged": 1}], "")
    assert (tmp_path / "started").read_text() == "once\n"
    builds.check_files(tmp_path / "out", expected)


@pytest.fixture
def warm_workers(monkeypatch):
    """Workers of builds in this process are forked; the scripts above start theirs as a user's do."""
    monkeypatch.setattr(local, "subprocess", warm.SUBPROCESS)


class Heard(patchmint.Reporter):
    def __init__(self):
        self.plan, self.done = None, 0

    def started(self, plan, units, done):
        self.plan = (plan.total, units, done)

    def progress(self, progress, result):
        self.done += result is not None


@pytest.mark.usefixtures("warm_workers")
def test_mapping_path_and_config_are_the_same_build(settings, expected, tmp_path, capfd):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    heard = Heard()
    report = patchmint.build(settings, reporter=heard, profile=True)
    assert (report.planned, report.written, report.rejected, report.missing) == (8, 7, 1, 0)
    assert report.profile is not None
    assert (heard.plan, heard.done) == ((8, 2, 0), 2)
    builds.check_files(tmp_path / "out", expected)
    for config in (tmp_path / "config.yaml", str(tmp_path / "config.yaml"), BuildConfig.parse(settings)):
        again = patchmint.build(config)
        assert (again.written, again.done_before, again.units) == (7, 2, 2)
    assert patchmint.build(settings, retry_failed=True).units == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("warm_workers")
def test_errors_are_patchmints(settings, tmp_path):
    with pytest.raises(ConfigError, match="gird") as wrong:
        patchmint.build(settings | {"gird": 1, "tokens": {"fit": "stretch"}})
    assert len(wrong.value.problems) == 2
    with pytest.raises(BuildError, match="rejected"):
        patchmint.build(settings | {"source": {"kind": "folder", "uri": _all_damaged(tmp_path)}})


def _all_damaged(tmp_path):
    return str(builds.make_input(tmp_path / "damaged", ["a thing"] * 12, damaged=range(12)))


def test_an_interrupt_stops_the_workers_and_the_same_call_resumes(settings, expected, tmp_path, request):
    class Interrupting(patchmint.Reporter):
        def progress(self, progress, result):
            if result is not None:
                raise KeyboardInterrupt

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        patchmint.build(settings, reporter=Interrupting())
    assert _children() == before
    request.getfixturevalue("warm_workers")
    assert patchmint.build(settings).done_before == 1
    builds.check_files(tmp_path / "out", expected)


def _children():
    return {child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}


@pytest.mark.usefixtures("warm_workers")
def test_models_that_mean_little_warn(settings, tmp_path):
    with pytest.warns(patchmint.UntrainedWarning, match="mean nothing") as warned:
        patchmint.build(settings | {"models": "untrained-tiny", "labels": None})
    assert warned[0].filename == __file__
