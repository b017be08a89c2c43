"""Grounding DINO's modules: upstream's classes without a hub, under transformers 4.57 and 5 alike."""

from __future__ import annotations

import math
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from patchmint.compute.devices import store_products
from patchmint.labelers.grounding_dino.arch import (
    HIDDEN_DIM,
    MAX_TEXT_TOKENS,
    Family,
    GroundingDinoArch,
    in_transformers_layout,
    infer_arch,
    own_tensors,
)
from patchmint.labelers.grounding_dino.hugging_face import by_upstreams_names
from patchmint.weights.loading import StateFile, load_into

_BUILDING = threading.Lock()

LEAST_SHARE: Mapping[Family, float] = {"grounding-dino": 1e-3, "mm-grounding-dino": 1e-5}
"""How far from 0 and 1 the last layer's boxes stay before their logit is taken."""

_NOT_LOADED = ("label_enc.", "bert.embeddings.position_ids")
# Official checkpoints carry a denoising table used in training only, and a buffer that older transformers stored.
_NOT_STORED = re.compile(r"relative_position_index$|^bert\.pooler\.")


class ScaledContrast(nn.Module):
    """How well queries and tokens match, as MM-Grounding-DINO has it, in the place of upstream's `ContrastiveEmbed`."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: torch.Tensor, words: dict[str, torch.Tensor]) -> torch.Tensor:
        """Score.

        Args:
            hidden: float (B, Q, C).
            words: `encoded_text`, float (B, n, C), and `text_token_mask`, bool (B, n), True where there is a token.

        Returns:
            Logits (B, Q, `MAX_TEXT_TOKENS`); -inf where there is no token.
        """
        text, mask = words["encoded_text"], words["text_token_mask"]
        logits = hidden @ text.mT / math.sqrt(hidden.shape[-1]) + self.bias
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
        return functional.pad(logits, (0, MAX_TEXT_TOKENS - logits.shape[-1]), value=-torch.inf)


class TextEncoder(nn.Module):
    """BERT's encoder with one attention mask a sentence, in the place of upstream's `BertModelWarper`.

    Upstream's wrapper calls methods that transformers 5 removed. This one keeps the attribute names, so that
    checkpoints load, and calls `embeddings` and `encoder` with an additive mask, which both lines of transformers take.
    """

    def __init__(self, arch: GroundingDinoArch) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.config = BertConfig(
            vocab_size=arch.text_vocabulary,
            hidden_size=arch.text_dim,
            num_hidden_layers=arch.text_layers,
            num_attention_heads=arch.text_heads,
            intermediate_size=arch.text_feed_forward,
            max_position_embeddings=arch.text_positions,
            attn_implementation="sdpa",
        )
        bert = BertModel(self.config)
        self.embeddings, self.encoder, self.pooler = bert.embeddings, bert.encoder, bert.pooler

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Encode tokens.

        Args:
            input_ids: int64 (B, n).
            attention_mask: bool (B, n, n), True where a token (second axis) may look at another (third axis).
            position_ids: int64 (B, n).
            token_type_ids: int64 (B, n), zeros where not given.

        Returns:
            `{"last_hidden_state": float (B, n, text_dim)}`, the shape of answer that upstream's model expects.
        """
        embedded = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        hidden = torch.zeros_like(attention_mask, dtype=embedded.dtype)
        hidden.masked_fill_(~attention_mask, torch.finfo(embedded.dtype).min)
        return {"last_hidden_state": self.encoder(embedded, attention_mask=hidden[:, None])[0]}


def load_grounding_dino(state: StateFile) -> tuple[nn.Module, GroundingDinoArch]:
    """Build the Grounding DINO that a checkpoint holds and load it, for inference on the CPU.

    Returns:
        Upstream's `GroundingDINO`, and its architecture.

    Raises:
        WeightsMismatchError: the checkpoint is none, or tensors are missing, left over or misshapen.
    """
    arch = infer_arch(state.tensors, state.metadata)
    state = replace(state, tensors=own_tensors(state.tensors))
    with torch.random.fork_rng(devices=[]):
        model = _construct(arch)
    if in_transformers_layout(state.tensors):
        # transformers stores neither numbers of places in a window nor BERT's pooler, which is never run
        own = {name: tensor for name, tensor in model.state_dict().items() if _NOT_STORED.search(name)}
        state = replace(state, tensors=own | by_upstreams_names(state.tensors, arch))
    load_into(model, state, what="Grounding DINO", ignored=_NOT_LOADED)
    return model, arch


