"""SAM's mask decoder: upstream's weights, boxes of several pictures in one pass, and a third of upstream's products.

The same numbers as `segment_anything.modeling.mask_decoder` and its transformer, to within rounding. A box has seven
tokens and its picture thousands of positions, so nothing is projected that exists for each position:

- a score (W_q t) * (W_k p) is taken as (W_k' W_q t) * p, and the mean of W_v p as W_v times the mean of p;
- positional encodings meet the tokens by themselves, once for all boxes;
- transposed convolutions whose stride is their size are plain products with the channels last;
- of the four masks that upstream makes, only the one that it answers with for a box.

What belongs to tokens is computed in float32, whatever the products over positions are computed in.
"""

from __future__ import annotations

from typing import cast

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from patchmint.compute.devices import computing_fully


class MaskDecoder:
    """Runs an upstream prompt encoder and mask decoder faster; for inference only."""

    def __init__(self, model: Sam, dtype: torch.dtype) -> None:
        """Take over a model on its final device; nothing of it changes.

        Args:
            model: in evaluation mode. Changes of its weights after that are not seen.
            dtype: number format of the products over positions.
        """
        self._prompts, self._decoder = model.prompt_encoder, model.mask_decoder
        self._transformer = cast(TwoWayTransformer, model.mask_decoder.transformer)
        self._dtype = dtype
        with torch.no_grad():
            self._places = self._prompts.get_dense_pe()[0].flatten(1).to(dtype)
            first, _, _, second, _ = model.mask_decoder.output_upscaling
            self._first, self._second = _as_product(first, dtype), _as_product(second, dtype)

    @property
    def numbers(self) -> int:
        """Numbers in the tensor of positions, for one box."""
        count: int = self._places.numel()
        return count

    def __call__(self, embeddings: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
        """Decode boxes.

        Args:
            embeddings: float32 (B, h, w, C), as `ImageEncoder` gives them.
            boxes: float32 (N, 4), XYXY in input pixels.
            images: int64 (N,), which embedding each box belongs to.

        Returns:
            float32 logits (N, 4 * h, 4 * w), over the whole square input; positive = mask.
        """
        with computing_fully(embeddings.device):
            sparse, _ = self._prompts(points=None, boxes=boxes, masks=None)
            own = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight])
            tokens = torch.cat([own.expand(len(boxes), -1, -1), sparse], dim=1)
            plain = embeddings + self._prompts.no_mask_embed.weight[0]
            answers, positions = self._transform(tokens, plain.flatten(1, 2)[images])
            mask = self._decoder.output_hypernetworks_mlps[0](answers[:, 1])
            return self._upscale(positions, mask, embeddings.shape[1:3])

    def _transform(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Upstream's two-way transformer: tokens (N, T, C), positions (N, h * w, C); the positions in `dtype`."""
        queries = tokens
        low = positions.to(self._dtype)
        for layer in cast(list[TwoWayAttentionBlock], self._transformer.layers):
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(q=queries, k=queries, v=queries)
            else:
                placed = queries + tokens
                queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
            queries = layer.norm1(queries)
            queries = layer.norm2(queries + self._read(layer.cross_attn_token_to_image, queries + tokens, low))
            queries = layer.norm3(queries + layer.mlp(queries))
            update = self._written(layer.cross_attn_image_to_token, queries + tokens, queries, low)
            positions = layer.norm4(positions + update)
            low = positions.to(self._dtype)
        queries = queries + self._read(self._transformer.final_attn_token_to_image, queries + tokens, low)
        return self._transformer.norm_final_attn(queries), low

    def _read(self, attention: Attention, tokens: Tensor, positions: Tensor) -> Tensor:
        """What tokens take from positions: (N, T, C)."""
        heads = attention.num_heads
        queries = torch.unflatten(attention.q_proj(tokens), -1, (heads, -1))
        # The bias of keys adds the same to all scores of a query, so that it changes nothing.
        scores = self._scores(queries, attention.k_proj, positions)
        shares = scores.float().softmax(dim=-1).to(self._dtype)
        means = torch.unflatten(torch.bmm(shares, positions).float(), 1, (heads, -1))
        values = torch.einsum(
            "nhtc,hdc->nthd", means, torch.unflatten(attention.v_proj.weight, 0, (heads, -1))
        ).flatten(2)
        return cast(Tensor, attention.out_proj(values + attention.v_proj.bias))

    def _written(self, attention: Attention, placed: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """What positions take from tokens: (N, h * w, C) in `dtype`."""
        heads = attention.num_heads
        keys = torch.unflatten(attention.k_proj(placed), -1, (heads, -1))
        scores = torch.unflatten(self._scores(keys, attention.q_proj, positions), 1, (heads, -1))
        bias = torch.einsum("nthd,hd->nht", keys, torch.unflatten(attention.q_proj.bias, 0, (heads, -1)))
        scaled = bias[..., None] * keys.shape[-1] ** -0.5
        shares = (scores.float() + scaled).softmax(dim=2).flatten(1, 2).to(self._dtype)
        values = torch.unflatten(attention.v_proj(tokens), -1, (heads, -1))
        given = torch.einsum("nthd,chd->nhtc", values, torch.unflatten(attention.out_proj.weight, 1, (heads, -1)))
        # A position's shares sum to 1 in each head, and so to the bias over all heads.
        given = (given + attention.out_proj.bias / heads).flatten(1, 2).to(self._dtype)
        return torch.bmm(shares.transpose(1, 2), given)

    def _scores(self, projected: Tensor, projection: nn.Linear, positions: Tensor) -> Tensor:
        """Scores of tokens (N, T, heads, d) and placed positions (N, P, C) under a projection: (N, heads * T, P)."""
        weight = torch.unflatten(projection.weight, 0, (projected.shape[2], -1))
        vectors = torch.einsum("nthd,hdc->nhtc", projected, weight) * projected.shape[-1] ** -0.5
        vectors = vectors.flatten(1, 2).to(self._dtype)
        return torch.baddbmm(vectors @ self._places, vectors, positions.transpose(1, 2))

    def _upscale(self, positions: Tensor, mask: Tensor, grid: torch.Size) -> Tensor:
        """Logits (N, 4 * h, 4 * w) of positions (N, h * w, C) and a mask's token (N, C / 8)."""
        _, norm, act, _, last_act = self._decoder.output_upscaling
        norm = cast(LayerNorm2d, norm)
        fine = torch.unflatten(functional.linear(positions, *self._first), -1, (4, -1))
        fine = functional.layer_norm(fine.float(), fine.shape[-1:], norm.weight, norm.bias, norm.eps)
        finer = last_act(functional.linear(act(fine).to(self._dtype), *self._second))
        logits = torch.bmm(finer.view(len(mask), -1, mask.shape[-1]), mask.to(self._dtype)[..., None]).float()
        # Rows and columns of the grid, then of its first and of its second division.
        parts = logits.view(len(mask), *grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return parts.reshape(len(mask), 4 * grid[0], 4 * grid[1])


def _as_product(layer: nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (4 * out, in) and bias (4 * out,) by which the layer, 2 x 2 with stride 2, is a product of channels."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return weight.to(dtype).contiguous(), cast(Tensor, layer.bias).repeat(4).to(dtype)
