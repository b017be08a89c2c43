"""A proxy on loopback in front of an S3 server, with the faults of real networks."""

import http.client
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Kind = Callable[[str, str, http.client.HTTPMessage], bool]
"""Is it a request that the fault is for? Of method, path with query, headers."""


def conditional_put(method, path, headers):
    """A PUT that must not overwrite."""
    return method == "PUT" and headers.get("If-None-Match") == "*"


def of_method(name):
    return lambda method, path, headers: method == name


def is_copy(method, path, headers):
    return method == "PUT" and headers.get("x-amz-copy-source") is not None


def _is_plain_put(method, path, headers):
    special = {"if-none-match", "x-amz-copy-source"} & {name.lower() for name in headers}
    return method == "PUT" and "partNumber" not in path and not special


KINDS = {
    "get": lambda method, path, headers: method == "GET" and "list-type" not in path,
    "head": of_method("HEAD"),
    "list": lambda method, path, headers: method == "GET" and "list-type" in path,
    "put": _is_plain_put,
    "create": conditional_put,
    "begin multipart": lambda method, path, headers: method == "POST" and "uploads" in path,
    "part": lambda method, path, headers: method == "PUT" and "partNumber" in path,
    "end multipart": lambda method, path, headers: method == "POST" and "uploadId" in path,
    "copy": is_copy,
    "delete": lambda method, path, headers: method == "POST" and "delete" in path,
}
"""Each kind of request, by name."""


@dataclass
class Fault:
    """What to do to the first requests of a kind; others pass.

    `refuse` answers `status`, with S3's `code`, and doesn't forward; `cut` forwards, then ends the connection amid the
    reply's body; `swallow` forwards, then ends the connection without a reply; `hold` forwards, and answers neither
    then nor later; `shorten` forwards the first half of the request's body.
    """

    kind: Kind
    action: str
    times: int = 1
    status: int = 503
    code: str = "SlowDown"


@dataclass
class FlakyProxy:
    """A proxy that runs on a port of 127.0.0.1; its faults may be changed at any time."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    ignored_header: str = ""  # in lower case, not passed on
    latency: float = 0.0  # seconds that each request waits
    bytes_sent: int = 0  # in bodies of replies to GET
    waiting: int = 0  # requests
    most_waiting: int = 0  # at a time
    seen: list[tuple[str, str]] = field(default_factory=list)  # method and path
    done: threading.Event = field(default_factory=threading.Event)

    def take(self, method, path, headers):
        """What to do with a request; counts it."""
        self.seen.append((method, path))
        for fault in self.faults:
            if fault.times > 0 and fault.kind(method, path, headers):
                fault.times -= 1
                return fault
        return Fault(of_method(method), "pass")


@contextmanager
def flaky_proxy(upstream):
    """Start a proxy in front of a server on loopback; it ends with the block."""
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):  # noqa: A002
            pass

        def _serve(self):
            with counting:
                proxy.waiting += 1
                proxy.most_waiting = max(proxy.most_waiting, proxy.waiting)
            time.sleep(proxy.latency)
            with counting:
                proxy.waiting -= 1
            fault = proxy.take(self.command, self.path, self.headers)
            action = fault.action
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if action == "refuse":
                said = f"<Error><Code>{fault.code}</Code><Message>in the test's words</Message></Error>"
                self._answer(fault.status, [("Content-Type", "application/xml")], said.encode())
                return
            if action == "shorten":
                body = body[: len(body) // 2]
            status, headers, data = _forward(upstream, self.command, self.path, self._passed(), body)
            if action in ("pass", "shorten"):
                self._answer(status, headers, data)
                return
            if action == "hold":
                proxy.done.wait(60)
            elif action == "cut":
                self._answer(status, headers, data, cut=len(data) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _passed(self):
            unwanted = ("connection", "content-length", proxy.ignored_header)
            return [(name, value) for name, value in self.headers.items() if name.lower() not in unwanted]

        def _answer(self, status, headers, data, cut=None):
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length")
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:cut])
            if self.command == "GET":
                with counting:
                    proxy.bytes_sent += len(data)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = FlakyProxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.done.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _forward(port, method, path, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, reply.getheaders(), reply.read()
    finally:
        connection.close()
