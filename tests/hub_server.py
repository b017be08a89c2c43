"""A server on loopback that speaks the Hugging Face Hub's protocol as far as its real client needs it here.

Data sets with commits, trees in pages, files by ranges, big ones through signed addresses of another origin (as from
the Hub's CDN), uploads through LFS, commits with a parent. Xet, the Hub's own protocol for big files, isn't spoken.
"""

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_for_tests"
_PAGE = 3
_LFS = (".tar", ".parquet", ".png", ".jpg", ".safetensors")


def _git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A data set's repository: its commits, oldest first; a commit is its id and its files."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [(secrets.token_hex(20), {})])
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self):
        return self.commits[-1][0]

    @property
    def files(self):
        return self.commits[-1][1]

    def commit(self, changes):
        """Add files, or take away those that are None; the new commit's id."""
        files = {path: data for path, data in (self.files | changes).items() if data is not None}
        self.commits.append((secrets.token_hex(20), files))
        return self.head

    def at(self, revision):
        """A commit's id and files; None if there is none."""
        wanted = self.head if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)


@dataclass
class Fault:
    """What the next requests of a kind get in place of an answer: of method and path, whether it is one.

    `late`: the server does what was asked for first.
    """

    kind: Callable[[str, str], bool]
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False


@dataclass
class Hub:
    """The server's state; may be looked at and changed at any time."""

    port: int
    cdn: int
    repos: dict[str, Repo] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)  # method and path
    signature: str = "first"

    @property
    def env(self):
        """Environment variables that lead a client here."""
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_TOKEN": TOKEN}

    def put(self, name, files, **settings):
        """A repository with these files."""
        repo = self.repos[name] = Repo(**settings)
        repo.commit(files)
        return repo

    def count(self, method, part):
        return sum(seen == method and part in path for seen, path in self.seen)


