"""Where image and text meet: Grounding DINO's transformer (arXiv 2303.05499, section 3) over upstream's modules.

The order of operations is upstream's (`transformer.py`); what differs is what upstream gets wrong for batches. It tiles
the texts' masks head-major where attention wants them batch-major (`transformer_vanilla.py`), so unlike captions read
each other's; it lets the first stage pick proposals on padding; and it scales the queries' position embedding with the
padded canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import torch

from patchmint.compute.compiled import CompiledPart, Graphed
from patchmint.compute.devices import computing_fully, works_in_parts
from patchmint.compute.norms import norm_of_sum
from patchmint.labelers.grounding_dino.canvas import (
    ImageBatch,
    PromptBatch,
    batch_images,
    batch_prompts,
    pairs_at_once,
    position_centres,
)
from patchmint.labelers.grounding_dino.deformable import LevelTable, deformable_attention
from patchmint.labelers.grounding_dino.encoders import ImageFeatures, PromptFeatures

_EPSILON = 1e-3
# Shares are kept this far from 0 and 1 before taking their logit (upstream `misc.py`, `inverse_sigmoid`), in
# MM-Grounding-DINO all but the last (mmdetection's `DinoTransformerDecoder` and `GroundingDINOHead`: `least_share`).
_ROWS_AT_ONCE = 1024

_COMPILED = "compiled_layer"
_GRAPH = "decoder_graph"
_BATCHES = 8
_POSITIONS_A_STEP = 2**12
_FEWEST_WORDS = 16
# A graph of the decoder is for one of so many numbers of pairs, for positions in such steps, and for so many tokens or
# twice, four times as many.


@dataclass(frozen=True)
class RawDetections:
    """What the model says of each (image, prompt) pair, before any threshold.

    Attributes:
        logits: float (B, queries, 256), one a token; -inf where the prompt has no token, or the query no place.
        boxes: float (B, queries, 4): centre x, centre y, width, height as shares of the image, 0..1.
    """

    logits: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class Proposals:
    """What the first stage makes of B pairs: a candidate box at each of S positions, and how good it looks.

    Attributes:
        image, prompt: the padded inputs.
        memory: float (B, S, 256), image features that have seen the text.
        words: the text that has seen the image, as upstream's heads take it.
        candidates: float (B, S, 256).
        rank: float (B, S), the best logit of any token; -inf on padding.
    """

    image: ImageBatch
    prompt: PromptBatch
    memory: torch.Tensor
    words: dict[str, torch.Tensor]
    candidates: torch.Tensor
    rank: torch.Tensor


def match(model: Any, images: Sequence[ImageFeatures], prompts: Sequence[PromptFeatures]) -> RawDetections:
    """Look for prompts in images, pair by pair.

    The first stage ranks positions and the second refines the best; a query's starting content is learnt per *rank*, so
    two positions that rank equally to within rounding may swap and then differ by more than rounding. That lies in the
    model, not in the batch (upstream's runs differ in the same way from one machine to the next).

    Args:
        model: upstream's `GroundingDINO`.
        images: B images of any sizes; one may stand several times.
        prompts: B prompts of any lengths.
    """
    proposals = propose(model, images, prompts)
    return refine(model, proposals, torch.topk(proposals.rank, model.transformer.num_queries, dim=1)[1])


def propose(model: Any, images: Sequence[ImageFeatures], prompts: Sequence[PromptFeatures]) -> Proposals:
    """Run the first stage: fuse image and text, and rank every position."""
    transformer = model.transformer
    image = batch_images(model, images)
    prompt = batch_prompts(prompts)
    memory, text = _encode(transformer.encoder, image, prompt)
    words = {"encoded_text": text, "text_token_mask": ~prompt.padding}
    with computing_fully(memory.device):
        candidates = memory.masked_fill(~image.usable[..., None], 0.0)
        candidates = transformer.enc_output_norm(transformer.enc_output(candidates))
        # As upstream's `ContrastiveEmbed`, but for the tokens that there are only.
        rank = (candidates @ text.mT).masked_fill(prompt.padding[:, None], -torch.inf).amax(-1)
    rank = rank.masked_fill(image.padding, -torch.inf)
    return Proposals(image, prompt, memory, words, candidates, rank)


def refine(model: Any, proposals: Proposals, best: torch.Tensor) -> RawDetections:
    """Run the second stage on chosen positions.

    Args:
        model: upstream's `GroundingDINO`.
        proposals: from the first stage.
        best: int64 (B, queries), positions from best to worst.
    """
    transformer, image = model.transformer, proposals.image
    with computing_fully(best.device):
        references = transformer.enc_out_bbox_embed(_rows(proposals.candidates, best)) + _rows(image.proposals, best)
    hidden, references = _decode(transformer, proposals, references.sigmoid())
    placeless = image.padding.gather(1, best)
    with computing_fully(best.device):
        logits = model.class_embed[-1](hidden, proposals.words).masked_fill(placeless[..., None], -torch.inf)
        boxes = (model.bbox_embed[-1](hidden) + _logit(references, model.least_share)).sigmoid()
    return RawDetections(logits, boxes)


def _rows(table: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rows (B, k, C) of tables (B, S, C), by their numbers (B, k)."""
    return table.gather(1, chosen[..., None].expand(-1, -1, table.shape[-1]))


def _encode(encoder: Any, image: ImageBatch, prompt: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
    memory, text = image.memory, prompt.hidden.float()
    reference = _own_places(image)
    text_position = sine_embedding(prompt.positions.float(), text.shape[-1]).transpose(0, 1)
    heads = encoder.text_layers[0].nhead
    # batch-major, as attention wants it; a mask of this shape passes upstream's own tiling by
    blocked = prompt.blocked.repeat_interleave(heads, dim=0)
    run = vars(encoder).get(_COMPILED, _encoder_layer)
    for layers in zip(encoder.fusion_layers, encoder.text_layers, encoder.layers, strict=True):
        memory, text = run(
            layers, memory, text, text_position, blocked, prompt.padding, image.position, reference, image.levels,
            image.padding,
        )  # fmt: skip
    return memory, text


def _encoder_layer(
    layers: tuple[Any, Any, Any],
    memory: torch.Tensor,
    text: torch.Tensor,
    text_position: torch.Tensor,
    blocked: torch.Tensor,
    no_token: torch.Tensor,
    position: torch.Tensor,
    reference: torch.Tensor,
    levels: LevelTable,
    padding: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text look at each other, then each at itself: float (B, S, C) and (B, n, C), both again."""
    fusion, text_layer, layer = layers
    memory, text = fuse(fusion, memory, text, padding, no_token)
    text = text_layer(src=text.transpose(0, 1), src_mask=blocked, pos=text_position).transpose(0, 1)
    attended = deformable_attention(layer.self_attn, memory + position, reference, memory, levels, padding)
    memory = _feed_forward(layer, memory, attended, layer.norm1, layer.norm2)
    return memory, text.contiguous()


def _feed_forward(
    layer: Any, hidden: torch.Tensor, attended: torch.Tensor, norm: torch.nn.LayerNorm, last: torch.nn.LayerNorm
) -> torch.Tensor:
    """Add what attention gave, and norm; add two linear layers with a ReLU between, and norm again: float (B, S, C).

    In parts on the CPU: what lies between the layers is eight times as wide, and would not stay in the cache.
    """
    if not works_in_parts(hidden.device):
        hidden = norm_of_sum(hidden, attended, norm)
        return norm_of_sum(hidden, layer.linear2(_rectified(layer.linear1, hidden)), last)
    answers = []
    for part, added in zip(*(torch.split(each, _ROWS_AT_ONCE, dim=1) for each in (hidden, attended)), strict=True):
        normed = norm(part + added)
        answers.append(last(normed + layer.linear2(layer.linear1(normed).relu_())))
    return torch.cat(answers, dim=1)


def _rectified(linear: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """ReLU of a linear layer, which a GPU's product does by the way: another pass would take as long."""
    if torch.compiler.is_compiling():
        return cast(torch.Tensor, linear(hidden).relu_())
    rows = hidden.to(linear.weight.dtype).flatten(0, -2)
    return torch.unflatten(torch._addmm_activation(linear.bias, rows, linear.weight.mT), 0, hidden.shape[:-1])


def _own_places(image: ImageBatch) -> torch.Tensor:
    """Each position's own centre, as a share of every level's padded map: float (B, S, levels, 2)."""
    places = []
    for level, (height, width) in enumerate(image.shapes):
        centres = position_centres((height, width), image.memory.device)
        places.append(centres[None] / (image.valid_ratios[:, None, level] * image.levels.sizes[level]))
    return torch.cat(places, dim=1)[:, :, None] * image.valid_ratios[:, None]


def _decode(transformer: Any, proposals: Proposals, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Refine queries and their boxes; gives the last layer's queries (B, Q, 256) and the boxes (B, Q, 4) before it."""
    image, text = proposals.image, proposals.words["encoded_text"]
    scale = torch.cat([image.valid_ratios, image.valid_ratios], dim=-1)[:, None]
    levels = [getattr(image.levels, each.name) for each in fields(LevelTable)]
    tensors = [references, scale, text, proposals.prompt.padding, proposals.memory, image.padding, *levels]
    graph: Graphed | None = vars(transformer).get(_GRAPH)
    if graph is None:
        hidden, references = _run_layers(transformer, *tensors)
    else:
        hidden, references = graph(tensors, [*_bucket(image, tensors[:6]), *(tuple(each.shape) for each in levels)])
    return transformer.decoder.norm(hidden), references


def _bucket(image: ImageBatch, tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    """Few shapes to pad queries' boxes, scales, text, its padding, positions and theirs to.

    No query looks at a position behind the levels, or at a token that isn't there.
    """
    batch, positions, words = len(tensors[0]), tensors[4].shape[1], tensors[2].shape[1]
    step = max(1, pairs_at_once(math.prod(image.shapes[0]), tensors[0].device) // _BATCHES)
    batch = -(-batch // step) * step
    positions = -(-positions // _POSITIONS_A_STEP) * _POSITIONS_A_STEP
    words = max(_FEWEST_WORDS, 1 << (words - 1).bit_length())
    lengths = (tensors[0].shape[1], 1, words, words, positions, positions)
    return [(batch, length, *each.shape[2:]) for each, length in zip(tensors, lengths, strict=True)]


def _run_layers(
    transformer: Any,
    references: torch.Tensor,
    scale: torch.Tensor,
    text: torch.Tensor,
    no_token: torch.Tensor,
    memory: torch.Tensor,
    padding: torch.Tensor,
    *levels: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    decoder, text_keys, table = transformer.decoder, text.transpose(0, 1), LevelTable(*levels)
    hidden = transformer.tgt_embed.weight.repeat(memory.shape[0], 1, 1)
    run = vars(decoder).get(_COMPILED, _decoder_layer)
    for index, layer in enumerate(decoder.layers):
        box_embed = decoder.bbox_embed[index] if index < len(decoder.layers) - 1 else None
        modules = (layer, decoder.ref_point_head, box_embed)
        hidden, references = run(modules, hidden, references, scale, text_keys, no_token, memory, table, padding)
    return hidden, references


def _decoder_layer(
    modules: tuple[Any, Any, Any],
    hidden: torch.Tensor,
    references: torch.Tensor,
    scale: torch.Tensor,
    text_keys: torch.Tensor,
    no_token: torch.Tensor,
    memory: torch.Tensor,
    levels: LevelTable,
    padding: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries look at each other, at the text and at the image, and move their boxes: (B, Q, C) and (B, Q, 4) again."""
    layer, embed, box_embed = modules
    # Upstream embeds the reference scaled to the padded canvas, which moves with the batch; alone the scale is 1.
    with computing_fully(hidden.device):
        position = embed(_box_embedding(references, hidden.shape[-1] // 2))

    query = (hidden + position).transpose(0, 1)
    attended = layer.self_attn(query, query, hidden.transpose(0, 1), need_weights=False)[0]
    hidden = norm_of_sum(hidden, attended.transpose(0, 1), layer.norm2)

    query = (hidden + position).transpose(0, 1)
    attended = layer.ca_text(query, text_keys, text_keys, key_padding_mask=no_token, need_weights=False)[0]
    hidden = norm_of_sum(hidden, attended.transpose(0, 1), layer.catext_norm)

    attended = deformable_attention(
        layer.cross_attn, hidden + position, references[:, :, None] * scale, memory, levels, padding
    )
    hidden = _feed_forward(layer, hidden, attended, layer.norm1, layer.norm3)
    if box_embed is not None:  # the last layer's boxes are those before it
        with computing_fully(hidden.device):
            references = (box_embed(hidden) + _logit(references)).sigmoid()
    return hidden, references


def compile_layers(model: Any) -> None:
    """Have `match` run the layers of the model's encoder and decoder compiled, in place, for any batch.

    On a GPU the decoder's are a CUDA graph as well: they are hundreds of short kernels.
    """
    for part, function, axes in (
        (model.transformer.encoder, _encoder_layer, [*[(0, 1)] * 3, (0, 1, 2), *[(0, 1)] * 3, (), (0, 1)]),
        (model.transformer.decoder, _decoder_layer, [*[(0,)] * 3, *[(0, 1)] * 3, (), (0, 1)]),
    ):
        setattr(part, _COMPILED, CompiledPart(function, name="Grounding DINO's transformer", axes=axes))
    run = partial(_run_layers, model.transformer)
    setattr(model.transformer, _GRAPH, Graphed(run, name="Grounding DINO's decoder as a CUDA graph"))


def _logit(share: torch.Tensor, least: float = _EPSILON) -> torch.Tensor:
    share = share.clamp(0, 1)
    return torch.log(share.clamp(min=least) / (1 - share).clamp(min=least))


def sine_embedding(values: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of a value at rising wavelengths, interleaved: float (...) -> (..., width).

    Upstream `utils.py`, `get_sine_pos_embed` and `gen_sineembed_for_position`.
    """
    step = torch.arange(width, dtype=torch.float32, device=values.device)
    wavelength = 10000 ** (2 * torch.div(step, 2, rounding_mode="floor") / width)
    angles = values[..., None] * (2 * math.pi) / wavelength
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def _box_embedding(boxes: torch.Tensor, width: int) -> torch.Tensor:
    """Embed boxes (B, Q, 4) as y, x, width, height: (B, Q, 4 * width)."""
    # Slices: a list of places would be copied to the device, and waited for.
    return sine_embedding(torch.cat([boxes[..., 1:2], boxes[..., :1], boxes[..., 2:]], dim=-1), width).flatten(-2)


def fuse(
    block: Any, image: torch.Tensor, text: torch.Tensor, image_padding: torch.Tensor, text_padding: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let every position look at all tokens, and every token at all positions (GLIP, arXiv 2112.03857).

    An image has tens of thousands of positions, a text tens of tokens. Upstream (`fuse_modules.py`) projects each
    position to queries and values four times as wide as itself, and the sums back. A product of matrices may be taken
    in any order: here the projections are applied to the tokens, or to what the tokens have summed up, and no position
    is ever widened.

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
        # Upstream's clamp, which it has for float16.
        scores = torch.baddbmm(key_bias, keys, image.mT).clamp(-50_000, 50_000)
    scores = torch.unflatten(scores, 1, (block.attn.num_heads, -1))  # (B, heads, n, S)
    of_tokens = scores.masked_fill(text_padding[:, None, :, None], -torch.inf).softmax(2).flatten(1, 2)
    of_positions = scores.masked_fill(image_padding[:, None, None], -torch.inf).softmax(3).flatten(1, 2)
    with computing_fully(image.device):
        text_sees = _positions_to_text(block.attn, torch.bmm(of_positions, image))
        # A position's shares sum to 1 in each head, and so to the bias over all heads.
        answers = (answers + block.attn.out_v_proj.bias / block.attn.num_heads) * block.gamma_v
    image = image + torch.bmm(of_tokens.mT, answers)
    return image, text + block.gamma_l * text_sees


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
    seen = torch.einsum("bhnc,hdc->bnhd", torch.unflatten(seen.float(), 1, (heads, -1)), weight).flatten(2)
    return torch.as_tensor(attention.out_l_proj(seen + attention.values_v_proj.bias))
