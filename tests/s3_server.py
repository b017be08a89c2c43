"""A real S3-protocol server on loopback: moto's, in a process of its own."""

import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.request import Request, urlopen

_SERVE = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        pid: its process.
    """

    port: int
    pid: int

    @property
    def endpoint(self):
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def env(self, port=None):
        """Environment variables that lead a client to it, or to a proxy of its on another port."""
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
        }

    def new_bucket(self):
        """Make an empty bucket; returns its URI with a prefix in it, `s3://BUCKET/out`."""
        name = f"bucket-{secrets.token_hex(4)}"
        with urlopen(Request(f"{self.endpoint}/{name}", method="PUT"), timeout=20) as reply:
            assert reply.status == 200
        return f"s3://{name}/out"


@contextmanager
def s3_server():
    """Start a server; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        _wait_for(port)
        yield S3Server(port, process.pid)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def _wait_for(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the S3 server doesn't answer")
