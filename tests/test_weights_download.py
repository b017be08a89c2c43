"""`patchmint.weights.download` against a real HTTP server on loopback that misbehaves in every way we know of."""

import hashlib
import io
import json
import sys
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import warm

from patchmint.errors import WeightsCorruptError, WeightsMissingError, WeightsUnsafeError
from patchmint.weights import download
from patchmint.weights.download import pull
from patchmint.weights.registry import Checkpoint
from patchmint.weights.store import check_file


def torch_bytes(count):
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(count)}, buffer)
    return buffer.getvalue()


PAYLOAD = torch_bytes(131_072)  # 1 MiB


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    payload: bytes = PAYLOAD
    etag: str | None = '"one"'
    content_type: str = "application/octet-stream"
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # for each reply in turn: bytes of the body that are sent
    statuses: list[int] = field(default_factory=list)  # for each reply in turn, before all goes well
    length: int | None = None  # a Content-Length that is a lie
    asked: list[dict[str, str]] = field(default_factory=list)


class Server:
    def __init__(self):
        self.behaviour = Behaviour()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                owner.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/weights.pth"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request):
        now = self.behaviour
        now.asked.append(dict(request.headers))
        if now.statuses:
            request.send_error(now.statuses.pop(0))
            return
        body = now.payload
        wanted = request.headers.get("Range")
        same = request.headers.get("If-Range") in (None, now.etag)
        if wanted and now.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(body)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            request.send_response(200)
        request.send_header("Content-Type", now.content_type)
        request.send_header("Content-Length", str(len(body) if now.length is None else now.length))
        if now.etag:
            request.send_header("ETag", now.etag)
        request.end_headers()
        if now.cut_after:
            body = body[: now.cut_after.pop(0)]
        request.wfile.write(body)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)


def a_checkpoint(url, **changes):
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    return replace(Checkpoint("toy", "sam", "toy.pth", url, len(PAYLOAD), digest, "none", "this test"), **changes)


def unpublished(server):
    """A checkpoint of which neither size nor checksum is published."""
    return a_checkpoint(server.url, size=None, sha256=None)


def fails(error, message, server, folder, *arguments, **options):
    """Bringing it is this error, after which nothing is left in the folder; what the error says."""
    with pytest.raises(error, match=message) as caught:
        bring(server, folder, *arguments, **options)
    assert files(folder) == []
    return str(caught.value)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def range_start(headers):
    return int(headers["Range"].removeprefix("bytes=").removesuffix("-"))


def bring(server, folder, checkpoint=None, **more):
    return pull(checkpoint or a_checkpoint(server.url), folder, **more)


def test_a_file_arrives_whole_under_its_final_name(server, tmp_path):
    seen = []
    path = bring(server, tmp_path / "new" / "folder", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == PAYLOAD
    assert files(path.parent) == ["toy.pth"]
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))


def test_a_sound_file_is_not_fetched_again_but_a_damaged_one_is(server, tmp_path):
    path = bring(server, tmp_path)
    bring(server, tmp_path)
    assert len(server.behaviour.asked) == 1
    path.write_bytes(PAYLOAD[:-1] + b"x")
    assert bring(server, tmp_path).read_bytes() == PAYLOAD


def test_cut_connections_are_resumed_where_they_broke(server, tmp_path):
    server.behaviour.cut_after = [300_000, 200_000]
    path = bring(server, tmp_path)
    assert path.read_bytes() == PAYLOAD
    first, second, third = server.behaviour.asked
    assert "Range" not in first
    assert second["If-Range"] == '"one"'
    assert 0 < range_start(second) <= 300_000
    assert range_start(second) < range_start(third) <= 500_000


def test_a_later_call_resumes_what_an_earlier_one_left(server, tmp_path):
    server.behaviour.cut_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(WeightsMissingError, match="run the same command again"):
        bring(server, tmp_path)
    kept = (tmp_path / "toy.pth.part").stat().st_size
    assert 0 < kept <= 300_000
    assert not (tmp_path / "toy.pth").exists()
    server.behaviour = Behaviour()
    assert bring(server, tmp_path).read_bytes() == PAYLOAD
    assert range_start(server.behaviour.asked[0]) == kept
    assert files(tmp_path) == ["toy.pth"]


def test_a_server_that_ignores_ranges_makes_it_start_over(server, tmp_path):
    server.behaviour = Behaviour(ranges=False, cut_after=[300_000])
    assert bring(server, tmp_path).read_bytes() == PAYLOAD


def test_a_file_that_changed_in_between_is_not_spliced(server, tmp_path):
    newer = torch_bytes(200_000)
    checkpoint = unpublished(server)
    server.behaviour.cut_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(WeightsMissingError):
        bring(server, tmp_path, checkpoint)
    server.behaviour = Behaviour(payload=newer, etag='"two"')
    assert bring(server, tmp_path, checkpoint).read_bytes() == newer


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_checksum_and_validator_nothing_is_resumed(server, tmp_path, etag):
    server.behaviour = Behaviour(etag=etag, cut_after=[300_000])
    path = bring(server, tmp_path, unpublished(server))
    assert path.read_bytes() == PAYLOAD
    assert all("Range" not in asked for asked in server.behaviour.asked)


def test_a_partial_file_that_is_already_whole_is_verified_and_taken(server, tmp_path):
    (tmp_path / "toy.pth.part").write_bytes(PAYLOAD)
    assert bring(server, tmp_path, a_checkpoint(server.url, size=None)).read_bytes() == PAYLOAD  # by way of a 416
    assert len(server.behaviour.asked) == 1


