"""`patchmint demo OUT`: scenes, and documents of several, with known truth; built by the bundled models, and scored."""

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
    from patchmint.demo.score import Limit
    from patchmint.pipeline.driver.build import BuildReport

_SAMPLES_PER_SHARD = 25
_SCENES_A_DOCUMENT = 10
_PIPED_WIDTH = 140

Step = Callable[[int], None]


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for scenes, data set and overlays.")],
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes; the limits are meant for 200.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes; the default was never trained on.")] = DEMO_SEED,
    documents: Annotated[
        int | None,
        typer.Option(min=0, help="Number of documents of 2 to 6 other scenes. Default: a tenth of the scenes."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; each loads the models.")] = 1,
    grid: Annotated[
        str, typer.Option(help="Grid of the labels, a preset's name; docs/grids.md lists them.")
    ] = "llava-1.5-finetune",
    second_look: Annotated[
        bool,
        typer.Option(
            "--second-look", help="Build with labels.presence, which drops what isn't there; takes twice as long."
        ),
    ] = False,
    overlays: Annotated[int, typer.Option(min=0, help="Scenes to draw with their labels and the truth.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Make scenes with known truth, build them into shards with the bundled models, and score the shards.

    Then the same with a few documents: conversations about several scenes at once. The same command goes on where it
    was stopped. Ends with 1 if a figure misses its limit or a sample was rejected.
    """
    from patchmint.demo.dataset import obtain_scenes
    from patchmint.demo.score import DOCUMENT_LIMITS, LIMITS
    from patchmint.demo.texts import SECOND_LOOK
    from patchmint.jobs.build import run_build

    started = time.monotonic()
    if ":/" in str(out):  # a path has lost one slash of s3://
        raise InputError(f"OUT must be a folder on this machine, not {out}; `patchmint build` writes to stores")
    if seed in (TRAINING_SEED, HELD_OUT_SEED):
        say(f"warning: the models were trained or tuned on scenes of seed {seed}; fresh ones may do worse")
    out = out.expanduser().absolute()
    count = scenes // _SCENES_A_DOCUMENT if documents is None else documents
    labels = SECOND_LOOK if second_look else {}
    config = _config(
        {"kind": "coco", "uri": str(out / "scenes"), "texts": "caption"}, out / "dataset", workers, grid, labels
    )
    with _progress("making scenes", scenes) as made:
        truth = obtain_scenes(out / "scenes", seed=seed, count=scenes, progress=made)
    reports = [run_build(config)]
    figures = _judged(config, truth, reports[0], out, overlays)
    if count:
        report, more = _documents(out, seed, count, workers, grid, labels)
        reports.append(report)
        figures |= more
    result = figures | {
        "scenes": scenes,
        "documents": count,
        "planned": sum(report.planned for report in reports),
        "written": sum(report.written for report in reports),
        "rejected": sum(report.rejected for report in reports),
        "seconds": round(time.monotonic() - started, 1),
    }
    limits = {**LIMITS, **DOCUMENT_LIMITS}
    if as_json:
        typer.echo(json.dumps({name: None if math.isnan(value) else value for name, value in result.items()}))
    else:
        _print(figures, limits, result)
        gallery = f"patchmint inspect gallery {out}/dataset {out}/gallery"
        typer.echo(f"{result['seconds']:.0f} s; look at {out}/overlays, or: {gallery}")
    met = all(limits[name].met(value) for name, value in figures.items())
    if not met or any(report.missing or report.rejected for report in reports):
        raise typer.Exit(1)


def _documents(
    out: Path, seed: int, count: int, workers: int, grid: str, labels: Mapping[str, object]
) -> tuple[BuildReport, dict[str, float]]:
    """The second data set: made, built, and judged."""
    from patchmint.demo.documents import obtain_documents
    from patchmint.demo.judge import judge_documents
    from patchmint.jobs.build import run_build
    from patchmint.storage import open_storage

    with _progress("making documents", count) as made:
        truth = obtain_documents(out / "documents", seed=seed, count=count, progress=made)
    source = {"kind": "conversations", "uri": str(out / "documents"), "annotations": "conversations.json"}
    settings = {"documents": True, "texts": "all"}
    config = _config(source | settings, out / "documents-dataset", workers, grid, labels)
    report = run_build(config)
    storage = open_storage(config.output.uri)
    return report, judge_documents(storage, truth, written=report.written, progress=_progress)


def _config(
    source: Mapping[str, object], dataset: Path, workers: int, grid: str, labels: Mapping[str, object]
) -> BuildConfig:
    return BuildConfig.parse(
        {
            "source": source,
            "output": {"uri": str(dataset), "samples_per_shard": _SAMPLES_PER_SHARD},
            "grid": grid,
            "models": DEMO,
            "labels": dict(labels),
            "runner": {"kind": "local", "workers": workers},
        }
    )


def _judged(config: BuildConfig, truth: Truth, report: BuildReport, out: Path, overlays: int) -> dict[str, float]:
    from patchmint.datasets.dataset import open_dataset
    from patchmint.demo.judge import judge_dataset, judge_warrant
    from patchmint.demo.overlays import write_overlays
    from patchmint.jobs.truths import open_truth
    from patchmint.judging.truth import TRUTH_FILE
    from patchmint.storage import open_storage

    storage = open_storage(config.output.uri)
    figures = judge_dataset(
        storage, truth, config.models, config.tokenizers[""], written=report.written, progress=_progress
    )
    whole = open_dataset(config.output.uri, columns=("none",))
    figures |= judge_warrant(whole, open_truth(str(out / "scenes" / TRUTH_FILE)), progress=_progress)
    with _progress("drawing overlays", min(overlays, report.written)) as step:
        write_overlays(storage, truth, out / "overlays", overlays, step)
    return figures


def _print(figures: Mapping[str, float], limits: Mapping[str, Limit], counts: Mapping[str, float]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    table = Table("figure", Column("value", justify="right"), Column("limit", justify="right"), "", "what it says")
    for name, limit in limits.items():
        if name not in figures:
            continue
        met = "[green]met[/]" if limit.met(figures[name]) else "[bold red]missed[/]"
        bound = f"{'at most' if limit.most else 'at least'} {limit.shown(limit.bound)}"
        table.add_row(name, limit.shown(figures[name]), bound, met, limit.meaning)
    console.print(table)
    console.print(f"{counts['planned']} planned = {counts['written']} written + {counts['rejected']} rejected")


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
