"""Today's other way: transformers' `GroundingDinoForObjectDetection` and `SamModel`, in batches, in reduced precision.

Stages for `gpu.py`, as `gpu_stages.py` has them of patchmint's. What is done ahead there is done ahead here: inputs lie
on the device. Each text of an image is an input of its own, with the image once more: the class has no other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    SwinConfig,
)

from patchmint.compute.devices import computing_in, resolve_precision, store_products
from patchmint.labelers.grounding_dino.arch import GroundingDinoArch, detector_size
from patchmint.labelers.sam.arch import SamArch

Run = Callable[[], object]

_TOKENS = 15
"""Of a caption: what COCO's have."""
_CLS, _SEP, _DOT = 101, 102, 1012


def detector_of(arch: GroundingDinoArch, least_vocabulary: int = _DOT + 1) -> Any:
    """The class at the sizes of an architecture, with random weights, and words enough for `detect`."""
    theirs: dict[str, tuple[Any, Any, dict[str, bool]]] = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection, {}),
        "mm-grounding-dino": (
            MMGroundingDinoConfig,
            MMGroundingDinoForObjectDetection,
            {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False},
        ),
    }
    config_class, model_class, heads = theirs[arch.family]
    text = {
        "model_type": "bert",
        "vocab_size": max(arch.text_vocabulary, least_vocabulary),
        "hidden_size": arch.text_dim,
        "num_hidden_layers": arch.text_layers,
        "num_attention_heads": arch.text_heads,
        "intermediate_size": arch.text_feed_forward,
        "max_position_embeddings": arch.text_positions,
    }
    swin = SwinConfig(
        embed_dim=arch.swin_dim,
        depths=list(arch.swin_depths),
        num_heads=list(arch.swin_heads),
        window_size=arch.swin_window,
        out_features=[f"stage{stage + 1}" for stage in arch.backbone_stages],
    )
    config = config_class(
        backbone_config=swin,
        text_config=text,
        num_queries=arch.queries,
        encoder_layers=arch.encoder_layers,
        decoder_layers=arch.decoder_layers,
        encoder_ffn_dim=arch.feed_forward,
        decoder_ffn_dim=arch.feed_forward,
        num_feature_levels=arch.levels,
        **heads,
    )
    return model_class(config)


def sam_of(arch: SamArch, *, hq: bool = False) -> Any:
    """SAM's class, or SAM-HQ's, at the sizes of an architecture, with random weights."""
    vision = {
        "hidden_size": arch.embed_dim,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.num_heads,
        "image_size": arch.image_size,
        "patch_size": arch.patch_size,
        "window_size": arch.window_size,
        "global_attn_indexes": list(arch.global_attn_indexes),
        "output_channels": arch.out_chans,
        "num_pos_feats": arch.out_chans // 2,
    }
    prompt = {"hidden_size": arch.out_chans, "image_size": arch.image_size, "patch_size": arch.patch_size}
    decoder = {"hidden_size": arch.out_chans, "mlp_dim": arch.decoder_mlp_dim, "iou_head_hidden_dim": arch.out_chans}
    make, config = (SamHQModel, SamHQConfig) if hq else (SamModel, SamConfig)
    if hq:
        decoder["vit_dim"] = arch.embed_dim
    return make(config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


def detect(model: Any, arch: GroundingDinoArch, texts: int, device: torch.device, size: tuple[int, int]) -> Any:
    """What runs the detector on a batch of so many images of a size, (height, width), with so many texts each."""
    height, width = detector_size(size, arch.short_side, arch.long_side)

    def at(batch: int) -> Run:
        rows = batch * texts
        pixels = torch.randn(rows, 3, height, width, device=device)
        mask = torch.ones(rows, height, width, dtype=torch.int64, device=device)
        inputs = {"pixel_values": pixels, "pixel_mask": mask, **words(rows, device)}
        return _within(device, lambda: model(**inputs).logits)

    return at


def words(rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Texts for the detector, of a caption's length."""
    tokens = [_CLS, *range(200, 200 + _TOKENS - 3), _DOT, _SEP]
    ids = torch.tensor([tokens] * rows, device=device)
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}


def encode(model: Any, arch: SamArch, device: torch.device) -> Any:
    """What runs SAM's image encoder on a batch."""

    def at(batch: int) -> Run:
        pixels = torch.randn(batch, 3, arch.image_size, arch.image_size, device=device)
        return _within(device, lambda: model.get_image_embeddings(pixels))

    return at


def decode(model: Any, arch: SamArch, device: torch.device, boxes: int) -> Any:
    """What runs SAM's mask decoder on so many boxes, in pictures that have `boxes` each."""
    side = arch.image_size // arch.patch_size

    def at(batch: int) -> Run:
        pictures = max(1, batch // boxes)
        embeddings = torch.randn(pictures, arch.out_chans, side, side, device=device)
        corners = torch.rand(pictures, min(batch, boxes), 2, 2, device=device).sort(dim=2).values.flatten(2)
        inputs = {"image_embeddings": embeddings, "input_boxes": corners * arch.image_size}
        return _within(device, lambda: model(**inputs, multimask_output=False).pred_masks)

    return at


def made(make: Callable[[], Any], device: torch.device) -> Any:
    """A model on a device, with the weights of its products in their format, which autocast would cast each time."""
    with torch.device(device):
        return reducing(make().to(device).eval().requires_grad_(requires_grad=False), device)


def reducing(model: Any, device: torch.device) -> Any:
    """The model with those weights in that format."""
    store_products(model, reduced(device))
    return model


def _within(device: torch.device, run: Run) -> Run:
    dtype = reduced(device)

    def within() -> object:
        with torch.inference_mode(), computing_in(dtype, device):
            return run()

    return within


def reduced(device: torch.device) -> torch.dtype:
    """The format of the products: float16 on a GPU, bfloat16 on a CPU that has it."""
    return resolve_precision("auto", device, cpu=torch.bfloat16, gpu=torch.float16)
