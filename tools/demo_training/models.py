"""The demo's models: upstream's classes at sizes that train on a CPU, and files of weights for them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from patchmint.demo.shapes import COLOURS, FILLS, SHAPES, SIZES
from patchmint.demo.texts import NUMBERS, plural
from patchmint.features.arch import VitArch
from patchmint.labelers.grounding_dino.arch import GroundingDinoArch
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam.arch import SamArch
from patchmint.tokenizers.vqgan.arch import VqganArch
from patchmint.weights.architecture import ARCH_METADATA_KEY

FILES = {role: f"demo-{role}.safetensors" for role in ("detector", "masker", "tokenizer", "vit")}
"""Names of the files of weights, by role."""

VOCABULARY_FILE = "demo-vocab.txt"

_OTHER_WORDS = (
    *("a", "an", "the", "some", "all", "and", "or", "with", "of", "on", "in", "to", "at", "there", "is", "are", "we"),
    *("see", "photo", "picture", "image", "scene", "grey", "background", "left", "right", "above", "below"),
    *("next", "between", "under", "over"),
)

VOCABULARY: tuple[str, ...] = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", ",", "!", ":", ";", "-", "'"),
    *_OTHER_WORDS,
    *NUMBERS,
    *SIZES,
    *FILLS,
    *COLOURS,
    *(word for shape in (*SHAPES, "shape") for word in (shape, plural(shape))),
)
"""Every piece that the demo's detector can read; a word outside it is unknown, and names nothing."""

DETECTOR = GroundingDinoArch(
    swin_dim=32,
    swin_depths=(1, 1, 2, 1),
    swin_heads=(1, 2, 4, 8),
    swin_window=4,
    levels=2,
    backbone_stages=(2, 3),
    encoder_layers=2,
    decoder_layers=2,
    queries=50,
    feed_forward=192,
    text_vocabulary=len(VOCABULARY),
    text_dim=128,
    text_layers=2,
    text_heads=4,
    text_feed_forward=256,
    text_positions=256,
    short_side=128,
    long_side=1280,
)
"""Features at strides 16 and 32 only: 80 positions of a square image."""

MASKER = SamArch(
    embed_dim=96,
    depth=4,
    num_heads=3,
    global_attn_indexes=(1, 3),
    image_size=256,
    patch_size=8,
    window_size=8,
    out_chans=64,
    decoder_mlp_dim=128,
)
"""Patches of 8 pixels, so that its logits come one for every 2 pixels of its input."""

TOKENIZER = VqganArch(
    ch=32,
    ch_mult=(1, 1, 1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(16,),
    resolution=256,
    z_channels=64,
    embed_dim=32,
    n_embed=512,
    rule="nearest",
)
"""f16, as the official ones: 256 px become 16 x 16 codes."""

VIT = VitArch(
    family="clip", hidden=128, layers=6, heads=4, mlp=384, image_px=336, patch_px=14, activation="gelu_pytorch_tanh"
)
"""LLaVA's grid: 24 x 24 patches of 14 px."""


def vocabulary() -> Vocabulary:
    """The detector's vocabulary."""
    return Vocabulary({piece: number for number, piece in enumerate(VOCABULARY)})


def write_vocabulary(path: Path) -> None:
    """Write the detector's `vocab.txt`."""
    path.write_text("".join(f"{piece}\n" for piece in VOCABULARY), encoding="utf-8")


def save_weights(
    model: nn.Module,
    arch: GroundingDinoArch | SamArch | VqganArch | VitArch,
    path: Path,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Write weights with their architecture, as `patchmint.weights` reads them; float numbers are stored as float16.

    Args:
        model: with the weights.
        arch: what they belong to.
        path: of the file.
        leave_out: beginnings of names that only training needs.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith(leave_out)
    }
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={ARCH_METADATA_KEY: arch.to_json(), "format": "pt"})
    partial.replace(path)
