"""What several files share: warm processes, an S3-protocol server, a proxy that fails, a storage of either kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from flaky_proxy import FlakyProxy, flaky_proxy
from s3_server import S3Server, s3_server

from patchmint.storage import Storage, open_storage

pytest_plugins = ["longest_first"]


def pytest_configure(config: pytest.Config) -> None:
    """Have one server of warm processes for all workers; a single run starts its own when it needs one."""
    if getattr(config.option, "numprocesses", None):
        warm.start_server()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FlakyProxy]:
    with flaky_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "out")
    server: S3Server = request.getfixturevalue("server")
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    return open_storage(server.new_bucket())
