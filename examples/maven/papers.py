"""What three papers claim, in small, with several seeds and 95 % intervals.

    python examples/maven/papers.py out/maven                     # after run.py, on its data
    python examples/maven/papers.py out/maven --only connectors --steps 200

- **tokens**: MaVEn (arXiv 2408.12321), table 4: codes, continuous tokens, both; figure 4: patches kept by the selector
  against patches kept at random.
- **connectors**: Dense Connector (arXiv 2405.13800): STI, SCI and DCI against V_L alone, the last layer that each of
  them has; DeCo (arXiv 2405.20985): pooled patches against a resampler with as many tokens. STI and SCI are columns of
  the same shards, which `patchmint extend` adds.

It writes `papers.json`, `papers.png`, and prints a table; connectors of a seed that are finished aren't trained again.
docs/papers.md has what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import HeldOut, judge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from model import WIDTH, Maven, Way
from run import PLAN, RATIOS, TINY, Data, run
from stages import conversations, fit, learn_words, texts
from torch import Tensor, nn
from torch.nn import functional

from patchmint.training import ImageTokens, Projector, StageBatch, StageImage, collate

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
# t at 95 %, by the number of seeds.
POINTS = 4
TOKENS = 36
COMPARED = {"STI": "V_L", "SCI": "V_L", "DCI": "V_L", "DCI, resampler": "DCI"}
# Within a seed, which both share: that is surer than their means.


class Pooled(Projector):
    """DeCo: patches pooled to `TOKENS` without parameters, then LLaVA's projector; of the first channels alone."""

    def forward(self, patches: Tensor) -> Tensor:
        """(N, patches, channels) to (N, TOKENS, WIDTH)."""
        side = math.isqrt(patches.shape[1])
        grid = patches[..., : self[0].in_features].transpose(1, 2).unflatten(2, (side, side))
        return super().forward(functional.adaptive_avg_pool2d(grid, math.isqrt(TOKENS)).flatten(2).transpose(1, 2))


