"""Which model a file of weights looks like, by names of its tensors, and what to do with it: for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from patchmint.weights.folder import CONFIG, JOIN, MERGE, described

_HUB = "give the folder or `hub:` name of its version for transformers"


class _Sign(NamedTuple):
    """What tells a model.

    Attributes:
        tensor: a name that it has, with whatever prefix.
        model: its own name.
        remedy: what to do with the file.
        kinds: the `model_type`s, one of which the config.json beside it must have; none = it needs no config.json.
    """

    tensor: str
    model: str
    remedy: str
    kinds: tuple[str, ...] = ()


_SIGNS = (
    _Sign("transformer.level_embed", "Grounding DINO", "set it as models.detector"),
    _Sign(
        "model.query_position_embeddings.weight",
        "Grounding DINO in transformers' layout",
        "set it as models.detector",
        ("grounding-dino", "mm-grounding-dino"),
    ),
    _Sign(
        "bbox_head.cls_branches.0.bias",
        "MM-Grounding-DINO in mmdetection's layout",
        f"{_HUB}: hub:openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    ),
    _Sign(
        "image_encoder.trunk.patch_embed.proj.weight",
        "SAM 2 in Meta's layout",
        f"{_HUB}: hub:facebook/sam2.1-hiera-large",
    ),
    _Sign("class_head.logit_shift.weight", "OWLv2", "set its folder, or `hub:` name, as models.detector", ("owlv2",)),
    _Sign(
        "mask_decoder.hf_token.weight",
        "SAM-HQ in its publisher's layout",
        f"{_HUB}: hub:syscv-community/sam-hq-vit-base",
    ),
    _Sign("mask_decoder.hq_token.weight", "SAM-HQ", "set its folder as models.masker", ("sam_hq",)),
    _Sign(
        "vision_encoder.backbone.timm_model.conv1.weight",
        "EdgeTAM",
        "set its folder as models.masker",
        ("edgetam", "edgetam_video"),
    ),
    _Sign(
        "dot_product_scoring.query_proj.weight",
        "SAM 3",
        "set its folder, or `hub:` name, as models.segmenter",
        ("sam3", "sam3_video"),
    ),
    _Sign(
        "vision_backbone.trunk.patch_embed.proj.weight",
        "SAM 3 in Meta's layout",
        f"{_HUB} as models.segmenter: hub:facebook/sam3",
    ),
    _Sign(
        "mask_decoder.conv_s0.weight",
        "SAM 2 in transformers' layout",
        "set its folder as models.masker",
        ("sam2", "sam2_video"),
    ),
    _Sign("image_encoder.patch_embed.proj.weight", "SAM", "set it as models.masker"),
    _Sign(
        "vision_encoder.patch_embed.projection.weight",
        "SAM in transformers' layout",
        "set it as models.masker",
        ("sam",),
    ),
    _Sign("embeddings.patch_embedding.weight", "CLIP or SigLIP", "set it as models.vit"),
    _Sign("visual.conv1.weight", "CLIP in OpenAI's layout", f"{_HUB} as models.vit"),
    _Sign("visual.trunk.patch_embed.proj.weight", "CLIP or SigLIP in open_clip's layout", f"{_HUB} as models.vit"),
    _Sign("embeddings.patch_embeddings.weight", "DINOv3", "set its folder as models.vit", ("dinov3_vit",)),
    _Sign(
        "embeddings.patch_embeddings.projection.weight",
        "ViT or DINOv2",
        "give CLIP, SigLIP or DINOv3 as models.vit, or a plug-in",
    ),
    _Sign(
        "visual.patch_embed.proj.weight",
        "Qwen-VL, or a model with such an encoder",
        "set it as models.vit; its config.json must have model_type qwen2_vl, qwen2_5_vl, qwen3_vl or qwen3_vl_moe",
    ),
    _Sign("encoder.time_conv.0.conv.conv.weight", "Emu3's tokenizer", "set it as models.tokenizer"),
    _Sign("quantize.embedding.weight", "VQGAN", "set it as models.tokenizer"),
    _Sign("quantize.embed.weight", "VQGAN", "set it as models.tokenizer"),
    _Sign(
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "an autoencoder of diffusers, which has no codes that patchmint can read",
        "give a VQGAN as models.tokenizer",
    ),
    _Sign("bert.embeddings.word_embeddings.weight", "BERT", "give the detector as a whole"),
    _Sign("model.0.conv.weight", "YOLO", "patchmint has no model for it"),
    _Sign("embed_tokens.weight", "a language model", "give a model of this role (docs/models.md)"),
)
"""The first that is found counts."""

_PART = re.compile(r"-0*(\d+)-of-0*(\d+)\.")
_QUANTISED = re.compile(r"weight_scale(_inv)?$|\.(SCB|absmax|quant_map|qweight|qzeros)$")


def looks_like(names: Iterable[str]) -> str:
    """A sentence about a file that isn't what it should be, with a space before it.

    Args:
        names: of its tensors.
    """
    known = list(names)
    if sign := _sign_in(known):
        return f" It looks like {sign.model}: {sign.remedy}."
    return f" Its tensors are called {', '.join(known[:3])}, ..." if known else " It holds no tensors."


def fault_of(path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """A sentence about a file that fits no role as it is: for where it has turned out not to fit.

    Args:
        path: the file.
        names: of its tensors.
        metadata: of its `StateFile` or `Header`.

    Returns:
        "" for other files.
    """
    known = list(names)
    if any(".lora_" in name for name in known):
        return f"{path} looks like a LoRA adapter: {MERGE}"
    if any(map(_QUANTISED.search, known)):
        return f"{path} looks quantised: give the model in float32, bfloat16 or float16"
    sign = _sign_in(known)
    if sign is not None and sign.kinds and (kind := described(metadata).get("model_type")) not in sign.kinds:
        found = "is missing" if CONFIG not in metadata else f"says {kind}" if kind else "has no model_type"
        return (
            f"{path} looks like {sign.model}, but the {CONFIG} beside it {found}: put the one there that was published "
            f"with these weights (model_type {' or '.join(sign.kinds)})"
        )
    if (part := _PART.search(path.name)) and int(part[2]) > 1:
        return (
            f"{path} is only part {int(part[1])} of {int(part[2])} of a model, and lacks what this role needs: {JOIN}"
        )
    return ""


def _sign_in(names: Iterable[str]) -> _Sign | None:
    known = list(names)
    return next(
        (sign for sign in _SIGNS if any(name == sign.tensor or name.endswith(f".{sign.tensor}") for name in known)),
        None,
    )
