"""Reading from the Hugging Face Hub: the real client against a server that speaks its protocol."""

import pickle
import subprocess
import sys

import pytest
from flaky_proxy import Fault as Cut
from flaky_proxy import flaky_proxy, of_method
from hub_server import TOKEN, Fault

from patchmint.errors import NotFoundError, StorageError
from patchmint.storage import Entry, creates_conditionally, open_storage
from patchmint.storage.hub import HubAddress, pinned, unpinned

FILES = {
    "README.md": b"# hello",
    "data/a b/\xe9.txt": b"one",
    "data/x.parquet": bytes(range(256)) * 40,
    "data/y.tar": b"0123456789",
    "more/z.json": b"{}",
}


@pytest.fixture
def repo(hub):
    return hub.put("org/name", FILES)


def read(uri="hf://datasets/org/name"):
    return open_storage(uri)


def test_files_of_both_kinds(hub, repo):
    storage = read("hf://datasets/org/name/data")
    assert list(storage.list()) == sorted(
        Entry(path.removeprefix("data/"), len(data)) for path, data in FILES.items() if path.startswith("data/")
    )
    assert list(read().list("more/")) == [Entry("more/z.json", 2)]
    assert list(storage.list("none")) == []
    for path in ("a b/\xe9.txt", "x.parquet", "y.tar"):
        data = FILES[f"data/{path}"]
        assert storage.read(path) == data
        assert storage.size(path) == len(data)
        assert storage.read_range(path, 1, 2) == data[1:3]
        assert storage.read_range(path, len(data), 0) == b""
        with storage.open(path) as file:
            file.seek(-2, 2)
            assert file.read() == data[-2:]
    assert storage.exists("y.tar")
    assert not storage.exists("y")
    for wrong in ((8, 3), (-1, 2)):
        with pytest.raises(StorageError, match="has 10 bytes"):
            storage.read_range("y.tar", *wrong)
    with pytest.raises(NotFoundError, match=r"data/none.*no such file"):
        storage.read("none")


def test_the_hub_is_asked_once_for_a_file(hub, repo):
    storage = read()
    for start in range(20):
        storage.read_range("data/x.parquet", start, 5)
    assert hub.count("HEAD", "/resolve/") == 1
    hub.signature = "another"  # the address that it knows is good no more
    assert storage.read_range("data/x.parquet", 2, 3) == b"\2\3\4"
    assert hub.count("HEAD", "/resolve/") == 2


def test_all_reads_are_of_one_commit(hub, repo):
    storage, first = read(), repo.head
    assert storage.read("more/z.json") == b"{}"
    repo.tags["v1"] = first
    repo.commit({"more/z.json": b"[]", "data/y.tar": None})
    assert storage.read("more/z.json") == b"{}"
    assert storage.read("data/y.tar") == b"0123456789"
    assert pickle.loads(pickle.dumps(storage)).read("more/z.json") == b"{}"  # as in another process
    assert Entry("data/y.tar", 10) in list(storage.list())
    assert read().read("more/z.json") == b"[]"
    assert read("hf://datasets/org/name@v1/more").read("z.json") == b"{}"
    assert pinned("hf://datasets/org/name@v1/more") == f"hf://datasets/org/name@{first}/more"
    assert unpinned(f"hf://datasets/org/name@{first}/more") == "hf://datasets/org/name/more"


def test_passing_faults_are_waited_out(hub, repo):
    storage = read()
    for part in ("/revision/", "/resolve/", "/tree/"):
        hub.faults.append(Fault(lambda method, path, part=part: part in path, 503))
    hub.faults.append(Fault(lambda method, path: "Signature" in path, 429, 1, {"Retry-After": "0"}))
    assert len(list(storage.list())) == len(FILES)
    assert storage.read("data/y.tar") == b"0123456789"
    assert [fault.times for fault in hub.faults] == [0, 0, 0, 0]


def test_an_outage_that_is_longer_than_the_clients_patience_is_sat_out_if_asked(hub, repo):
    """425 isn't among the answers that the client repeats."""
    storage = open_storage("hf://datasets/org/name", outage_seconds=20)
    assert storage.exists("data/y.tar")
    for part in ("/tree/", "data/x.parquet"):
        hub.faults.append(Fault(lambda method, path, part=part: part in path, 425, 3))
    assert len(list(storage.list("more/"))) == 1
    assert storage.size("data/x.parquet") == len(FILES["data/x.parquet"])
    assert [fault.times for fault in hub.faults] == [0, 0]
    hub.faults.append(Fault(lambda method, path: "data/y.tar" in path, 425))
    with pytest.raises(StorageError, match="425"):
        read().size("data/y.tar")


def test_cut_connections_are_tried_again(hub, repo, monkeypatch):
    with flaky_proxy(hub.port) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{proxy.port}")
        storage = read()
        assert storage.size("README.md") == 7
        proxy.faults += [Cut(of_method("GET"), action) for action in ("cut", "swallow")]
        assert storage.read_range("README.md", 2, 5) == b"hello"
        assert [fault.times for fault in proxy.faults] == [0, 0]


def test_refusals_say_what_to_do(hub, repo, monkeypatch):
    hub.put("org/gated", FILES, gated=True)
    hub.put("org/private", FILES, private=True)
    assert read("hf://datasets/org/private").read("more/z.json") == b"{}"
    for uri, why in (
        ("hf://datasets/org/nothing", "no such repository, or it is private"),
        ("hf://datasets/org/name@v9", "no such revision"),
        ("hf://datasets/org/gated", "accept its terms"),
    ):
        with pytest.raises(StorageError, match=why) as caught:
            read(uri).read("more/z.json")
        assert TOKEN not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StorageError, match="set HF_TOKEN"):
        read("hf://datasets/org/private").read("more/z.json")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(StorageError, match="isn't https://"):
        read().read("more/z.json")
    monkeypatch.setattr("huggingface_hub.__version__", "0.36.2")
    with pytest.raises(StorageError, match=r"needs huggingface_hub 2 .* is 0\.36\.2"):
        read().read("more/z.json")


def test_it_is_read_only(hub, repo):
    with pytest.raises(StorageError, match=r"patchmint push FOLDER hf://datasets/org/name$"):
        creates_conditionally(read())
    with pytest.raises(StorageError, match="file by file"):
        read().delete(["more/z.json"])
    assert len(repo.commits) == 2


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("hf://datasets/o/n", HubAddress("o/n")),
        ("hf://datasets/o/n@v1.0/a/b/", HubAddress("o/n", "v1.0", "a/b")),
        ("hf://datasets/o/n@my%2Fbranch", HubAddress("o/n", "my/branch")),
        ("hf://datasets/o/n@refs/convert/parquet/d", HubAddress("o/n", "refs/convert/parquet", "d")),
    ],
)
def test_addresses(uri, address):
    assert HubAddress.parse(uri) == address
    assert HubAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "uri", ["hf://o/n", "hf://models/o/n", "hf://datasets/n", "hf://datasets/o/n@", "hf://datasets/o/n/../x"]
)
def test_what_is_no_address(uri):
    with pytest.raises(StorageError):
        open_storage(uri)


def test_the_client_is_imported_when_it_is_needed():
    code = "import sys, patchmint.storage, patchmint.cli.inspect.ls; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
