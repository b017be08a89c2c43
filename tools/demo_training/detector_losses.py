"""What the demo's detector is told is right: which positions and queries stand for which objects, and for which words.

First stage: every position whose centre lies on an object stands for it. Second stage: one query an object, the best;
others on the same object are told off only a little, so that an object is rather found twice than never.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from groundingdino.util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from torch import Tensor
from torch.nn import functional

from patchmint.demo.shapes import COLOURS, FILLS, SHAPES, SIZES

_ALPHA, _GAMMA = 0.25, 2.0
# Focal loss (arXiv 1708.02002, section 3.3), the values of Grounding DINO.
_DUPLICATE_GIOU = 0.5
_DUPLICATE_WEIGHT = 0.15
_ATTRIBUTE_WEIGHT = 20.0
# High, or their share of the gradients drowns: alone, the backbone learns them three times as fast.
_WORD_WEIGHT, _L1_WEIGHT, _GIOU_WEIGHT = 3.0, 5.0, 2.0
# Words weigh more than in Grounding DINO, whose text encoder and backbone come trained; here they start from nothing.
ATTRIBUTES = (*SHAPES, *COLOURS, *FILLS, *SIZES)
"""What things are told apart by."""

_CLASS_COST, _L1_COST, _IOU_COST = 2.0, 5.0, 2.0


@dataclass(frozen=True, eq=False)
class Truth:
    """What is right for one (image, prompt) pair.

    Attributes:
        boxes: float (G, 4), centre and size as shares of the image, of every object.
        words: bool (G, n), the prompt's tokens that name each object; no token for one that nothing names.
        named: bool (n,), the tokens that belong to a phrase.
        asked: float (tokens of phrases, attributes), which of `ATTRIBUTES` their phrase asks for, 0 or 1.
    """

    boxes: Tensor
    words: Tensor
    named: Tensor
    asked: Tensor


def position_losses(logits: Tensor, boxes: Tensor, owners: Tensor, truths: list[Truth]) -> dict[str, Tensor]:
    """Losses of the first stage.

    Args:
        logits: float (B, S, n), -inf where a prompt has no token.
        boxes: float (B, S, 4), centre and size as shares.
        owners: int64 (B, S), the object under each position, -1 for none, -2 on padding.
        truths: B of them.
    """
    logits, boxes = logits.float(), boxes.float()
    targets = torch.zeros_like(logits)
    wanted = torch.zeros_like(boxes)
    for row, truth in enumerate(truths):
        on = owners[row] >= 0
        targets[row, on, : truth.words.shape[1]] = truth.words[owners[row, on]].to(logits.dtype)
        wanted[row, on] = truth.boxes[owners[row, on]]
    weights = (owners > -2)[..., None].to(logits.dtype).expand_as(logits)
    return {"place": focal(logits, targets, weights)} | _box_losses(boxes, wanted, owners >= 0, "place_")


def attribute_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy of each attribute: both (N, attributes), the truth 0..1."""
    return _ATTRIBUTE_WEIGHT * functional.binary_cross_entropy_with_logits(logits.float(), truth)


def query_losses(logits: Tensor, boxes: Tensor, truths: list[Truth], *, suppress: bool) -> dict[str, Tensor]:
    """Losses of the second stage: logits (B, Q, n) and boxes (B, Q, 4).

    Args:
        logits: of the queries.
        boxes: theirs.
        truths: B of them.
        suppress: whether further queries on the same object are told off, a little; else they are left alone.
    """
    logits, boxes = logits.float(), boxes.float()
    targets = torch.zeros_like(logits)
    weights = torch.ones_like(logits)
    wanted = torch.zeros_like(boxes)
    matched = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for row, truth in enumerate(truths):
        named = torch.nonzero(truth.words.any(1))[:, 0]
        if not len(named):
            continue
        tokens = truth.words[named]
        n = tokens.shape[1]
        overlap, queries = _assign(logits[row, :, :n], boxes[row], truth.boxes[named], tokens)
        # Duplicates: right words on the right object, only not the chosen query.
        near = overlap > _DUPLICATE_GIOU
        duplicates = (near.to(logits.dtype) @ tokens.to(logits.dtype)) > 0
        weights[row, :, :n] = torch.where(duplicates, _DUPLICATE_WEIGHT if suppress else 0.0, 1.0)
        targets[row, queries, :n] = tokens.to(logits.dtype)
        weights[row, queries] = 1.0
        matched[row, queries] = True
        wanted[row, queries] = truth.boxes[named]
    return {"word": focal(logits, targets, weights)} | _box_losses(boxes, wanted, matched, "")


def focal(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Focal loss a positive target, weighted. Logits of -inf (no token, no place) don't count."""
    real = torch.isfinite(logits)
    logits = logits.masked_fill(~real, 0.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    share = logits.sigmoid()
    wrong = share * (1 - targets) + (1 - share) * targets
    alpha = _ALPHA * targets + (1 - _ALPHA) * (1 - targets)
    loss = alpha * wrong**_GAMMA * entropy * weights * real
    return _WORD_WEIGHT * loss.sum() / (targets.sum() / 2).clamp(min=1)


def _box_losses(boxes: Tensor, wanted: Tensor, which: Tensor, prefix: str) -> dict[str, Tensor]:
    count = which.sum().clamp(min=1)
    found, true = boxes[which], wanted[which]
    overlap = (
        generalized_box_iou(box_cxcywh_to_xyxy(found), box_cxcywh_to_xyxy(true)).diagonal()
        if len(found)
        else found.sum()[None] * 0
    )
    return {
        f"{prefix}l1": _L1_WEIGHT * (found - true).abs().sum() / count,
        f"{prefix}giou": _GIOU_WEIGHT * (1 - overlap).sum() / count,
    }


@torch.no_grad()
def _assign(logits: Tensor, boxes: Tensor, wanted: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The overlap (Q, G) of queries with objects, and one query for each object, int64 (G,): cheapest pairs first."""
    overlap = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(wanted))
    share = logits.sigmoid().nan_to_num()
    fit = share @ tokens.to(share.dtype).T / tokens.sum(1)
    distance = torch.cdist(boxes, wanted, p=1)
    cost = (_L1_COST * distance - _CLASS_COST * fit - _IOU_COST * overlap).numpy().copy()
    queries: npt.NDArray[np.int64] = np.zeros(len(wanted), dtype=np.int64)
    for _ in range(len(wanted)):
        query, thing = np.unravel_index(cost.argmin(), cost.shape)
        queries[thing] = query
        cost[query], cost[:, thing] = np.inf, np.inf
    return overlap, torch.from_numpy(queries)