class Resampler(nn.Module):
    """As a Q-Former's last layer: `TOKENS` queries attend to all patches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.enter = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), Projector(WIDTH, WIDTH))

    def forward(self, patches: Tensor) -> Tensor:
        """(N, patches, channels) to (N, TOKENS, WIDTH)."""
        seen = self.enter(patches)
        queries = self.queries.expand(len(patches), -1, -1)
        return self.leave(queries + self.attention(queries, seen, seen, need_weights=False)[0])


class Compressed(Maven):
    """A model without a selector: its projector makes a few tokens of all features."""

    slots = TOKENS

    def image(self, image: StageImage, way: Way) -> ImageTokens:
        """Slots for all tokens."""
        del image, way
        return ImageTokens(slots=self.slots)

    def tokens(self, batch: StageBatch, way: Way) -> Tensor:
        """Continuous tokens (N, slots, WIDTH)."""
        del way
        return self.projector(batch.features.flatten(1, 2).float())


def connectors(data: Data, out: Path, words: int, steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """Losses of held-out descriptions as training goes on, and F1 at its end, by connector."""
    made, way = (texts(data.documents), data.labelled.dataset, seed), Way("continuous")
    base = Maven(*made)
    learn_words(base, data.pictures, out, words)
    channels = base.layout.features.channels
    layer = channels // len(base.layout.features.layers)
    kinds: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
        "V_L": (partial(Pooled, layer, WIDTH), None),
        "STI": (partial(Projector, layer, WIDTH), "sti"),
        "SCI": (partial(Projector, channels, WIDTH), "sci"),
        "DCI": (partial(Pooled, channels, WIDTH), None),
        "DCI, resampler": (partial(Resampler, channels), None),
    }
    found = {}
    for name, (projector, column) in kinds.items():
        columns, both = column and [column], (data.labelled.dataset, data.held_out.dataset)
        for dataset in both if column else ():
            _extend(dataset, column)
        world = Compressed(*made)
        world.llm.load_state_dict(base.llm.state_dict())
        world.extend()
        torch.manual_seed(seed)
        world.projector = projector()
        learnt, judged = (conversations(world, [dataset], way, columns=columns) for dataset in both)
        world.slots = learnt.dataset.layouts[0].features.tokens if column else TOKENS
        held_out = HeldOut(list(judged.dataset), (), ())
        path = out / f"{name.replace(', ', '-')}.pt"
        path.unlink(missing_ok=True)  # losses are wanted on the way, too
        losses = []
        for end in range(steps // POINTS, steps + 1, steps // POINTS):
            fit(world, path, ("llm", "projector"), [learnt], steps, 2e-3, until=end)
            with torch.no_grad():
                losses.append(float(world.loss(collate(held_out.pictures), way)))
        found[name] = {"losses": losses, **judge(world, held_out, way)[0]}
    return found


def _extend(dataset: Path, connector: str) -> None:
    """Add a column of a connector's features, pooled as DeCo does; nothing where there is one."""
    if (dataset / "columns" / connector / "dataset.json").exists():
        return
    side = str(math.isqrt(TOKENS))
    what = ["--name", connector, "--features.connector", connector, "--features.pool", side, "--models", "demo"]
    command = [sys.executable, "-W", "ignore", "-m", "patchmint", "extend", str(dataset), *what]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 (our own command)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval (Student's)."""
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    reach = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {reach:.3f}"


def flat(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Numbers by path."""
    rows: dict[str, float] = {}
    for name, value in figures.items():
        path = f"{before}{name}"
        if isinstance(value, list):
            rows |= {f"{path}[{place}]": float(one) for place, one in enumerate(value)}
        elif isinstance(value, Mapping):
            rows |= flat(value, f"{path} / ")
        else:
            rows[path] = float(value)
    return rows


def plot(by_seed: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Figures by patches kept, and losses by steps: means, and thin lines for the seeds."""
    figure = Figure(figsize=(11, 4), layout="tight")
    left, right = figure.subplots(1, 2)
    for mode, marker in (("continuous", "o"), ("hybrid", "s")):
        for name, style in (("keep_selector", {"color": "C0"}), ("keep_random", {"color": "C1", "linestyle": "--"})):
            kept = [list(found["tokens"][name][mode].values()) for found in by_seed if "tokens" in found]
            lines(left, RATIOS, kept, label=f"{mode}, {name}", marker=marker, **style)
    for name in by_seed[0].get("connectors", {}):
        losses = [found["connectors"][name]["losses"] for found in by_seed]
        lines(right, [(point + 1) / POINTS for point in range(POINTS)], losses, label=name)
    left.set(xlabel="share of patches kept", ylabel="which of two pictures")
    right.set(xlabel="share of the training", ylabel="loss of held-out descriptions")
    for axes in (left, right):
        axes.legend()
    figure.savefig(path, dpi=100)


def lines(axes: Axes, xs: Sequence[float], ys: Sequence[Sequence[float]], *, label: str, **style: str) -> None:
    """A thick line for the mean of some, which are thin; nothing where there are none."""
    if ys:
        (mean,) = axes.plot(xs, np.mean(ys, axis=0), label=label, linewidth=2, **style)
        for each in ys:
            axes.plot(xs, each, linestyle=mean.get_linestyle(), color=mean.get_color(), linewidth=0.7, alpha=0.4)


def main() -> None:
    """Train with every seed, print means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="run.py's folder; data that are missing are built")
    parser.add_argument("--only", choices=("tokens", "connectors"), help="one kind of claims")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6), help="how many seeds (default: 3)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each connector (default: 200)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads for connectors (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="a few scenes and steps: only whether it runs")
    options = parser.parse_args()
    if options.steps < POINTS or options.steps % POINTS:
        parser.error(f"--steps must be a multiple of {POINTS}, not {options.steps}: losses are taken at each quarter")
    torch.set_num_threads(options.threads)
    plan, steps = (TINY, 2 * POINTS) if options.tiny else (PLAN, options.steps)
    data = Data(options.out, plan["size"])
    by_seed: list[dict[str, Any]] = [{} for _ in range(options.seeds)]
    if options.only != "connectors":
        by_seed = [{"tokens": figures} for figures in run(data, options.out, plan["steps"], range(options.seeds))]
    if options.only != "tokens":
        for seed, found in enumerate(by_seed):
            path = options.out / f"seed-{seed}" / "connectors.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                losses = connectors(data, path.parent, plan["steps"]["words"], steps, seed)
                path.write_text(json.dumps(losses, indent=1))
            found["connectors"] = json.loads(path.read_text())
    (options.out / "papers.json").write_text(json.dumps(by_seed, indent=1) + "\n")
    plot(by_seed, options.out / "papers.png")
    rows = [flat(found) for found in by_seed]
    for row in rows:
        for name, other in COMPARED.items():
            paths = [path for path in row if f" / {name} / " in path]
            row |= {f"{path} - {other}": row[path] - row[path.replace(f"/ {name} /", f"/ {other} /")] for path in paths}
    for name in rows[0]:
        print(f"{name:<60} {interval([row[name] for row in rows])}")


if __name__ == "__main__":
    main()
