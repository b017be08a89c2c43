"""Batches of unlike images and prompts: padded side by side, and masked so that padding changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patchmint.compute.devices import to_device
from patchmint.compute.memory import even_parts
from patchmint.labelers.grounding_dino.deformable import LevelTable, level_table
from patchmint.labelers.grounding_dino.encoders import ImageFeatures, PromptFeatures
from patchmint.types import Size

_POSITIONS_AT_ONCE = {"cpu": 2**14, "cuda": 2**17}
# Of the first level. On the CPU an image of official size runs alone: company gains it nothing.
_MOST_PADDED = 1.25
# Times an image's own positions.
_WIDTH_AT_FIRST_LEVEL = 0.05
# Side of a first-level proposal as a share of the image; it doubles from level to level (upstream `utils.py`).


@dataclass(frozen=True)
class ImageBatch:
    """Feature maps of B images, each level padded to one size and flattened row-major; S positions in all.

    Attributes:
        shapes: padded (height, width) of each level.
        levels: the same, on the device.
        memory: float (B, S, 256).
        position: float (B, S, 256), sine embedding of the place in the image plus the level's embedding.
        padding: bool (B, S), True where there is no image.
        valid_ratios: float (B, levels, 2), share of the padded width and height that is image.
        proposals: float (B, S, 4), one box a position: centre, width, height as logits of shares of the image; infinite
            where unusable.
        usable: bool (B, S), False on padding and near the image's border, where upstream makes no proposal.
    """

    shapes: tuple[Size, ...]
    levels: LevelTable
    memory: torch.Tensor
    position: torch.Tensor
    padding: torch.Tensor
    valid_ratios: torch.Tensor
    proposals: torch.Tensor
    usable: torch.Tensor


@dataclass(frozen=True)
class PromptBatch:
    """B prompts, padded to n tokens.

    Attributes:
        hidden: float (B, n, 256).
        positions: int64 (B, n).
        blocked: bool (B, n, n), True where a token must not look at another.
        padding: bool (B, n), True where there is no token.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    blocked: torch.Tensor
    padding: torch.Tensor


