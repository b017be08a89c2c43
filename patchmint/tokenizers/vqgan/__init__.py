"""VQGAN (CompVis/taming-transformers): an image as a grid of discrete codes, and back."""

from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY, VqganArch
from patchmint.tokenizers.vqgan.build import build_vqgan, infer_arch, untrained_vqgan
from patchmint.tokenizers.vqgan.model import Vqgan
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer

__all__ = [
    "OFFICIAL",
    "TINY",
    "Remap",
    "Vqgan",
    "VqganArch",
    "VqganTokenizer",
    "build_vqgan",
    "infer_arch",
    "untrained_vqgan",
]
