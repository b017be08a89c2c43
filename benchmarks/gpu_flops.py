"""Floating-point operations of upstream's own forward passes, for `gpu.py`: of one image, or one box."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from reference_data import CAPTIONS, write_vocabulary
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchmint.features import arch as vit_arch
from patchmint.features.model import untrained_vit
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.arch import detector_size
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan.model import untrained_vqgan

PHOTOGRAPH = (480, 640)
"""(height, width) of the pictures that stages are measured with."""


@cache
def sam_flops(arch: sam_arch.SamArch, _: torch.device) -> int:
    """SAM's image encoder; 5.96, 2.99 and 0.97 TFLOP for H, L and B are published."""
    encoder: nn.Module = _on_meta(partial(sam_model.build_sam, arch)).image_encoder
    return _counted(lambda: encoder(torch.empty(1, 3, arch.image_size, arch.image_size, device="meta")))


@cache
def decoder_flops(arch: sam_arch.SamArch, _: torch.device) -> int:
    """SAM's mask decoder, one box."""
    decoder: nn.Module = _on_meta(partial(sam_model.build_sam, arch)).mask_decoder
    side = arch.image_size // arch.patch_size
    picture = torch.empty(1, arch.out_chans, side, side, device="meta")
    corners = torch.empty(1, 2, arch.out_chans, device="meta")
    return _counted(lambda: decoder(picture, picture, corners, picture, multimask_output=False))


@cache
def detector_flops(arch: dino_arch.GroundingDinoArch, texts: int, device: torch.device) -> int:
    """Grounding DINO, one forward a text, on a picture of `PHOTOGRAPH`. Its own forward can't run without numbers."""
    from reference_loop import Detector

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        write_vocabulary(path)
        model = dino_model.untrained(replace(arch, text_vocabulary=len(path.read_text().split()))).to(device)
        detector = Detector(model, arch, path, str(device))
    pixels = torch.randn(3, *detector_size(PHOTOGRAPH, arch.short_side, arch.long_side))
    return texts * _counted(lambda: detector.find(pixels, CAPTIONS[0], 1.0, 1.0))


@cache
def vqgan_flops(arch: vqgan_arch.VqganArch, _: torch.device) -> int:
    """VQGAN's encoder, and the distances to all codes."""
    model = _on_meta(partial(untrained_vqgan, arch, seed=0))
    pixels = torch.empty(1, 3, arch.resolution, arch.resolution, device="meta")
    cells = (arch.resolution // arch.factor) ** 2
    return _counted(lambda: model.quant_conv(model.encoder(pixels))) + 2 * cells * arch.embed_dim * arch.n_embed


@cache
def vit_flops(arch: vit_arch.VitArch, _: torch.device) -> int:
    """All but the last block of a vision encoder."""
    model = _on_meta(partial(untrained_vit, arch, seed=0))
    pixels = torch.empty(1, 3, arch.image_px, arch.image_px, device="meta")
    return _counted(lambda: list(model.states(pixels, arch.layers - 1)))


def _counted(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


def _on_meta(make: Callable[[], Any]) -> Any:
    """A model of shapes only: its forward passes compute nothing, and are counted at once."""
    with torch.device("meta"):
        return make().to("meta").eval()