def like_pairs(shapes: Sequence[Sequence[int]], lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Put pairs of an image and a prompt into batches, of like size so that little is padded, and bounded in memory.

    Args:
        shapes: of each pair, (height, width) of the image's first level.
        lengths: of each pair, tokens of its prompt.
        device: where they run.

    Returns:
        Of each batch the numbers of its pairs.
    """
    alike: list[list[int]] = []
    for pair in sorted(range(len(shapes)), key=lambda pair: (*shapes[pair], lengths[pair])):
        together = [*alike[-1], pair] if alike else []
        if together and _padded(shapes, together) <= _MOST_PADDED * min(math.prod(shapes[each]) for each in together):
            alike[-1].append(pair)
        else:
            alike.append([pair])
    parts = ((pairs, even_parts(len(pairs), pairs_at_once(_padded(shapes, pairs), device))) for pairs in alike)
    return [pairs[part] for pairs, all_parts in parts for part in all_parts]


def pairs_at_once(positions: int, device: torch.device) -> int:
    """How many pairs run together whose images have so many positions of the first level, at least 1."""
    return max(1, _POSITIONS_AT_ONCE.get(device.type, _POSITIONS_AT_ONCE["cpu"]) // positions)


def _padded(shapes: Sequence[Sequence[int]], pairs: Sequence[int]) -> int:
    """Positions of each of some pairs when they are padded to each other, of the first level."""
    return max(shapes[pair][0] for pair in pairs) * max(shapes[pair][1] for pair in pairs)


def batch_images(model: Any, images: Sequence[ImageFeatures]) -> ImageBatch:
    """Pad images' features to each other.

    There are always as many positions as the model has queries, since it takes its queries from the best positions;
    a narrow image alone may have fewer, and upstream fails on it.
    """
    from groundingdino.util.misc import NestedTensor

    shapes = _common_shapes(images, at_least=model.transformer.num_queries)
    device = images[0].levels[0].device
    levels = level_table(shapes, device)
    own = to_device(torch.tensor([[each.shape[:0:-1] for each in image.levels] for image in images]), device)
    parts: list[tuple[torch.Tensor, ...]] = []
    for level, (height, width) in enumerate(shapes):
        maps, padding = _side_by_side([image.levels[level] for image in images], (height, width))
        position = model.backbone[1](NestedTensor(maps, padding)) + model.transformer.level_embed[level][:, None, None]
        proposals, usable = _proposals(own[:, level], (height, width), level)
        parts.append(
            (maps.flatten(2).mT, position.flatten(2).mT, padding.flatten(1), proposals, usable & ~padding.flatten(1))
        )
    memory, position, padding, proposals, usable = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    proposals = proposals.masked_fill(~usable[..., None], torch.inf)
    return ImageBatch(shapes, levels, memory, position, padding, own / levels.sizes, proposals, usable)


def _side_by_side(maps: Sequence[torch.Tensor], shape: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (C, h, w) padded with zeros: float32 (B, C, height, width), and bool (B, height, width), True on padding."""
    device = maps[0].device
    if all(each.shape[1:] == shape for each in maps):  # as mostly, and two kernels in the place of two a map
        return torch.stack([*maps]).float(), torch.zeros(len(maps), *shape, dtype=torch.bool, device=device)
    padded = torch.zeros(len(maps), maps[0].shape[0], *shape, device=device)
    padding = torch.ones(len(maps), *shape, dtype=torch.bool, device=device)
    for row, each in enumerate(maps):
        height, width = each.shape[1:]
        padded[row, :, :height, :width] = each
        padding[row, :height, :width] = False
    return padded, padding


def batch_prompts(prompts: Sequence[PromptFeatures]) -> PromptBatch:
    """Pad prompts to each other. A padding token sees itself only, and nobody sees it."""
    length = max(prompt.hidden.shape[0] for prompt in prompts)
    first = prompts[0].hidden
    hidden = first.new_zeros(len(prompts), length, first.shape[1])
    positions = prompts[0].positions.new_zeros(len(prompts), length)
    sees = torch.eye(length, dtype=torch.bool, device=first.device).repeat(len(prompts), 1, 1)
    padding = torch.ones(len(prompts), length, dtype=torch.bool, device=first.device)
    for row, prompt in enumerate(prompts):
        n = prompt.hidden.shape[0]
        hidden[row, :n] = prompt.hidden
        positions[row, :n] = prompt.positions
        sees[row, :n, :n] = prompt.sees
        padding[row, :n] = False
    return PromptBatch(hidden, positions, ~sees, padding)


def position_centres(shape: Size, device: torch.device) -> torch.Tensor:
    """Centre (x, y) of each position of a (height, width) map, row-major, in positions: float (h * w, 2)."""
    height, width = shape
    y = torch.arange(height, device=device)[:, None].expand(height, width) + 0.5
    x = torch.arange(width, device=device)[None].expand(height, width) + 0.5
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _common_shapes(images: Sequence[ImageFeatures], at_least: int) -> tuple[Size, ...]:
    shapes = [
        (max(level.shape[1] for level in levels), max(level.shape[2] for level in levels))
        for levels in zip(*(image.levels for image in images), strict=True)
    ]
    lacking = at_least - sum(height * width for height, width in shapes)
    if lacking > 0:
        height, width = shapes[0]
        shapes[0] = (height, width + -(-lacking // height))
    return tuple(shapes)


def _proposals(sizes: torch.Tensor, shape: Size, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that the first stage refines: one a position, of a size fixed by the level.

    Args:
        sizes: int64 (B, 2), unpadded (width, height) of each image's map.
        shape: padded (height, width) of this level.
        level: its number.

    Returns:
        Logits (B, h * w, 4), and bool (B, h * w), which of them are usable: all four shares within 0.01 and 0.99
        (upstream `utils.py`, `gen_encoder_output_proposals`).
    """
    centres = position_centres(shape, sizes.device)[None] / sizes[:, None]
    boxes = torch.cat([centres, torch.full_like(centres, _WIDTH_AT_FIRST_LEVEL * 2**level)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    return torch.log(boxes / (1 - boxes)), usable
