"""What three papers claim, in small, with several seeds and 95 % intervals.

    python examples/maven/papers.py out/maven                     # after run.py, on its data; 7 CPU minutes a seed
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from judge import HeldOut, judge
from model import WIDTH, Maven, Mode
from run import RATIOS, TINY, Data, Plan, run
from stages import KEEP, Task, fit, learn_words, lesson
from torch import Tensor, nn
from torch.nn import functional

from patchmint.shards.manifest import read_manifest
from patchmint.storage import open_storage
from patchmint.training import Codebook, ImageTokens, Projector, StageBatch, StageDataset, StageImage, collate

STUDENT = {1: math.nan, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
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

    def image(self, image: StageImage, mode: Mode, ratio: float) -> ImageTokens:
        """Slots for all tokens."""
        del image, mode, ratio
        return ImageTokens(slots=self.slots)

    def tokens(self, batch: StageBatch, ratio: float, *, by_chance: bool) -> Tensor:
        """Continuous tokens (N, slots, WIDTH)."""
        del ratio, by_chance
        return self.projector(batch.features.flatten(1, 2).float())


def connectors(data: Data, out: Path, steps: int, seed: int, words: int) -> dict[str, dict[str, Any]]:
    """Losses of held-out descriptions as training goes on, and F1 at its end, by connector."""
    manifest = read_manifest(open_storage(str(data.labelled.dataset)))
    made = (data.texts(), manifest.layout, Codebook.of(manifest), seed)
    base = Maven(*made)
    learn_words(base, data.pictures, out, words)
    channels = manifest.layout.features.channels
    layer = channels // len(manifest.layout.features.layers)
    kinds: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
        "V_L": (partial(Pooled, layer, WIDTH), None),
        "STI": (partial(Projector, layer, WIDTH), "sti"),
        "SCI": (partial(Projector, channels, WIDTH), "sci"),
        "DCI": (partial(Pooled, channels, WIDTH), None),
        "DCI, resampler": (partial(Resampler, channels), None),
    }
    found = {}
    for name, (projector, column) in kinds.items():
        if column:
            for pictures in (data.labelled, data.held_out):
                _extend(pictures.dataset, column)
        world = Compressed(*made)
        world.llm.load_state_dict(base.llm.state_dict())
        world.extend()
        torch.manual_seed(seed)
        world.projector = projector()
        sequences = partial(lesson, world, "continuous", KEEP, 1, 0)
        read = partial(StageDataset, include=["codes", "features"], text="first", columns=column and [column])
        dataset = read(data.labelled.dataset, sequences=sequences)
        world.slots = dataset.layouts[0].features.tokens if column else TOKENS
        held_out = HeldOut(list(read(data.held_out.dataset)), (), ())
        task = Task(dataset, partial(world.loss, ratio=KEEP))
        path = out / f"{name.replace(', ', '-')}.pt"
        path.unlink(missing_ok=True)  # losses are wanted on the way, too
        losses = []
        for end in range(steps // POINTS, steps + 1, steps // POINTS):
            fit(path, world, [task], [*world.llm.parameters(), *world.projector.parameters()], steps, 2e-3, until=end)
            losses.append(_held_out_loss(world, held_out))
        found[name] = {"losses": losses, **judge(world, held_out, "continuous")[0]}
    return found


def _extend(dataset: Path, connector: str) -> None:
    """Add a column of a connector's features, pooled as DeCo does; nothing where there is one."""
    if (dataset / "columns" / connector / "dataset.json").exists():
        return
    side = str(math.isqrt(TOKENS))
    what = ["--name", connector, "--features.connector", connector, "--features.pool", side, "--models", "demo"]
    command = [sys.executable, "-W", "ignore", "-m", "patchmint", "extend", str(dataset), *what]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 (our own command)


@torch.no_grad()
def _held_out_loss(world: Maven, held_out: HeldOut) -> float:
    made = [replace(one, sequences=lesson(world, "continuous", KEEP, 1, 0, one)) for one in held_out.pictures]
    return float(world.loss(collate(made), KEEP))


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
    """A line a seed: figures by patches kept, and losses by steps."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for number, found in enumerate(by_seed):
        for colour, (name, style) in zip(("C0", "C1"), (("keep_selector", "-o"), ("keep_random", "--x")), strict=True):
            for mode, kept in found.get("tokens", {}).get(name, {}).items():
                label = f"{mode}, {name}" if number == 0 and mode == "hybrid" else None
                left.plot(
                    RATIOS, list(kept.values()), style, color=colour, alpha=0.5 + 0.5 * (mode == "hybrid"), label=label
                )
        for colour, (name, values) in enumerate(found.get("connectors", {}).items()):
            label = name if number == 0 else None
            right.plot(range(1, POINTS + 1), values["losses"], color=f"C{colour}", label=label)
    left.set(xlabel="share of patches kept", ylabel="which")
    right.set(xlabel=f"training, of {POINTS}", ylabel="loss of held-out descriptions")
    for axes in (left, right):
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Train with every seed, print means."""
    parser = argparse.ArgumentParser(description="Papers' claims in small.")
    parser.add_argument("out", type=Path, help="run.py's folder")
    parser.add_argument("--only", choices=("tokens", "connectors"), help="one kind of claims")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of each connector")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--tiny", action="store_true", help="a few scenes and steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = TINY if options.tiny else Plan()
    data = Data(options.out, plan.size)
    seeds = range(options.seeds)
    by_seed: list[dict[str, Any]] = [{} for _ in seeds]
    if options.only != "connectors":
        for found, figures in zip(by_seed, run(data, options.out, plan.steps, seeds), strict=True):
            found["tokens"] = figures
    if options.only != "tokens":
        for seed, found in zip(seeds, by_seed, strict=True):
            folder = options.out / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / "connectors.json"
            if not kept.exists():
                kept.write_text(json.dumps(connectors(data, folder, options.steps, seed, plan.steps.words), indent=1))
            found["connectors"] = json.loads(kept.read_text())
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