def untrained(arch: GroundingDinoArch, seed: int = 0) -> nn.Module:
    """Build one with random weights that depend on the seed only; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _construct(arch)


def store_reduced(model: Any, dtype: torch.dtype) -> None:
    """Keep in `dtype` the weights of what runs in it, in place: all that is large.

    Places, boxes, ranks and what image and text tell each other are computed in float32 (`transformer.py`).
    """
    encoder, decoder = model.transformer.encoder, model.transformer.decoder
    for module in (model.backbone[0], model.input_proj, model.bert, model.feat_map, encoder.text_layers):
        store_products(module, dtype)
    for layer in (*encoder.layers, *decoder.layers):
        attention = layer.self_attn if layer in encoder.layers else layer.cross_attn
        for linear in (attention.value_proj, attention.output_proj, layer.linear1, layer.linear2):
            store_products(linear, dtype)


def _construct(arch: GroundingDinoArch) -> nn.Module:
    with warnings.catch_warnings():
        # Old import paths (timm) and calls (meshgrid) inside upstream; nothing that a user could mend.
        warnings.simplefilter("ignore")
        with _without_drawing():
            from groundingdino.models.GroundingDINO import groundingdino as upstream
        from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
        from groundingdino.models.GroundingDINO.backbone.position_encoding import PositionEmbeddingSineHW
        from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
        from groundingdino.models.GroundingDINO.transformer import Transformer

        swin = SwinTransformer(
            embed_dim=arch.swin_dim,
            depths=list(arch.swin_depths),
            num_heads=list(arch.swin_heads),
            window_size=arch.swin_window,
            out_indices=arch.backbone_stages,
        )
        position = PositionEmbeddingSineHW(HIDDEN_DIM // 2, temperatureH=20, temperatureW=20, normalize=True)
        backbone = Joiner(swin, position)
        backbone.num_channels = [swin.num_features[stage] for stage in arch.backbone_stages]
        transformer = Transformer(
            d_model=HIDDEN_DIM,
            nhead=8,
            num_queries=arch.queries,
            num_encoder_layers=arch.encoder_layers,
            num_decoder_layers=arch.decoder_layers,
            dim_feedforward=arch.feed_forward,
            return_intermediate_dec=True,
            num_feature_levels=arch.levels,
            learnable_tgt_init=True,
            two_stage_type="standard",
            embed_init_tgt=True,
            use_text_enhancer=True,
            use_fusion_layer=True,
            use_text_cross_attention=True,
            text_dropout=0.0,
            fusion_dropout=0.0,
        )
        with _text_encoder_in_place(upstream, TextEncoder(arch)):
            model: Any = upstream.GroundingDINO(
                backbone,
                transformer,
                num_queries=arch.queries,
                iter_update=True,
                query_dim=4,
                num_feature_levels=arch.levels,
                two_stage_type="standard",
                two_stage_bbox_embed_share=False,
                two_stage_class_embed_share=False,
                max_text_len=MAX_TEXT_TOKENS,
                dec_pred_bbox_embed_share=arch.family == "grounding-dino",
            )
    if arch.family == "mm-grounding-dino":
        model.class_embed = nn.ModuleList(ScaledContrast() for _ in range(arch.decoder_layers))
        model.transformer.decoder.class_embed = model.class_embed
        model.transformer.enc_out_class_embed = ScaledContrast()
    model.least_share = LEAST_SHARE[arch.family]
    # The tokenizer is ours (`prompts.py`); what upstream looked up in it is meaningless.
    model.tokenizer = None
    model.specical_tokens = None
    model.requires_grad_(requires_grad=False)
    return cast(nn.Module, model.eval())


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Import upstream's model without its visualizer.

    That one imports OpenCV, whose usual wheel needs libGL, which slim images lack; the model never draws.
    """
    name = "groundingdino.util.visualizer"
    if name in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(name)
    stand_in.COCOVisualizer = None
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]  # whoever wants to draw gets the real one


@contextmanager
def _text_encoder_in_place(upstream: Any, encoder: TextEncoder) -> Iterator[None]:
    """Let upstream's constructor take our text encoder where it would download one.

    It calls two module-level functions and wraps what they return; there is no argument for it. Both names are put back
    at once, and only one model is built at a time.
    """
    source = SimpleNamespace(
        get_tokenlizer=lambda _: SimpleNamespace(convert_tokens_to_ids=lambda _: []),
        get_pretrained_language_model=lambda _: encoder,
    )
    with _BUILDING:
        names = {"get_tokenlizer": source, "BertModelWarper": lambda bert_model: bert_model}
        kept = {name: getattr(upstream, name) for name in names}
        try:
            for name, stand_in in names.items():
                setattr(upstream, name, stand_in)
            yield
        finally:
            for name, original in kept.items():
                setattr(upstream, name, original)
