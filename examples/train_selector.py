"""Train MaVEn's patch selector on shards, and ask the truth whether the shards' labels taught it as well as truth does.

    python examples/train_selector.py out/selector          # 5 minutes on 2 cores; --json for machines

It builds two data sets of drawn scenes (one to learn from, one to be judged on; labels and features by the bundled
models), and trains three selectors: on the shards' labels, on the scenes' truth, and on labels
shuffled between samples, which must teach nothing. All are judged by the truth of scenes that none of them saw.

AUC is taken between the patches of what a text names and those of the image's *other things*. Against the whole rest of
the image (`auc_all`) even shuffled labels do well: things stand nearer to the middle than background does, so labels
of any scene teach that a patch of a thing is a better guess. Between things that is of no use, and chance is 0.5.

On your own data set only `train` is of interest: `StageDataset`, `StageLoader`, `PatchSelector`. In MaVEn the global
state comes from the language model; here a small network over the words and the image's codes stands in for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from patchmint.config import MODEL_PRESETS
from patchmint.demo import DEMO_SEED
from patchmint.demo.dataset import obtain_scenes, read_truth
from patchmint.demo.score import judged_samples, sample_placement
from patchmint.judging.judge import touched_patches
from patchmint.storage import open_storage
from patchmint.training import PatchSelector, StageBatch, StageDataset, StageLoader, auc, recall_at_keep, selector_loss

KEEP_RATIO = 0.25
WORDS, WIDTH, HIDDEN = 1024, 128, 128
BATCH, RATE = 48, 2e-3
PATCHES, FAVOUR = 96, 8
# Of each image so many patches are looked at in a step, labelled ones nine times as often as others.

Labels = Callable[[StageBatch], Tensor]
"""What a selector learns: (B, patches), of a batch."""


class GlobalState(nn.Module):
    """Words, their order, and the codes that occur: what the language model's state at `<EOS>` is for in MaVEn."""

    size = 2 * WIDTH + WIDTH // 4

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.reader = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.codes = nn.EmbeddingBag(codes, WIDTH // 4, mode="mean")

    def forward(self, batch: StageBatch) -> Tensor:
        """(B, size) of a batch."""
        ids = [torch.tensor([word_id(word) for word in text.lower().split()]) for text in batch.texts]
        words = [self.words(row) for row in ids]
        read = self.reader(nn.utils.rnn.pack_sequence(words, enforce_sorted=False))[1][0]
        assert batch.codes is not None
        return torch.cat([torch.stack([row.sum(0) for row in words]), read, self.codes(batch.codes.flatten(1))], dim=1)


class Model(nn.Module):
    """A selector with its stand-in for the language model."""

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.state = GlobalState(codes)
        self.selector = PatchSelector(channels, GlobalState.size, hidden=HIDDEN)

    def forward(self, batch: StageBatch, chosen: Tensor | None = None) -> Tensor:
        """Logits (B, patches), of all patches or of chosen ones (B, n)."""
        assert batch.features is not None
        patches = batch.features.flatten(1, 2)
        if chosen is not None:
            patches = patches[torch.arange(len(patches))[:, None], chosen]
        scores: Tensor = self.selector(patches.float(), self.state(batch))
        return scores


def word_id(word: str) -> int:
    """A place for a word: the same in every process, unlike `hash`."""
    return 1 + int.from_bytes(word.strip(".,?!").encode()[:12].ljust(12), "little") % (WORDS - 1)


class Truth:
    """What the scenes know: true labels, and where there is anything at all."""

    def __init__(self, folder: Path) -> None:
        self._labels: dict[str, Tensor] = {}
        self._things: dict[str, Tensor] = {}
        for sample, scene in judged_samples(open_storage(str(folder / "dataset")), read_truth(folder / "scenes")):
            placement = sample_placement(sample)
            empty = torch.zeros(placement.shape, dtype=torch.bool)
            grids = [
                empty if text.mask is None else torch.from_numpy(touched_patches(text.mask, placement))
                for text in scene.texts
            ]
            self._labels[sample.key] = torch.stack(grids).flatten(1).long()
            things = [torch.from_numpy(touched_patches(thing, placement)) for thing in scene.objects]
            self._things[sample.key] = torch.stack(things).any(0).flatten()

    def labels(self, batch: StageBatch) -> Tensor:
        """(B, patches) 0 or 1."""
        pairs = zip(batch.keys, batch.text_indices, strict=True)
        return torch.stack([self._labels[key][text] for key, text in pairs])

    def things(self, batch: StageBatch) -> Tensor:
        """(B, patches) True where a patch has something of any thing."""
        return torch.stack([self._things[key] for key in batch.keys])


def stored_labels(batch: StageBatch) -> Tensor:
    """The shards' own labels (B, patches)."""
    assert batch.feature_selector is not None
    return batch.feature_selector.flatten(1)


def train(folder: Path, labels: Labels, steps: int, seed: int = 0, columns: Sequence[str] | None = None) -> Model:
    """Train a selector on a data set, labels weighted by their trust where it is told (`patchmint trust`)."""
    torch.manual_seed(seed)
    dataset = StageDataset(folder / "dataset", include=("labels", "codes", "features"), seed=seed, columns=columns)
    layout = dataset.layouts[0]
    assert layout.features is not None
    assert layout.tokens is not None
    model = Model(layout.features.channels, layout.tokens.codebook_sizes[0])
    batches = endless(StageLoader(dataset, min(BATCH, len(dataset)), drop_last=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for batch in islice(batches, steps):
        wanted = labels(batch)
        chosen = torch.multinomial(1 + FAVOUR * wanted.float(), PATCHES)
        optimizer.zero_grad()
        selector_loss(model(batch, chosen), wanted.gather(1, chosen), weight=batch.trust).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def endless(loader: StageLoader) -> Iterator[StageBatch]:
    """Epoch after epoch."""
    while True:
        yield from loader


@torch.no_grad()
def judge(model: Model, folder: Path, truth: Truth) -> dict[str, float]:
    """Means over the images and their first texts, those left out that name nothing, or everything that is there."""
    areas, areas_all, recalls = [], [], []
    dataset = StageDataset(folder / "dataset", include=("labels", "codes", "features"), text="first", shuffle=False)
    for batch in StageLoader(dataset, BATCH):
        scores, labels = model(batch), truth.labels(batch)
        areas.append(auc(scores, labels, truth.things(batch)))
        areas_all.append(auc(scores, labels))
        recalls.append(recall_at_keep(scores, labels, KEEP_RATIO))
    figures = {"auc": areas, "auc_all": areas_all, "recall_at_keep": recalls}
    return {name: float(torch.cat(values).nanmean()) for name, values in figures.items()}


def build(folder: Path, seed: int, count: int, vit: str) -> None:
    """Make scenes and shards, or go on where an earlier call stopped."""
    obtain_scenes(folder / "scenes", seed=seed, count=count, progress=lambda _: None)
    config = {
        "source": {"kind": "coco", "uri": str(folder / "scenes"), "texts": "caption"},
        "output": {"uri": str(folder / "dataset"), "samples_per_shard": 50},
        "models": MODEL_PRESETS["demo"].model_copy(update={"vit": vit}).model_dump(),
        "grid": {"rows": 24, "cols": 24, "patch_px": 14, "fit": "squash"},
        "features": {"connector": "dci"},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-W", "ignore", "-m", "patchmint", "build", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 (our own command)


def main() -> None:
    """Build, train three times, judge."""
    parser = argparse.ArgumentParser(description="Train a patch selector on drawn scenes, and judge it by their truth.")
    parser.add_argument("out", type=Path, help="folder for the data sets")
    parser.add_argument("--scenes", type=int, default=300, help="to learn from; a quarter of it for judging")
    parser.add_argument("--steps", type=int, default=500, help="of each of the three trainings")
    parser.add_argument("--vit", default="demo-vit", help="the vision encoder; untrained-tiny: one with random weights")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    started = time.monotonic()
    learn, held_out = options.out / "learn", options.out / "held-out"
    for folder, seed, count in ((learn, DEMO_SEED, options.scenes), (held_out, DEMO_SEED + 1, options.scenes // 4)):
        folder.mkdir(parents=True, exist_ok=True)
        build(folder, seed, count, options.vit)
    truth, judged_by = Truth(learn), Truth(held_out)
    print(f"built: {time.monotonic() - started:.0f} s", file=sys.stderr)

    def shuffled(batch: StageBatch) -> Tensor:
        return stored_labels(batch).roll(1, 0)  # each sample is given another one's labels

    figures = {}
    for name, labels in (("labels", stored_labels), ("truth", truth.labels), ("shuffled", shuffled)):
        figures[name] = judge(train(learn, labels, options.steps, options.seed), held_out, judged_by)
        print(f"trained on {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    result = {
        "auc": figures["labels"]["auc"],
        "auc_on_truth": figures["truth"]["auc"],
        "recall_at_keep": figures["labels"]["recall_at_keep"],
        "auc_shuffled": figures["shuffled"]["auc"],
        "auc_all": {name: found["auc_all"] for name, found in figures.items()},
        "keep_ratio": KEEP_RATIO,
        "seconds": round(time.monotonic() - started, 1),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'trained on':<18} {'AUC':>7} {'AUC, all':>9} {f'kept at {KEEP_RATIO}':>13}")
    for name, found in figures.items():
        print(f"{name:<18} {found['auc']:7.3f} {found['auc_all']:9.3f} {found['recall_at_keep']:13.3f}")
    print("AUC: patches of what the text names against those of other things; chance is 0.5")
    print(f"{result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
