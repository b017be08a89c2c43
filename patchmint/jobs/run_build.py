"""A build as commands run it: shown on stderr, stopped neatly by Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from patchmint.config.build import BuildConfig
from patchmint.errors import BuildError, ShardError, StorageError
from patchmint.jobs.progress import display, say
from patchmint.pipeline.driver.build import BuildReport
from patchmint.pipeline.run import run


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
        ConfigError, WeightsError, PluginError: it can't begin; see `patchmint.pipeline.run`.
    """
    stop = _Stop()
    with _signals(stop), display() as told:
        try:
            return run(
                config,
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
        return f"stopped by {signal.Signals(self.signal).name}; run the same command to resume"

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
