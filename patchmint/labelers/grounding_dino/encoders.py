"""The halves of Grounding DINO before image and text meet: texts of one image share its backbone pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patchmint.labelers.grounding_dino.prompts import Prompt
from patchmint.types import Size

_AT_ONCE = 4
# Images in one backbone pass, to bound memory.


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
    from groundingdino.util.misc import NestedTensor

    by_size: dict[Size, list[int]] = {}
    for index, image in enumerate(pixels):
        by_size.setdefault((image.shape[1], image.shape[2]), []).append(index)
    features: dict[int, ImageFeatures] = {}
    batches = [some[start : start + _AT_ONCE] for some in by_size.values() for start in range(0, len(some), _AT_ONCE)]
    for indices in batches:
        batch = torch.stack([pixels[index] for index in indices])
        nothing_padded = torch.zeros(batch.shape[0], *batch.shape[2:], dtype=torch.bool, device=batch.device)
        stages = list(model.backbone[0](NestedTensor(batch, nothing_padded)).values())
        maps = [model.input_proj[level](stage.tensors) for level, stage in enumerate(stages)]
        for level in range(len(maps), model.num_feature_levels):
            maps.append(model.input_proj[level](stages[-1].tensors if level == len(stages) else maps[-1]))
        for row, index in enumerate(indices):
            features[index] = ImageFeatures(tuple(each[row] for each in maps))
    return [features[index] for index in range(len(pixels))]


def encode_prompts(model: Any, prompts: Sequence[Prompt], device: torch.device) -> list[PromptFeatures]:
    """Run the text encoder on prompts of any lengths, in one batch."""
    lengths = [len(prompt.ids) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    positions = torch.zeros_like(ids)
    sees = torch.eye(max(lengths), dtype=torch.bool).repeat(len(prompts), 1, 1)
    for row, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        ids[row, :n] = torch.from_numpy(prompt.ids)
        positions[row, :n] = torch.from_numpy(prompt.positions)
        sees[row, :n, :n] = torch.from_numpy(prompt.sees)
    ids, positions, sees = ids.to(device), positions.to(device), sees.to(device)
    hidden = model.feat_map(model.bert(ids, attention_mask=sees, position_ids=positions)["last_hidden_state"])
    return [PromptFeatures(hidden[row, :n], positions[row, :n], sees[row, :n, :n]) for row, n in enumerate(lengths)]
