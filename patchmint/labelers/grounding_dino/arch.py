"""What a Grounding DINO is built from, and the published ones. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import ConfigDict

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.types import Size
from patchmint.weights.architecture import Architecture, Shaped
from patchmint.weights.folder import INPUT, described, unwrapped
from patchmint.weights.recognise import looks_like

Tensor = TypeVar("Tensor")

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


Family = Literal["grounding-dino", "mm-grounding-dino"]


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
        family: MM-Grounding-DINO (arXiv 2401.02361; LLMDet, arXiv 2501.18954, is one) divides scores by the root of
            the width and adds a learnt bias, and has heads for each layer.
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
    family: Family = "grounding-dino"

    WHAT = "Grounding DINO"
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Bound every number: an architecture can come from a file, which must not ask for a huge model.

        Raises:
            ConfigError: a number is out of range, or numbers contradict each other.
        """
        for name, value in asdict(self).items():
            if name == "family":
                continue
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


def infer_arch(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> GroundingDinoArch:
    """Tell a checkpoint's architecture from its metadata, or from its backbone's width and window.

    Raises:
        WeightsMismatchError: it is none that patchmint knows.
    """
    written = GroundingDinoArch.from_metadata(metadata)
    if written is not None:
        return written
    tensors = own_tensors(tensors)
    if in_transformers_layout(tensors):
        return _of_config(described(metadata), described(metadata, INPUT))
    patch = tensors.get(_PATCHES)
    bias = tensors.get("backbone.0.layers.0.blocks.0.attn.relative_position_bias_table")
    if patch is not None and bias is not None:
        for arch in OFFICIAL.values():
            if patch.shape[0] == arch.swin_dim and bias.shape[0] == (2 * arch.swin_window - 1) ** 2:
                return arch
    raise WeightsMismatchError(
        f"the file isn't a Grounding DINO that patchmint knows ({', '.join(OFFICIAL)}); "
        f"give one of those, or a safetensors file whose metadata describes its architecture.{looks_like(tensors)}"
    )


_PATCHES, _THEIRS = "backbone.0.patch_embed.proj.weight", "model.query_position_embeddings.weight"


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the Grounding DINO, where it is a part of another model."""
    return unwrapped(tensors, (_PATCHES, _THEIRS))


def in_transformers_layout(names: Iterable[str]) -> bool:
    """Whether tensors have the names of transformers' Grounding DINO."""
    return _THEIRS in names


_FIXED = {
    "activation_function": "relu",
    "d_model": HIDDEN_DIM,
    "decoder_attention_heads": 8,
    "decoder_n_points": 4,
    "embedding_init_target": True,
    "encoder_attention_heads": 8,
    "encoder_n_points": 4,
    "max_text_len": MAX_TEXT_TOKENS,
    "position_embedding_type": "sine",
    "positional_embedding_temperature": 20,
    "two_stage": True,
    "two_stage_bbox_embed_share": False,
}
"""What no published model has otherwise, by the names of transformers' `GroundingDinoConfig`."""


def _of_config(config: Mapping[str, Any], prepared: Mapping[str, Any]) -> GroundingDinoArch:
    """The architecture in transformers' words; what isn't said there is as in `GroundingDinoConfig`."""
    swin, bert = config.get("backbone_config") or {}, config.get("text_config") or {}
    size = prepared.get("size", {})
    other = {name: config[name] for name, value in _FIXED.items() if config.get(name, value) != value}
    if config.get("model_type") not in get_args(Family) or swin.get("model_type", "swin") != "swin" or other:
        raise WeightsMismatchError(
            "the file holds a Grounding DINO in transformers' layout, but the config.json beside it "
            f"{f'says {other}, which patchmint does not know' if other else 'is missing or of another model'}; keep "
            "the folder's files together, and take a published model's"
        )
    try:
        return GroundingDinoArch(
            swin_dim=swin.get("embed_dim", 96),
            swin_depths=tuple(swin.get("depths", (2, 2, 6, 2))),
            swin_heads=tuple(swin.get("num_heads", (3, 6, 12, 24))),
            swin_window=swin.get("window_size", 7),
            backbone_stages=tuple(index - 1 for index in swin.get("out_indices", (2, 3, 4))),
            levels=config.get("num_feature_levels", 4),
            encoder_layers=config.get("encoder_layers", 6),
            decoder_layers=config.get("decoder_layers", 6),
            queries=config.get("num_queries", 900),
            feed_forward=config.get("encoder_ffn_dim", 2048),
            text_vocabulary=bert.get("vocab_size", 30522),
            text_dim=bert.get("hidden_size", 768),
            text_layers=bert.get("num_hidden_layers", 12),
            text_heads=bert.get("num_attention_heads", 12),
            text_feed_forward=bert.get("intermediate_size", 3072),
            text_positions=bert.get("max_position_embeddings", 512),
            short_side=size.get("shortest_edge", 800),
            long_side=size.get("longest_edge", 1333),
            family=config["model_type"],
        )
    except (ConfigError, TypeError, AttributeError) as error:
        raise WeightsMismatchError(f"the config.json beside the file describes no Grounding DINO: {error}") from error


def detector_size(size: Size, short_side: int, long_side: int) -> Size:
    """Size to which the detector resizes an image (upstream `transforms.py`, `get_size_with_aspect_ratio`).

    Aspect ratio kept: the short side becomes `short_side`, unless the long one would pass `long_side`. A side that
    would vanish becomes 1 pixel (upstream fails there), and the long one is then `long_side`.
    """
    height, width = size
    short, long = float(min(size)), float(max(size))
    if long / short * short_side > long_side:
        short_side = round(long_side * short / long)
        if short_side == 0:
            return (long_side, 1) if width < height else (1, long_side)
    if min(size) == short_side:
        return size
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)
