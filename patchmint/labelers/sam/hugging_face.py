"""Weights of SAM in transformers' layout (`SamModel`), by upstream's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from patchmint.weights.folder import renamed, unwrapped

Tensor = TypeVar("Tensor")

_THEIRS = "vision_encoder.patch_embed.projection.weight"

_NECK = ("conv1", "layer_norm1", "conv2", "layer_norm2")
_DOWN = ("conv1", "layer_norm1", "", "conv2", "layer_norm2", "", "conv3")
_RULES = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    *((rf"\.neck\.{name}\.", f".neck.{place}.") for place, name in enumerate(_NECK)),
    *((rf"\.mask_embed\.{name}\.", f".mask_downscaling.{place}.") for place, name in enumerate(_DOWN)),
    (r"^(?:prompt_encoder\.shared_embedding|shared_image_embedding)\.positional_embedding$",
     "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    # heads of three linear layers
    (r"((?:_mlps\.\d+|_head)\.)layers\.0\.", r"\1layers.1."),
    (r"((?:_mlps\.\d+|_head)\.)proj_in\.", r"\1layers.0."),
    (r"((?:_mlps\.\d+|_head)\.)proj_out\.", r"\1layers.2."),
)  # fmt: skip


def by_upstreams_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, named as upstream's; they may be so already, or lie in another model's."""
    tensors = unwrapped(tensors, (_THEIRS, "image_encoder.patch_embed.proj.weight"))
    return renamed(tensors, _RULES) if _THEIRS in tensors else tensors
