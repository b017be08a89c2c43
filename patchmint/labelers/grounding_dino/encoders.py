"""The halves of Grounding DINO before image and text meet: texts of one image share its backbone pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from patchmint.compute.compiled import Compiled
from patchmint.compute.devices import to_device
from patchmint.compute.memory import even_parts
from patchmint.labelers.grounding_dino.prompts import Prompt
from patchmint.types import Size

_PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**23}
# On the CPU one image of official size: more of them gain nothing there, while small ones gain much.
_TOKENS_AT_ONCE = 2**12

_COMPILED = "compiled_feature_maps"


def pixels_at_once(device: torch.device) -> int:
    """How many pixels of preprocessed images run together, to bound memory; one image always runs."""
    return _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE["cpu"])


def images_at_once(size: Size, device: torch.device) -> int:
    """How many preprocessed images of (height, width) run together."""
    return max(1, pixels_at_once(device) // (size[0] * size[1]))


def compile_backbone(model: Any, device: torch.device) -> None:
    """Have `encode_images` run the model's backbone compiled, in place.

    Only for full batches, or padded ones that are at least half full: then there is one program a size of image, and
    sizes that come rarely take no place from those that come often.

    Args:
        model: upstream's `GroundingDINO`, on its device and in its number format.
        device: that device.
    """
    setattr(
        model,
        _COMPILED,
        Compiled(
            partial(_feature_maps, model),
            name="Grounding DINO's image backbone",
            sizes=lambda size: (images_at_once(size, device),),
        ),
    )


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features: float (256, h, w) a level, without padding."""

    levels: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class PromptFeatures:
    """One prompt's features, without padding.

    Attributes:
        hidden: float (n, 256).
        positions: int64 (n,), counted from the start of each sub-sentence.
        sees: bool (n, n), which token may look at which.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor


def encode_images(model: Any, pixels: Sequence[torch.Tensor]) -> list[ImageFeatures]:
    """Run the backbone.

    Images of one size run together; images of unlike size are never padded to each other, because Swin's windows and
    the group norms behind it would take the padding in (upstream does).

    Args:
        model: upstream's `GroundingDINO`.
        pixels: float (3, h, w), normalised, any sizes.
    """
    maps = vars(model).get(_COMPILED) or partial(_feature_maps, model)
    by_size: dict[Size, list[int]] = {}
    for index, image in enumerate(pixels):
        by_size.setdefault((image.shape[1], image.shape[2]), []).append(index)
    features: dict[int, ImageFeatures] = {}
    for (height, width), alike in by_size.items():
        count = images_at_once((height, width), pixels[alike[0]].device)
        for part in even_parts(len(alike), count):
            indices = alike[part]
            levels = maps(torch.stack([pixels[index] for index in indices]))
            for row, index in enumerate(indices):
                features[index] = ImageFeatures(tuple(each[row] for each in levels))
    return [features[index] for index in range(len(pixels))]


def _feature_maps(model: Any, batch: torch.Tensor) -> list[torch.Tensor]:
    """All levels of images of one size, float (B, 3, h, w)."""
    stages = model.backbone[0].forward_raw(batch)  # without upstream's class for padding, which can't be compiled
    maps = [model.input_proj[level](stage) for level, stage in enumerate(stages)]
    for level in range(len(maps), model.num_feature_levels):
        maps.append(model.input_proj[level](stages[-1] if level == len(stages) else maps[-1]))
    return maps


def encode_prompts(model: Any, prompts: Sequence[Prompt], device: torch.device) -> list[PromptFeatures]:
    """Run the text encoder on prompts of any lengths, those of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    features: dict[int, PromptFeatures] = {}
    while order:
        count = max(1, _TOKENS_AT_ONCE // len(prompts[order[-1]].ids))
        order, indices = order[:-count], order[-count:]
        encoded = _encode_together(model, [prompts[index] for index in indices], device)
        features.update(zip(indices, encoded, strict=True))
    return [features[index] for index in range(len(prompts))]


def _encode_together(model: Any, prompts: Sequence[Prompt], device: torch.device) -> list[PromptFeatures]:
    lengths = [len(prompt.ids) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    positions = torch.zeros_like(ids)
    sees = torch.eye(max(lengths), dtype=torch.bool).repeat(len(prompts), 1, 1)
    for row, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        ids[row, :n] = torch.from_numpy(prompt.ids)
        positions[row, :n] = torch.from_numpy(prompt.positions)
        sees[row, :n, :n] = torch.from_numpy(prompt.sees)
    ids, positions, sees = (to_device(each, device) for each in (ids, positions, sees))
    hidden = model.feat_map(model.bert(ids, attention_mask=sees, position_ids=positions)["last_hidden_state"])
    return [PromptFeatures(hidden[row, :n], positions[row, :n], sees[row, :n, :n]) for row, n in enumerate(lengths)]