def test_a_partial_file_longer_than_the_servers_is_dropped(server, tmp_path):
    (tmp_path / "toy.pth.part").write_bytes(PAYLOAD + b"more")
    assert bring(server, tmp_path).read_bytes() == PAYLOAD


def test_server_errors_are_retried_but_not_without_end(server, tmp_path):
    said = []
    server.behaviour.statuses = [503, 503]
    assert bring(server, tmp_path, notice=said.append).read_bytes() == PAYLOAD
    assert sum("503" in line for line in said) == 2
    (tmp_path / "toy.pth").unlink()
    server.behaviour = Behaviour()
    server.behaviour.statuses = [503] * 10
    fails(WeightsMissingError, "503", server, tmp_path)
    assert len(server.behaviour.asked) == 4


def test_a_missing_page_is_one_clear_error_at_once(server, tmp_path):
    server.behaviour.statuses = [404]
    said = fails(WeightsMissingError, "404", server, tmp_path)
    assert server.url in said
    assert str(tmp_path / "toy.pth") in said
    assert len(server.behaviour.asked) == 1


@pytest.mark.parametrize(
    ("content_type", "page"),
    [
        ("text/html; charset=utf-8", b"Link does not exist"),
        ("application/octet-stream", b"\n<!DOCTYPE html><html>Link does not exist</html>"),
    ],
)
def test_a_web_page_is_refused_by_type_and_by_first_bytes(server, tmp_path, content_type, page):
    server.behaviour = Behaviour(payload=page, content_type=content_type)
    said = fails(WeightsCorruptError, "web page", server, tmp_path, unpublished(server))
    assert server.url in said
    assert "by hand" in said


def test_wrong_bytes_of_the_right_size_are_deleted(server, tmp_path):
    wrong = b"\0" * len(PAYLOAD)
    server.behaviour.payload = wrong
    said = fails(WeightsCorruptError, None, server, tmp_path)
    assert all(hashlib.sha256(data).hexdigest() in said for data in (wrong, PAYLOAD))


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    server.behaviour.payload = PAYLOAD + b"!"
    fails(WeightsCorruptError, str(len(PAYLOAD) + 1), server, tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(server, tmp_path):
    server.behaviour.length = 10**18
    fails(WeightsMissingError, "free", server, tmp_path, unpublished(server))


def test_a_dead_server_a_wrong_address_and_a_folder_that_can_not_be_written_are_clear_errors(server, tmp_path):
    wrong = {"http://127.0.0.1:1/toy.pth": "connection failed", "ftp://127.0.0.1/toy.pth": "check the address"}
    for url, message in wrong.items():
        fails(WeightsMissingError, message, server, tmp_path, a_checkpoint(url))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsMissingError, match="can't be written"):
        bring(server, tmp_path / "file")


def test_a_mirror_is_held_to_the_same_checksum(server, tmp_path):
    checkpoint = a_checkpoint("http://127.0.0.1:1/gone.pth")
    mirror = server.url.replace("http://", "http://user:secret@")
    assert bring(server, tmp_path, checkpoint, url=mirror).read_bytes() == PAYLOAD
    (tmp_path / "toy.pth").unlink()
    server.behaviour.payload = b"\0" * len(PAYLOAD)
    assert "secret" not in fails(WeightsCorruptError, None, server, tmp_path, checkpoint, url=mirror)


def test_without_a_published_checksum_the_file_is_opened_and_its_checksum_noted(server, tmp_path):
    checkpoint = unpublished(server)
    path = bring(server, tmp_path, checkpoint)
    note = json.loads((tmp_path / "toy.pth.pulled.json").read_text())
    assert note["sha256"] == hashlib.sha256(PAYLOAD).hexdigest()
    assert check_file(path, checkpoint).status == "ok"
    torch.save({"weight": torch.arange(11)}, path)
    assert check_file(path, checkpoint).status == "wrong checksum"


def test_without_a_published_checksum_a_damaged_or_hostile_file_is_deleted(server, tmp_path):
    class Hostile:
        def __reduce__(self):
            return eval, ("1",)

    torch.save({"state_dict": Hostile()}, tmp_path / "source.pth")
    hostile = (tmp_path / "source.pth").read_bytes()
    for payload, error in ((PAYLOAD[:-100], WeightsCorruptError), (hostile, WeightsUnsafeError)):
        server.behaviour.payload = payload
        fails(error, None, server, tmp_path / "weights", unpublished(server))


PULL = """
import sys
from pathlib import Path
from patchmint.weights import download
from patchmint.weights.registry import Checkpoint
url, size, sha256, folder = sys.argv[1:]
download._FIRST_WAIT = 0.3
download.pull(Checkpoint("toy", "sam", "toy.pth", url, int(size), sha256, "none", "test"), Path(folder))
"""


def test_processes_at_once_wait_for_each_other(server, tmp_path):
    server.behaviour.cut_after = [100_000, 100_000]
    known = [str(len(PAYLOAD)), hashlib.sha256(PAYLOAD).hexdigest()]
    command = [sys.executable, "-c", PULL, server.url, *known, str(tmp_path)]
    processes = [warm.Python(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(server.behaviour.asked) == 3  # one process fetched, in three goes
    assert (tmp_path / "toy.pth").read_bytes() == PAYLOAD
    assert files(tmp_path) == ["toy.pth"]
