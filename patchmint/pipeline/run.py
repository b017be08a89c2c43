"""A build from a config to its report: what `patchmint build` and Python programs call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from patchmint.annotate.preflight import warn_of_models
from patchmint.compute.threads import default_threads
from patchmint.config.build import BuildConfig, LocalRunner
from patchmint.config.sources import AnySource
from patchmint.errors import ConfigError
from patchmint.pipeline.driver.build import BuildReport
from patchmint.pipeline.driver.build import build as drive
from patchmint.pipeline.driver.contracts import Pool, Reporter
from patchmint.pipeline.driver.track import tracked
from patchmint.pipeline.orders import WorkerSettings
from patchmint.pipeline.pools.local import LocalPool
from patchmint.shards.plan import load_plan, planned_sources
from patchmint.storage import open_storage
from patchmint.storage.hub import is_on_hub, pinned, unpinned

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""By this variable of its environment Ray 2.60 tells a job's command its settings."""


def build(
    config: Mapping[str, Any] | str | os.PathLike[str] | BuildConfig,
    *,
    retry_failed: bool = False,
    single_driver: bool = False,
    profile: bool = False,
    reporter: Reporter | None = None,
) -> BuildReport:
    """Build a data set from images and texts, or resume the build that its output holds.

    Prints nothing and sets no signal handlers. Workers are child processes or Ray actors (`runner`); a script needs no
    `if __name__ == "__main__"` for them, and a notebook will do. Any exception, KeyboardInterrupt too, stops the
    workers; finished units stay, and the same call resumes.

    Args:
        config: the settings as a mapping, the path of a YAML file, or a `BuildConfig`. Relative paths start at the
            current folder.
        retry_failed: once everything is done, build the rejects again, in new units.
        single_driver: the caller promises that no other driver runs; for stores that can't create conditionally.
        profile: measure where the time goes (`BuildReport.profile`), and write `runs/RUN-trace.json`.
        reporter: is told how the build stands; override the methods of `Reporter` that you want to hear.

    Returns:
        What was planned, written and rejected. Rejected samples are no error unless they exceed
        `limits.max_reject_share`.

    Raises:
        ConfigError: a setting is wrong, the output holds a build with another config, or the source has no samples.
        BusyError: another driver is at work in the output.
        BuildError: the build can't go on.
        WeightsError, PluginError, StorageError, ShardError: as their names say.

    Warns:
        DemoWarning, UntrainedWarning: the models are the demo's, or untrained.
    """
    if not isinstance(config, BuildConfig):
        config = BuildConfig.load(config)
    warn_of_models(config, stacklevel=2)
    return run(
        resolved(config),
        reporter=reporter or Reporter(),
        retry_failed=retry_failed,
        single_driver=single_driver,
        profile=profile,
    )


def run(
    config: BuildConfig, *, reporter: Reporter, should_stop: Callable[[], str] = lambda: "", **options: bool
) -> BuildReport:
    """Build with the workers that the config's `runner` asks for.

    Args:
        config: as `resolved` returns it.
        reporter: is told how the build stands.
        should_stop: asked often; anything but "" stops the build with that reason.
        **options: `retry_failed`, `single_driver` and `profile`, as for `build`.

    Raises:
        ConfigError, BuildError, WeightsError, PluginError, StorageError, ShardError: as for `build`.
    """
    runner = config.runner
    if isinstance(runner, LocalRunner):
        least, most = 1, runner.workers
    else:
        least, most = runner.min_actors, runner.max_actors

    def make_pool(settings: WorkerSettings) -> Pool:
        if isinstance(runner, LocalRunner):
            threads = runner.num_cpus or default_threads(runner.workers)
            return LocalPool(settings, workers=runner.workers, device=runner.device, threads=threads)
        from patchmint.pipeline.pools.ray import RayPool  # a second of imports that `local` doesn't need

        return RayPool(settings, runner, reporter.warn)

    with tracked(config, reporter) as told:
        return drive(
            config,
            make_pool,
            min_workers=least,
            max_workers=most,
            reporter=told,
            should_stop=should_stop,
            **options,
        )


def resolved(config: BuildConfig) -> BuildConfig:
    """The config as it is for all processes: paths are absolute, and a source on the Hub is at one commit.

    Raises:
        ConfigError: the output is on the Hub; or in a Ray job, a path is relative, or the working directory has a
            patchmint that isn't imported.
        StorageError: the source or the output can't be reached.
    """
    if is_on_hub(config.output.uri):
        raise ConfigError(
            "output.uri: the Hub takes finished data sets; build into a folder or a store, then push it "
            f"(`patchmint build` does both): patchmint push FOLDER {config.output.uri}"
        )
    if _JOB in os.environ:
        _check_job(config)
    return _at_one_commit(config.absolute())


def _check_job(config: BuildConfig) -> None:
    """Refuse what a Ray job would take for something else."""
    for key, uri in (("output.uri", config.output.uri), *(("source.uri", source.uri) for source in config.all_sources)):
        if "://" not in uri and not Path(uri).expanduser().is_absolute():
            raise ConfigError(
                f"{key} {uri!r} is relative, which in a Ray job is a folder of one machine, mostly one that Ray deletes"
                " with the job; give an absolute path that all machines mount, or a store such as s3://bucket/folder"
            )
    here, imported = Path.cwd(), Path(__file__).parents[1]
    inner = next(here.glob("*/patchmint/__init__.py"), None)
    if "working_dir_files" in here.parts and inner is not None and not imported.is_relative_to(here):
        top = inner.parents[1].name
        raise ConfigError(
            f"the job's working directory has patchmint in {top}/, where Python doesn't look; this is another one, in "
            f"{imported}. patchmint/ must be at the top: give --working-dir the folder itself, or zip what is in it "
            f"(cd {top} && zip -r ../{top}.zip .)"
        )


def _at_one_commit(config: BuildConfig) -> BuildConfig:
    """Sources on the Hub as they are now, or were when the build in the output began, whoever pushes meanwhile."""
    if not any(is_on_hub(source.uri) for source in config.all_sources):
        return config
    plan = load_plan(open_storage(config.output.uri))
    begun = [str(source["uri"]) for source in planned_sources(plan.config)] if plan is not None else []

    def pin(source: AnySource) -> AnySource:
        if not is_on_hub(source.uri):
            return source
        same = (uri for uri in begun if is_on_hub(uri) and unpinned(uri) == source.uri.rstrip("/"))
        return source.model_copy(update={"uri": next(same, None) or pinned(source.uri)})

    return config.with_sources(pin)
