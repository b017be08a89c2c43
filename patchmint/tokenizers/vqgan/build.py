"""From weights, or from a seed, to a VQGAN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.tokenizers.vqgan.arch import OFFICIAL, VqganArch, codebook_shape
from patchmint.tokenizers.vqgan.model import Vqgan
from patchmint.weights.container import ARCH_METADATA_KEY
from patchmint.weights.loading import StateFile, load_into

IGNORED_KEYS = ("loss.", "colorize")
"""Starts of keys in official checkpoints that inference doesn't need: the discriminator and LPIPS, and the random
projection that upstream draws segmentations with."""


def infer_arch(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> VqganArch:
    """Tell the architecture from a state dict.

    The size of the codebook and its kind are read off the weights; the rest must be that of a published model, which
    the encoder's weights tell. A metadata entry `ARCH_METADATA_KEY` wins over that, and must agree with the weights.

    Args:
        tensors: the state dict, with upstream's key names.
        metadata: a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsMismatchError: the weights are of no known architecture, or not of the one that the metadata names.
    """
    described = metadata.get(ARCH_METADATA_KEY)
    if described is not None:
        arch = VqganArch.from_json(described)
        if not _fits(arch, tensors):
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) names, {arch}; "
                "write the file again from the model that it holds"
            )
        return arch
    n_embed, embed_dim = codebook_shape(tensors)
    for published in OFFICIAL.values():
        try:
            arch = replace(published, n_embed=n_embed, embed_dim=embed_dim, gumbel="quantize.proj.weight" in tensors)
        except ConfigError:
            continue
        if _fits(arch, tensors):
            return arch
    raise WeightsMismatchError(
        f"the file holds a VQGAN with {n_embed} codes of length {embed_dim} whose encoder is none of the known "
        f"architectures: {', '.join(OFFICIAL)}. For another one, give a safetensors file with the metadata entry "
        f"{ARCH_METADATA_KEY} (VqganArch.to_json)"
    )


def load_vqgan(state: StateFile) -> Vqgan:
    """Build the VQGAN that a checkpoint holds and load it: every key but `IGNORED_KEYS` is there and none is left over.

    Returns:
        The model on the CPU, float32, in eval mode.

    Raises:
        WeightsMismatchError: the checkpoint is of no known architecture, or not a whole model.
    """
    model = _empty(infer_arch(state.tensors, state.metadata)).to_empty(device="cpu")
    load_into(model, state, what="VQGAN", ignored=IGNORED_KEYS)
    return model.eval()


def untrained_vqgan(arch: VqganArch, seed: int) -> Vqgan:
    """Build a model with random weights: the same for the same seed. Its codes mean nothing.

    The caller's random numbers go on as if nothing had happened.

    Returns:
        The model on the CPU, float32, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Vqgan(arch).eval()


def _empty(arch: VqganArch) -> Vqgan:
    """A model with shapes but without memory: building one is quick and draws no random numbers."""
    with torch.device("meta"):
        return Vqgan(arch)


def _fits(arch: VqganArch, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the encoder's and the codebook's keys and shapes are those of `arch`.

    Equal shapes mean an equal function: levels, blocks, attention and resampling all show in the keys.
    """
    parts = ("encoder.", "quantize.")
    expected = {key: value.shape for key, value in _empty(arch).state_dict().items() if key.startswith(parts)}
    return expected == {key: value.shape for key, value in tensors.items() if key.startswith(parts)}
