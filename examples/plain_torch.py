"""Train MaVEn's patch selector with webdataset and torch alone: the shards carry all that it takes.

    pip install torch webdataset
    python examples/plain_torch.py out/learn out/held-out          # two finished data sets; --json for machines

Nothing here imports patchmint. The data sets have labels, codes and features on a grid that doesn't depend on the image
(examples/train_selector.py builds such two, in its folders learn/dataset and held-out/dataset). Here a sum over the
text's words and one over the codes stand in for the language model's state.
"""

import argparse
import io
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch import nn
from torch.nn import functional

WORDS, WIDTH, BATCH, PATCHES, KEEP = 4096, 96, 48, 96, 0.25


def read(folder, number=0):
    """Yield a data set's samples in stored order: a text, codes, features, its labels, and those of all texts."""
    layout = json.loads((Path(folder) / "dataset.json").read_text())["layout"]
    rows, features = layout["grid"]["rows"], layout["features"]
    first, tokens = features["leading"], features["leading"] + math.prod(features["grid"]) + features["trailing"]
    for sample in webdataset.WebDataset(sorted(map(str, Path(folder).glob("shards/*.tar"))), shardshuffle=False):

        def load(ending, sample=sample):
            return torch.from_numpy(np.load(io.BytesIO(sample[ending]), allow_pickle=False).astype("f4"))

        coverage = load("coverage.npy")  # 0..255, (texts, views * rows, cols); features may be pooled (DeCo)
        coverage = coverage.reshape(len(coverage), -1, rows, coverage.shape[-1])
        labels = functional.adaptive_avg_pool2d(coverage, features["grid"]) > math.ceil(255 * layout["min_coverage"])
        on_grid = load("features.npy").reshape(-1, tokens, features["channels"])[
            :, first : tokens - features["trailing"]
        ]
        codes = load(f"{layout['tokens']['member']}.npy").long().flatten()
        text = json.loads(sample["json"])["texts"][number]
        yield text, codes, on_grid.flatten(0, 1), labels[number].flatten(), labels.any(0).flatten()


class Selector(nn.Module):
    """Three linear layers over a patch's feature and a state of text and codes."""

    def __init__(self, channels, codes):
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, WIDTH, mode="sum")
        self.codes = nn.EmbeddingBag(codes, WIDTH // 2)
        self.norm = nn.LayerNorm(channels)
        one, two, three = nn.Linear(channels + WIDTH + WIDTH // 2, 128), nn.Linear(128, 128), nn.Linear(128, 1)
        self.layers = nn.Sequential(one, nn.GELU(), two, nn.GELU(), three)

    def forward(self, texts, codes, features):
        """Scores (B, patches)."""
        words = [torch.tensor([zlib.crc32(word.encode()) % WORDS for word in text.lower().split()]) for text in texts]
        offsets = torch.tensor([0, *map(len, words[:-1])]).cumsum(0)
        state = torch.cat([self.words(torch.cat(words), offsets), self.codes(codes)], dim=1)
        state = state[:, None].expand(-1, features.shape[1], -1)
        return self.layers(torch.cat([self.norm(features), state], dim=2))[..., 0]


def train(samples, steps):
    """Train a selector: labelled patches are looked at nine times as often as others."""
    torch.manual_seed(0)
    texts, *tensors = zip(*samples, strict=True)
    codes, features, labels, _ = map(torch.stack, tensors)
    model = Selector(features.shape[-1], int(codes.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randperm(len(texts))[:BATCH]
        patches = torch.multinomial(1 + 8 * labels[batch].float(), min(PATCHES, labels.shape[1]))
        chosen = features[batch[:, None], patches]
        scores = model([texts[index] for index in batch], codes[batch], chosen)
        loss = functional.binary_cross_entropy_with_logits(scores, labels[batch].gather(1, patches).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def judge(model, samples):
    """AUC between what the text names and what only other texts of the image name, and the share of it that is kept."""
    areas, recalls = [], []
    for text, codes, features, labels, things in samples:
        scores = model([text], codes[None].clamp(max=model.codes.num_embeddings - 1), features[None])[0]
        named, others = scores[labels], scores[things & ~labels]
        if len(named) and len(others):
            apart = named[:, None] - others
            areas.append(((apart > 0).float() + (apart == 0) / 2).mean())
        if len(named):
            recalls.append(labels[scores.topk(int(KEEP * len(scores))).indices].sum() / len(named))
    return {
        name: float(torch.stack(values).mean())
        for name, values in (("auc_between_things", areas), ("recall_at_keep", recalls))
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a patch selector from shards, without patchmint.")
    parser.add_argument("learn", help="folder of a finished data set")
    parser.add_argument("held_out", help="folder of another one, to be judged on")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--text", type=int, default=0, help="which of a sample's texts; 1 for those of examples/maven")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = judge(train(list(read(options.learn, options.text)), options.steps), read(options.held_out, options.text))
    print(
        json.dumps(figures) if options.json else "\n".join(f"{name:<20} {value:.3f}" for name, value in figures.items())
    )
