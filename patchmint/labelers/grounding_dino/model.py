"""Grounding DINO's modules: their sizes, and upstream's classes without a hub, under transformers 4.57 and 5 alike."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from pydantic import ConfigDict
from torch import nn

from patchmint.compute.precision import store_products
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.weights.architecture import Architecture
from patchmint.weights.loading import StateFile, load_into

HIDDEN_DIM = 256
"""Width of the transformer. Fixed: upstream hard-codes the text position embedding to it (`transformer.py`)."""

MAX_TEXT_TOKENS = 256
"""Width of the model's logits: tokens of one prompt, `[CLS]` and `[SEP]` included."""


_LARGEST_COUNT = 64
_MOST_STAGES = 8
_LARGEST = {
    "swin_dim": 1024,
    "queries": 5000,
    "feed_forward": 16384,
    "text_vocabulary": 1_000_000,
    "text_dim": 4096,
    "text_feed_forward": 16384,
    "text_positions": 4096,
    "short_side": 4096,
    "long_side": 8192,
}

_BUILDING = threading.Lock()

_NOT_LOADED = ("label_enc.", "bert.embeddings.position_ids")
# Official checkpoints carry a denoising table used in training only, and a buffer that older transformers stored.


@dataclass(frozen=True)
class GroundingDinoArch(Architecture):
    """Hyper-parameters of a Grounding DINO.

    Attributes:
        swin_dim, swin_depths, swin_heads, swin_window: the Swin backbone.
        levels: feature levels; the last `levels - len(backbone_stages)` come from stride-2 convolutions.
        backbone_stages: Swin stages that give features.
        encoder_layers, decoder_layers, queries, feed_forward: the transformer.
        text_vocabulary, text_dim, text_layers, text_heads, text_feed_forward, text_positions: the BERT text encoder.
        short_side, long_side: the image is resized to this short side, or to this long side if that is smaller.
    """

    swin_dim: int
    swin_depths: tuple[int, ...]
    swin_heads: tuple[int, ...]
    swin_window: int
    levels: int = 4
    backbone_stages: tuple[int, ...] = (1, 2, 3)
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 900
    feed_forward: int = 2048
    text_vocabulary: int = 30522
    text_dim: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feed_forward: int = 3072
    text_positions: int = 512
    short_side: int = 800
    long_side: int = 1333

    WHAT = "Grounding DINO"
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Bound every number: an architecture can come from a file, which must not ask for a huge model.

        Raises:
            ConfigError: a number is out of range, or numbers contradict each other.
        """
        for name, value in asdict(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if not (0 if name == "backbone_stages" else 1) <= number <= _LARGEST.get(name, _LARGEST_COUNT):
                    raise ConfigError(f"{name} of {value} is out of range")
        stages = len(self.swin_depths)
        heads_fit = all(self.swin_dim * 2**i % heads == 0 for i, heads in enumerate(self.swin_heads))
        if not (
            len(self.swin_heads) == stages <= _MOST_STAGES
            and heads_fit
            and self.backbone_stages == tuple(sorted(set(self.backbone_stages)))
            and self.backbone_stages
            and self.backbone_stages[-1] < stages
            and len(self.backbone_stages) <= self.levels
            and self.text_dim % self.text_heads == 0
        ):
            raise ConfigError("the Swin's stages, heads and feature levels, or the text encoder's heads, don't fit")


OFFICIAL: Mapping[str, GroundingDinoArch] = MappingProxyType(
    {
        # groundingdino/config/GroundingDINO_SwinT_OGC.py and GroundingDINO_SwinB_cfg.py, backbone/swin_transformer.py
        "groundingdino-swint-ogc": GroundingDinoArch(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
        "groundingdino-swinb-cogcoor": GroundingDinoArch(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    }
)

TINY = GroundingDinoArch(
    swin_dim=32,
    swin_depths=(1, 1, 1, 1),
    swin_heads=(1, 2, 4, 8),
    swin_window=7,
    encoder_layers=2,
    decoder_layers=2,
    queries=24,
    feed_forward=256,
    text_vocabulary=256,
    text_dim=64,
    text_layers=2,
    text_heads=2,
    text_feed_forward=128,
    text_positions=256,
    short_side=160,
    long_side=240,
)
"""The same classes, tiny: for tests and the `untrained-tiny` preset."""


def infer_arch(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> GroundingDinoArch:
    """Tell a checkpoint's architecture from its metadata, or from its backbone's width and window.

    Raises:
        WeightsMismatchError: it is none that patchmint knows.
    """
    written = GroundingDinoArch.from_metadata(metadata)
    if written is not None:
        return written
    patch = tensors.get("backbone.0.patch_embed.proj.weight")
    bias = tensors.get("backbone.0.layers.0.blocks.0.attn.relative_position_bias_table")
    if patch is not None and bias is not None:
        for arch in OFFICIAL.values():
            if patch.shape[0] == arch.swin_dim and bias.shape[0] == (2 * arch.swin_window - 1) ** 2:
                return arch
    raise WeightsMismatchError(
        f"the file isn't a Grounding DINO that patchmint knows ({', '.join(OFFICIAL)}); "
        "give one of those, or a safetensors file whose metadata describes its architecture"
    )


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
    with torch.random.fork_rng(devices=[]):
        model = _construct(arch)
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
            )
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
