"""The `patchmint` command.

Data goes to stdout, messages to stderr. Exit codes: 0 fine, 1 findings (a check found something wrong), 2 bad usage or
input. `NO_COLOR` is honoured. Where a pipe's reader leaves (`| head`), the command ends quietly, with 0.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from patchmint.cli.lazy import LazyCommand, examples, lazy_group
from patchmint.cli.quiet_pipe import quiet_pipe
from patchmint.compute.threads import wait_briefly
from patchmint.errors import PatchmintError
from patchmint.logs import LogFormat, LogLevel, in_json, json_line, start_logging
from patchmint.version import __version__

COMMANDS = {
    "init": LazyCommand(
        "patchmint.cli.init:init",
        "Write a commented config for your data: its kind and layout are recognised. Nothing else is touched.",
        (
            "patchmint init data/coco",
            "patchmint init data/photos --models official --out out/photos",
            "patchmint init 's3://bucket/laion' --output-config laion.yaml",
        ),
    ),
    "label": LazyCommand(
        "patchmint.cli.label:label",
        "Label an image, or those of a document: which patches show what texts name, and what are the visual codes?",
        (
            "patchmint label scene.png --text 'a red circle' --out o.png",
            "patchmint label photo.jpg --text 'a cat' --models official --out o.png",
            "patchmint label photo.jpg --text 'a cat . a sofa' --models official --labels.prompt phrases --json",
            "patchmint label one.jpg two.jpg --text 'which picture shows a cat?' --models official --json",
            "patchmint label photo.jpg --text 'a cat' --config stage1.yaml --labels.box-threshold 0.3",
        ),
    ),
    "build": LazyCommand(
        "patchmint.jobs.build:build_command",
        "Build a data set from images and texts, or resume a build. Nothing is done twice.",
        (
            "patchmint build config.yaml",
            "patchmint build config.yaml --dry-run --try 3",
            "patchmint --log-format json build config.yaml 2> build.jsonl",
            "patchmint build config.yaml --output.uri s3://bucket/out --labels.box-threshold 0.3",
            "ray job submit --working-dir . -- python -m patchmint.jobs.build config.yaml --runner.kind ray",
        ),
    ),
    "extend": LazyCommand(
        "patchmint.jobs.extend:extend_command",
        "Add features, codes of another tokenizer, or labels on another grid, to a finished data set, as a column.",
        (
            "patchmint extend out/stage1 --models.vit clip-vit-l-14-336 --features.connector dci",
            "patchmint extend out/stage1 --features.pool 12 --name pooled",
            "patchmint extend out/stage1 --tokens.size 512",
            "patchmint extend out/stage1 --from-instances --grid qwen3-vl",
        ),
    ),
    "compact": LazyCommand(
        "patchmint.jobs.compact:compact_command",
        "Write a data set and its columns as one data set of whole shards, as if one build had made everything.",
        (
            "patchmint compact out/stage1 out/whole",
            "patchmint compact out/stage1 out/whole --columns features-2 --columns corrections",
            "patchmint compact hf://datasets/ORG/NAME out/copy --columns none",
        ),
    ),
    "export": LazyCommand(
        "patchmint.cli.export:export_command",
        "Write images and what was found in them for another tool: boxes, words, and masks where they are stored.",
        (
            "patchmint export out/stage1 out/coco --to coco",
            "patchmint export out/stage1 out/unsure --to label-studio --where 'list_min(scores) < 0.4'",
            "patchmint export s3://bucket/stage1 out/odvg --to odvg",
        ),
    ),
    "correct": LazyCommand(
        "patchmint.cli.correct:correct_command",
        "Take corrections back: instances changed, added or deleted by hand, or whole samples marked wrong.",
        (
            "patchmint correct out/stage1 edits.jsonl",
            "patchmint correct out/stage1 out/coco --from coco --by ann --dry-run",
            "patchmint correct out/stage1 project-1.json --from label-studio",
            "patchmint correct out/stage1 edits.jsonl --undo",
        ),
    ),
    "judge": LazyCommand(
        "patchmint.cli.judge:judge_command",
        "Judge labels by a truth: patches, boxes, masks, what is there at all, and whether scores can be believed.",
        (
            "patchmint judge out/stage1",
            "patchmint judge out/demo/dataset --against out/demo/scenes/truth.json --html judged.html",
            "patchmint judge out/stage1 --against data/coco/annotations/instances_val2017.json --json",
            "patchmint judge out/stage1 --against out/better --quick",
            "patchmint judge out/stage1 --plant 0.2",
        ),
    ),
    "calibrate": LazyCommand(
        "patchmint.cli.judge:calibrate_command",
        "Learn from a judged data set how often boxes of a score are right, for `patchmint judge --calibration`.",
        (
            "patchmint calibrate out/demo/dataset calibration.json --against out/demo/scenes/truth.json",
            "patchmint judge out/other --against other.json --calibration calibration.json",
            "patchmint calibrate out/demo/dataset calibration.json --against out/demo/scenes/truth.json --trust full",
        ),
    ),
    "trust": LazyCommand(
        "patchmint.jobs.trust:trust_command",
        "Say of each text's labels how far they can be relied on, 0..1, without any truth, as a column.",
        (
            "patchmint trust out/stage1",
            "patchmint trust out/stage1 --full --device cuda",
            "patchmint trust out/other --full --calibration calibration.json",
            "patchmint inspect find out/stage1 --where 'trust < 0.5' --sort trust",
        ),
    ),
    "push": LazyCommand(
        "patchmint.cli.push:push_command",
        "Bring a finished data set to the Hugging Face Hub, with a card. The same command resumes.",
        (
            "patchmint push out/stage1 hf://datasets/ORG/NAME --license cc-by-4.0",
            "patchmint push s3://bucket/stage1 hf://datasets/ORG/NAME --private",
            "patchmint push out/stage1 hf://datasets/ORG/NAME --dry-run",
        ),
    ),
    "demo": LazyCommand(
        "patchmint.cli.demo:demo",
        "Make scenes with known truth, build them into shards with the bundled models, and score the shards.",
        ("patchmint demo out/demo", "patchmint demo out/demo-qwen --scenes 50 --grid qwen3-vl --json"),
    ),
    "status": LazyCommand(
        "patchmint.cli.status:status",
        "Show how a build stands: done, left, rate, rejects by reason; also while another machine builds.",
        (
            "patchmint status out/stage1",
            "patchmint status out/stage1 --watch",
            "patchmint status s3://bucket/out --json",
        ),
    ),
    "doctor": LazyCommand(
        "patchmint.cli.doctor:doctor",
        "Look at versions, GPU, Ray, models, the source's first samples and the output: what fails, and how to fix it.",
        ("patchmint doctor", "patchmint doctor config.yaml --json", "patchmint doctor --sweep --out s3://bucket/data"),
    ),
    "config": LazyCommand(
        "patchmint.cli.config:config_app",
        "Print the JSON Schema of a build's config, or one config with every default.",
    ),
    "inspect": LazyCommand("patchmint.cli.inspect:inspect_app", "Inspect data sets."),
    "models": LazyCommand(
        "patchmint.cli.models:models_app",
        "List, pull and check weights (Grounding DINO, SAM, VQGAN): the official ones, and the demo's in the package.",
    ),
}
"""The commands, in the order of the help."""

app = typer.Typer(
    name="patchmint",
    cls=lazy_group(COMMANDS),
    help="Patch-level selector labels and discrete visual tokens for multimodal training data.",
    no_args_is_help=True,
    epilog=examples("patchmint label scene.png --text 'a red circle' --out o.png", "patchmint models list"),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchmint {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 (its callback ends the command)
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level", help="Show log lines of patchmint and its libraries on stderr, from this level on."
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format", help="json: everything on stderr, progress too, as one JSON object a line. Default: text."
        ),
    ] = None,
) -> None:
    start_logging(log_level, log_format)


def main() -> None:
    """Run the command line; an error on purpose becomes one message and exit code 2."""
    wait_briefly()
    try:
        with quiet_pipe():
            app()
    except PatchmintError as error:
        _print_error(error)
        sys.exit(2)


def _print_error(error: PatchmintError) -> None:
    """What an error quotes may come from a hostile file: no control characters reach the terminal."""
    from rich.console import Console
    from rich.markup import escape

    from patchmint.jobs.printable import printable

    message = "\n".join(printable(line) for line in str(error).split("\n"))
    if in_json():
        print(json_line("error", message, logging.ERROR), file=sys.stderr)
        return
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
