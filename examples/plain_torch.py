"""Train MaVEn's patch selector with webdataset and torch alone: the shards carry all that it takes.

    python examples/plain_torch.py LEARN HELD_OUT 1     # two finished data sets, and which of their texts; 0: the first

Nothing here imports patchmint. Sums over a text's words and over the codes stand in for the language model's state.
"""

import io
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch import nn
from torch.nn import functional


def read(folder, number=0):
    """Yield of each sample a text, codes, features of patches, the text's labels, and those of all texts."""
    layout = json.loads((Path(folder) / "dataset.json").read_text())["layout"]
    spec, lowest = layout["features"], math.ceil(255 * layout["min_coverage"])
    for sample in webdataset.WebDataset(sorted(map(str, Path(folder).glob("shards/*.tar"))), shardshuffle=False):
        names = "coverage.npy", "features.npy", f"{layout['tokens']['member']}.npy"
        cover, features, codes = (torch.from_numpy(np.load(io.BytesIO(sample[name])).astype("f4")) for name in names)
        cover = cover.reshape(len(cover), -1, layout["grid"]["rows"], cover.shape[-1])  # 0..255, by text and view
        labels = functional.adaptive_avg_pool2d(cover, spec["grid"]).flatten(1) > lowest
        views = features.reshape(cover.shape[1], -1, spec["channels"])[:, spec["leading"] :]
        patches = views[:, : math.prod(spec["grid"])].flatten(0, 1)
        yield (
            json.loads(sample["json"])["texts"][number],
            codes.long().flatten(),
            patches,
            labels[number],
            labels.any(0),
        )


class Selector(nn.Module):
    """Three linear layers over a patch's feature and a state of text and codes."""

    def __init__(self, channels, width=96, hidden=256):
        super().__init__()
        self.words, self.codes = nn.EmbeddingBag(4096, width, mode="sum"), nn.EmbeddingBag(4096, width)
        self.norm, first = nn.LayerNorm(channels), nn.Linear(channels + 2 * width, hidden)
        self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, texts, codes, patches):
        """Scores (B, patches)."""
        words = [torch.tensor([zlib.crc32(word.encode()) % 4096 for word in text.split()]) for text in texts]
        starts = torch.tensor([0, *map(len, words[:-1])]).cumsum(0)
        state = torch.cat([self.words(torch.cat(words), starts), self.codes(codes % 4096)], 1)[:, None]
        return self.layers(torch.cat([self.norm(patches), state.expand(-1, patches.shape[1], -1)], 2))[..., 0]


def train(samples, steps=400):
    """Labelled patches are looked at nine times as often as others; asked for something else, they are wrong."""
    torch.manual_seed(0)
    texts, *tensors = zip(*samples, strict=True)
    codes, features, labels, _ = map(torch.stack, tensors)
    model = Selector(features.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randperm(len(texts))[:48]
        chosen = torch.multinomial(1 + 8 * labels[batch].float(), min(96, labels.shape[1]))
        patches, wanted = features[batch[:, None], chosen], labels[batch].gather(1, chosen)
        asked = [texts[index] for index in batch]
        loss = functional.binary_cross_entropy_with_logits(model(asked, codes[batch], patches), wanted.float())
        others = [*asked[1:], asked[0]]
        unlike = torch.tensor([text != other for text, other in zip(asked, others, strict=True)])
        wrong = model(others, codes[batch], patches)[wanted & unlike[:, None]]
        optimizer.zero_grad()
        (loss + functional.softplus(wrong).sum() / max(len(wrong), 1)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def judge(model, samples):
    """AUC between what a text names and what only other texts do; and how much of it is in the best quarter."""
    areas, recalls = [], []
    for text, codes, patches, labels, things in samples:
        scores = model([text], codes[None], patches[None])[0]
        areas.append((scores[labels][:, None] > scores[things & ~labels]).float().mean())
        recalls.append(labels[scores.topk(len(scores) // 4).indices].sum() / labels.sum())
    return {"auc_between_things": torch.stack(areas).nanmean().item(), "recall": torch.stack(recalls).nanmean().item()}


if __name__ == "__main__":
    learn, held_out, text = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(judge(train(list(read(learn, text))), read(held_out, text))))
