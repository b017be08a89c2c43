"""`patchmint judge` and `calibrate`: how right are a data set's labels, and what do their scores mean?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchmint.cli.inspect.shared import (
    DatasetArgument,
    GridOption,
    JsonOption,
    check_output,
    console_for_data,
    print_json,
    progress_bar,
    write_output,
)
from patchmint.jobs.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from patchmint.datasets.dataset import Dataset
    from patchmint.judging.judge import Verdict
    from patchmint.judging.plant import Planted

_PARTS = ("patch_f1", "missed_rate", "absent_rate", "mask_iou", "box_f1", "ece")
_SHOWN_PHRASES = 10


AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="TRUTH",
        help="truth.json (docs/judge.md); COCO's or LVIS's instances; a folder with one of them, with RefCOCO's or "
        "Visual Genome's files; or another data set. Default: what the source's annotators drew, as stored.",
    ),
]


def judge_command(
    dataset: DatasetArgument,
    against: AgainstOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what is there, and scores: from the sidecars, without opening tars.")
    ] = False,
    replicates: Annotated[int, typer.Option(min=0, help="Of the bootstrap over images. 0: no intervals.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap, and of planted errors.")] = 0,
    worst: Annotated[int, typer.Option(min=0, help="Number of the worst texts to name, and to draw in the page.")] = 12,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write a page with pictures of the worst.")
    ] = None,
    planted: Annotated[
        float | None,
        typer.Option(
            "--plant",
            metavar="SHARE",
            min=0,
            max=1,
            help="Instead: plant errors into a copy of this share of the labels; say how many scores and trust find.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE.json", help="Take scores for what `patchmint calibrate` learnt."),
    ] = None,
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labels by a truth: patches, boxes, masks, what is there at all, and whether scores can be believed.

    Samples are matched by key, else by the source's id, else by the image's path; those without a known truth are
    counted, not judged.

    Ends with 0; with 2 if there is nothing to judge.
    """
    from patchmint.datasets.dataset import open_dataset
    from patchmint.jobs.truths import open_truth
    from patchmint.judging.calibrate import Calibration
    from patchmint.judging.judge import judge

    check_output(html, ".html")
    opened = open_dataset(dataset).on_grid(grid)
    if planted is not None:
        _plant(opened, planted, seed, as_json=as_json)
        return
    truth = open_truth(against)
    meaning = Calibration.read(calibration) if calibration is not None else None
    with progress_bar("judge") as progress:
        verdict = judge(
            opened,
            truth,
            quick=quick,
            replicates=replicates,
            seed=seed,
            worst=worst,
            calibration=meaning,
            progress=progress,
        )
    if html is not None:
        from patchmint.judging.page import render_page

        write_output(html, render_page(verdict, opened, open_truth(against)).encode())
    if as_json:
        print_json(asdict(verdict))
    else:
        _print(console_for_data(), verdict)


def calibrate_command(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="Where to write what was learnt.")],
    against: AgainstOption = None,
    trust: Annotated[
        Literal["off", "cheap", "full"],
        typer.Option(
            help="Learn the like for `patchmint trust --calibration`, too; full: from passes of the detector."
        ),
    ] = "off",
    device: Annotated[
        str, typer.Option(help="Where --trust full and --presence run: auto, cpu, cuda or cuda:N.")
    ] = "auto",
    presence: Annotated[
        str | None,
        typer.Option(
            "--presence",
            metavar="YAML",
            help="Learn thresholds of a second look as well, with these settings of labels.presence: "
            r"'{alternatives: \[\[red, blue], \[cat, dog]]}'. The detector looks at each box again.",
        ),
    ] = None,
    absent: Annotated[
        float, typer.Option("--absent", min=0, max=1, help="Share of absent things that may keep a label then.")
    ] = 0.005,
    as_json: JsonOption = False,
) -> None:
    """Learn from a judged data set how often boxes of a score are right, for `patchmint judge --calibration`.

    A box is right if it lies on a thing that its words name, at IoU 0.50. The figures after calibration are measured on
    images that weren't learnt from. With --trust also: how right patches are, by what is known of labels without truth.

    With --presence the file also serves a build: --labels.presence '{calibration: OUT.json}'.
    """
    import yaml

    from patchmint.config import PresenceConfig
    from patchmint.config.parsing import parse_settings
    from patchmint.datasets.dataset import open_dataset
    from patchmint.jobs.trust import passes_of
    from patchmint.jobs.truths import open_truth
    from patchmint.judging.calibrate import calibrate
    from patchmint.judging.trust import Trust

    check_output(out, ".json")
    look = parse_settings(PresenceConfig, yaml.safe_load(presence)) if presence is not None else None
    opened, told = open_dataset(dataset), ""
    with progress_bar("calibrate") as progress:
        learnt = calibrate(opened, open_truth(against), progress)
    if look is not None:
        from patchmint.judging.presence import learn_presence

        with progress_bar("look again") as progress:
            seen = learn_presence(opened, open_truth(against), look, most=absent, device=device, progress=progress)
        learnt = learnt.model_copy(update={"presence": seen.settings})
        told = (
            f"{seen.phrases:,} things named; absent ones labelled: {seen.absent[0]:.1%} before, {seen.absent[1]:.1%} "
            f"after a second look over {seen.settings.threshold:.2f}; present ones missed: {seen.missed[0]:.1%}, "
            f"{seen.missed[1]:.1%}"
        )
    if trust != "off":
        trusting = Trust(opened, passes_of(opened, device) if trust == "full" else None)
        with progress_bar("trust") as progress:
            trusting.count()
            trusting.learn(open_truth(against), progress=progress)
        learnt = learnt.model_copy(update={"trust": trusting.model})
    write_output(out, f"{learnt.model_dump_json()}\n".encode())
    if as_json:
        print_json(learnt.model_dump())
    else:
        console_for_data().print(
            f"{learnt.boxes:,} boxes; expected calibration error: {learnt.ece_before:.3f} before, "
            f"{learnt.ece_after:.3f} after ({learnt.ece_chance:.3f} would be chance)",
            highlight=False,
        )
        if told:
            console_for_data().print(told, highlight=False)


