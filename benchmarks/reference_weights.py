"""Weights for `reference.py`: the demo's, or random ones of official size in containers as they are published.

Random weights are random in every way that costs time, but three things are put right, so that the work is that of
trained models: queries score unlike each other, a text finds about `BOXES` boxes, and many codes are in use.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from reference_data import CAPTIONS, SPLIT, Contest, write_photographs, write_vocabulary
from reference_loop import Detector, tokenizer_input
from torch import Tensor, nn

from patchmint.demo.dataset import write_dataset
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan import model as vqgan_model
from patchmint.weights.store import locate

BOXES = 4
"""Boxes of a text at official size, about."""

_SEED = 8_000_017
_SCENES = 7_200_003
# Scenes that nothing was trained or judged by.
_JITTER = 0.5
_TEXT_SHARE = 0.05
_LOGIT = math.log(0.35 / 0.65)
# Of upstream's box threshold.
_CANDIDATES = 64


def demo_contest(folder: Path, images: int, texts: int) -> Contest:
    """Scenes of coloured shapes, and the small trained models that lie in the package."""
    write_dataset(folder / "data", seed=_SCENES, count=images, texts=texts, split=SPLIT)
    names = ("demo-detector", "demo-vocabulary", "demo-masker", "demo-tokenizer")
    return Contest(str(folder / "data"), *(str(locate(name)) for name in names))


def official_contest(folder: Path, images: int, texts: int, sam: str) -> Contest:
    """Photographs with made-up captions; Grounding DINO Swin-T, a SAM and VQGAN f16-16384 with random weights."""
    torch.manual_seed(_SEED)
    pictures = write_photographs(folder / "data", images, texts)
    paths = {role: folder / name for role, name in _FILES.items()}
    write_vocabulary(paths["vocabulary"])
    masker = sam_model.untrained(sam_arch.OFFICIAL[f"sam-{sam}"], seed=_SEED)
    torch.save(masker.state_dict(), paths["masker"])
    del masker
    torch.save({"state_dict": random_vqgan(pictures)}, paths["tokenizer"])
    weights = random_detector(paths["vocabulary"], pictures[:4])
    torch.save({"model": {f"module.{name}": tensor for name, tensor in weights.items()}}, paths["detector"])
    return Contest(str(folder / "data"), **{r: str(p) for r, p in paths.items()})


_FILES = {"detector": "dino.pth", "vocabulary": "vocab.txt", "masker": "sam.pth", "tokenizer": "vqgan.ckpt"}
# Containers as published: {"model": ...} with `module.`, a bare state dict, {"state_dict": ...}.


def random_vqgan(pictures: Sequence[Path]) -> dict[str, Tensor]:
    """Random weights with the codebook where the pictures' latents are, or one code would do for nearly all."""
    model = vqgan_model.untrained_vqgan(vqgan_arch.OFFICIAL["vqgan-imagenet-f16-16384"], seed=_SEED)
    batch = [tokenizer_input(np.asarray(Image.open(picture))) for picture in pictures[:3]]
    seen = model.latents(torch.cat(batch)).permute(0, 2, 3, 1).flatten(0, 2)
    state = model.state_dict()
    codebook = state["quantize.embedding.weight"]
    chosen = seen[torch.randint(len(seen), (len(codebook),))]
    codebook.copy_(chosen + _JITTER * seen.std(dim=0) * torch.randn(codebook.shape))
    return state


def random_detector(vocabulary: Path, pictures: Sequence[Path]) -> dict[str, Tensor]:
    """Random weights with which a text gets about `BOXES` boxes at upstream's threshold.

    Left to itself a random model scores all queries of an image nearly alike, and each image and text on a level of its
    own. Here the last text layer says nearly the same of every token, so that one direction of the queries' features
    scores them; the decoder's last norm turns that into a direction in which queries differ and pictures, on the whole,
    don't.
    """
    arch = dino_arch.OFFICIAL["groundingdino-swint-ogc"]
    model: Any = dino_model.untrained(arch, seed=_SEED)
    _shake(model)
    signs = torch.randint(2, (dino_arch.HIDDEN_DIM,)) * 2.0 - 1.0
    said, norm = model.transformer.encoder.text_layers[-1].norm2, model.transformer.decoder.norm
    said.weight.fill_(_TEXT_SHARE)
    said.bias.copy_(signs)
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    detector = Detector(model, arch, vocabulary)
    queries, tokens = [], []
    handles = [
        norm.register_forward_hook(lambda _module, _inputs, output: queries.append(output.flatten(0, 1))),
        said.register_forward_hook(lambda _module, _inputs, output: tokens.append(output.flatten(0, 1))),
    ]
    for picture, caption in zip(pictures, CAPTIONS, strict=False):
        detector.find(detector.load(picture)[1], caption, 1.0, 1.0)
    for handle in handles:
        handle.remove()
    last = torch.stack(queries[arch.decoder_layers - 1 :: arch.decoder_layers])
    direction = _telling(last)
    norm.weight.copy_(direction * signs)
    best = torch.stack([(query * norm.weight @ token.T).amax(dim=1) for query, token in zip(last, tokens, strict=True)])
    # The bias moves all logits alike, since |signs|^2 is the width.
    cut = best.flatten().sort(descending=True).values[len(best) * BOXES]
    norm.bias.copy_(signs * (_LOGIT - cut) / dino_arch.HIDDEN_DIM)
    print(f"boxes of the texts tried: {(best > cut).sum(dim=1).tolist()}", file=sys.stderr)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _telling(queries: Tensor) -> Tensor:
    """Direction (width,) in which queries (pictures, queries, width) differ, but pictures' means don't.

    Of those in which they differ most it is the one whose best `BOXES` are most alike from picture to picture. Its
    length is such that the queries' standard deviation along it is 1.
    """
    means = queries.mean(dim=1)
    across = torch.linalg.svd(means - means.mean(dim=0), full_matrices=False).Vh[: len(means) - 1]
    within = (queries - means[:, None]).flatten(0, 1)
    within = within - within @ across.T @ across
    _, deviations, directions = torch.linalg.svd(within, full_matrices=False)
    candidates = (directions * len(within) ** 0.5 / deviations[:, None])[:_CANDIDATES]
    candidates = torch.cat([candidates, -candidates])
    best = (queries @ candidates.T).sort(dim=1, descending=True).values[:, BOXES]
    return candidates[(best.amax(dim=0) - best.amin(dim=0)).argmin()]


def _shake(model: nn.Module) -> None:
    """Upstream starts many weights at zero, which makes whole parts of it the identity: give each a little noise."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.add_(0.02 * torch.randn(parameter.shape))
