"""A build's settings and counts, to Weights & Biases or MLflow.

Neither decides anything: a tracker that fails while a build goes on is said to, once, and left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from queue import Full, Queue
from threading import Thread
from typing import Any, Protocol

from patchmint.config.build import BuildConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.driver.contracts import Progress, Reporter
from patchmint.pipeline.orders import UnitResult
from patchmint.shards.plan import Plan

_EVERY_SECONDS = 10.0
_END_SECONDS = 60.0
_PROJECT = "patchmint"
_MLFLOW_PARAMETERS = 100
"""MLflow's limit for one request."""
_MLFLOW_LENGTH = 6000
"""Its limit for one value."""


class _Run(Protocol):
    """A run of a tracker. Its calls may wait for the network."""

    def log(self, numbers: Mapping[str, float]) -> None: ...

    def end(self, numbers: Mapping[str, float], *, whole: bool) -> None: ...


@contextmanager
def tracked(config: BuildConfig, reporter: Reporter) -> Iterator[Reporter]:
    """A reporter that also tells `config.track`, if that is set; the run ends with the block.

    Args:
        config: the build's.
        reporter: is told everything, as before.

    Raises:
        ConfigError: the tracker isn't installed, or can't begin.
    """
    if config.track is None:
        yield reporter
        return
    if find_spec(config.track) is None:
        raise ConfigError(f"track: {config.track} isn't installed; run: pip install 'patchmint[{config.track}]'")
    try:
        run: _Run = _Wandb(config) if config.track == "wandb" else _Mlflow(config)
    except Exception as error:
        # Both have many kinds of errors; all are of the environment.
        raise ConfigError(
            f"track: {config.track} can't begin: {error}; docs/hub.md says what it needs, and null builds without"
        ) from error
    tracking = _Tracking(run, reporter)
    whole = False
    try:
        yield tracking
        whole = True
    finally:
        tracking.end(whole=whole)


class _Tracking(Reporter):
    """Passes everything on, and the counts also to a run, in a thread: no build waits for a tracker."""

    def __init__(self, run: _Run, reporter: Reporter) -> None:
        self._run = run
        self._reporter = reporter
        self._numbers: dict[str, float] = {}
        self._told = time.monotonic()
        self._since = 0.0
        self._news: Queue[bool | None] = Queue(1)
        self._thread = Thread(target=self._tell, name="tracker", daemon=True)
        self._thread.start()

    def planned(self, samples: int) -> None:
        self._reporter.planned(samples)

    def started(self, plan: Plan, units: int, done: int) -> None:
        self._reporter.started(plan, units, done)

    def warn(self, line: str) -> None:
        self._reporter.warn(line)

    def progress(self, progress: Progress, result: UnitResult | None) -> None:
        self._reporter.progress(progress, result)
        now = time.monotonic()
        if progress.workers and not self._since:
            self._since = now  # a rate that counts the loading of models says too little
        self._numbers = _numbers(progress, now - self._since if self._since else 0.0)
        if now - self._told > _EVERY_SECONDS:
            self._told = now
            with suppress(Full):  # it is still about the last ones
                self._news.put_nowait(None)

    def end(self, *, whole: bool) -> None:
        """Tell the last counts, and whether the build went to its end; waits a minute at most."""
        if self._thread.is_alive():
            with suppress(Full):
                self._news.put(whole, timeout=_END_SECONDS)
            self._thread.join(_END_SECONDS)
            if self._thread.is_alive():
                self.warn("the tracker doesn't answer; its run lacks the last counts")

    def _tell(self) -> None:
        try:
            while (whole := self._news.get()) is None:
                self._run.log(self._numbers)
            self._run.end(self._numbers, whole=whole)
        except Exception as error:  # of the tracker, whatever it is
            self.warn(f"the tracker failed ({error}); the build goes on without it")


def _numbers(progress: Progress, seconds: float) -> dict[str, float]:
    rate = progress.annotated / seconds if seconds else 0.0
    rejects = progress.all_rejects()
    numbers = {
        "samples": float(progress.through),
        "written": float(progress.written),
        "rejected": float(rejects.total()),
        "units": float(progress.done),
        "workers": float(progress.workers),
        "samples_per_second": rate,
        "gigabytes": progress.bytes / 1e9,
    }
    left = {"seconds_left": (progress.planned - progress.through) / rate} if rate else {}
    return numbers | left | {f"rejects/{reason}": float(count) for reason, count in rejects.items()}


def _settings(config: BuildConfig) -> dict[str, Any]:
    output = {"output": config.output.model_dump(mode="json"), "runner": config.runner.model_dump(mode="json")}
    return config.deciding() | output


class _Wandb:
    """A run of Weights & Biases; its address, key and folder come from `WANDB_...`."""

    def __init__(self, config: BuildConfig) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            job_type="build",
            config=_settings(config),
            # stdout is for data, and a build's own lines are enough
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers))

    def end(self, numbers: Mapping[str, float], *, whole: bool) -> None:
        self.log(numbers)
        self._run.finish(exit_code=0 if whole else 1)


class _Mlflow:
    """A run of MLflow; where comes from `MLFLOW_TRACKING_URI`."""

    def __init__(self, config: BuildConfig) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        self._id = self._client.create_run(
            number, run_name=config.output.uri.rstrip("/").rpartition("/")[2]
        ).info.run_id
        parameters = [Param(key, str(value)[:_MLFLOW_LENGTH]) for key, value in _flat(_settings(config))]
        for start in range(0, len(parameters), _MLFLOW_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _MLFLOW_PARAMETERS])

    def log(self, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(numbers.get("samples", 0))
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in numbers.items()])

    def end(self, numbers: Mapping[str, float], *, whole: bool) -> None:
        from mlflow.entities import RunStatus

        self.log(numbers)
        self._client.set_terminated(self._id, RunStatus.to_string(RunStatus.FINISHED if whole else RunStatus.FAILED))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
