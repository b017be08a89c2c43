"""A build's counts, told to a real MLflow store; `test_build_hub` has Weights & Biases."""

import shutil

import pytest
from builds import make_config

from patchmint.config import BuildConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.driver import track
from patchmint.pipeline.driver.contracts import Progress, Reporter
from patchmint.pipeline.driver.track import tracked


class Heard(Reporter):
    def __init__(self):
        self.lines, self.samples = [], []

    def progress(self, progress, result):
        self.samples.append(progress.samples)

    def warn(self, line):
        self.lines.append(line)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder, which MLflow takes although it would like a database better."""
    for name, value in {
        "MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(track, "_EVERY_SECONDS", 0.0)
    return tmp_path / "store"


@pytest.fixture
def config(tmp_path):
    path = make_config(tmp_path / "c.json", tmp_path / "in", tmp_path / "out", track="mlflow")
    return BuildConfig.load(path)


def go_on(reporter):
    for samples in (0, 2, 4):
        rejects = {"image-damaged": 1} if samples == 4 else {}
        reporter.progress(
            Progress(2, 4, samples // 2, samples, samples - len(rejects), rejects, 10**9, workers=1), None
        )


def runs():
    from mlflow import MlflowClient

    client = MlflowClient()
    return client, client.search_runs([client.get_experiment_by_name("patchmint").experiment_id])


def test_settings_counts_and_how_it_ended(store, config):
    heard = Heard()
    with tracked(config, heard) as reporter:
        go_on(reporter)
    with pytest.raises(KeyboardInterrupt), tracked(config, heard):
        raise KeyboardInterrupt
    client, (stopped, whole) = runs()
    assert (stopped.info.status, whole.info.status) == ("FAILED", "FINISHED")
    assert whole.data.params["labels.box_threshold"] == str(config.labels.box_threshold)
    assert whole.data.params["runner.kind"] == "local"
    metrics = whole.data.metrics
    assert (metrics["samples"], metrics["written"], metrics["rejected"], metrics["gigabytes"]) == (4, 3, 1, 1)
    assert metrics["rejects/image-damaged"] == 1
    assert metrics["samples_per_second"] > 0
    assert client.get_metric_history(whole.info.run_id, "samples")[-1].step == 4
    assert heard.samples == [0, 2, 4]


def test_a_tracker_that_fails_stops_no_build(store, config):
    heard = Heard()
    with tracked(config, heard) as reporter:
        shutil.rmtree(store)
        go_on(reporter)
    assert heard.samples == [0, 2, 4]
    assert len(heard.lines) == 1
    assert heard.lines[0].startswith("the tracker failed (")


def test_what_cant_begin_is_said_before_the_build(store, config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="mlflow can't begin"), tracked(config, Heard()):
        pytest.fail("it began")
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'patchmint\[mlflow\]'"), tracked(config, Heard()):
        pytest.fail("it began")
