"""MaVEn in small (arXiv 2408.12321), from drawn scenes to a model that answers questions about several pictures.

    python examples/maven/run.py out/maven            # made for 20 minutes on 2 cores; --tiny teaches nothing
    python examples/maven/run.py out/maven --json     # the figures as JSON; they are in figures.json, too

It builds shards with the bundled models, lets a small Llama learn words, trains it in MaVEn's four stages with codes,
with kept patches, and with both, and judges each on scenes that nothing was trained on. A run that was stopped goes on
where it was. `figures.png` has the plots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from data import Pictures, Size, documents
from judge import HeldOut, judge, judge_selector
from model import MODES, Maven, Mode
from stages import (
    DESCRIBE,
    KEEP,
    Steps,
    learn_words,
    name_of,
    question_of,
    stage1,
    stage2,
    stage3,
    stage4,
)

from patchmint.demo import DEMO_SEED
from patchmint.demo.documents import ORDINALS
from patchmint.demo.shapes import COLOURS, SHAPES
from patchmint.shards.manifest import read_manifest
from patchmint.storage import open_storage
from patchmint.training import Codebook, StageDataset
from patchmint.types import PHRASE_SEPARATOR

RATIOS = (0.1, KEEP, 0.5, 1.0)
CORES = 2


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    size: Size = field(default_factory=Size)
    steps: Steps = field(default_factory=Steps)


TINY = Plan(Size(24, 12, 12, 6, 3), Steps(3, 3, 3, 3, 3))


class Data:
    """What is learnt from and what is judged by, built once."""

    def __init__(self, out: Path, size: Size) -> None:
        self.labelled = Pictures(out / "labelled", DEMO_SEED, size.labelled)
        self.more = Pictures(out / "more", DEMO_SEED + 2, size.more, labels=False)
        self.held_out = Pictures(out / "held-out", DEMO_SEED + 1, size.held_out)
        self.documents = documents(out / "documents", DEMO_SEED, size.documents)
        self.held_out_documents = documents(out / "held-out-documents", DEMO_SEED + 1, size.held_out_documents)

    @property
    def pictures(self) -> list[Path]:
        """Data sets to talk about."""
        return [self.labelled.dataset, self.more.dataset]

    def texts(self) -> list[str]:
        """Texts with all the words that may be said."""
        turns = [part.text for sample in StageDataset(self.documents, include=()) for part in sample.parts]
        things = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        return [DESCRIBE, name_of(0), PHRASE_SEPARATOR, ":", *ORDINALS, *map(question_of, things), *turns]


def train(data: Data, out: Path, steps: Steps, seed: int, mode: Mode | None = None) -> Maven:
    """Stages 1 to 3, which all modes share; then the last one for a mode. Finished stages are read, not repeated."""
    out = out / f"seed-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(open_storage(str(data.labelled.dataset)))
    world = Maven(data.texts(), manifest.layout, Codebook.of(manifest), seed)
    learn_words(world, data.pictures, out, steps.words)
    world.extend()
    stage1(world, data.labelled.dataset, out, steps.selector)
    stage2(world, data.pictures, out, steps.codes)
    stage3(world, data.pictures, out, steps.projector)
    if mode is not None:
        stage4(world, data.pictures, data.documents, out, steps.everything, mode)
    return world


def figures_of(data: Data, out: Path, steps: Steps, job: tuple[int, Mode | None]) -> dict[str, Any]:
    """Figures of a seed and a mode; without a mode those of what was learnt before stage 4: words, and the selector."""
    seed, mode = job
    world = train(data, out, steps, seed, mode)
    held_out = HeldOut.read(data.held_out.dataset, data.held_out_documents)
    if mode is None:
        words, _ = judge(world, replace(held_out, documents=()), "words")
        return {"words": words, **judge_selector(world, data.held_out.dataset, data.held_out.truth)}
    figures, chance = judge(world, held_out, mode)
    exchanged, _ = judge(world, held_out.exchanged(), mode)
    pairs = replace(held_out, pictures=(), documents=())
    kept = {
        name: {str(ratio): judge(world, pairs, mode, ratio, by_chance=by_chance)[0]["which"] for ratio in RATIOS}
        for name, by_chance in (("keep_selector", False), ("keep_random", True))
        if mode != "discrete"
    }
    return {**figures, "exchanged": exchanged, "chance": chance, **kept}


def run(data: Data, out: Path, steps: Steps, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train and judge, on a core each; figures of each seed by name and mode."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(partial(train, data, out, steps), seeds))
        jobs = [(seed, mode) for mode in (*reversed(MODES), None) for seed in seeds]  # the longest first
        found = dict(zip(jobs, pool.map(partial(figures_of, data, out, steps), jobs), strict=True))
    return [by_figure(found[seed, None], {mode: found[seed, mode] for mode in MODES}) for seed in seeds]


def by_figure(before: Mapping[str, Any], judged: Mapping[Mode, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by name, then by mode, with those of before stage 4."""
    names = dict.fromkeys(name for found in judged.values() for name in found)
    figures = {name: {mode: found[name] for mode, found in judged.items() if name in found} for name in names}
    for name in ("exchanged", "chance"):
        figures[name] = {
            figure: {mode: figures[name][mode][figure] for mode in MODES} for figure in figures[name][MODES[0]]
        }
    return {**figures, **before}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Bars by mode, and the figures by the share of patches that is kept."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
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
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Build, train, judge."""
    parser = argparse.ArgumentParser(description="MaVEn's four stages in small, on drawn scenes.")
    parser.add_argument("out", type=Path, help="folder for data, checkpoints and figures")
    parser.add_argument("--tiny", action="store_true", help="a few scenes and steps: only whether it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    plan = TINY if options.tiny else Plan()
    started = time.monotonic()
    data = Data(options.out, plan.size)
    built = time.monotonic()
    print(f"built: {built - started:.0f} s", file=sys.stderr)
    (figures,) = run(data, options.out, plan.steps, [options.seed])
    figures |= {"plan": asdict(plan), "seconds": {"build": built - started, "train": time.monotonic() - built}}
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
