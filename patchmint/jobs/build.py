"""The main job: `python -m patchmint.jobs.build CONFIG.yaml`, which `patchmint build CONFIG.yaml` is as well.

Exit codes: 0 everything planned is written or rejected; 1 the build stopped, the same command goes on with it; 2 bad
usage or input; 130 and 143 ended by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from patchmint.config.build import BuildConfig
from patchmint.errors import (
    BucketMissingError,
    BuildError,
    ConfigError,
    InputError,
    PatchmintError,
    ShardError,
    StorageError,
)
from patchmint.jobs.dry_run import describe_plan
from patchmint.jobs.options import with_settings
from patchmint.jobs.printable import many
from patchmint.jobs.progress import display, say
from patchmint.logs import start_logging
from patchmint.pipeline.driver.build import BuildReport
from patchmint.pipeline.run import resolved, run
from patchmint.samples import describe_absent
from patchmint.shards.records import describe_images
from patchmint.storage.hub import is_on_hub, staging_folder
from patchmint.storage.patience import hurry

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Estimate rejects, disk and memory, and build nothing.")]
TryOption = Annotated[
    int,
    typer.Option(
        "--try",
        min=0,
        max=200,
        metavar="N",
        help="With --dry-run: label N samples, spread over the source; write overlays, estimate the time.",
    ),
]
TryOutOption = Annotated[
    Path | None,
    typer.Option("--try-out", metavar="FOLDER", help="Where overlays of --try go. Default: a new temporary folder."),
]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Retry the rejects, in new shards.")]
SingleDriverOption = Annotated[
    bool,
    typer.Option(
        "--single-driver", help="Promise that no other build runs; for stores that can't create conditionally."
    ),
]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Show where the time went, and write a timeline for a trace viewer.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@with_settings(BuildConfig)
def build_command(
    *,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings; options override them.")
    ] = None,
    settings: dict[str, Any],
    dry_run: DryRunOption = False,
    tries: TryOption = 0,
    try_out: TryOutOption = None,
    retry_failed: RetryFailedOption = False,
    single_driver: SingleDriverOption = False,
    profile: ProfileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a data set from images and texts, or resume a build. Nothing is done twice."""
    carry_out(
        BuildConfig.load(config, settings),
        dry_run=dry_run,
        tries=tries,
        try_out=try_out,
        retry_failed=retry_failed,
        single_driver=single_driver,
        profile=profile,
        as_json=as_json,
    )


def carry_out(
    given: BuildConfig, *, dry_run: bool, tries: int, try_out: Path | None, as_json: bool, **options: bool
) -> None:
    """Build what a command's settings say, and print how it ended; `options` are those of `run_build`.

    What is to go to the Hub is built in a folder, and pushed when it is whole.

    Raises:
        typer.Exit: it isn't whole, or stopped.
        ConfigError, WeightsError, PluginError: it can't begin.
    """
    if tries and not dry_run:
        raise ConfigError("--try is a part of a dry run; add --dry-run")
    target = given.output.uri
    if is_on_hub(target):
        folder = str(staging_folder(target))
        given = given.model_copy(update={"output": given.output.model_copy(update={"uri": folder})})
        if not dry_run:
            say(f"building in {folder}; it goes to {target} when it is finished")
    build_config = resolved(given)
    for source in build_config.all_sources:
        if is_on_hub(source.uri):
            say(f"reading {source.uri}")
    if build_config.notice:
        say(f"warning: {build_config.notice}")
    if dry_run:
        describe_plan(build_config, tries=tries, try_out=try_out, as_json=as_json)
        return
    report = run_build(build_config, **options)
    whole = report.written > 0 and not report.missing
    url = _push(build_config.output.uri, target) if whole and is_on_hub(target) else ""
    _print(report, build_config, url, as_json=as_json)
    if not whole:
        raise typer.Exit(1)


def _push(folder: str, target: str) -> str:
    """Bring a finished data set to the Hub; the page where it is.

    Raises:
        typer.Exit: it couldn't be, and why was said.
    """
    from patchmint.jobs.push import push  # other builds need neither the gallery's parts nor the Hub's client

    try:
        return push(folder, target, private=True).url
    except (InputError, StorageError) as error:
        say(f"error: {error}")
        raise typer.Exit(1) from error


