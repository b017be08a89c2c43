"""Columns of finished data sets: `patchmint extend DATASET`, which `python -m patchmint.jobs.extend` is as well.

A build whose source is that data set, and whose output lies in it. Exit codes as for `patchmint.jobs.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from itertools import count
from typing import Annotated, Any

import typer

from patchmint.config import MODEL_PRESETS
from patchmint.config.build import BuildConfig
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.datasets.extension import finished_manifest
from patchmint.errors import ConfigError
from patchmint.jobs.build import (
    DryRunOption,
    JsonOption,
    ProfileOption,
    RetryFailedOption,
    SingleDriverOption,
    TryOption,
    TryOutOption,
    carry_out,
    main,
)
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.options import with_settings
from patchmint.jobs.progress import say
from patchmint.pipeline.plan import record_models
from patchmint.shards.manifest import Manifest, made_by, section_of
from patchmint.shards.paths import COLUMNS
from patchmint.shards.plan import load_plan
from patchmint.storage import open_storage
from patchmint.storage.hub import is_on_hub

_OF_INSTANCES = ("labels.min_coverage", "labels.mask_area", "labels.clip_to_box", "labels.instances")
_SIZES = ("samples_per_shard", "images_per_shard", "prefix")
_NAMES = {"labels": "labels", "grids": "grids", "tokens": "codes", "features": "features"}


@with_settings(BuildConfig, but=("source", "sources", "output"))
def extend_command(
    *,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A finished data set: folder or store.")],
    settings: dict[str, Any],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Of the column. Default: features, codes, labels; the next one features-2."
        ),
    ] = None,
    columns: ColumnsOption = None,
    from_instances: Annotated[
        bool,
        typer.Option("--from-instances", help="Make labels of the stored instances, on another grid say; no models."),
    ] = False,
    dry_run: DryRunOption = False,
    tries: TryOption = 0,
    try_out: TryOutOption = None,
    retry_failed: RetryFailedOption = False,
    single_driver: SingleDriverOption = False,
    profile: ProfileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add features, codes of another tokenizer, or labels on another grid, to a finished data set, as a column.

    A column lies in DATASET/columns/NAME and holds what was made, nothing else; DATASET itself stays as it is. Whatever
    reads DATASET reads the column with it, if nothing else there holds the same; otherwise --columns NAME chooses it.
    To remove it, delete its folder; `patchmint compact` writes whole shards. The same command resumes.

    Its labels aren't made again: --grids '[THE ONE IT HAS, ANOTHER]' asks the models again, for the other grid only.

    With --from-instances they are, without models, of the masks that a build with labels.instances stores: with another
    --grid, --labels.min-coverage, --labels.mask-area or --labels.clip-to-box. They equal those of a build with these.
    """
    made = set(map(_section_made, settings))
    if from_instances:
        _check_of_instances(settings)
        settings, made = settings | {"labels.masks": "stored"}, made | {"labels"}
    if is_on_hub(dataset):
        raise ConfigError(
            f"{dataset}: nothing can be added to a data set on the Hub; copy it first (patchmint compact {dataset} "
            "FOLDER), and extend the copy"
        )
    finished_manifest(open_storage(dataset))
    base = open_dataset(dataset, columns=columns if from_instances else columns or ())
    manifest = base.manifest
    assert manifest is not None
    read = [column.name for column in base.columns if columns or _has_instances(column.dataset)]

    def config_of(own: str) -> BuildConfig:
        told = settings_of(manifest, dataset, f"{dataset.rstrip('/')}/{COLUMNS}/{own}", made, read)
        return BuildConfig.load(told, settings)

    config = config_of(name) if name is not None else _next_of(made, config_of)
    say(f"column {config.output.uri.rpartition('/')[2]} of {dataset}")
    carry_out(
        config,
        dry_run=dry_run,
        tries=tries,
        try_out=try_out,
        retry_failed=retry_failed,
        single_driver=single_driver,
        profile=profile,
        as_json=as_json,
    )


def _has_instances(column: Dataset) -> bool:
    return column.manifest is not None and column.manifest.layout.instances


def _next_of(made: Set[str], config_of: Callable[[str], BuildConfig]) -> BuildConfig:
    """The column of these settings that was begun, or the first name that is free."""
    name = "-".join(own for section, own in _NAMES.items() if section in made) or "column"
    for number in count(1):
        config = config_of(name if number == 1 else f"{name}-{number}").absolute()
        plan = load_plan(open_storage(config.output.uri))
        if plan is None or plan.is_of(config, record_models(config)):
            return config
    raise AssertionError("names never end")


def _check_of_instances(settings: Mapping[str, Any]) -> None:
    asked = [key for key in settings if _section_made(key) == "labels" and key not in _OF_INSTANCES]
    if asked:
        raise ConfigError(
            f"{', '.join(asked)}: --from-instances asks no model again, so of the labels' settings only "
            f"{', '.join(_OF_INSTANCES)} can be changed"
        )


def _section_made(key: str) -> str:
    """The section that a setting asks for: to name another model is to ask for what it makes."""
    section, _, name = key.partition(".")
    return section_of(name) or section if section == "models" else section


def settings_of(
    manifest: Manifest, dataset: str, out: str, made: Set[str], columns: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings that extend a data set: its own, in which all that isn't to be made is null.

    Args:
        manifest: the data set's.
        dataset: where it lies.
        out: where the column, or a copy, goes.
        made: sections to make: labels, tokens, features; "grids" stands for labels on further grids alone.
        columns: names of those that are read with it.
    """
    config = manifest.config
    settings: dict[str, Any] = {
        "source": {"kind": "patchmint", "uri": dataset, "columns": tuple(columns)},
        "output": {"uri": out, **{name: config["output"][name] for name in _SIZES if name in config["output"]}},
        "grid": config["grid"],
        "limits": config["limits"],
    }
    past = made_by(config, "labels")
    if "grids" in made and "labels" not in made:
        made = {*made, "labels"}
        settings["source"]["keep_labels"] = past is not None
    elif "labels" in made and past is not None and not made & {"grid", "grids"}:
        settings["grids"] = past.get("grids", [])
    models: dict[str, str] = {}
    plugins: dict[str, Any] = {}
    for section in ("labels", "tokens", "features"):
        past = made_by(config, section)
        if past is not None:
            models |= {role: name for role, name in past["models"].items() if section_of(role) == section}
            plugins |= past["models"].get("plugins", {})
        settings[section] = None if section not in made else past[section] if past is not None else {}
    # Several tokenizers have theirs in `tokens`.
    models = {role: name for role, name in models.items() if "." not in role}
    plugins = {name: given for name, given in plugins.items() if name in models.values()}
    return settings | {"models": _models(models) | ({"plugins": plugins} if plugins else {})}


def _models(used: dict[str, str]) -> dict[str, str]:
    """The models of the data set; those that it didn't need come from the preset that it was built with, if any."""
    for preset in MODEL_PRESETS.values():
        every = preset.model_dump(exclude_none=True)
        if used.items() <= every.items():
            return every
    return used


if __name__ == "__main__":
    main(extend_command)
