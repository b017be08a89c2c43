"""VQGAN (CompVis/taming-transformers): an image as a grid of discrete codes, and back."""

from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY, VqganArch
from patchmint.tokenizers.vqgan.build import infer_arch, load_vqgan, untrained_vqgan
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
    "infer_arch",
    "load_vqgan",
    "untrained_vqgan",
]
