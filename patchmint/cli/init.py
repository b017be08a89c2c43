"""`patchmint init`: a first config for the data that lies there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from patchmint.annotate.preflight import check_loadable
from patchmint.config import SMALL
from patchmint.config.build import BuildConfig, json_schema
from patchmint.config.parsing import Settings, sections
from patchmint.datasets.extension import finished_manifest
from patchmint.errors import InputError, MixedSplitsError, WeightsMissingError
from patchmint.jobs.extend import settings_of
from patchmint.jobs.options import described
from patchmint.pipeline.sources import open_sources
from patchmint.pipeline.sources.recognise import Recognised, recognise
from patchmint.shards.paths import COLUMNS
from patchmint.storage import open_storage

_SCHEMA_FILE = "patchmint.schema.json"
_WIDTH = 110
_ORDER = (
    *("source", "output", "models", "labels", "grid", "tokens", "features", "precision"),
    *("runner", "limits", "on_bad_image", "track"),
)


def init(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="The data: a folder or store, or an annotation file, table or tar.")
    ] = ".",
    output_config: Annotated[
        Path | None, typer.Option(metavar="CONFIG.yaml", help="The config to write. Default: DATA's name, here.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Preset: small, official, demo or untrained-tiny. Default: small.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Where the data set will go. Default: out/ and DATA's name; of a data set its column features.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a config that exists.")] = False,
) -> None:
    """Write a commented config for your data: its kind and layout are recognised. Nothing else is touched.

    Beside it goes patchmint.schema.json, by which editors complete and check the config.
    """
    name = _name(data)
    path = output_config or Path(f"{name}.yaml")
    if path.exists() and not force:
        raise InputError(f"{path} exists; --force overwrites it, --output-config chooses another name")
    found = recognise(data)
    config = BuildConfig.load(_settings(found, out or _output(found.source, name), models))
    splits = ""
    try:
        open_sources(config).check()
    except MixedSplitsError as error:
        split = "train" if "train" in error.splits else error.splits[0]
        found = replace(found, source={**found.source, "split": split})
        splits = f", with the splits {', '.join(error.splits)}: source.split says which is read"
    settings = _settings(found, out or _output(found.source, name), models)
    head = [
        f"# yaml-language-server: $schema={_SCHEMA_FILE}",
        f"# {found.what}{splits}. Relative paths are those from the folder where the build is started.",
        "# Each setting is also an option: patchmint build CONFIG.yaml --labels.box-threshold 0.3",
    ]
    try:
        path.write_text("\n".join([*head, "", *_lines(BuildConfig, settings)]), encoding="utf-8")
        path.with_name(_SCHEMA_FILE).write_text(json_schema(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}; choose another --output-config") from error
    named = next((f" in {found.source[key]}" for key in ("annotations", "refs", "table") if key in found.source), "")
    typer.echo(f"{path}: {found.what}{named}{splits}")
    for command in _next(config, settings["models"], path):
        typer.echo(f"  {command}")


def _name(data: str) -> str:
    last = data.rstrip("/").rpartition("/")[2] if "://" in data else Path(data).expanduser().absolute().name
    return re.split(r"[{.@]", last)[0] or "data"


def _output(source: Mapping[str, Any], name: str) -> str:
    """A folder that isn't in the source, since a build doesn't write into that; of a data set a column of it."""
    uri, out = source["uri"], f"out/{name}"
    if source["kind"] == "patchmint":
        return f"{uri.rstrip('/')}/{COLUMNS}/features"
    if "://" in uri:
        return out
    folder = Path(uri).expanduser().resolve()
    return f"{folder}-patchmint" if Path(out).resolve().is_relative_to(folder) else out


def _settings(found: Recognised, out: str, models: str | None) -> dict[str, Any]:
    """What the config says, in its order: source and models as short as can be, all else with its defaults."""
    uri = found.source["uri"]
    settings: dict[str, Any] = {"source": dict(found.source), "output": {"uri": out}, "models": models or SMALL}
    if found.source["kind"] == "patchmint":  # features are what is mostly added
        extension = settings_of(finished_manifest(open_storage(uri)), uri, out, {"features"})
        settings = extension | ({"models": models} if models else {})
    config = BuildConfig.load(settings, found.settings)
    values = config.model_dump(mode="json")
    order = [section for section in _ORDER if section != "on_bad_image" or config.gives_documents]
    return {section: (settings if section in ("source", "models") else values)[section] for section in order}


def _lines(model: type[Settings], settings: Mapping[str, Any], kinds: Iterable[str] = ()) -> Iterator[str]:
    """YAML of settings, each below its description; `kinds` are those of the section that they are in."""
    for key, value in settings.items():
        field = model.model_fields[key]
        about = f"One of {', '.join(kinds)}." if key == "kind" else described(field)
        yield from (f"# {line}" for line in textwrap.wrap(about, _WIDTH))
        if isinstance(value, Mapping):
            yield f"{key}:"
            inner = sections(field)
            chosen = inner.get(value.get("kind", "")) or next(iter(inner.values()))
            yield from (f"  {line}" for line in _lines(chosen, value, inner))
        else:
            flow = None if isinstance(value, list) else False
            yield yaml.safe_dump({key: value}, default_flow_style=flow, width=10**6, allow_unicode=True).rstrip("\n")
        if model is BuildConfig:
            yield ""


def _next(config: BuildConfig, preset: object, path: Path) -> Iterator[str]:
    try:
        check_loadable(config)
    except WeightsMissingError as error:
        yield f"patchmint models pull {preset if isinstance(preset, str) else ' '.join(error.names)}"
    yield f"patchmint doctor {path}"
    yield f"patchmint build {path} --dry-run"
    yield f"patchmint build {path}"
