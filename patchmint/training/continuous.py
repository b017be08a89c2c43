"""From stored features to continuous tokens in the language model's input: those on the grid, the kept ones, projected.

The steps between are MaVEn's (arXiv 2408.12321): `PatchSelector` scores the tokens of `grid_tokens`, `keep_patches`
chooses, `gather_kept` takes, `Projector` maps, `fill_slots` puts them where a sequence has slots (`ImageTokens`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchmint.errors import InputError
from patchmint.shards.layout import Layout


class Kept(NamedTuple):
    """Patches that stay, K of the image that keeps most.

    Attributes:
        patches: (N, K, channels), in the order of the patches; zeros after an image's last.
        mask: bool (N, K), False after an image's last.
        positions: int64 (N, K): which patch of the image each is, over all views, rows and columns; -1 after the last.
    """

    patches: Tensor
    mask: Tensor
    positions: Tensor


def grid_tokens(features: Tensor, layout: Layout) -> Tensor:
    """The features that lie on the patch grid, without CLS (`cls_patch`) and the pooled ones that STI appends.

    Args:
        features: (..., tokens, channels), as batches and samples have them.
        layout: of their data set (`StageDataset.layouts`).

    Returns:
        (..., rows * cols, channels), one for each patch of `feature_mask` and `feature_selector`.

    Raises:
        InputError: the data set has no features, or those have another number of tokens.
    """
    spec = layout.features
    if spec is None or (0 not in spec.grid and features.shape[-2] != spec.tokens):
        told = "no features" if spec is None else f"{spec.tokens} tokens"
        raise InputError(f"features of shape {tuple(features.shape)} aren't the data set's, which has {told} a view")
    return features[..., spec.leading : features.shape[-2] - spec.trailing, :]


def gather_kept(patches: Tensor, kept: Tensor) -> Kept:
    """Take the patches that stay, in their order: views, then rows, then columns.

    Args:
        patches: (N, patches, channels) or (N, views, patches, channels).
        kept: bool, as many for each image, in any shape (N, ...); such as `keep_patches` gives, or labels > 0.

    Raises:
        InputError: there are more or fewer patches than `kept` has.
    """
    patches, kept = patches.flatten(1, -2), kept.flatten(1)
    if patches.shape[:2] != kept.shape:
        raise InputError(
            f"there are {tuple(patches.shape[:2])} (images, patches), and kept is for {tuple(kept.shape)}; take "
            "grid_tokens of features first"
        )
    counts = kept.sum(1, keepdim=True)
    most = int(counts.max())
    first = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    mask = torch.arange(most, device=kept.device) < counts
    taken = patches.gather(1, first[..., None].expand(-1, -1, patches.shape[-1]))
    return Kept(torch.where(mask[..., None], taken, 0), mask, first.masked_fill(~mask, -1))


class Projector(nn.Sequential):
    """Features to embeddings of the language model: LLaVA 1.5's two linear layers with GELU between (`mlp2x_gelu`)."""

    def __init__(self, channels: int, width: int) -> None:
        """Make an untrained projector.

        Args:
            channels: of a feature.
            width: of the language model's embeddings.
        """
        super().__init__(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))


def fill_slots(embeddings: Tensor, image_positions: Tensor, continuous: Tensor) -> Tensor:
    """Put continuous tokens into a batch's slots; gradients flow to both.

    Args:
        embeddings: (B, L, width), the language model's, of `input_ids`.
        image_positions: (M, 5), of a `SequenceBatch`.
        continuous: (N, K, width), for each image the first of which fill its slots, wherever it is shown.

    Returns:
        (B, L, width), what the language model takes as `inputs_embeds`.

    Raises:
        InputError: an image has more slots than K.
    """
    rows, images, _, starts, ends = image_positions.unbind(1)
    slots = ends - starts
    if len(slots) and int(slots.max()) > continuous.shape[1]:
        raise InputError(f"an image has {int(slots.max())} slots, but there are {continuous.shape[1]} tokens for each")
    owner = torch.repeat_interleave(torch.arange(len(slots), device=slots.device), slots)
    number = torch.arange(len(owner), device=slots.device) - (slots.cumsum(0) - slots)[owner]
    tokens = continuous[images[owner], number].to(embeddings.dtype)
    return embeddings.index_put((rows[owner], starts[owner] + number), tokens)
