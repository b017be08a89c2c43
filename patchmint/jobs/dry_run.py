"""`--dry-run`: what a build would be, and with `--try` how its first labels look and how long it takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import typer

from patchmint.config.build import BuildConfig
from patchmint.errors import WeightsMissingError
from patchmint.jobs.printable import many, printable
from patchmint.jobs.progress import duration, say
from patchmint.jobs.trial import Trial, spread, try_samples
from patchmint.pipeline.driver.reject_limit import MIN_REJECTS_TO_STOP
from patchmint.pipeline.plan import DryRun, LookedAt, Sampled, estimate
from patchmint.pipeline.plan.memory import Memory
from patchmint.pipeline.preflight import CHECKS
from patchmint.pipeline.sources import open_sources
from patchmint.plugins import shown
from patchmint.samples import ImageRef, describe_absent
from patchmint.weights.registry import CHECKPOINTS

_MESSAGE = 120
"""Characters of an example's message that are shown."""


def describe_plan(config: BuildConfig, *, tries: int = 0, try_out: Path | None = None, as_json: bool = False) -> None:
    """Read the source, write nothing into the output, and print what there is to do.

    Args:
        config: with absolute paths.
        tries: how many samples to label, if the weights are there.
        try_out: folder for their overlays; None = a new one for temporary files.
        as_json: print JSON.

    Raises:
        ConfigError: a setting is wrong, or there are no samples.
        StorageError, WeightsError, PluginError: as a build would, but for weights that can be pulled.
    """
    missing = _missing_weights(config)
    sources = open_sources(config)

    def read(image: ImageRef) -> bytes:
        return sources.read_image(image)

    found, looked = estimate(Sampled(list(sources.parts.values())), config, read, _say_count)
    trial = _trial(looked, config, read, tries, try_out) if tries and not missing else None
    if trial is not None:
        found = replace(found, memory=_at_least(found.memory, trial.peak_bytes))
    if as_json:
        facts = asdict(found) | {"reject_share": found.reject_share, "missing_weights": missing}
        told = None if trial is None else asdict(trial) | {"build_seconds": _build_seconds(trial, found)}
        typer.echo(json.dumps(facts | {"trial": told, "uri": config.output.uri}, indent=1))
        return
    for line in _lines(found, config):
        typer.echo(line)
    for line in _time_lines(trial, found, missing, tries):
        typer.echo(line)
    typer.echo("nothing was built; without --dry-run the build begins")


def _missing_weights(config: BuildConfig) -> list[str]:
    """Make every check of a build, but let weights that can be pulled be missing."""
    missing: list[str] = []
    for check in CHECKS.values():
        try:
            check(config)
        except WeightsMissingError as error:
            if not error.names or not all(
                name in CHECKPOINTS and not CHECKPOINTS[name].bundled for name in error.names
            ):
                raise
            missing += error.names
    return missing


def _trial(
    looked: list[LookedAt], config: BuildConfig, read: Callable[[ImageRef], bytes], tries: int, try_out: Path | None
) -> Trial | None:
    chosen = spread(looked, tries)
    if not chosen:
        return None
    say(f"trying {many(len(chosen), 'sample')}")
    return try_samples(chosen, config, read, try_out or Path(tempfile.mkdtemp(prefix="patchmint-try-")))


def _at_least(memory: Memory, worker: int) -> Memory:
    """What a trial took by itself a worker takes, too."""
    more = max(0, worker - memory.worker)
    return replace(memory, worker=memory.worker + more, total=memory.total + more * memory.workers)


def _build_seconds(trial: Trial, found: DryRun) -> tuple[float, float, float]:
    return trial.build_seconds(round(found.samples * (1 - found.reject_share)), found.memory.workers)


def _say_count(samples: int) -> None:
    if samples % 100_000 == 0:
        say(f"planning: {samples} samples")


