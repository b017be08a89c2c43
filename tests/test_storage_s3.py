"""Storage over HTTP where the network or the store fails, against a real S3-protocol server."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from urllib.request import Request, urlopen

import pytest
from flaky_proxy import KINDS, Fault, conditional_put, of_method

from patchmint.errors import BucketMissingError, DiskFullError, NotFoundError, StorageError
from patchmint.storage import Entry, creates_conditionally, open_storage, patience, stores


@pytest.fixture
def storage(server, proxy, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    return open_storage(server.new_bucket(monkeypatch, proxy.port))


@pytest.mark.parametrize("action", ["refuse", "cut", "swallow"])
def test_every_request_is_tried_again(storage, proxy, action):
    for method in ("GET", "PUT", "HEAD", "DELETE", "POST"):
        proxy.faults.append(Fault(of_method(method), action, 2))
    storage.write("a", b"0123456789")
    assert storage.read("a") == b"0123456789"
    assert storage.read_range("a", 3, 4) == b"3456"
    assert storage.size("a") == 10
    proxy.faults.append(Fault(of_method("GET"), action, 2))
    assert list(storage.list()) == [Entry("a", 10)]
    proxy.faults.append(Fault(of_method("PUT"), action, 2))
    storage.move("a", "b")
    assert list(storage.list()) == [Entry("b", 10)]
    storage.delete(["b"])
    assert list(storage.list()) == []
    assert [fault.times for fault in proxy.faults] == [0, 0, 0, 2, 0, 0, 0], "a bulk delete is a POST"


@pytest.mark.parametrize("action", ["refuse", "cut", "swallow"])
def test_big_files_survive_faults(storage, proxy, action):
    data = os.urandom(20 << 20)
    proxy.faults += [Fault(of_method("PUT"), action, 2), Fault(of_method("POST"), action, 1)]
    with storage.new_file("big") as file:
        file.write(data)
    assert sum(method == "PUT" and "partNumber" in path for method, path in proxy.seen) >= 3
    proxy.faults.append(Fault(of_method("GET"), action, 2))
    assert sha256(storage.read("big")).hexdigest() == file.sha256
    proxy.faults.append(Fault(of_method("GET"), action, 2))
    with storage.open("big") as opened:
        opened.seek(5_000_000)
        assert opened.read(3_000_000) == data[5_000_000:8_000_000]
    assert [fault.times for fault in proxy.faults] == [0, 0, 0, 0]


@pytest.mark.parametrize(("status", "code"), [(408, ""), (409, "OperationAborted"), (425, ""), (429, "SlowDown")])
def test_statuses_that_pass_are_waited_for_at_every_kind_of_request(storage, proxy, status, code):
    proxy.faults += [Fault(kind, "refuse", 1, status, code) for kind in KINDS.values()]
    data = os.urandom((8 << 20) + 1)
    with storage.new_file("big") as file:
        file.write(data)
    storage.write("small", b"status code: 404")
    assert storage.create("record", b"mine")
    storage.move("big", "moved")
    assert storage.read("moved") == data
    assert [entry.path for entry in storage.list()] == ["moved", "record", "small"]
    assert [fault.times for fault in proxy.faults] == [0] * len(KINDS)


@pytest.mark.parametrize("action", ["swallow", "cut"])
def test_an_upload_whose_last_reply_is_lost_is_made_again(storage, proxy, action):
    proxy.faults.append(Fault(KINDS["end multipart"], action))
    with storage.new_file("big") as file:
        file.write(bytes(9 << 20))
    assert (storage.size("big"), proxy.faults[0].times) == (9 << 20, 0)


def test_a_conflict_is_no_answer_whether_it_exists_and_a_failed_condition_is(storage, proxy):
    proxy.faults.append(Fault(conditional_put, "refuse", 2, 409, "ConditionalRequestConflict"))
    assert storage.create("record", b"mine")
    proxy.faults.append(Fault(conditional_put, "refuse", 1, 409, "ConditionalRequestConflict"))
    assert not storage.create("record", b"mine")
    # deleted between the two requests: it may be made
    proxy.faults.append(Fault(conditional_put, "refuse", 1, 412, "PreconditionFailed"))
    assert storage.create("another", b"mine")


def test_what_does_not_pass_is_told_at_once_by_status_and_not_by_names(storage, proxy):
    name = "status code: 409 Conflict"
    with pytest.raises(NotFoundError):
        storage.read(name)
    proxy.faults.append(Fault(of_method("PUT"), "refuse", 1, 400, "InvalidRequest"))
    with pytest.raises(StorageError, match=r"400 Bad Request.*InvalidRequest"):
        storage.write(name, b"1")
    assert len(proxy.seen) == 2
    proxy.faults.append(Fault(of_method("PUT"), "refuse", 1, 400, "RequestTimeout"))
    storage.write("status code: 404 Not Found", b"1")


REMEDIES = [
    (400, "ExpiredToken", "the credentials in the environment have expired; get new ones"),
    (403, "RequestTimeTooSkewed", r"the clocks .* differ; set this one right \(NTP\)"),
    (403, "QuotaExceeded", "the store or its quota is full: make room there"),
    (403, "AccessDenied", "the store refused the credentials in the environment"),
    (404, "NoSuchBucket", "the bucket doesn't exist; make it, or correct its name"),
]


@pytest.mark.parametrize(("status", "code", "remedy"), REMEDIES)
def test_a_fault_has_its_own_remedy_which_the_probe_does_not_hide(storage, proxy, status, code, remedy):
    proxy.faults.append(Fault(conditional_put, "refuse", 1, status, code))
    proxy.faults.append(Fault(of_method("POST"), "refuse", 1, 403, "AccessDenied"))
    with pytest.raises(StorageError, match=rf"^can't write .*{remedy}") as caught:
        creates_conditionally(storage)
    assert isinstance(caught.value, DiskFullError) == (code == "QuotaExceeded")
    assert isinstance(caught.value, BucketMissingError) == (code == "NoSuchBucket")
    assert [fault.times for fault in proxy.faults] == [0, 0]


def test_create_knows_its_own_object_after_a_lost_reply(storage, proxy):
    proxy.faults.append(Fault(conditional_put, "swallow", 2))
    assert storage.create("record", b"mine")
    assert sum(method == "PUT" for method, _ in proxy.seen) >= 2
    proxy.faults.append(Fault(conditional_put, "swallow", 1))
    assert not storage.create("record", b"not mine")
    assert not storage.create("record", b"mine"), "an older object with the same bytes isn't this call's"
    assert storage.read("record") == b"mine"
    assert list(storage.list()) == [Entry("record", 4)]
    for path, created in (("another", True), ("record", False)):
        proxy.faults.append(Fault(conditional_put, "refuse", 3))
        assert storage.create(path, b"after refusals") == created


def test_creators_whose_replies_get_lost_have_one_winner(storage, proxy):
    for turn in range(5):
        proxy.faults.append(Fault(conditional_put, "swallow", 4))
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda number, turn=turn: storage.create(f"r/{turn}", b"%d" % number), range(6)))
        assert won.count(True) == 1
        assert storage.read(f"r/{turn}") == b"%d" % won.index(True)


def test_nothing_is_uploaded_after_an_exception(storage, proxy):
    def write_and_fail():
        with storage.new_file("file") as file:
            file.write(bytes(10 << 20))
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert proxy.seen == []


def test_uploads_carry_a_checksum_for_the_server_to_verify(storage, proxy):
    found = []

    def with_checksum(method, path, headers):
        if method == "PUT":
            found.append(headers.get("x-amz-checksum-sha256"))
        return False

    proxy.faults.append(Fault(with_checksum, "pass"))
    storage.write("a", b"1")
    with storage.new_file("b") as file:
        file.write(bytes(20 << 20))
    assert len(found) >= 4
    assert all(found)


def test_an_upload_that_arrives_cut_is_found(storage, proxy):
    proxy.faults.append(Fault(of_method("PUT"), "shorten"))

    def write():
        with storage.new_file("file") as file:
            file.write(bytes(1000))

    with pytest.raises(StorageError, match="has 500 bytes in the store, but 1000 were sent"):
        write()


def test_a_store_that_ignores_conditions_is_found_out(server, storage, proxy, monkeypatch):
    assert creates_conditionally(storage)
    proxy.ignored_header = "if-none-match"
    assert not creates_conditionally(storage)
    assert list(storage.list()) == []


@pytest.fixture
def impatient(monkeypatch):
    assert patience.PATIENCE < 20
    monkeypatch.setattr(patience, "PATIENCE", 0.5)


def of_any_kind(method, path, headers):
    return True


USES = {
    "read": lambda storage: storage.read("a"),
    "range": lambda storage: storage.read_range("a", 0, 1),
    "size": lambda storage: storage.size("a"),
    "exists": lambda storage: storage.exists("a"),
    "list": lambda storage: list(storage.list()),
    "open": lambda storage: storage.open("a"),
    "write": lambda storage: storage.write("a", b"1"),
    "create": lambda storage: storage.create("a", b"1"),
    "move": lambda storage: storage.move("a", "b"),
    "delete": lambda storage: storage.delete(["a"]),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("use", USES)
def test_a_store_that_is_down_ends_in_an_error(storage, proxy, monkeypatch, use):
    proxy.faults.append(Fault(of_any_kind, "refuse", 10**6))
    with pytest.raises(StorageError, match="503"):
        USES[use](storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"s3://bucket-.* check the address, the network") as caught:
        USES[use](open_storage(storage.uri))
    assert not isinstance(caught.value, NotFoundError)
    assert "testing" not in str(caught.value)


@pytest.mark.parametrize("use", ["read", "list", "write", "create"])
def test_a_missing_bucket_is_named(storage, use):
    with pytest.raises(StorageError, match="the bucket doesn't exist; make it") as caught:
        USES[use](open_storage("s3://no-such-bucket/out"))
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_never_answers_ends_in_an_error(storage, proxy, monkeypatch):
    connect = stores.connect
    silences = []

    def connect_briefly(uri, *, silence, patience):
        silences.append(silence)
        return connect(uri, silence=0.5, patience=patience)

    monkeypatch.setattr("patchmint.storage.objects.connect", connect_briefly)
    proxy.faults.append(Fault(of_any_kind, "hold", 10**6))
    for use in ("read", "create"):
        with pytest.raises(StorageError, match="check the address"):
            USES[use](storage)
    assert silences == [10, 10], "with patience and a connect timeout that is 20 s or so"


@pytest.mark.usefixtures("impatient")
def test_missing_credentials_are_named(storage, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # The address at which a cloud's machine asks for its role, here with nobody there.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no credentials in the environment; set AWS_ACCESS_KEY_ID"):
        storage.read("a")


def test_plain_http_only_to_this_machine(storage, proxy, monkeypatch):
    for host in ("127.0.0.1", "localhost"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{proxy.port}")
        fresh = open_storage(storage.uri)
        fresh.write("a", b"1")
        assert fresh.exists("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP=true"):
        open_storage(storage.uri).read("a")


def test_markers_of_folders_are_not_files(server, storage):
    for name in ("a/x", "b/x", "b-", "empty", "emptyx"):
        storage.write(name, b"" if "empty" in name else b"1")
    for name in ("a/", "b/", "c/"):
        marker = f"{server.endpoint}/{storage.uri.removeprefix('s3://')}/{name}"
        urlopen(Request(marker, data=b"", method="PUT"), timeout=20).close()
    assert [entry.path for entry in storage.list()] == ["a/x", "b-", "b/x", "c", "empty", "emptyx"]


def test_many_objects_are_listed_in_order(storage, proxy):
    names = [f"{number * 7919 % 1100:06d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(f"many/{name}", b"1"), names))
    for faults in ([], [Fault(of_method("GET"), "pass"), Fault(of_method("GET"), "cut", 2)]):
        proxy.faults[:] = faults
        assert [entry.path for entry in storage.list("many")] == sorted(f"many/{name}" for name in names)
    storage.delete(f"many/{name}" for name in names)
    assert list(storage.list()) == []


def test_threads_share_a_storage(storage):
    barrier = threading.Barrier(8)

    def use(number):
        barrier.wait(20)
        storage.write(f"t/{number}", b"%d" % number)
        return storage.read(f"t/{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(8))) == [b"%d" % number for number in range(8)]
