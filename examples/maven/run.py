"""MaVEn in small (arXiv 2408.12321), from drawn scenes to a model that answers questions about several pictures.

    python examples/maven/run.py out/maven            # about 12 minutes of CPU time; --tiny: one, teaches nothing
    python examples/maven/run.py out/maven --json     # the figures as JSON; they are in figures.json, too

It builds shards with the bundled models, lets a small Llama learn words, trains it in MaVEn's four stages with codes,
with kept patches, and with both, and judges each on scenes that nothing was trained on. A run that was stopped goes on
where it was. `figures.png` has the plots.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from data import Pictures, Size, documents
from judge import HeldOut, judge, judge_selector
from model import MODES, Maven, Mode
from stages import DESCRIBE, KEEP, Steps, learn_words, stage1, stage2, stage3, stage4

from patchmint.demo import DEMO_SEED
from patchmint.shards.manifest import read_manifest
from patchmint.storage import open_storage
from patchmint.training import Codebook, StageDataset

RATIOS = (0.1, KEEP, 0.5, 1.0)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    size: Size = field(default_factory=Size)
    steps: Steps = field(default_factory=Steps)


TINY = Plan(Size(24, 12, 6, 3), Steps(3, 3, 3, 3, 3))


class Data:
    """What is learnt from and what is judged by, built once."""

    def __init__(self, out: Path, size: Size) -> None:
        self.learn = Pictures(out / "learn", DEMO_SEED, size.scenes)
        self.held_out = Pictures(out / "held-out", DEMO_SEED + 1, size.held_out)
        self.documents = documents(out / "documents", DEMO_SEED, size.documents)
        self.held_out_documents = documents(out / "held-out-documents", DEMO_SEED + 1, size.held_out_documents)

    def texts(self) -> list[str]:
        """All that the shards say, and what is asked besides."""
        samples = StageDataset([self.learn.dataset, self.documents], include=(), text="first")
        return [DESCRIBE] + [
            text for sample in samples for text in (sample.text, *(part.text for part in sample.parts))
        ]


def train(data: Data, out: Path, steps: Steps, seed: int = 0, modes: Sequence[Mode] = MODES) -> dict[Mode, Maven]:
    """All stages, the last one for each mode; the trained models."""
    out.mkdir(parents=True, exist_ok=True)
    learn = data.learn.dataset
    manifest = read_manifest(open_storage(str(learn)))
    world = Maven(data.texts(), manifest.layout, Codebook.of(manifest), seed)
    learn_words(world, learn, out, steps.words)
    world.extend()
    stage1(world, learn, out, steps.selector)
    stage2(world, learn, out, steps.codes)
    stage3(world, learn, out, steps.projector)
    trained = {}
    for mode in modes:
        trained[mode] = deepcopy(world)
        stage4(trained[mode], learn, data.documents, out, steps.everything, mode)
    return trained


def figures_of(trained: Mapping[Mode, Maven], data: Data) -> dict[str, Any]:
    """All figures, each by mode, or by mode and the share of patches that is kept."""
    held_out = HeldOut.read(data.held_out.dataset, data.held_out_documents)
    judged = {mode: judge(world, held_out, mode) for mode, world in trained.items()}
    exchanged = {mode: judge(world, held_out.exchanged(), mode) for mode, world in trained.items()}
    pairs = replace(held_out, pictures=(), documents=())
    kept = {
        name: {
            mode: {
                str(ratio): judge(trained[mode], pairs, mode, ratio, by_chance=by_chance)["which"] for ratio in RATIOS
            }
            for mode in trained
            if mode != "discrete"
        }
        for name, by_chance in (("keep_selector", False), ("keep_random", True))
    }
    return {
        **_by_figure(judged),
        "exchanged": _by_figure(exchanged),
        "chance": held_out.chance(),
        **judge_selector(next(iter(trained.values())), data.held_out.dataset, data.held_out.truth),
        **kept,
    }


def _by_figure(judged: Mapping[Mode, Mapping[str, float]]) -> dict[str, dict[Mode, float]]:
    names = next(iter(judged.values()))
    return {name: {mode: found[name] for mode, found in judged.items()} for name in names}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Bars by mode, and the figures by the share of patches that is kept."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    names = ("colour_f1", "shape_f1", "which")
    for place, mode in enumerate(MODES):
        spots = [number + 0.25 * place for number in range(len(names))]
        left.bar(spots, [figures[name][mode] for name in names], 0.23, label=mode)
    for number, name in enumerate(names):
        left.hlines(figures["chance"][name], number - 0.15, number + 0.65, colors="black", linestyles="dotted")
    left.set_xticks([number + 0.25 for number in range(len(names))], names)
    left.set_title("by what stands for a picture; dotted: chance")
    for name, style in (("keep_selector", "-o"), ("keep_random", "--x")):
        for mode, found in figures[name].items():
            right.plot(RATIOS, [found[str(ratio)] for ratio in RATIOS], style, label=f"{mode}, {name}")
    right.set(xlabel="share of patches kept", ylabel="which", title="kept by the selector, and at random")
    for axes in (left, right):
        axes.legend()
        axes.set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Build, train, judge."""
    parser = argparse.ArgumentParser(description="MaVEn's four stages in small, on drawn scenes.")
    parser.add_argument("out", type=Path, help="folder for data, checkpoints and figures")
    parser.add_argument("--tiny", action="store_true", help="a few scenes and steps: only whether it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = TINY if options.tiny else Plan()
    started = time.monotonic(), time.process_time()
    data = Data(options.out, plan.size)
    print(f"built: {time.monotonic() - started[0]:.0f} s", file=sys.stderr)
    trained = train(data, options.out / f"seed-{options.seed}", plan.steps, options.seed)
    figures = figures_of(trained, data)
    figures |= {"plan": asdict(plan), "cpu_seconds": round(time.process_time() - started[1])}
    figures["seconds"] = round(time.monotonic() - started[0])
    (options.out / f"seed-{options.seed}" / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(figures, options.out / f"seed-{options.seed}" / "figures.png")
    if options.json:
        print(json.dumps(figures))
        return
    for name in ("colour_f1", "shape_f1", "which", "documents"):
        row = "  ".join(f"{mode} {value:.3f}" for mode, value in figures.get(name, {}).items())
        print(f"{name:<20} {row}  chance {figures['chance'].get(name, float('nan')):.3f}")
    for name in ("auc_between_things", "recall_at_keep"):
        print(f"{name:<20} {figures[name]:.3f}")


if __name__ == "__main__":
    main()
