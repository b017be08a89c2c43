"""A real S3-protocol server on loopback: moto's, in a process of its own."""

import secrets
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from urllib.request import Request, urlopen

_shared = ExitStack()

_SERVE = """
import io, sys, threading
from werkzeug.serving import make_server
from moto.server import create_backend_app
app = create_backend_app("s3")  # not moto's dispatcher, which lists moto's folders at each request: half of its time
one_at_a_time = threading.Lock()

def atomic(environ, start_response):
    # moto looks for the object, then creates it: of two that come between, both would win
    if environ["REQUEST_METHOD"] != "PUT" or "HTTP_IF_NONE_MATCH" not in environ:
        return app(environ, start_response)
    length = int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
    with one_at_a_time:
        return list(app(environ, start_response))

server = make_server("127.0.0.1", 0, atomic, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class S3Server:
    """A server that runs on a port of 127.0.0.1."""

    port: int

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def env(self, port=None):
        """Environment variables that lead a client to it, or to a proxy of its on another port."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
        }

    def new_bucket(self, monkeypatch=None, port=None):
        """Make an empty bucket, with `monkeypatch` also `env`; returns `s3://BUCKET/out`, a URI with a prefix in it."""
        for name, value in self.env(port).items() if monkeypatch else ():
            monkeypatch.setenv(name, value)
        name = f"bucket-{secrets.token_hex(4)}"
        with urlopen(Request(f"{self.endpoint}/{name}", method="PUT"), timeout=20) as reply:
            assert reply.status == 200
        return f"s3://{name}/out"


@contextmanager
def s3_server():
    """Start a server, which listens before it tells its port; it ends with the block."""
    command = [sys.executable, "-c", _SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield S3Server(int(process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(20)


@cache
def shared_server():
    """One for all tests of this process, which takes a second to start: each test has a bucket of its own."""
    return _shared.enter_context(s3_server())


def end_shared_server():
    """At the end of the tests."""
    _shared.close()
