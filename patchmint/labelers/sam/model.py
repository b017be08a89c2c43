"""SAM's network: upstream's classes put together at the sizes of an architecture."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from patchmint.errors import WeightsMismatchError
from patchmint.labelers.sam.arch import OFFICIAL, SamArch, infer_arch
from patchmint.labelers.sam.hugging_face import by_upstreams_names
from patchmint.weights.loading import StateFile, load_into


def build_sam(arch: SamArch) -> Sam:
    """Build SAM in evaluation mode, on the CPU, with arbitrary weights; PyTorch's random state stays as it was.

    What isn't in `arch` is fixed as upstream fixes it (`segment_anything.build_sam._build_sam`).
    """
    with torch.random.fork_rng(devices=[]):
        return _build(arch).eval()


def untrained(arch: SamArch, seed: int) -> Sam:
    """Build SAM with random weights that depend on `seed` only. Its masks mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        sam = _build(arch).eval()
        # Upstream starts positions at zero; without them every patch of a plain area looks the same.
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return sam


def load_sam(state: StateFile) -> Sam:
    """Build the SAM that a checkpoint holds and load it, every tensor accounted for.

    Raises:
        WeightsMismatchError: the checkpoint isn't a SAM of known size, or tensors are missing, left over or misshapen.
    """
    arch = infer_arch(state.tensors, state.metadata)
    if not isinstance(arch, SamArch):
        raise WeightsMismatchError(f"{state.path} holds a SAM 2, not a SAM")
    sam = build_sam(arch)
    name = next((name for name, official in OFFICIAL.items() if official == arch), "SAM")
    load_into(sam, replace(state, tensors=by_upstreams_names(state.tensors)), what=name)
    return sam


def _build(arch: SamArch) -> Sam:
    side = arch.image_size // arch.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=arch.image_size,
            patch_size=arch.patch_size,
            embed_dim=arch.embed_dim,
            depth=arch.depth,
            num_heads=arch.num_heads,
            mlp_ratio=4,
            out_chans=arch.out_chans,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=arch.window_size,
            global_attn_indexes=arch.global_attn_indexes,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=arch.out_chans,
            image_embedding_size=(side, side),
            input_image_size=(arch.image_size, arch.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=arch.out_chans,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=arch.out_chans, num_heads=8, mlp_dim=arch.decoder_mlp_dim
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=arch.out_chans,
        ),
    )
