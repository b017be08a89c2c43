"""`patchmint push`: the real client against a server that speaks the Hub's protocol."""

import json
import re
import shutil
import tempfile

import builds
import pytest
import yaml
from hub_server import Fault
from shard_data import DOCUMENTS, configure, copy, joined, make_dataset, make_document, make_reject, make_sample
from typer.testing import CliRunner

from patchmint.cli import app
from patchmint.errors import InputError, ShardError, StorageError
from patchmint.jobs import card
from patchmint.jobs import push as module
from patchmint.jobs.push import push
from patchmint.shards.manifest import read_manifest
from patchmint.shards.readme import MARK, write_readme
from patchmint.shards.verify import verify
from patchmint.storage import open_storage
from patchmint.training import StageDataset

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own

URI = "hf://datasets/org/name"
GRID = {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash"}
MODELS = {
    "detector": {"name": "demo-detector", "sha256": "ab" * 32, "size": 9, "licence": "Apache-2.0"},
    "tokenizer": {"name": "a|<b>`c`\n# d", "sha256": "", "size": 0, "licence": ""},
}


def make(folder, units=3):
    samples = [[make_sample(2 * unit), make_sample(2 * unit + 1)] for unit in range(units)]
    made = make_dataset(folder, samples, {0: [make_reject(2 * units)]})
    (made / "runs").mkdir()
    (made / "runs" / "20260101t000000-00.json").write_text("{}")
    return configure(made, grid=GRID, entries=MODELS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished data set that nobody changes."""
    return make(tmp_path_factory.mktemp("push") / "out")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(card, "_SHOWN", 0)


def published(folder):
    """What of a data set goes to the Hub."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def without_card(files):
    return {path: data for path, data in files.items() if path != "README.md" and not path.startswith("card/")}


def uploads(hub):
    return hub.count("PUT", "")


def test_all_of_it_arrives_and_reads_back_the_same(hub, made):
    report = push(str(made), URI, private=True, licence="cc-by-4.0")
    repo = hub.repos["org/name"]
    assert repo.private
    assert without_card(repo.files) == published(made)
    assert (report.commit, report.files, report.present) == (repo.head, len(repo.files), 0)
    assert list(verify(open_storage(URI))) == []
    here, there = StageDataset(made, stage=1), StageDataset(URI, stage=1)
    assert len(there) == len(here) == 6
    for index in range(6):
        assert there[index].key == here[index].key
        assert (there[index].selector == here[index].selector).all()
        assert (there[index].pixels == here[index].pixels).all()


def test_columns_go_with_it(hub, folder, tmp_path):
    source, column = {"kind": "patchmint", "uri": str(folder)}, folder / "columns" / "labels"
    config = builds.make_config(tmp_path / "c.yaml", "", column, source=source, tokens=None, grid=GRID)
    with builds.warmed():
        builds.build_here(config, column)
    push(str(folder), URI)
    assert without_card(hub.repos["org/name"].files) == published(folder)
    here, there = (joined(place, ["labels"]) for place in (folder, URI))
    assert [sample.members for sample in here] == [sample.members for sample in there]
    assert [sample.members for sample in here] != [sample.members for sample in joined(URI)]


def test_documents(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "_SHOWN", 2)
    folder = make_dataset(tmp_path / "d", [[make_document(0), make_document(1, 3)]], layout=DOCUMENTS)
    configure(folder, grid=GRID, entries=MODELS)
    push(str(folder), URI)
    files = hub.repos["org/name"].files
    assert without_card(files) == published(folder)
    head, body = files["README.md"].decode().split("---\n", 2)[1:]
    columns = [column["name"] for column in yaml.safe_load(head)["dataset_info"]["features"]]
    assert {"0.jpg", "2.jpg", "2.selector.npy", "json"} <= set(columns)
    assert "2 documents of 5 images with 4 texts" in body
    assert "Images: 5 planned = 5 written" in body
    assert {"card/1.jpg", "card/2.jpg"} <= files.keys()
    assert list(verify(open_storage(URI))) == []


def test_a_store_is_pushed_as_a_folder_is_through_copies_without_names(hub, made, server, monkeypatch, tmp_path):
    left = []
    hub.faults.append(Fault(lambda *_: left.extend(tmp_path.rglob("*")), 500))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    push(copy(made, server.new_bucket(monkeypatch)), URI)
    assert left == []
    assert without_card(hub.repos["org/name"].files) == published(made)


def test_again_sends_nothing(hub, made):
    first = push(str(made), URI)
    sent = uploads(hub)
    again = push(str(made), URI)
    assert (again.files, again.bytes, again.present) == (0, 0, first.files)
    assert again.commit == first.commit
    assert uploads(hub) == sent


def test_the_manifest_comes_last_and_what_was_sent_isnt_sent_again(hub, made, monkeypatch):
    monkeypatch.setattr(module, "_COMMIT_FILES", 4)
    hub.faults.append(Fault(lambda method, path: "/commit/" in path and hub.count("POST", "/commit/") > 2, 401, 99))
    with pytest.raises(StorageError, match="set HF_TOKEN to a token that may write"):
        push(str(made), URI)
    repo = hub.repos["org/name"]
    assert "plan.parquet" in repo.commits[1][1]
    assert "dataset.json" not in repo.files
    assert len(repo.files) == 8
    hub.faults.clear()
    report = push(str(made), URI)
    assert report.present == 8
    assert all("dataset.json" not in files for _, files in repo.commits[:-1])
    assert without_card(repo.files) == published(made)
    assert uploads(hub) == len({data for path, data in repo.files.items() if path.endswith(("t", "r", "g"))})


@pytest.mark.parametrize("status", [503, 429])
def test_faults_that_pass_are_waited_out(hub, made, status):
    seen = hub.count
    for part in ("/repos/create", "/commit/"):
        hub.faults.append(Fault(lambda method, path, part=part: part in path, status))
    push(str(made), URI)
    assert [fault.times for fault in hub.faults] == [0, 0]
    assert seen("POST", "/commit/") == 2
    assert without_card(hub.repos["org/name"].files) == published(made)


def test_a_commit_whose_reply_was_lost_is_found(hub, made):
    """The client can't know that the server has committed; another try must not stumble over its own commit."""
    hub.faults.append(Fault(lambda method, path: "/commit/" in path, 503, late=True))
    push(str(made), URI)
    assert without_card(hub.repos["org/name"].files) == published(made)
    assert hub.count("POST", "/commit/") == 1


def test_two_who_push_at_once_notice(hub, made):
    repo, others = hub.put("org/name", {}), [b"of somebody else"]

    def meddle(method, path):
        if "/commit/" in path and others:
            repo.commit({"notes.txt": others.pop()})
        return False

    hub.faults.append(Fault(meddle, 500))
    with pytest.raises(StorageError, match="somebody else changed it meanwhile; run again"):
        push(str(made), URI)
    assert repo.files.keys() == {"notes.txt"}
    push(str(made), URI)
    assert without_card(repo.files) == published(made) | {"notes.txt": b"of somebody else"}


def test_a_later_state_replaces_the_earlier_one(hub, folder, tmp_path, monkeypatch):
    """A data set that grew (a retry) goes over its earlier state; between the two nobody takes it for finished."""
    monkeypatch.setattr(module, "_COMMIT_FILES", 2)
    repo = hub.put("org/name", published(folder) | {"shards/000009.tar": b"stale", "notes.txt": b"mine"})
    for path in ("shards/000000.tar", "commits/000000.json", "shards.json", "dataset.json"):
        repo.commit({path: b"earlier"})
    before = len(repo.commits)
    report = push(str(folder), URI)
    assert report.deleted == ("shards/000009.tar",)
    assert without_card(repo.files) == published(folder) | {"notes.txt": b"mine"}
    assert [("dataset.json" in files) for _, files in repo.commits[before:]] == [False] * (
        len(repo.commits) - before - 1
    ) + [True]


def test_another_data_set_is_replaced_only_on_demand(hub, made, tmp_path):
    other = make(tmp_path / "other", units=4)
    push(str(other), URI)
    with pytest.raises(InputError, match=r"another data set.*--replace"):
        push(str(made), URI)
    report = push(str(made), URI, replace=True)
    assert "shards/000003.tar" in report.deleted
    assert without_card(hub.repos["org/name"].files) == published(made)
    hub.put("org/tars", {"shards/a.tar": b"somebody's"})
    with pytest.raises(InputError, match=r"shards/a\.tar"):
        push(str(made), "hf://datasets/org/tars")


def test_what_isnt_whole_is_refused(hub, folder):
    (folder / "shards" / "000001.tar").write_bytes(b"x")
    with pytest.raises((InputError, ShardError), match=r"verify|has 1"):
        push(str(folder), URI)
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match="isn't a finished data set"):
        push(str(folder), URI)
    with pytest.raises(InputError, match="fills the main branch"):
        push(str(folder), f"{URI}@v1")
    assert hub.repos == {}


def test_a_shard_that_changed_is_not_sent(hub, folder):
    path = folder / "shards" / "000001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # in the padding, which nobody reads
    with pytest.raises(ShardError, match=r"000001\.tar.*isn't as its record says"):
        push(str(folder), URI)
    assert "dataset.json" not in hub.repos["org/name"].files


def test_dry_run_and_json(hub, made):
    done = CliRunner().invoke(app, ["push", str(made), URI, "--dry-run", "--json"])
    answer = json.loads(done.stdout)
    assert (answer["commit"], answer["present"]) == ("", 0)
    assert answer["files"] == len(published(made)) + 1
    assert hub.repos == {}
    done = CliRunner().invoke(app, ["push", str(made), URI])
    assert done.stdout.startswith(f"{answer['files']} files")
    assert done.stdout.endswith(f"http://127.0.0.1:{hub.port}/datasets/org/name\n")


def test_the_card(hub, folder, monkeypatch):
    monkeypatch.setattr(card, "_SHOWN", 2)
    manifest = json.loads((folder / "dataset.json").read_bytes())
    manifest["notice"] = "DEMO MODELS: they know drawn shapes only"
    (folder / "dataset.json").write_text(json.dumps(manifest))
    push(str(folder), URI, licence="cc-by-4.0")
    repo = hub.repos["org/name"]
    _, head, body = repo.files["README.md"].decode().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    assert metadata["size_categories"] == ["n<1K"]
    assert {"patchmint", "webdataset", "patch-labels", "visual-tokens"} == set(metadata["tags"])
    assert "DEMO MODELS" in body
    for row in ("| planned | 7 |", "| written | 6 |", "| rejected: image-missing | 1 |"):
        assert row in body
    assert "| detector | demo-detector | Apache-2.0 | abababababab |" in body
    assert r"| tokenizer | a\|&lt;b&gt;\`c\` \# d | not known |  |" in body
    assert str(folder) not in body
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", body)
    assert len(pictures) == 2
    assert all(repo.files[path].startswith(b"\xff\xd8") for path in pictures)
    assert f'StageDataset("{URI}"' in body
    assert "shards/{000000..000002}.tar" in body
    assert push(str(folder), URI).files == 0, "the licence is still known"
    edited = repo.files["README.md"].replace(MARK.encode(), b"") + b"mine"
    repo.commit({"README.md": edited})
    assert not push(str(folder), URI).card
    assert repo.files["README.md"] == edited


def test_a_card_that_lies_in_the_data_set_is_sent(hub, folder):
    storage = open_storage(folder)
    write_readme(storage, read_manifest(storage))
    push(str(folder), URI)
    repo = hub.repos["org/name"]
    assert b"## Loading" in repo.files["README.md"], "what a build writes gives way to the card"
    (folder / "README.md").write_text("my own")
    push(str(folder), URI)
    assert repo.files["README.md"] == b"my own"
