"""The `patchmint` command.

Data goes to stdout, messages to stderr. Exit codes: 0 fine, 1 findings (a check found something wrong), 2 bad usage or
input. `NO_COLOR` is honoured.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from patchmint.cli.demo import demo
from patchmint.cli.doctor import doctor
from patchmint.cli.inspect import inspect_app
from patchmint.cli.label import label
from patchmint.cli.models import models_app
from patchmint.cli.status import status
from patchmint.cli.terminal import examples
from patchmint.errors import PatchmintError
from patchmint.jobs.build import build_command
from patchmint.jobs.extend import extend_command
from patchmint.jobs.printable import printable
from patchmint.version import __version__

app = typer.Typer(
    name="patchmint",
    help="Patch-level selector labels and discrete visual tokens for multimodal training data.",
    no_args_is_help=True,
    epilog=examples("patchmint label scene.png --text 'a red circle' --out o.png", "patchmint models list"),
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "label",
    epilog=examples(
        "patchmint label scene.png --text 'a red circle' --out o.png",
        "patchmint label photo.jpg --text 'a cat' --models official --out o.png",
        "patchmint label photo.jpg --text 'a cat . a sofa' --models official --prompt phrases --json",
    ),
)(label)
app.command(
    "build",
    epilog=examples(
        "patchmint build config.yaml",
        "patchmint build config.yaml --dry-run",
        "patchmint build config.yaml --output.uri s3://bucket/out --labels.box-threshold 0.3",
        "ray job submit --working-dir . -- python -m patchmint.jobs.build config.yaml --runner.kind ray",
    ),
)(build_command)
app.command(
    "extend",
    epilog=examples(
        "patchmint extend out/stage1 out/stage1-dci --models.vit clip-vit-l-14-336 --features.connector dci",
        "patchmint extend out/stage1 out/stage1-12 --features.pool 12",
        "patchmint extend out/stage1 out/stage1-512 --tokens.size 512",
    ),
)(extend_command)
app.command("demo", epilog=examples("patchmint demo out/demo", "patchmint demo out/demo --scenes 50 --json"))(demo)
app.command("status", epilog=examples("patchmint status out/stage1", "patchmint status s3://bucket/out --json"))(status)
app.command("doctor", epilog=examples("patchmint doctor", "patchmint doctor config.yaml --json"))(doctor)
app.add_typer(inspect_app)
app.add_typer(models_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchmint {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error on purpose becomes one message and exit code 2."""
    try:
        app()
    except PatchmintError as error:
        # What an error quotes may come from a hostile file: no control characters reach the terminal.
        message = "\n".join(printable(line) for line in str(error).split("\n"))
        Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(2)
