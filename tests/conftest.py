"""What several files share: warm processes, an S3-protocol server, a proxy that fails, a storage of either kind."""

import atexit
import gc
import os
import shlex
import sys

import builds
import pytest
import warm
from flaky_proxy import flaky_proxy
from hub_server import hub_server
from hypothesis import settings
from s3_server import end_shared_server, shared_server

from patchmint.storage import open_storage

pytest_plugins = ["longest_first"]

# how long an example takes is the machine's affair
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# the Hub's client reads it when it is imported; the tests' Hub doesn't speak Xet
os.environ["HF_HUB_DISABLE_XET"] = "1"


def pytest_configure(config):
    """Fork all workers from one server of warm processes; a single run starts its own when it needs one."""
    if getattr(config.option, "numprocesses", None):
        warm.start_server()
        config.option.tx = [f"popen//python={shlex.join([sys.executable, warm.__file__])}"] * len(config.option.tx)
    atexit.register(gc.unfreeze)  # or nanobind would report a leak


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays: Python's search for garbage passes it over, now and during the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def ended_builds():
    """No build outlives its test."""
    yield
    builds.end_all()


def pytest_sessionfinish():
    end_shared_server()


@pytest.fixture(scope="session")
def server():
    return shared_server()


@pytest.fixture
def proxy(server):
    with flaky_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def hub(monkeypatch):
    """A Hugging Face Hub of the test's own, and the environment that leads to it."""
    with hub_server() as hub:
        for name, value in hub.env.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "local":
        return open_storage(tmp_path / "out")
    server = request.getfixturevalue("server")
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    return open_storage(server.new_bucket())
