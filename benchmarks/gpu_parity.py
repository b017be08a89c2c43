"""Whether the models say on a device, in the formats of `auto`, what they say on the CPU in float32. For `gpu.py`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from reference_data import CAPTIONS
from skimage import data

from patchmint.compute.devices import computing_in, resolve_precision
from patchmint.features import arch as vit_arch
from patchmint.features.model import untrained_vit
from patchmint.geometry import grid_preset
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.encoders import encode_images, encode_prompts
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.grounding_dino.transformer import match, propose
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.masker import SamMasker
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan.model import untrained_vqgan
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
from patchmint.types import RgbImage, Text

PHOTOGRAPHS: tuple[RgbImage, ...] = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
_CPU = torch.device("cpu")


def parity(device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Differences by model, on four photographs and models with random weights.

    Returns:
        `error ...`: mean difference as a share of the standard deviation. `equal ...`: share that is the same.
    """
    found: dict[str, float] = {}
    for check in (_sam, _detector, _vqgan, _vit):
        with torch.inference_mode():
            found |= check(device, tiny)
    return found


def _sam(device: torch.device, tiny: bool) -> dict[str, float]:
    model = sam_model.untrained(sam_arch.TINY if tiny else sam_arch.OFFICIAL["sam-vit-b"], seed=0)
    boxes = [np.array([[20, 20, 200, 250], [0, 0, 100, 90]], np.float32)] * len(PHOTOGRAPHS)
    embeddings, masks = [], []
    for where, precision in ((_CPU, torch.float32), (device, _precision(device, torch.bfloat16, torch.bfloat16))):
        masker = SamMasker(copy.deepcopy(model), device=str(where), precision=precision)
        embeddings.append(masker._encode([masker.prepare(image) for image in PHOTOGRAPHS]))
        masks.append(np.concatenate([found.logits for found in masker.masks(PHOTOGRAPHS, boxes)]))
    return {"error SAM encoder": _error(*embeddings), "equal SAM mask logits' signs": _equal(*(m > 0 for m in masks))}


def _detector(device: torch.device, tiny: bool) -> dict[str, float]:
    arch = dino_arch.TINY if tiny else dino_arch.OFFICIAL["groundingdino-swint-ogc"]
    model, vocabulary = dino_model.untrained(arch), Vocabulary.of_characters(arch.text_vocabulary)
    answers: list[list[torch.Tensor]] = []
    for where, precision in ((_CPU, torch.float32), (device, _precision(device, torch.bfloat16, torch.bfloat16))):
        detector = GroundingDino(copy.deepcopy(model), arch, vocabulary, device=str(where), precision=precision)
        asked = [detector.prompts(Text(caption))[0] for caption in CAPTIONS[: len(PHOTOGRAPHS)]]
        with computing_in(precision, where):
            images = encode_images(detector.model, [detector.preprocess(image) for image in PHOTOGRAPHS])
            prompts = encode_prompts(detector.model, asked, where)
            rank = propose(detector.model, images, prompts).rank
            best = match(detector.model, images, prompts).logits.amax(-1).sort(dim=-1).values
        answers.append([images[0].levels[0], prompts[0].hidden, rank[rank.isfinite()], best])
    parts = ("backbone", "text encoder", "ranks of positions", "best logits of queries, sorted")
    return {f"error detector's {part}": _error(*both) for part, *both in zip(parts, *answers, strict=True)}


def _vqgan(device: torch.device, tiny: bool) -> dict[str, float]:
    arch = vqgan_arch.TINY if tiny else vqgan_arch.OFFICIAL["vqgan-imagenet-f16-16384"]
    model, codes = untrained_vqgan(arch, seed=0), []
    for where, precision in ((_CPU, torch.float32), (device, _precision(device, torch.float32, torch.float16))):
        settings: dict[str, Any] = {"size": 16 * arch.factor, "fit": "pad", "device": where, "precision": precision}
        tokenizer = VqganTokenizer(copy.deepcopy(model), name="", **settings)
        codes.append(np.stack([tokens.codes for tokens in tokenizer.tokenize(PHOTOGRAPHS)]))
    return {"equal VQGAN codes": _equal(*codes)}


def _vit(device: torch.device, tiny: bool) -> dict[str, float]:
    grid = grid_preset("llava-1.5-finetune")
    arch = vit_arch.untrained_arch(grid) if tiny else vit_arch.OFFICIAL["clip-vit-l-14-336"]
    model, states = untrained_vit(arch, seed=0), []
    pixels = torch.randn(2, 3, arch.image_px, arch.image_px, generator=torch.Generator().manual_seed(0))
    for where, precision in ((_CPU, torch.float32), (device, _precision(device, torch.float32, torch.float16))):
        with computing_in(precision, where):
            states.append(list(copy.deepcopy(model).to(where).states(pixels.to(where), arch.layers - 1))[-1])
    return {"error ViT": _error(*states)}


def _precision(device: torch.device, cpu: torch.dtype, gpu: torch.dtype) -> torch.dtype:
    return resolve_precision("auto", device, cpu=cpu, gpu=gpu)


def _error(wanted: torch.Tensor, found: torch.Tensor) -> float:
    wanted, found = wanted.double().cpu(), found.double().cpu()
    return float((wanted - found).abs().mean() / wanted.std())


def _equal(wanted: Any, found: Any) -> float:
    return float(np.mean(np.asarray(wanted) == np.asarray(found)))
