"""`inspect ls` and `inspect info`, how data sets are opened, and how the command line starts and ends."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from inspect_data import answer as told
from inspect_data import inspect as run
from inspect_data import plan_six, refusal
from shard_data import LAYOUT, commit_unit, finish, make_dataset, make_reject, make_sample, on_a_store, write_plan

from patchmint.cli import COMMANDS as ROOT_COMMANDS
from patchmint.cli.inspect import COMMANDS
from patchmint.datasets.dataset import open_dataset
from patchmint.errors import ShardError, StorageError
from patchmint.pipeline.plan import make_retry_plan
from patchmint.shards.commit import read_record
from patchmint.shards.reader import iter_samples
from patchmint.storage import local, open_storage

ROOT = Path(__file__).parent.parent


@pytest.fixture
def dataset(tmp_path):
    """Three units: whole, with rejects, and rejects only."""
    units = [[make_sample(n) for n in range(3)], [make_sample(n) for n in range(3, 5)], []]
    return make_dataset(tmp_path / "data", units, {1: [make_reject(5)], 2: [make_reject(6), make_reject(7)]})


@pytest.fixture
def unfinished(tmp_path):
    folder = tmp_path / "unfinished"
    write_plan(folder, {0: 2, 1: 3, 2: 2})
    commit_unit(folder, 0, [make_sample(0), make_sample(1)], [])
    commit_unit(folder, 2, [make_sample(5)], [make_reject(6)])
    return folder


def test_shards_with_their_counts(dataset):
    found = told("ls", dataset)
    assert found["finished"] is True
    sizes = [path.stat().st_size for path in sorted((dataset / "shards").glob("*.tar"))]
    shares = [read_record(open_storage(dataset), unit).label_share for unit in (0, 1)]
    fields = ("unit", "samples", "rejected", "bytes", "label_share")
    assert [tuple(shard[name] for name in fields) for shard in found["shards"]] == [
        (0, 3, 0, sizes[0], shares[0]),
        (1, 2, 1, sizes[1], shares[1]),
        (2, 0, 2, 0, None),
    ]
    assert (found["samples"], found["rejected"], found["bytes"]) == (5, 3, sum(sizes))
    assert [line.split() for line in run("ls", dataset).stdout.splitlines()[1:]] == [
        ["shards/000000.tar", "3", "0", str(sizes[0]), f"{shares[0]:.1%}"],
        ["shards/000001.tar", "2", "1", str(sizes[1]), f"{shares[1]:.1%}"],
        ["unit", "000002,", "none", "0", "2", "0"],
        ["2", "shards", "5", "3", str(sum(sizes))],
    ]


@pytest.fixture
def opened(monkeypatch):
    """Paths of the files that are opened."""
    paths = []
    whole = local._open
    monkeypatch.setattr(local, "_open", lambda path, **how: paths.append(path.name) or whole(path, **how))
    return paths


def test_a_finished_data_set_is_listed_from_two_files(dataset, opened, monkeypatch):
    """Ten thousand shards are neither opened nor looked for, also not on a store."""
    monkeypatch.setattr(type(open_storage(dataset)), "list", lambda *_: pytest.fail("it was listed"))
    for command in ("ls", "info"):
        opened.clear()
        run(command, dataset)
        assert sorted(opened) == ["dataset.json", "shards.json"]


def test_records_are_read_only_where_the_list_does_not_say_it(dataset, opened):
    open_dataset(dataset)
    assert sorted(opened) == ["dataset.json", "shards.json"]
    (dataset / "shards.json").unlink()
    opened.clear()
    open_dataset(dataset)
    assert {path for path in opened if path.startswith("0000")} == {"000001.json", "000002.json"}


def test_without_a_list_files_are_looked_for(dataset):
    """Or with one that is of another state of the data set."""
    listed, path = told("ls", dataset), dataset / "shards.json"
    document = json.loads(path.read_text())
    for change in (lambda: None, lambda: document["units"].pop(), lambda: document["units"][0].update(samples=2)):
        change()
        path.write_text(json.dumps(document))
        found = told("ls", dataset)
        if document["units"][0]["samples"] == 3 and len(document["units"]) == 3:
            assert found == listed
            continue
        assert all(shard.pop("label_share") is None for shard in found["shards"])
        assert found["shards"] == [{k: v for k, v in s.items() if k != "label_share"} for s in listed["shards"]]
    path.unlink()
    assert told("ls", dataset) == found | {"shards": [shard | {"label_share": None} for shard in found["shards"]]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("patchmint.shards/1", "patchmint.shards/2"),
        *(('"samples": 3', f'"samples": {value}') for value in ("-3", '"3"', '3, "more": 1')),
        ('"units": [', '"units": 5, "x": ['),
        ('"plans": 1', '"plans": true'),
        ('"label_share": 0.', '"label_share": 7.'),
        ("]}", ""),
    ],
)
def test_a_damaged_list(dataset, old, new):
    path = dataset / "shards.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for command in ("ls", "info"):
        assert "run the build's command again" in refusal(command, dataset, kind=ShardError)


def test_unfinished_build(unfinished):
    found = told("ls", unfinished)
    assert (found["finished"], found["unbuilt_units"], found["samples"], found["rejected"]) == (False, 1, 3, 1)
    assert "1 unit not built yet" in run("ls", unfinished).stdout
    info = told("info", unfinished)
    assert info["state"] == "unfinished"
    counts = {"units": 3, "units_done": 2, "planned": 7, "written": 3, "texts": 5, "shards": 2}
    expected = counts | {"rejected": {"image-missing": 1}, "absent": {}, "bytes": 0, "label_share": 0}
    assert info["totals"] | {"bytes": 0, "label_share": 0} == expected
    shown = run("info", unfinished).stdout
    assert "2 of 3 units" in shown
    assert "KEY.vqgan.npy" in shown


@pytest.mark.parametrize("built", [0, 1, 2])
def test_a_retry_under_way(tmp_path, monkeypatch, built):
    """dataset.json is still that of the build before the retry, whose units have no records yet, or newer ones."""
    monkeypatch.setenv("PATCHMINT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    plan = plan_six(folder)
    commit_unit(folder, 0, [make_sample(0), make_sample(2)], [make_reject(1)])
    commit_unit(folder, 1, [], [make_reject(3), make_reject(4), make_reject(5)])
    finish(folder, [0, 1], 6, 4)
    assert (open_dataset(folder).finished, open_dataset(folder).unbuilt) == (True, 0)
    make_retry_plan(open_storage(folder), [plan], [1, 3, 4, 5])
    for unit, written, rejected in [(2, [1, 3], [4]), (3, [5], [])][:built]:
        commit_unit(folder, unit, [make_sample(n) for n in written], [make_reject(n) for n in rejected])
    dataset = open_dataset(folder)
    assert (dataset.finished, dataset.unbuilt, dataset.samples) == (False, 2 - built, [2, 4, 5][built])
    assert dataset.manifest.layout == LAYOUT
    for command in (["info"], ["show", "s0002"], ["find"], ["stats"], ["codes", "--top"], ["diff", folder]):
        told(command[0], folder, *command[1:])
    assert told("ls", folder)["unbuilt_units"] == 2 - built
    for path, why in (("shards/000000.tar", "lacks"), ("commits/000000.json", "isn't complete")):
        (folder / path).unlink()
        with pytest.raises(ShardError, match=why):
            open_dataset(folder)


def test_own_tar_with_and_without_its_sidecar(dataset, tmp_path):
    tar = dataset / "shards/000000.tar"
    expected = [
        {"key": s.key, "offset": s.offset, "bytes": s.size, "members": list(LAYOUT.members)}
        for s in iter_samples(open_storage(dataset), "shards/000000.tar")
    ]
    assert told("ls", tar)["samples"] == expected
    alone = tmp_path / "alone.tar"
    alone.write_bytes(tar.read_bytes())
    assert told("ls", alone)["samples"] == expected
    shown = run("ls", alone).stdout.splitlines()
    assert shown[1].split()[:3] == ["s0000", "0", str(expected[0]["bytes"])]
    assert shown[-1].split() == ["3", "samples", str(sum(row["bytes"] for row in expected))]
    for path in (tar, alone):
        info = told("info", path)
        assert info["state"] == "tar"
        assert (info["totals"]["written"], info["totals"]["texts"]) == (3, 4)
        assert [member["ending"] for member in info["members"]] == list(LAYOUT.members)


def test_tar_of_somebody_else(tmp_path):
    path = tmp_path / "wild.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("a/x.png", b"1"), ("a/x.cls", b"22"), ("\x07red.j\x07pg", b"3"), ("n" * 150 + ".txt", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("y.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = told("ls", path)["samples"]
    assert [(row["key"], row["members"]) for row in found] == [
        ("a/x", ["png", "cls"]),
        ("\x07red", ["j\x07pg"]),
        ("n" * 150, ["txt"]),
        ("y", ["jpg (symbolic link)"]),
    ]
    assert (found[0]["offset"], found[0]["bytes"], found[1]["offset"]) == (0, 2048, 2048)
    assert "\x07" not in run("ls", path).stdout
    assert isinstance(run("info", path).exception, ShardError)  # no sample of ours


def test_only_files_are_listed(tmp_path):
    """Neither pipes nor links that lead nowhere; what links lead to is."""
    (tmp_path / "data/b").mkdir(parents=True)
    (tmp_path / "data/a.tar").write_bytes(b"12")
    (tmp_path / "data/b/c").write_bytes(b"3")
    (tmp_path / "data/link").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "data/pipe")
    found = [(entry.path, entry.size) for entry in open_storage(tmp_path / "data").list()]
    assert found == [("a.tar", 2), ("b/c", 1), ("link/c", 1)]


@pytest.mark.parametrize("command", ["ls", "info", "verify"])
def test_nothing_to_look_at(tmp_path, command):
    for target in (tmp_path, tmp_path / "no", tmp_path / "no.tar"):
        assert str(target) in refusal(command, target)


def test_a_cut_tar_is_an_error(tmp_path):
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    refusal("ls", tmp_path / "cut.tar", kind=ShardError)


@pytest.mark.parametrize("path", ["shards/000000.tar", "rejects/000001.parquet"])
def test_an_incomplete_copy_is_an_error(dataset, path):
    (dataset / path).unlink()
    with pytest.raises(ShardError, match=f"lacks {path}"):
        open_dataset(dataset)
    (dataset / "shards.json").unlink()
    with pytest.raises(ShardError, match="isn't complete"):
        open_dataset(dataset)


NO_DOCUMENTS = (b"{}", b"[]", b"\xff", b"[" * 10**5, b'{"a":' * 10**5)


@pytest.mark.parametrize(
    "data",
    [
        *(*NO_DOCUMENTS, b'{"unit": 0, "written": 2}'),
        *(b'{"unit": 1, "written": %s}' % count for count in (b'"2"', b"-1", b"4", b"1e999")),
    ],
)
def test_damaged_record(dataset, data):
    (dataset / "shards.json").unlink()
    (dataset / "commits/000001.json").write_bytes(data)
    with pytest.raises(ShardError, match=r"commits/000001\.json"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    "data",
    [
        *(*NO_DOCUMENTS, b'{"totals": {"written": 5}}'),
        *(
            b'{"totals": {"units": %s, "written": %s}}' % counts
            for counts in (
                *((b"3", written) for written in (b"Infinity", b"1e999", b"-1", b"null", b'"5"', b"9" * 5000, b"[]")),
                *((units, b"5") for units in (b"-3", b"Infinity", b"null")),
            )
        ),
    ],
)
def test_damaged_manifest(dataset, data):
    (dataset / "dataset.json").write_bytes(data)
    with pytest.raises(ShardError, match=r"dataset\.json"):
        open_dataset(dataset)


def test_info_of_a_finished_build(dataset):
    found = told("info", dataset)
    manifest = json.loads((dataset / "dataset.json").read_text())
    for name in ("config", "layout", "members", "models", "notice", "versions"):
        assert found[name] == manifest[name]
    assert found["totals"] == manifest["totals"] | {"units_done": 3}
    shown = run("info", dataset).stdout
    assert "8 planned, 5 written, 3 rejected (3 image-missing)" in shown
    assert "T x 4 x 6" in shown


def test_from_a_store(dataset):
    with on_a_store(dataset) as uri:
        assert told("ls", uri)["shards"] == told("ls", dataset)["shards"]
        tar = "shards/000000.tar"
        assert told("ls", f"{uri}/{tar}")["samples"] == told("ls", dataset / tar)["samples"]
        assert told("info", uri)["totals"] == told("info", dataset)["totals"]
        assert run("show", uri, "s0003").exit_code == 0
        with pytest.raises(StorageError):
            open_dataset(f"{uri}//x")


@pytest.mark.parametrize("table", [ROOT_COMMANDS, COMMANDS])
def test_the_lists_of_commands_say_what_the_commands_say(table):
    """The list of `--help` is made without importing the commands."""
    for name, command in table.items():
        assert command.summary == command.load(name).help.partition("\n")[0], name


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_a_command_does_not_need_is_not_imported(dataset):
    code = (
        "import sys, patchmint.cli as c\nsys.argv = ['patchmint', *sys.argv[1:]]\ntry: c.main()\nfinally:\n"
        "    heavy = ('pyarrow', 'rich', 'PIL', 'torch', 'ray', 'patchmint.shards.manifest', 'patchmint.jobs.build')\n"
        "    print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    assert python("-c", code, "inspect", "ls", dataset).stderr.splitlines()[-1] == "[]"
    assert python("-c", code, "--version").stderr.splitlines()[-1] == "[]"
    assert python("-c", code, "inspect", "--help").stderr.splitlines()[-1] == "['rich']"
    deep = python("-c", code, "inspect", "verify", dataset, "--deep")
    assert deep.returncode == 0, deep.stderr
    assert re.search(r"^\['pyarrow'(?!.*'(torch|ray)').*\]$", deep.stderr.splitlines()[-1])


def test_unknown_command_names_the_nearest():
    done = python("-m", "patchmint", "inspect", "shwo")
    assert done.returncode == 2
    assert "'show'" in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_pipe_whose_reader_leaves_is_quiet(tmp_path, options):
    with tarfile.open(tmp_path / "long.tar", "w") as tar:  # its list is longer than any buffer
        for number in range(3000):
            tar.addfile(tarfile.TarInfo(f"{number:060d}.jpg"))
    command = [sys.executable, "-m", "patchmint", "inspect", "ls", str(tmp_path / "long.tar"), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("words", [["inspect", "--help"], ["inspect", "info", "DATA"], ["--version"]])
def test_a_pipe_that_nobody_reads_is_quiet(dataset, words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "patchmint", *(str(dataset) if word == "DATA" else word for word in words)]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_findings_and_errors_keep_their_codes_in_a_pipe(dataset, tmp_path):
    (dataset / "sidecars/000000.parquet").write_bytes(b"")
    assert python("-m", "patchmint", "inspect", "verify", dataset).returncode == 1
    done = python("-m", "patchmint", "inspect", "ls", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