def _lines(found: DryRun, config: BuildConfig) -> list[str]:
    memory = found.memory
    dedupes = any(source.dedupe for source in config.all_sources)
    about = "" if found.listed and found.share == 1 else "about " if found.listed else "more than "
    of = f" of {many(found.images, 'image')}" if found.images else ""
    most = f", or {config.output.images_per_shard} images" if config.output.images_per_shard else ""
    lines = [
        f"{'documents' if of else 'samples  '} {about}{found.samples}{of} with {many(found.texts, 'text')}, in "
        f"{many(found.units, 'unit')} of up to {config.output.samples_per_shard}{most}",
        *(_sampled_lines(found) if about else []),
        *([f"besides   {absent}"] if (absent := describe_absent(found.absent)) else []),
        *(["          dedupe isn't tried; the plan may have fewer"] if dedupes else []),
        f"rejects   {_counted(found.rejects)} for what source and texts say; {_counted(found.looked_at_rejects)} of "
        f"{found.looked_at} {'documents whose images were ' if of else 'images '}read and decoded",
    ]
    if of and config.on_bad_image == "drop":
        lines.append(
            f"dropped   {_counted(found.dropped)} for what the source says; {_counted(found.looked_at_dropped)} of "
            f"{found.looked_at_images} images read and decoded"
        )
    rejected = found.reject_share * found.samples
    if found.looked_at_rejects and found.looked_at < found.samples - sum(found.rejects.values()):
        lines.append(f"          about {rejected:.0f} in all, if the other images are alike")
    lines += [f"          {reason}, such as {_brief(message)}" for reason, message in found.examples.items()]
    if rejected > max(MIN_REJECTS_TO_STOP, config.limits.max_reject_share * found.samples):
        lines.append(
            f"          the build would stop: about {found.reject_share:.0%} of the samples, and "
            f"limits.max_reject_share is {config.limits.max_reject_share:.0%}"
        )
    lines += [
        f"output    about {size(found.output_bytes)}, of it {size(found.image_bytes)} image files, in "
        f"{config.output.uri}",
        f"memory    a worker about {size(memory.worker)}: {_parts(memory)}",
        f"          the driver {size(memory.driver)}; with {many(memory.workers, 'worker')} {size(memory.total)} "
        "in all",
    ]
    if memory.on_gpu:
        lines.append("gpu       its memory can't be foreseen; --try shows what one sample at a time takes")
    if memory.unknown:
        names = ", ".join(memory.unknown)
        lines.append(f"          without what {names} compute with: of plug-ins only their checkpoints' size is known")
    return [
        *lines,
        f"batches   of {found.batch_size or 'what each worker finds out on its GPU'}",
        "models    " + ", ".join(f"{role} {shown(role, name)}" for role, name in config.models_used.items()),
    ]


def _sampled_lines(found: DryRun) -> list[str]:
    of = "the source" if found.listed else "the files that there was time to list"
    return [f"          {found.share:.2g} of {of} was read, here and there; these figures follow from it"]


def _time_lines(trial: Trial | None, found: DryRun, missing: list[str], tries: int) -> list[str]:
    if missing:
        what = "tried" if tries else "built"
        return [f"weights   missing, so nothing can be {what} yet: patchmint models pull {' '.join(missing)}"]
    if trial is None:
        none = "none of the images can be labelled"
        return ["time      " + (none if tries else "--try 3 labels three samples, and says how long the build takes")]
    least, mean, most = _build_seconds(trial, found)
    lines = [
        f"time      about {duration(mean)} ({duration(least)} to {duration(most)}) with "
        f"{many(found.memory.workers, 'worker')}, of it {duration(trial.start_seconds)} to start",
        f"          {trial.seconds:.2f} s a sample ({trial.least:.2f} to {trial.most:.2f}): {trial.samples} tried one "
        f"by one, on {trial.device} with {trial.threads} threads",
    ]
    if trial.device_peak_bytes:
        lines[-1] += ", where batches are faster"
        lines.append(f"gpu       {size(trial.device_peak_bytes)} with one sample at a time; batches take more")
    if trial.overlays:
        lines.append(f"overlays  {len(trial.overlays)} in {Path(trial.overlays[0]).parent}")
    return lines


def _parts(memory: Memory) -> str:
    parts = {
        "libraries": memory.libraries,
        "weights": memory.weights,
        "models' work": memory.models,
        "waiting images": memory.images,
        "kept for reuse": memory.kept,
    }
    return ", ".join(f"{size(count)} {name}" for name, count in parts.items() if count)


def _brief(message: str) -> str:
    line = printable(message)
    return line if len(line) <= _MESSAGE else line[:_MESSAGE] + "..."


def _counted(reasons: Mapping[str, int]) -> str:
    """Rejects by reason: "3 (2 image-damaged, 1 image-missing)"."""
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{sum(reasons.values())} ({each})" if reasons else "none"


def size(count: float) -> str:
    """Bytes as people say them, to three digits: "1.53 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
