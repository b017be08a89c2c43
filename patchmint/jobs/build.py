"""The main job: `python -m patchmint.jobs.build CONFIG.yaml`, which `patchmint build CONFIG.yaml` is as well.

Exit codes: 0 everything planned is written or rejected; 1 the build stopped, the same command goes on with it; 2 bad
usage or input; 130 and 143 ended by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from patchmint.config.build import BuildConfig, LocalRunner
from patchmint.errors import BuildError, ConfigError, PatchmintError, ShardError, StorageError
from patchmint.jobs.dry_run import describe_plan
from patchmint.jobs.options import with_settings
from patchmint.jobs.progress import Display, display, say
from patchmint.pipeline.driver import BuildReport, MakePool, build
from patchmint.pipeline.local_pool import LocalPool
from patchmint.pipeline.orders import WorkerSettings
from patchmint.pipeline.supervise import Pool


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


@with_settings(BuildConfig)
def build_command(
    *,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings; options go over them.")
    ] = None,
    settings: dict[str, Any],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, estimate size and memory, and build nothing.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Take up the rejects, in new shards.")] = False,
    single_driver: Annotated[
        bool, typer.Option("--single-driver", help="Promise that no other build runs; for stores without conditions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build a data set from images and texts, or go on with it. The same command resumes; nothing is done twice."""
    given = BuildConfig.load(config, settings)
    for key, uri in (("output.uri", given.output.uri), ("source.uri", given.source.uri)):
        _check_lasting(key, uri)
    build_config = given.absolute()
    if build_config.notice:
        say(f"warning: {build_config.notice}")
    if dry_run:
        describe_plan(build_config, as_json=as_json)
        return
    stop = _Stop()
    with _signals(stop), display() as told:
        try:
            report = build(
                build_config,
                _pool_maker(build_config, told),
                min_workers=_min_workers(build_config),
                max_workers=_max_workers(build_config),
                reporter=told,
                should_stop=stop.reason,
                retry_failed=retry_failed,
                single_driver=single_driver,
            )
        except (BuildError, ShardError, StorageError) as error:
            say(f"error: {error}")
            raise typer.Exit(128 + stop.signal if stop.signal else 1) from error
    _print(report, build_config, as_json=as_json)
    if report.missing or not report.written:
        raise typer.Exit(1)


def _check_lasting(key: str, uri: str) -> None:
    """In a Ray job the current folder is the job's own copy of the working directory, which Ray deletes."""
    if "://" not in uri and not Path(uri).is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"{key} {uri!r} is relative, which in a Ray job is a folder that Ray deletes with the job; give an "
            "absolute path that all machines mount, or a store such as s3://bucket/folder"
        )


def _print(report: BuildReport, config: BuildConfig, *, as_json: bool) -> None:
    if as_json:
        fields = asdict(report) | {"rejected": report.rejected, "missing": report.missing, "uri": config.output.uri}
        typer.echo(json.dumps(fields, indent=1))
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.rejects.items())
    typer.echo(
        f"{report.planned} planned = {report.written} written + {report.rejected} rejected"
        + (f" ({reasons})" if reasons else "")
        + f", in {report.units} units"
    )
    if report.missing:
        say(f"error: {report.missing} samples are neither; look with: patchmint inspect verify {config.output.uri}")
    elif not report.written:
        say(f"error: nothing was written; see {config.output.uri}/rejects")
    else:
        typer.echo(f"look at it: patchmint inspect verify {config.output.uri}")


def _pool_maker(config: BuildConfig, told: Display) -> MakePool:
    def make(settings: WorkerSettings) -> Pool:
        runner = config.runner
        if isinstance(runner, LocalRunner):
            threads = runner.num_cpus or max(1, len(os.sched_getaffinity(0)) // runner.workers)
            return LocalPool(settings, device=runner.device, threads=threads)
        from patchmint.jobs.metrics import Metrics
        from patchmint.pipeline.ray_pool import RayPool  # a second of imports that `local` doesn't need

        pool = RayPool(settings, runner, told.warn)
        told.listeners.append(Metrics().update)
        return pool

    return make


def _min_workers(config: BuildConfig) -> int:
    return 1 if isinstance(config.runner, LocalRunner) else config.runner.min_actors


def _max_workers(config: BuildConfig) -> int:
    return config.runner.workers if isinstance(config.runner, LocalRunner) else config.runner.max_actors


@contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the job as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(build_command)
    try:
        app()
    except PatchmintError as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
