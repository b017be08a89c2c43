"""Image and text look at each other (GLIP, arXiv 2112.03857; Grounding DINO, arXiv 2303.05499, section 3.2).

An image has tens of thousands of positions, a text tens of tokens. Upstream (`fuse_modules.py`) projects each position
to queries and values four times as wide as itself, and the sums back. A product of matrices may be taken in any order:
here the projections are applied to the tokens, or to what the tokens have summed up, and no position is ever widened.
"""

from __future__ import annotations

from typing import Any

import torch

from patchmint.compute.precision import computing_fully


def fuse(
    block: Any, image: torch.Tensor, text: torch.Tensor, image_padding: torch.Tensor, text_padding: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let every position look at all tokens, and every token at all positions.

    Args:
        block: upstream's `BiAttentionBlock`, for its layers and numbers.
        image: float (B, S, C).
        text: float (B, n, C).
        image_padding: bool (B, S), True where there is no image.
        text_padding: bool (B, n), True where there is no token.

    Returns:
        Both, float (B, S, C) and (B, n, C), normalised, each with what it has seen of the other added.
    """
    image, text = block.layer_norm_v(image), block.layer_norm_l(text)
    with computing_fully(image.device):
        keys, key_bias, answers = _tokens_to_image_width(block.attn, text.float())
    # Upstream's clamp: in float16 a score may leave the range.
    scores = torch.baddbmm(key_bias, keys, image.mT.to(keys.dtype)).float().clamp(-50_000, 50_000)
    scores = scores.view(len(scores), block.attn.num_heads, -1, image.shape[1])  # (B, heads, n, S)
    of_tokens = scores.masked_fill(text_padding[:, None, :, None], -torch.inf).softmax(2).flatten(1, 2)
    of_positions = scores.masked_fill(image_padding[:, None, None], -torch.inf).softmax(3).flatten(1, 2)
    image_sees = torch.bmm(of_tokens.mT, answers) + block.attn.out_v_proj.bias
    with computing_fully(image.device):
        text_sees = _positions_to_text(block.attn, torch.bmm(of_positions, image))
    return image + block.gamma_v * image_sees, text + block.gamma_l * text_sees


def _tokens_to_image_width(attention: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each head compares positions with, and what it tells them, of each token.

    Returns:
        Keys (B, heads * n, C) and the part of each score that no position changes (B, heads * n, 1); what is added to
        a position that looks at a token (B, heads * n, C).
    """
    heads = attention.num_heads
    keys = attention.l_proj(text).unflatten(-1, (heads, -1)) * attention.scale
    values = attention.values_l_proj(text).unflatten(-1, (heads, -1))
    queries = attention.v_proj.weight.unflatten(0, (heads, -1))
    outputs = attention.out_v_proj.weight.unflatten(1, (heads, -1))
    return (
        torch.einsum("bnhd,hdc->bhnc", keys, queries).flatten(1, 2),
        torch.einsum("bnhd,hd->bhn", keys, attention.v_proj.bias.unflatten(0, (heads, -1))).flatten(1)[..., None],
        torch.einsum("bnhd,chd->bhnc", values, outputs).flatten(1, 2),
    )


def _positions_to_text(attention: Any, seen: torch.Tensor) -> torch.Tensor:
    """Project what each head of each token has summed up of positions, (B, heads * n, C), to the text: (B, n, C)."""
    heads = attention.num_heads
    weight = attention.values_v_proj.weight.unflatten(0, (heads, -1))
    seen = torch.einsum("bhnc,hdc->bnhd", seen.float().view(len(seen), heads, -1, seen.shape[-1]), weight).flatten(2)
    return torch.as_tensor(attention.out_l_proj(seen + attention.values_v_proj.bias))