def _plant(dataset: Dataset, share: float, seed: int, *, as_json: bool) -> None:
    from patchmint.errors import InputError
    from patchmint.judging.plant import plant
    from patchmint.judging.trust import Trust

    with progress_bar("plant") as progress:
        planted = plant(dataset, share, seed=seed, progress=progress)
    trust = Trust(dataset)
    try:
        trust.count()
        trusted = trust.trial(share, seed)
    except InputError:  # too few labels to learn from
        trusted = None
    if as_json:
        print_json(asdict(planted) | {"trust": None if trusted is None else asdict(trusted)})
        return
    table = Table("planted", *(Column(name, justify="right") for name in ("texts", "AUROC of the lowest score")))
    rows = {kind: [f"{count:,}", _shown(value)] for kind, (count, value) in _kinds(planted).items()}
    if trusted is not None:
        table.add_column("AUROC of cheap trust", justify="right")
        for kind, (_, value) in _kinds(trusted).items():
            rows[kind].append(_shown(value))
    for kind, row in rows.items():
        table.add_row(kind, *row)
    console = console_for_data()
    console.print(table)
    console.print(f"of {planted.texts:,} texts that something was found for; 0.5 is chance", highlight=False)


def _kinds(planted: Planted) -> dict[str, tuple[int, float | None]]:
    return {**planted.by_kind, "all": (planted.planted, planted.auroc)}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _print(console: Console, verdict: Verdict) -> None:
    from patchmint.judging.figures import FIGURES

    table = Table("figure", Column("value", justify="right"), Column("95 % interval", justify="right"), "what it says")
    for name, value in verdict.figures.items():
        if value is not None:
            low, high = verdict.intervals.get(name, (None, None))
            table.add_row(name, f"{value:.3f}", "" if low is None else f"{low:.3f} to {high:.3f}", FIGURES[name])
    console.print(table)
    if verdict.reliability:
        table = Table("score", *(Column(name, justify="right") for name in ("found", "mean score", "right")))
        for row in verdict.reliability:
            table.add_row(f"{row.low:.1f} to {row.high:.1f}", f"{row.found:,}", f"{row.score:.3f}", f"{row.right:.3f}")
        console.print(table)
    for kind, groups in verdict.groups.items():
        table = Table(kind, *(Column(name, justify="right") for name in ("phrases", *_PARTS)))
        for group in groups[:_SHOWN_PHRASES]:
            values = [f"{group.figures[name]:.3f}" if name in group.figures else "" for name in _PARTS]
            table.add_row(escape(printable(group.name)), f"{group.phrases:,}", *values)
        console.print(table)
    for bad in verdict.worst:
        told = [f"missed: {', '.join(bad.missed)}"] if bad.missed else []
        told += [f"not there: {', '.join(bad.wrong)}"] if bad.wrong else []
        line = f"{bad.key}  {bad.agreement:.2f}  {bad.content[:80]}  {'; '.join(told)}"
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)
    lines = [f"{verdict.samples:,} samples = {verdict.judged:,} judged + {verdict.unmatched:,} without a known truth"]
    if verdict.examples:
        lines[0] += f" ({', '.join(verdict.examples)}{', ...' if verdict.unmatched > len(verdict.examples) else ''})"
    if verdict.unused:
        lines.append(f"{verdict.unused:,} images of the truth aren't in the data set")
    if verdict.unknown_texts:
        lines.append(f"{verdict.unknown_texts:,} texts of judged images aren't in the truth")
    if verdict.own:
        lines.append(f"{verdict.own:,} boxes or masks were made of annotators' own, and agree with these in any case")
    for line in lines:
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)
