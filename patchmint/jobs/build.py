"""The main job: `python -m patchmint.jobs.build CONFIG.yaml`, which `patchmint build CONFIG.yaml` is as well.

Exit codes: 0 everything planned is written or rejected; 1 the build stopped, the same command goes on with it; 2 bad
usage or input; 130 and 143 ended by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from patchmint.config.build import BuildConfig
from patchmint.errors import PatchmintError
from patchmint.jobs.dry_run import describe_plan
from patchmint.jobs.options import with_settings
from patchmint.jobs.progress import say
from patchmint.jobs.run_build import run_build
from patchmint.pipeline.driver.build import BuildReport
from patchmint.pipeline.run import resolved

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Plan, estimate size and memory, and build nothing.")]
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
    retry_failed: RetryFailedOption = False,
    single_driver: SingleDriverOption = False,
    profile: ProfileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a data set from images and texts, or resume a build. Nothing is done twice."""
    carry_out(
        BuildConfig.load(config, settings),
        dry_run=dry_run,
        retry_failed=retry_failed,
        single_driver=single_driver,
        profile=profile,
        as_json=as_json,
    )


def carry_out(
    given: BuildConfig,
    *,
    dry_run: bool,
    retry_failed: bool,
    single_driver: bool,
    as_json: bool,
    profile: bool = False,
) -> None:
    """Build what a command's settings say, and print how it ended.

    Raises:
        typer.Exit: it isn't whole, or stopped.
        ConfigError, WeightsError, PluginError: it can't begin.
    """
    build_config = resolved(given)
    if build_config.notice:
        say(f"warning: {build_config.notice}")
    if dry_run:
        describe_plan(build_config, as_json=as_json)
        return
    report = run_build(build_config, retry_failed=retry_failed, single_driver=single_driver, profile=profile)
    _print(report, build_config, as_json=as_json)
    if report.missing or not report.written:
        raise typer.Exit(1)


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
    if report.profile is not None:
        typer.echo("\n".join(profile_lines(report.profile)))
    if report.missing:
        say(
            f"error: {report.missing} planned samples were neither written nor rejected; run: patchmint inspect verify "
            f"{config.output.uri}"
        )
    elif not report.written:
        say(f"error: nothing was written; see {config.output.uri}/rejects")
    else:
        typer.echo(f"inspect it: patchmint inspect verify {config.output.uri}")


def main(command: Callable[..., None] = build_command) -> None:
    """Run a job as a command of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except PatchmintError as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()


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
        f"({len(workers)} worker{'s' if len(workers) != 1 else ''}, {profile['samples']} samples)"
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
