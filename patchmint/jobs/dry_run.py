"""`patchmint build --dry-run`: what a build would do, and what it would take."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from patchmint.config.build import CPU_BATCH_SIZES, BuildConfig
from patchmint.jobs.progress import say
from patchmint.pipeline.plan import DryRun, estimate, record_models
from patchmint.pipeline.preflight import check_buildable
from patchmint.pipeline.sources import open_source
from patchmint.samples import ImageRef

_BATCHES = "{} to {} on a CPU, on a GPU of what each worker finds out".format(*CPU_BATCH_SIZES)


def describe_plan(config: BuildConfig, *, as_json: bool) -> None:
    """Read the source, write nothing, and print what there is to do.

    Raises:
        ConfigError, StorageError, WeightsError, PluginError: as a build would.
    """
    check_buildable(config)
    source = open_source(config.source)

    def image_size(image: ImageRef) -> int:
        return len(source.read_image(image))

    found = estimate(source.samples(), config, record_models(config), image_size, _say_count)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"uri": config.output.uri}, indent=1))
        return
    for line in _lines(found, config):
        typer.echo(line)


def _say_count(samples: int) -> None:
    if samples % 100_000 == 0:
        say(f"planning: {samples} samples")


def _lines(found: DryRun, config: BuildConfig) -> list[str]:
    lines = [
        f"samples   {found.samples} with {found.texts} texts, in {found.units} units of up to "
        f"{config.output.samples_per_shard}",
        f"output    about {_size(found.output_bytes)}, of it {_size(found.image_bytes)} image files, in "
        f"{config.output.uri}",
        f"memory    a worker: {_size(found.model_bytes)} of model files, about {_size(found.buffer_bytes)} of decoded "
        "images",
        f"batches   of {found.batch_size or _BATCHES}",
        "models    " + ", ".join(f"{role} {name}" for role, name in config.models_used.items()),
    ]
    if found.faults:
        lines.append(f"rejects   {found.faults} samples already, for faults in their source")
    if found.images_missing:
        lines.append(f"missing   {found.images_missing} of {found.images_looked_at} images that were looked for")
    return [*lines, "nothing was written; without --dry-run the build begins"]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
