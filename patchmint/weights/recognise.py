"""Which model a file of weights looks like, by names of its tensors, and what to do with it: for error messages."""

from __future__ import annotations

from collections.abc import Iterable

_HUB = "give the folder or `hub:` name of its version for transformers"

_SIGNS = (
    ("transformer.level_embed", "Grounding DINO", "set it as models.detector"),
    ("model.query_position_embeddings.weight", "Grounding DINO in transformers' layout", "set it as models.detector"),
    (
        "bbox_head.cls_branches.0.bias",
        "MM-Grounding-DINO in mmdetection's layout",
        f"{_HUB}: hub:openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    ),
    (
        "image_encoder.trunk.patch_embed.proj.weight",
        "SAM 2 in Meta's layout",
        f"{_HUB}: hub:facebook/sam2.1-hiera-large",
    ),
    ("class_head.logit_shift.weight", "OWLv2", "set its folder, or `hub:` name, as models.detector"),
    (
        "mask_decoder.hf_token.weight",
        "SAM-HQ in its publisher's layout",
        f"{_HUB}: hub:syscv-community/sam-hq-vit-base",
    ),
    ("mask_decoder.hq_token.weight", "SAM-HQ", "set its folder as models.masker"),
    ("vision_encoder.backbone.timm_model.conv1.weight", "EdgeTAM", "set its folder as models.masker"),
    ("dot_product_scoring.query_proj.weight", "SAM 3", "set its folder, or `hub:` name, as models.segmenter"),
    ("mask_decoder.conv_s0.weight", "SAM 2 in transformers' layout", "set its folder as models.masker"),
    ("image_encoder.patch_embed.proj.weight", "SAM", "set it as models.masker"),
    ("vision_encoder.patch_embed.projection.weight", "SAM in transformers' layout", "set it as models.masker"),
    ("vision_model.embeddings.patch_embedding.weight", "CLIP or SigLIP", "set it as models.vit"),
    ("visual.conv1.weight", "CLIP in OpenAI's layout", f"{_HUB} as models.vit"),
    ("encoder.time_conv.0.conv.conv.weight", "Emu3's tokenizer", "set it as models.tokenizer"),
    ("quantize.embedding.weight", "VQGAN", "set it as models.tokenizer"),
    ("quantize.embed.weight", "VQGAN", "set it as models.tokenizer"),
    ("bert.embeddings.word_embeddings.weight", "BERT", "give the detector as a whole"),
    ("model.0.conv.weight", "YOLO", "patchmint has no model for it"),
)
"""Names that a model has, with whatever prefix; its own name; what to do. The first that is found counts."""


def looks_like(names: Iterable[str]) -> str:
    """A sentence about a file that isn't what it should be, with a space before it; "" where nothing can be told.

    Args:
        names: of its tensors.
    """
    known = list(names)
    for sign, model, remedy in _SIGNS:
        if any(name == sign or name.endswith(f".{sign}") for name in known):
            return f" It looks like {model}: {remedy}."
    return f" Its tensors are called {', '.join(known[:3])}, ..." if known else " It holds no tensors."
