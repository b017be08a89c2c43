"""What can be found wrong with a build before its source is read: the one list of checks.

Nothing is written, so a setting that is refused here costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from patchmint.annotate.preflight import check_loadable
from patchmint.config.build import BuildConfig, LocalRunner
from patchmint.datasets.extension import check_extension
from patchmint.errors import ConfigError
from patchmint.pipeline.sources import open_sources
from patchmint.shards.plan import load_plan
from patchmint.storage import open_storage
from patchmint.storage.local import LocalStorage


def check_buildable(config: BuildConfig) -> None:
    """Check that a build can be made with these settings, on this machine.

    Raises:
        ConfigError: a setting doesn't fit the models, the source or the output.
        WeightsError, PluginError: a model isn't there, or can't be used.
        StorageError, ShardError: the source can't be read.
    """
    for check in CHECKS.values():
        check(config)


def _check_source(config: BuildConfig) -> None:
    check_extension(config)
    try:
        open_sources(config).check()
    except ConfigError:
        plan = load_plan(open_storage(config.output.uri))
        if plan is None or plan.config != config.deciding():  # otherwise it was read, and need not be as it was
            raise


def _check_output(config: BuildConfig) -> None:
    output = open_storage(config.output.uri)
    if isinstance(output, LocalStorage):
        files = [path for path in (output.root, *output.root.parents) if os.path.isfile(path)]  # noqa: PTH113 (no raise)
        if files:
            raise ConfigError(f"output.uri: {files[0]} is a file; give a folder for the data set")
    if config.extends:
        return  # its column lies in it
    for config_of_source in config.all_sources:
        source = open_storage(config_of_source.uri)
        if isinstance(output, LocalStorage):
            inside = isinstance(source, LocalStorage) and output.root.resolve().is_relative_to(source.root.resolve())
        else:
            inside = f"{output.uri.rstrip('/')}/".startswith(f"{source.uri.rstrip('/')}/")
        if inside:
            raise ConfigError(
                f"output.uri: {config.output.uri} lies in the source {config_of_source.uri}, which a build only reads; "
                "give another folder"
            )


def _check_device(config: BuildConfig) -> None:
    if config.precision != "float16" or not isinstance(config.runner, LocalRunner):
        return
    from patchmint.compute.devices import pick_device  # torch takes seconds to import, which other formats don't need

    if pick_device(config.runner.device) == "cpu":
        raise ConfigError("precision: float16 is for GPUs, and this machine has none; use bfloat16, float32 or auto")


CHECKS: dict[str, Callable[[BuildConfig], None]] = {
    "output folder": _check_output,
    "source": _check_source,
    "model files": check_loadable,
    "device": _check_device,
}
"""By what they look at, in order. Each raises what `check_buildable` does."""
