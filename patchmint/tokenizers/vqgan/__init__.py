"""VQGAN (CompVis/taming-transformers): an image as a grid of discrete codes, and back."""

from patchmint.tokenizers.vqgan.model import OFFICIAL, TINY, Vqgan, VqganArch, infer_arch, load_vqgan, untrained_vqgan
from patchmint.tokenizers.vqgan.tokenizer import Remap, VqganTokenizer

__all__ = [
    "OFFICIAL",
    "TINY",
    "Remap",
    "Vqgan",
    "VqganArch",
    "VqganTokenizer",
    "infer_arch",
    "load_vqgan",
    "untrained_vqgan",
]
