"""`patchmint config`: what a build's config may say, and what one says with all its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from patchmint.cli.lazy import examples
from patchmint.config.build import BuildConfig, json_schema
from patchmint.jobs.options import with_settings

config_app = typer.Typer(
    name="config",
    help="Print the JSON Schema of a build's config, or one config with every default.",
    epilog=examples("patchmint config schema > patchmint.schema.json", "patchmint config show stage1.yaml"),
    no_args_is_help=True,
)


@config_app.command("schema", epilog=examples("patchmint config schema > patchmint.schema.json"))
def print_schema() -> None:
    """Print the JSON Schema of a build's config, by which editors complete and check it."""
    typer.echo(json_schema(), nl=False)


@config_app.command("show", epilog=examples("patchmint config show stage1.yaml --runner.kind ray"))
@with_settings(BuildConfig)
def show(
    *,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings; options override them.")],
    settings: dict[str, Any],
) -> None:
    """Print a config as a build takes it: presets spelled out, every default filled in."""
    values = BuildConfig.load(config, settings).model_dump(mode="json")
    typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)