def _print(report: BuildReport, config: BuildConfig, url: str, *, as_json: bool) -> None:
    if as_json:
        fields = asdict(report) | {"rejected": report.rejected, "missing": report.missing, "uri": config.output.uri}
        typer.echo(json.dumps(fields | ({"url": url} if url else {}), indent=1))
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.rejects.items())
    typer.echo(
        f"{report.planned} planned = {report.written} written + {report.rejected} rejected"
        + (f" ({reasons})" if reasons else "")
        + f", in {many(report.units, 'unit')}"
    )
    if report.images is not None:
        typer.echo(f"images: {describe_images(report.images)}")
    if absent := describe_absent(report.absent):
        typer.echo(absent)
    if report.profile is not None:
        typer.echo("\n".join(profile_lines(report.profile)))
    if report.missing:
        say(
            f"error: {report.missing} planned samples were neither written nor rejected; run: patchmint inspect verify "
            f"{config.output.uri}"
        )
    elif not report.written:
        say(f"error: nothing was written; this shows why: patchmint inspect find {config.output.uri} --rejects")
    else:
        typer.echo(f"inspect it: patchmint inspect verify {config.output.uri}")
    if url:
        typer.echo(f"pushed to {url}; its copy in {config.output.uri} may be deleted")


def main(command: Callable[..., None] = build_command) -> None:
    """Run a job as a command of its own."""
    start_logging()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except PatchmintError as error:
        say(f"error: {error}")
        sys.exit(2)


_THREADS = {
    "models": "the thread that asks the models",
    "device": "on the GPU, by its own clock",
    "decode": "threads that read and decode, together",
    "write": "the thread that labels and writes",
}


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """A table of where the time went: `pipeline.driver.runs.Profile.summary` and the timeline's address."""
    lines = [f"{'':34}{'seconds':>10}{'of wall':>9}{'calls':>9}{'ms/sample':>11}"]
    thread, spent = "", 0.0
    for stage in profile["stages"]:
        if stage["thread"] != thread:
            lines += _rest(profile, thread, spent)
            thread, spent = stage["thread"], 0.0
            lines.append(_THREADS.get(thread, thread))
        names = stage["stage"].split("/")
        spent += stage["seconds"] if len(names) == 1 else 0.0
        lines.append(
            f"{'  ' * len(names)}{names[-1]}".ljust(34)
            + f"{stage['seconds']:10.2f}{stage['share']:9.1%}{stage['calls']:9}{stage['ms_per_sample']:11.2f}"
        )
    lines += _rest(profile, thread, spent)
    workers = profile["workers"]
    lines.append(
        f"device side {profile['device_side']:.1%} and wait {profile['wait']:.1%} of {profile['wall']:.1f} s wall "
        f"({many(len(workers), 'worker')}, {many(profile['samples'], 'sample')})"
    )
    for worker in workers:
        device = (
            f", {worker['device']} {worker['device_peak_bytes'] / 1e6:.0f} MB" if worker["device_peak_bytes"] else ""
        )
        lines.append(
            f"worker {worker['worker']} ({worker['host']}, pid {worker['pid']}): at most "
            f"{worker['peak_bytes'] / 1e6:.0f} MB of memory{device}"
        )
    return [*lines, f"timeline: {profile['trace']} (open it at ui.perfetto.dev)"]


def _rest(profile: Mapping[str, Any], thread: str, spent: float) -> list[str]:
    """What the worker did besides: between units, for the most part."""
    if thread != "models":
        return []
    rest = max(0.0, profile["wall"] - spent)
    share, each = rest / max(profile["wall"], 1e-9), 1000 * rest / max(profile["samples"], 1)
    return [f"  {'(between)':32}{rest:10.2f}{share:9.1%}{'':9}{each:11.2f}"]


def run_build(config: BuildConfig, **options: bool) -> BuildReport:
    """Build a data set, or resume a build, and show progress.

    Args:
        config: with absolute paths.
        **options: `retry_failed`, `single_driver` and `profile`, as for `patchmint.pipeline.run.build`.

    Raises:
        typer.Exit: the build stopped, and why was said: 1, or 128 and the signal that stopped it.
        ConfigError, BucketMissingError, WeightsError, PluginError: it can't begin; see `patchmint.pipeline.run`.
    """
    stop = _Stop(config.limits.stop_seconds)
    with _signals(stop), display() as told:
        try:
            return run(config, reporter=told, should_stop=stop.reason, **options)
        except BucketMissingError:
            raise  # as a missing source
        except (BuildError, ShardError, StorageError) as error:
            say(f"error: {error}")
            raise typer.Exit(128 + stop.signal if stop.signal else 1) from error


class _Stop:
    """Remembers that somebody wants the build to stop."""

    def __init__(self, seconds: float) -> None:
        self.signal = 0
        self.seconds = seconds

    def reason(self) -> str:
        if not self.signal:
            return ""
        return f"stopped by {signal.Signals(self.signal).name}; run the same command to resume"

    def on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal:  # the second time at once, without tidying; that is safe, only less neat
            os._exit(128 + number)
        self.signal = number
        hurry()
        say(f"stopping: workers have {self.seconds:g} s to save what they have annotated (once more = at once)")


@contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