class _RefusedError(Exception):
    def __init__(self, status, code="", **headers):
        super().__init__(status, code)
        self.status, self.headers = status, ({"X-Error-Code": code} if code else {}) | headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    muted = False
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, format, *args):  # noqa: A002
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server.hub
        hub.seen.append((self.command, self.path))
        for fault in hub.faults:
            if fault.times > 0 and fault.kind(self.command, self.path):
                fault.times -= 1
                if fault.late:
                    self.muted = True
                    self._route(hub, body)
                    self.muted = False
                self._answer(fault.status, b"{}", fault.headers)
                return
        try:
            self._route(hub, body)
        except _RefusedError as refusal:
            self._answer(refusal.status, b"{}", refusal.headers)

    do_GET = do_HEAD = do_PUT = do_POST = _serve  # noqa: N815

    def _answer(self, status, data=b"", headers=None):
        if self.muted:
            return
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value, headers=None):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _file(self, data, headers=None):
        span = self.headers.get("Range")
        if span is None:
            self._answer(200, data, headers)
            return
        first, last = span.removeprefix("bytes=").split("-")
        self._answer(206, data[int(first) : int(last) + 1], headers)

    @property
    def _authorised(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, hub, body):
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        path = parts.path.split("/")[1:]
        if self.server.server_port == hub.cdn:
            self._cdn(hub, path, query, body)
            return
        match path:
            case ["api", "repos", "create"]:
                self._create(hub, json.loads(body))
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "datasets" | "models", org, name, *rest] if rest[:1] in ([], ["revision"]):
                self._json({"id": f"{org}/{name}", "sha": self._commit(hub, org, name, *rest[1:])[0]})
            case ["api", "datasets", org, name, "tree", revision, *folder]:
                self._tree(self._commit(hub, org, name, revision)[1], unquote("/".join(folder)), query)
            case ["datasets", org, name, "resolve", revision, *rest] | [org, name, "resolve", revision, *rest]:
                self._resolve(hub, self._commit(hub, org, name, revision), unquote("/".join(rest)))
            case ["api", "datasets", org, name, "preupload", _]:
                self._preupload(self._repo(hub, org, name, write=True), json.loads(body)["files"])
            case ["datasets", org, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self._repo(hub, org, name.removesuffix(".git"), write=True)
                self._batch(hub, json.loads(body)["objects"])
            case ["api", "datasets", org, name, "commit", _]:
                lines = [json.loads(line) for line in body.splitlines()]
                self._take(hub, self._repo(hub, org, name, write=True), lines)
            case _:
                raise _RefusedError(404)

    def _repo(self, hub, org, name, *, write=False):
        repo = hub.repos.get(f"{org}/{name}")
        if repo is None or ((repo.private or write) and not self._authorised):
            raise _RefusedError(401 if not self._authorised else 404, "RepoNotFound")
        return repo

    def _commit(self, hub, org, name, revision="main"):
        repo = self._repo(hub, org, name)
        if (commit := repo.at(unquote(revision))) is None:
            raise _RefusedError(404, "RevisionNotFound")
        if repo.gated and "resolve" in self.path:
            raise _RefusedError(403, "GatedRepo")
        return commit

    def _tree(self, files, folder, query):
        inside = [path for path in files if not folder or path.startswith(f"{folder}/")]
        if folder and not inside:
            raise _RefusedError(404, "EntryNotFound")
        folders = {"/".join(path.split("/")[:depth]) for path in inside for depth in range(1, path.count("/") + 1)}
        rows = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        for path in sorted(inside, reverse=True):  # the Hub promises no order
            data = files[path]
            row = {"type": "file", "oid": _git_oid(data), "size": len(data), "path": path}
            if path.endswith(_LFS):
                sha256 = hashlib.sha256(data).hexdigest()
                row |= {"lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}
            rows.append(row)
        start = int(query.get("cursor", ["0"])[0])
        more = start + _PAGE < len(rows)
        following = f"http://127.0.0.1:{self.server.server_port}{urlsplit(self.path).path}"
        link = {"Link": f'<{following}?recursive=True&cursor={start + _PAGE}>; rel="next"'} if more else {}
        self._json(rows[start : start + _PAGE], link)

    def _resolve(self, hub, commit, path):
        sha, files = commit
        if path not in files:
            raise _RefusedError(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        data, headers = files[path], {"X-Repo-Commit": sha}
        if not path.endswith(_LFS):
            self._file(data, headers | {"ETag": f'"{_git_oid(data)}"'})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        hub.lfs[sha256] = data
        where = f"http://127.0.0.1:{hub.cdn}/{sha256}?Signature={hub.signature}"
        headers |= {"Location": where, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
        self._answer(302, b"moved", headers)

    def _cdn(self, hub, path, query, body):
        """Whoever has a signed address gets in; the Hub's token has no business here."""
        if "Authorization" in self.headers or query.get("Signature") != [hub.signature]:
            raise _RefusedError(403)
        if self.command != "PUT":
            self._file(hub.lfs[path[0]])
        elif hashlib.sha256(body).hexdigest() == path[0]:
            hub.lfs[path[0]] = body
            self._answer(200)
        else:
            raise _RefusedError(400)

    def _create(self, hub, wanted):
        if not self._authorised:
            raise _RefusedError(401)
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"http://127.0.0.1:{hub.port}/datasets/{name}"}
        if name in hub.repos:
            self._answer(409, json.dumps(url).encode(), {"Content-Type": "application/json"})
            return
        hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
        self._json(url)

    def _preupload(self, repo, files):
        found = []
        for file in files:
            path, there = file["path"], repo.files.get(file["path"])
            big = path.endswith(_LFS)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if big else _git_oid(there)
            mode = "lfs" if big else "regular"
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": found})

    def _batch(self, hub, objects):
        answers = []
        for each in objects:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in hub.lfs:
                href = f"http://127.0.0.1:{hub.cdn}/{quote(each['oid'])}?Signature={hub.signature}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def _take(self, hub, repo, lines):
        changes = {}
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header" if value.get("parentCommit", repo.head) != repo.head:
                    raise _RefusedError(412)
                case "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    changes[value["path"]] = hub.lfs[value["oid"]]
                case "deletedFile":
                    changes[value["path"]] = None
        sha = repo.commit(changes)
        name = self.path.partition("/api/")[2].partition("/commit/")[0]
        self._json({"commitUrl": f"http://127.0.0.1:{hub.port}/{name}/commit/{sha}", "commitOid": sha})


@contextmanager
def hub_server():
    """Start a server, which ends with the block."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    hub = Hub(*(server.server_port for server in servers))
    threads = []
    for server in servers:
        server.hub, server.daemon_threads = hub, True
        threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True))
        threads[-1].start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
