"""MaVEn's patch selector (arXiv 2408.12321, section on the patch selector): the reference consumer of the labels.

A score for each patch, from its feature and one global state of the text and the image's codes; the best patches stay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchmint.errors import InputError


class PatchSelector(nn.Module):
    """Patch feature + global state -> score: three linear layers.

    The paper concatenates each patch feature with the language model's last hidden state at `<EOS>`, after the text and
    the discrete visual tokens. Here the state is whatever the caller has of that kind. What stands between the linear
    layers isn't told by the paper; here it is GELU, and a norm of each input, since the two come from unlike models.
    """

    def __init__(self, patch_dim: int, state_dim: int, hidden: int = 512) -> None:
        """Make an untrained selector.

        Args:
            patch_dim: channels of a patch feature.
            state_dim: numbers of a global state.
            hidden: width of the layers between.
        """
        super().__init__()
        self.patch_norm = nn.LayerNorm(patch_dim)
        self.state_norm = nn.LayerNorm(state_dim)
        self.layers = nn.Sequential(
            nn.Linear(patch_dim + state_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, patches: Tensor, state: Tensor) -> Tensor:
        """Score patches.

        Args:
            patches: (B, N, patch_dim).
            state: (B, state_dim).

        Returns:
            Logits (B, N); their sigmoid is the paper's score, 0..1.
        """
        states = self.state_norm(state)[:, None].expand(-1, patches.shape[1], -1)
        scores: Tensor = self.layers(torch.cat([self.patch_norm(patches), states], dim=-1))
        return scores[..., 0]


def selector_loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Binary cross entropy against patch labels, mean over all patches that count.

    Args:
        logits: (B, N), of `PatchSelector`.
        labels: (B, N), 1 = the patch shows what the text names.
        mask: bool (B, N), True for patches that count; None: all.
        weight: (B,), not negative, how much each image's patches count, such as `batch.trust`; None: equally.

    Raises:
        InputError: shapes differ, or no patch counts.
    """
    mask = _mask_of(logits, labels, mask)
    if weight is not None and weight.shape != logits.shape[:1]:
        raise InputError(f"weight must be ({len(logits)},), a number an image, not {tuple(weight.shape)}")
    if not mask.any() or (weight is not None and not (mask * weight[:, None]).any()):
        raise InputError("no patch counts: the mask is False, or the weight 0, everywhere")
    weights = None
    if weight is not None:
        weights = weight.to(logits)[:, None].expand_as(logits)[mask]
        weights = weights / weights.mean()
    return functional.binary_cross_entropy_with_logits(logits[mask], labels[mask].to(logits.dtype), weights)


def kept_count(patches: int, keep_ratio: float) -> int:
    """How many of an image's patches stay: `floor(keep_ratio * patches)`; so many slots its sequence needs.

    Args:
        patches: that count: `feature_mask.sum()`.
        keep_ratio: more than 0, at most 1; the paper's choice is 0.25.

    Raises:
        InputError: the ratio is out of range.
    """
    if not 0 < keep_ratio <= 1:
        raise InputError(f"keep_ratio must be more than 0 and at most 1, not {keep_ratio}")
    # In whole numbers where the product is one: 0.07 * 300 is a little more than 21 in floats, others a little less.
    return math.floor(round(int(patches) * keep_ratio, 9))


def keep_patches(scores: Tensor, keep_ratio: float, mask: Tensor | None = None) -> Tensor:
    """The best `kept_count` patches of each image.

    Args:
        scores: (B, N), higher is better; among equals the first.
        keep_ratio: as for `kept_count`.
        mask: bool (B, N), True for patches that count; None: all.

    Returns:
        bool (B, N), True for what stays.

    Raises:
        InputError: the ratio is out of range, or shapes differ.
    """
    mask = _mask_of(scores, scores, mask)
    order = scores.masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    kept = torch.tensor([[kept_count(count, keep_ratio)] for count in mask.sum(1).tolist()], device=scores.device)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(scores.shape[1]).expand_as(order).to(order))
    return ranks < kept


def recall_at_keep(scores: Tensor, labels: Tensor, keep_ratio: float = 0.25, mask: Tensor | None = None) -> Tensor:
    """Share of the relevant patches that stay.

    Args:
        scores: (B, N).
        labels: (B, N), 1 = relevant.
        keep_ratio: as for `keep_patches`.
        mask: as for `keep_patches`.

    Returns:
        float32 (B,); NaN for an image without a relevant patch.

    Raises:
        InputError: as for `keep_patches`.
    """
    mask = _mask_of(scores, labels, mask)
    relevant = (labels > 0) & mask
    kept = relevant & keep_patches(scores, keep_ratio, mask)
    return kept.sum(1) / relevant.sum(1)


def auc(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Area under the ROC curve within each image: how often a relevant patch scores over another one.

    Args:
        scores: (B, N).
        labels: (B, N), 1 = relevant.
        mask: bool (B, N), True for patches that count; None: all.

    Returns:
        float64 (B,), 0..1, ties counted half; NaN for an image whose patches are all relevant, or none.

    Raises:
        InputError: shapes differ.
    """
    mask = _mask_of(scores, labels, mask)
    areas = []
    for row, relevant, counts in zip(scores, labels > 0, mask, strict=True):
        best, rest = row[relevant & counts], row[~relevant & counts].sort().values
        below = torch.searchsorted(rest, best, side="left") + torch.searchsorted(rest, best, side="right")
        areas.append(
            below.double().mean() / (2 * len(rest)) if len(rest) else below.new_full((), math.nan, dtype=torch.float64)
        )
    return torch.stack(areas)


def _mask_of(scores: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    if scores.ndim != 2 or not scores.shape == labels.shape == mask.shape:
        raise InputError(
            f"scores, labels and mask must have one shape (images, patches), not {tuple(scores.shape)}, "
            f"{tuple(labels.shape)} and {tuple(mask.shape)}; flatten the patch grid first"
        )
    return mask
