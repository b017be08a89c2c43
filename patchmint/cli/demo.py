"""`patchmint demo OUT`: scenes with known truth, built into shards by the bundled models, and scored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from patchmint.config import DEMO, BuildConfig
from patchmint.demo import DEMO_SEED, HELD_OUT_SEED, TRAINING_SEED
from patchmint.errors import InputError
from patchmint.jobs.progress import say

if TYPE_CHECKING:
    from patchmint.demo.dataset import Truth
    from patchmint.pipeline.driver.build import BuildReport

_SAMPLES_PER_SHARD = 25
_PIPED_WIDTH = 140

Step = Callable[[int], None]


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for scenes, data set and overlays.")],
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes; the limits are meant for 200.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes; the default was never trained on.")] = DEMO_SEED,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; each loads the models.")] = 1,
    grid: Annotated[
        str, typer.Option(help="Grid of the labels, a preset's name; docs/grids.md lists them.")
    ] = "llava-1.5-finetune",
    overlays: Annotated[int, typer.Option(min=0, help="Scenes to draw with their labels and the truth.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Make scenes with known truth, build them into shards with the bundled models, and score the shards.

    The same command goes on where it was stopped. Ends with 1 if a figure misses its limit or a scene was rejected.
    """
    from patchmint.demo.dataset import obtain_scenes
    from patchmint.demo.score import LIMITS
    from patchmint.jobs.build import run_build

    started = time.monotonic()
    if ":/" in str(out):  # a path has lost one slash of s3://
        raise InputError(f"OUT must be a folder on this machine, not {out}; `patchmint build` writes to stores")
    if seed in (TRAINING_SEED, HELD_OUT_SEED):
        say(f"warning: the models were trained or tuned on scenes of seed {seed}; fresh ones may do worse")
    out = out.expanduser().absolute()
    config = _config(out, workers, grid)
    with _progress("making scenes", scenes) as made:
        truth = obtain_scenes(out / "scenes", seed=seed, count=scenes, progress=made)
    report = run_build(config)
    figures = _judged(config, truth, report, out, overlays)
    result = figures | {
        "scenes": scenes,
        "planned": report.planned,
        "written": report.written,
        "rejected": report.rejected,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        typer.echo(json.dumps({name: None if math.isnan(value) else value for name, value in result.items()}))
    else:
        _print(figures, report)
        gallery = f"patchmint inspect gallery {out}/dataset {out}/gallery"
        typer.echo(f"{result['seconds']:.0f} s; look at {out}/overlays, or: {gallery}")
    if report.missing or report.rejected or not all(LIMITS[name].met(value) for name, value in figures.items()):
        raise typer.Exit(1)


def _config(out: Path, workers: int, grid: str) -> BuildConfig:
    return BuildConfig.parse(
        {
            "source": {"kind": "coco", "uri": str(out / "scenes"), "texts": "caption"},
            "output": {"uri": str(out / "dataset"), "samples_per_shard": _SAMPLES_PER_SHARD},
            "grid": grid,
            "models": DEMO,
            "runner": {"kind": "local", "workers": workers},
        }
    )


def _judged(config: BuildConfig, truth: Truth, report: BuildReport, out: Path, overlays: int) -> dict[str, float]:
    from patchmint.demo.judge import judge_dataset
    from patchmint.demo.overlays import write_overlays
    from patchmint.storage import open_storage

    assert config.tokens is not None, "the demo makes codes"
    storage = open_storage(config.output.uri)
    figures = judge_dataset(storage, truth, config.models, config.tokens, written=report.written, progress=_progress)
    with _progress("drawing overlays", min(overlays, report.written)) as step:
        write_overlays(storage, truth, out / "overlays", overlays, step)
    return figures


def _print(figures: Mapping[str, float], report: BuildReport) -> None:
    from patchmint.demo.score import LIMITS

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table("figure", Column("value", justify="right"), Column("limit", justify="right"), "", "what it says")
    for name, limit in LIMITS.items():
        met = "[green]met[/]" if limit.met(figures[name]) else "[bold red]missed[/]"
        bound = f"{'at most' if limit.most else 'at least'} {limit.shown(limit.bound)}"
        table.add_row(name, limit.shown(figures[name]), bound, met, limit.meaning)
    console.print(table)
    console.print(f"{report.planned} planned = {report.written} written + {report.rejected} rejected")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Step]:
    """A bar on stderr if that is a terminal, else a line once it is done."""
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda number: bar.update(task, completed=number)
    else:
        yield lambda _: None
    say(f"{what}: {time.monotonic() - started:.1f} s")
