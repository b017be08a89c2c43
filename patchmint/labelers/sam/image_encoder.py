"""SAM's image encoder: upstream's weights, with a forward of its own.

The same numbers as `segment_anything.modeling.image_encoder` to within rounding. Differences that save time: scores of
attention are never all in memory; positions that only pad the last windows are not computed, since their queries are
thrown away and their keys and values are the projection's bias; tables of relative positions are made once. Sums of the
residual stream and norms stay in float32, whatever the products are computed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional

from patchmint.compute.compiled import CompiledPart
from patchmint.compute.devices import store_products
from patchmint.compute.norms import add_and_norm
from patchmint.labelers.sam.attention import attend, attend_fused, distance_table, relative_table


class ImageEncoder:
    """Runs an upstream encoder faster; for inference only. Changes of the weights after that are not seen."""

    def __init__(self, encoder: ImageEncoderViT, dtype: torch.dtype) -> None:
        """Take over an encoder on its final device.

        Args:
            encoder: its linear and convolution layers are kept in `dtype` from now on, in place.
            dtype: number format of the products; calls must be made within `computing_in(dtype)`.
        """
        store_products(encoder, dtype)
        self._encoder = encoder
        self._blocks = [_Block(cast(Block, block), encoder.pos_embed.shape[1], dtype) for block in encoder.blocks]
        self._run: Callable[[_Block, Tensor, Tensor], tuple[Tensor, Tensor]] = _Block.__call__

    def compile(self) -> None:
        """From the next call on run the blocks compiled (`patchmint.compute.compiled`)."""
        self._run = CompiledPart(_Block.__call__, name="SAM's image encoder", axes=[(0,), (0,)])

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        side: int = self._encoder.img_size
        return side

    @property
    def numbers(self) -> int:
        """Numbers in the tensor that runs through the blocks, for one picture."""
        count: int = self._encoder.pos_embed.numel()
        return count

    def __call__(self, squares: Tensor) -> Tensor:
        """Encode preprocessed pictures.

        Args:
            squares: (B, 3, image_size, image_size).

        Returns:
            float32 (B, h, w, C): upstream's embeddings with the channels last.
        """
        more = self._encoder.patch_embed(squares).contiguous()
        x = self._encoder.pos_embed.expand(more.shape).contiguous()
        for block in self._blocks:
            x, more = self._run(block, x, more)
        return self._neck(x + more)

    def _neck(self, x: Tensor) -> Tensor:
        narrow, norm, mix, last_norm = cast(tuple[nn.Conv2d, LayerNorm2d, nn.Conv2d, LayerNorm2d], self._encoder.neck)
        x = _norm_channels(narrow(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), norm)
        return _norm_channels(mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), last_norm)


class _Block:
    """A transformer block: attention in windows or over the whole picture, then an MLP."""

    def __init__(self, block: Block, side: int, dtype: torch.dtype) -> None:
        attention = cast(Attention, block.attn)
        self._block, self._attention, self._dtype = block, attention, dtype
        self._side = block.window_size or side
        learnt = (attention.rel_pos_h, attention.rel_pos_w)
        with torch.no_grad():
            self._rows, self._cols = (relative_table(weights, self._side).to(dtype) for weights in learnt)
            self._distances = distance_table(*learnt).to(dtype)

    def __call__(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """Take and give a picture's tensor in two parts: float32, and what the last layer adds to it."""
        x, normed = add_and_norm(x, more, cast(nn.LayerNorm, self._block.norm1), self._dtype)
        x, normed = add_and_norm(x, self._attend(normed), cast(nn.LayerNorm, self._block.norm2), self._dtype)
        mlp = self._block.mlp
        # Products give `dtype` to a function that works in float32 inside, and needs no copies around it.
        return x, cast(Tensor, mlp.lin2(mlp.act(mlp.lin1(normed))))

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        projected = self._attention.qkv(x)
        windows = (-(-height // self._side), -(-width // self._side))
        padded_size = (windows[0] * self._side, windows[1] * self._side)
        if padded_size != (height, width):
            # Upstream pads what is projected with zeros, of which the bias is all that comes out.
            bias = self._attention.qkv.bias.to(projected.dtype)
            padded = projected.new_empty(batch, *padded_size, projected.shape[-1])
            padded[:, :height, :width] = projected
            padded[:, height:] = bias
            padded[:, :height, width:] = bias
            projected = padded
        parts = projected.view(batch, windows[0], self._side, windows[1], self._side, 3, self._attention.num_heads, -1)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
        if _fused(x):
            mixed = attend_fused(parts[0], parts[1], parts[2], self._distances)
        else:
            query, key, value = parts.flatten(1, 3).unbind(0)
            mixed = attend(query, key, value, self._rows, self._cols).view(parts.shape[1:])
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, *padded_size, channels)
        # A product of a part that doesn't lie together would be taken row by row, and its bias added in another pass.
        return cast(Tensor, self._attention.proj(mixed[:, :height, :width].contiguous()))


def _fused(x: Tensor) -> bool:
    """Whether to attend as on a GPU."""
    return x.is_cuda


def _norm_channels(x: Tensor, norm: LayerNorm2d) -> Tensor:
    """Upstream's norm of channels (`LayerNorm2d`) for tensors (..., C), in float32."""
    return functional.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, norm.eps)
