"""A build as commands run it: shown on stderr, stopped neatly by Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from patchmint.config.build import BuildConfig, LocalRunner
from patchmint.errors import BuildError, ShardError, StorageError
from patchmint.jobs.progress import Display, display, say
from patchmint.pipeline.driver.build import BuildReport, MakePool, build
from patchmint.pipeline.driver.supervise import Pool
from patchmint.pipeline.orders import WorkerSettings
from patchmint.pipeline.pools.local import LocalPool


def run_build(
    config: BuildConfig, *, retry_failed: bool = False, single_driver: bool = False, profile: bool = False
) -> BuildReport:
    """Build a data set, or go on with it, and show how it stands.

    Args:
        config: with absolute paths.
        retry_failed: once everything is done, take up the rejects in new units.
        single_driver: the caller promises that no other driver runs; for stores that can't create conditionally.
        profile: see where the time goes.

    Raises:
        typer.Exit: the build stopped, and why was said: 1, or 128 and the signal that stopped it.
        ConfigError, WeightsError, PluginError: it can't begin; see `patchmint.pipeline.driver.build`.
    """
    stop = _Stop()
    with _signals(stop), display() as told:
        try:
            return build(
                config,
                _pool_maker(config, told),
                min_workers=_min_workers(config),
                max_workers=_max_workers(config),
                reporter=told,
                should_stop=stop.reason,
                retry_failed=retry_failed,
                single_driver=single_driver,
                profile=profile,
            )
        except (BuildError, ShardError, StorageError) as error:
            say(f"error: {error}")
            raise typer.Exit(128 + stop.signal if stop.signal else 1) from error


class _Stop:
    """Remembers that somebody wants the build to stop."""

    signal: int = 0

    def reason(self) -> str:
        if not self.signal:
            return ""
        return f"stopped by {signal.Signals(self.signal).name}; the same command goes on where it stopped"

    def on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal:  # the second time at once, without tidying; that is safe, only less neat
            os._exit(128 + number)
        self.signal = number
        say("stopping: units in work are dropped (once more = at once)")


@contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pool_maker(config: BuildConfig, told: Display) -> MakePool:
    def make(settings: WorkerSettings) -> Pool:
        runner = config.runner
        if isinstance(runner, LocalRunner):
            threads = runner.num_cpus or max(1, len(os.sched_getaffinity(0)) // runner.workers)
            return LocalPool(settings, device=runner.device, threads=threads)
        from patchmint.jobs.metrics import Metrics
        from patchmint.pipeline.pools.ray import RayPool  # a second of imports that `local` doesn't need

        pool = RayPool(settings, runner, told.warn)
        told.listeners.append(Metrics().update)
        return pool

    return make


def _min_workers(config: BuildConfig) -> int:
    return 1 if isinstance(config.runner, LocalRunner) else config.runner.min_actors


def _max_workers(config: BuildConfig) -> int:
    return config.runner.workers if isinstance(config.runner, LocalRunner) else config.runner.max_actors
