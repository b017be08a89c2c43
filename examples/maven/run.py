"""MaVEn in small (arXiv 2408.12321), from drawn scenes to a model that answers questions about several pictures.

    python examples/maven/run.py out/maven            # about 20 minutes on 2 cores; --tiny teaches nothing
    python examples/maven/run.py out/maven --json     # the figures as JSON; seed-0/figures.json has them, too

It builds shards with the bundled models, lets a small Llama learn words, trains it in MaVEn's four stages with codes,
with kept patches, and with both, and judges each on scenes that nothing was trained on. A run that was stopped goes on
where it was. `seed-0/figures.png` has the plots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data import Pictures, documents
from judge import HeldOut, answer, judge, judge_selector
from matplotlib.figure import Figure
from model import KEEP, MODES, Maven, Mode, Way
from stages import learn_words, stage1, stage2, stage3, stage4, texts

from patchmint.demo import DEMO_SEED

RATIOS = (0.1, KEEP, 0.5, 1.0)
CORES = 2
PLAN = {
    "size": {"labelled": 1200, "more": 1800, "held_out": 250, "documents": 100, "held_out_documents": 150},
    "steps": {"words": 2400, "selector": 400, "codes": 150, "projector": 200, "everything": 1000},
}
# How many scenes and documents there are to learn from (`more` without labels) and to be judged by; and the optimizer's
# steps in each stage.
TINY = {
    "size": {"labelled": 24, "more": 12, "held_out": 12, "documents": 6, "held_out_documents": 3},
    "steps": dict.fromkeys(PLAN["steps"], 3),
}


class Data:
    """What is learnt from and what is judged by, built once."""

    def __init__(self, out: Path, size: Mapping[str, int]) -> None:
        self.labelled = Pictures(out / "labelled", DEMO_SEED, size["labelled"])
        self.more = Pictures(out / "more", DEMO_SEED + 2, size["more"], labels=False)
        self.held_out = Pictures(out / "held-out", DEMO_SEED + 1, size["held_out"])
        self.documents = documents(out / "documents", DEMO_SEED, size["documents"])
        self.held_out_documents = documents(out / "held-out-documents", DEMO_SEED + 1, size["held_out_documents"])
        self.pictures = [self.labelled.dataset, self.more.dataset]


def train(data: Data, out: Path, steps: Mapping[str, int], seed: int, mode: Mode | None = None) -> Maven:
    """Stages 1 to 3, which all modes share; then the last one for a mode. Finished stages are read, not repeated."""
    out = out / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    world = Maven(texts(data.documents), data.labelled.dataset, seed)
    learn_words(world, data.pictures, out, steps["words"])
    world.extend()
    stage1(world, data.labelled.dataset, out, steps["selector"])
    stage2(world, data.pictures, out, steps["codes"])
    stage3(world, data.pictures, out, steps["projector"])
    if mode is not None:
        stage4(world, data.pictures, data.documents, out, steps["everything"], mode)
    return world


def figures_of(data: Data, out: Path, steps: Mapping[str, int], job: tuple[int, Mode | None]) -> dict[str, Any]:
    """Figures of a seed and a mode; without a mode those of what was learnt before stage 4: words, and the selector."""
    seed, mode = job
    world = train(data, out, steps, seed, mode)
    held_out = HeldOut.read(data.held_out.dataset, data.held_out_documents)
    if mode is None:
        words, _ = judge(world, replace(held_out, documents=()), Way("words"))
        return {"words": words, **judge_selector(world, data.held_out.dataset, data.held_out.truth())}
    figures, chance = judge(world, held_out, Way(mode))
    exchanged, _ = judge(world, held_out.exchanged(), Way(mode))
    kept = {
        name: {str(ratio): answer(world, held_out.pairs, Way(mode, ratio, by_chance)) for ratio in RATIOS}
        for name, by_chance in (("keep_selector", False), ("keep_random", True))
        if mode != "discrete"
    }
    return {**figures, "exchanged": exchanged, "chance": chance, **kept}


def run(data: Data, out: Path, steps: Mapping[str, int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train and judge, on a core each; figures of each seed by name and mode."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(partial(train, data, out, steps), seeds))
        jobs = [(seed, mode) for mode in (*reversed(MODES), None) for seed in seeds]  # the longest first
        found = dict(zip(jobs, pool.map(partial(figures_of, data, out, steps), jobs), strict=True))
    return [{**by_figure({mode: found[seed, mode] for mode in MODES}), **found[seed, None]} for seed in seeds]


def by_figure(judged: Mapping[Mode, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by name, then by mode."""
    names = dict.fromkeys(name for found in judged.values() for name in found)
    figures = {name: {mode: found[name] for mode, found in judged.items() if name in found} for name in names}
    return {name: by_figure(found) if name in ("exchanged", "chance") else found for name, found in figures.items()}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Bars by mode, and the figures by the share of patches that is kept."""
    figure = Figure(figsize=(11, 4), layout="tight")
    left, right = figure.subplots(1, 2)
    names = ("colour_f1", "shape_f1", "which")
    for place, mode in enumerate(MODES):
        spots = [number + 0.25 * place for number in range(len(names))]
        left.bar(spots, [figures[name][mode] for name in names], 0.23, label=mode)
        for spot, name in zip(spots, names, strict=True):
            left.hlines(figures["chance"][name][mode], spot - 0.115, spot + 0.115, colors="black", linestyles="dotted")
    left.set_xticks([number + 0.25 for number in range(len(names))], names)
    left.set_title("by what stands for a picture; dotted: chance")
    for name, style in (("keep_selector", "-o"), ("keep_random", "--x")):
        for mode, found in figures[name].items():
            right.plot(RATIOS, [found[str(ratio)] for ratio in RATIOS], style, label=f"{mode}, {name}")
    right.set(xlabel="share of patches kept", ylabel="which", title="kept by the selector, and at random")
    for axes in (left, right):
        axes.legend(loc="upper left", ncols=2, fontsize="small")
        axes.set_ylim(0, 1.25)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Build, train, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for data, checkpoints and figures")
    parser.add_argument("--tiny", action="store_true", help="a few scenes and steps: only whether it runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    plan = TINY if options.tiny else PLAN
    started = time.monotonic()
    data = Data(options.out, plan["size"])
    built = time.monotonic()
    print(f"built: {built - started:.0f} s", file=sys.stderr)
    (figures,) = run(data, options.out, plan["steps"], [options.seed])
    figures |= {"plan": plan, "seconds": {"build": built - started, "train": time.monotonic() - built}}
    (options.out / f"seed-{options.seed}" / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(figures, options.out / f"seed-{options.seed}" / "figures.png")
    if options.json:
        print(json.dumps(figures))
        return
    for kind, found in (("", figures), ("exchanged", figures["exchanged"]), ("chance", figures["chance"])):
        for name in figures["chance"]:
            print(f"{name:<12}{kind:<12}", "  ".join(f"{mode} {found[name][mode]:.3f}" for mode in MODES))
    for name in ("auc_between_things", "recall_at_keep"):
        print(f"{name:<20} {figures[name]:.3f}")


if __name__ == "__main__":
    main()
