"""Weights of Grounding DINO, MM-Grounding-DINO and LLMDet in transformers' layout, by upstream's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from patchmint.labelers.grounding_dino.arch import GroundingDinoArch
from patchmint.weights.folder import renamed

_RULES = (
    (r"^model\.", ""),
    # the text encoder, and what leads to the transformer
    (r"^text_backbone\.", "bert."),
    (r"^text_projection\.", "feat_map."),
    (r"^input_proj_vision\.", "input_proj."),
    # the transformer's layers
    (r"\.fc(\d)\.", r".linear\1."),
    (r"\.vision_param$", ".gamma_v"),
    (r"\.text_param$", ".gamma_l"),
    (r"\.layer_norm_vision\.", ".layer_norm_v."),
    (r"\.layer_norm_text\.", ".layer_norm_l."),
    (r"(\.attn\.\w*?)vision_proj\.", r"\1v_proj."),
    (r"(\.attn\.\w*?)text_proj\.", r"\1l_proj."),
    (r"\.(layer_norm_before|deformable_layer\.self_attn_layer_norm|encoder_attn_layer_norm)\.", ".norm1."),
    (r"\.(layer_norm_after|deformable_layer\.final_layer_norm|self_attn_layer_norm)\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.encoder_attn_text_layer_norm\.", ".catext_norm."),
    (r"\.encoder_attn_text\.", ".ca_text."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.(self_attn|ca_text)\.(query|key|value)\.(\w+)$", r".\1.in_proj_\3.\2"),
    (r"^encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"encoder.text_layers.\1."),
    (r"^encoder\.layers\.(\d+)\.fusion_layer\.", r"encoder.fusion_layers.\1."),
    (r"^(encoder\.layers\.\d+)\.(?:deformable_layer\.)?", r"\1."),
    (r"^decoder\.layer_norm\.", "decoder.norm."),
    (r"^decoder\.reference_points_head\.", "decoder.ref_point_head."),
    (r"^query_position_embeddings\.", "tgt_embed."),
    (r"^encoder_output_(bbox|class)_embed\.", r"enc_out_\1_embed."),
    (r"^(?=encoder\.|decoder\.|level_embed|tgt_embed|enc_out)", "transformer."),
    # the image backbone
    (r"^backbone\.conv_encoder\.model\.", "backbone.0."),
    (r"^backbone\.0\.embeddings\.patch_embeddings\.projection\.", "backbone.0.patch_embed.proj."),
    (r"^backbone\.0\.embeddings\.", "backbone.0.patch_embed."),
    (r"^backbone\.0\.encoder\.", "backbone.0."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.relative", ".attn.relative"),
    (r"^(backbone\.0\..*)\.attention\.self\.(query|key|value)\.(\w+)$", r"\1.attn.qkv.\3.\2"),
    (r"^(backbone\.0\..*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(backbone\.0\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(backbone\.0\..*)\.output\.dense\.", r"\1.mlp.fc2."),
    *((rf"^backbone\.0\.hidden_states_norms\.stage{number + 1}\.", f"backbone.0.norm{number}.") for number in range(8)),
    # heads: transformers' decoder has a copy
    (r"^transformer\.decoder\.(bbox|class)_embed\.", r"\1_embed."),
)
_UNUSED = re.compile(r"backbone\.0\.(swin\.)?layernorm\.")
_HEAD = re.compile(r"((?:bbox|class)_embed)\.0\.(.+)")


def by_upstreams_names(tensors: Mapping[str, Tensor], arch: GroundingDinoArch) -> dict[str, Tensor]:
    """The tensors of a checkpoint of transformers, named and joined as in upstream's; what is never read is left out.

    Args:
        tensors: as transformers saves them; heads that layers share may be there once.
        arch: of the checkpoint.
    """
    found = {name: tensor for name, tensor in renamed(tensors, _RULES).items() if not _UNUSED.match(name)}
    for name in [name for name in found if name.endswith(".query")]:
        whole = name.removesuffix(".query")
        parts = [found.pop(f"{whole}.{part}", None) for part in ("query", "key", "value")]
        found[whole] = torch.cat([part for part in parts if part is not None])
    for head in [match for match in map(_HEAD.fullmatch, found) if match]:
        for layer in range(arch.decoder_layers):
            found.setdefault(f"{head[1]}.{layer}.{head[2]}", found[head[0]])
    return found | {
        f"transformer.decoder.{name}": found[name] for name in found if name.startswith(("bbox_", "class_"))
    }
