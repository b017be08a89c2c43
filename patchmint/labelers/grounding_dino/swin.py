"""Swin's blocks (arXiv 2103.14030) over upstream's weights, with fewer passes over memory, for inference on a GPU.

Upstream pads, rolls and cuts a picture into windows in float32, and writes all scores to memory, which it reads and
writes again at each step. Here windows are cut in the format that their products are computed in, and attended to by
torch's fused kernel, with relative positions and shifts as its mask. On a CPU, where products take most of the time,
this is no faster.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchmint.compute.norms import add_and_norm

_ALIGNED = 16


def fuse_windows(model: Any, dtype: torch.dtype) -> None:
    """Have the model's Swin run these blocks, in place. Changes of its weights after that are not seen.

    Args:
        model: upstream's `GroundingDINO`, on its device.
        dtype: that its products are computed in. Relative positions are rounded to it.
    """
    for layer in model.backbone[0].layers:
        layer.blocks = nn.ModuleList(_Block(block, dtype) for block in layer.blocks)


class _Block(nn.Module):
    """Upstream's `SwinTransformerBlock`."""

    H: int
    W: int
    # Of the picture, in positions; upstream's layer sets them before each call.

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2, self.fc1, self.fc2 = block.norm1, block.norm2, block.mlp.fc1, block.mlp.fc2
        self.attn = _Windows(block.attn, dtype)
        self._side, self._shift, self._dtype = block.window_size, block.shift_size, dtype

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within windows, then transform each position.

        Args:
            x: float32 (B, H * W, C).
            mask: of shifted windows, as for `_Windows`.
        """
        size, side, shift = (self.H, self.W), self._side, self._shift
        normed = self.norm1(x).to(self._dtype).unflatten(1, size)
        padded = functional.pad(normed, (0, 0, 0, -size[1] % side, 0, -size[0] % side))
        if shift:
            padded = padded.roll((-shift, -shift), (1, 2))
        rows, cols = padded.shape[1] // side, padded.shape[2] // side
        cut = padded.view(len(x), rows, side, cols, side, -1).transpose(2, 3)
        seen = self.attn(cut.reshape(-1, side * side, x.shape[-1]), mask if shift else None)
        seen = seen.view(cut.shape).transpose(2, 3).reshape(padded.shape)
        if shift:
            seen = seen.roll((shift, shift), (1, 2))
        x, normed = add_and_norm(x, seen[:, : size[0], : size[1]].flatten(1, 2), self.norm2, self._dtype)
        return x + cast(Tensor, self.fc2(functional.gelu(self.fc1(normed))))


class _Windows(nn.Module):
    """Upstream's `WindowAttention`."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._heads, self._scale = attention.num_heads, attention.scale
        places = attention.relative_position_index
        with torch.no_grad():
            bias = attention.relative_position_bias_table[places.flatten()].unflatten(0, places.shape)
        self._bias = bias.permute(2, 0, 1).to(dtype)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: (images * windows, n, C), in the format of products.
            mask: (windows, n, n), -100 between what must not see each other, else 0; None = all may.
        """
        count, n, _ = x.shape
        added = self._bias[None] if mask is None else mask[:, None].to(self._bias.dtype) + self._bias
        # Rows as kernels want them, or they would be copied.
        added = functional.pad(added, (0, -n % _ALIGNED))
        if mask is not None:
            added = added.expand(count // len(mask), -1, -1, -1, -1).flatten(0, 1)
        added = added[..., :n].expand(count, -1, -1, -1)
        query, key, value = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=self._scale)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))
