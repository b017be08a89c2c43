"""From weights, or from a seed, to a vision encoder."""

from __future__ import annotations

from dataclasses import replace

import torch

from patchmint.features.vit.arch import VitArch, infer_arch, whole_names
from patchmint.features.vit.model import Vit
from patchmint.weights.loading import StateFile, load_into

IGNORED_KEYS = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
)
"""Starts of keys in official checkpoints that aren't the vision tower's, and the position numbers of old ones."""


def load_vit(state: StateFile) -> Vit:
    """Build the vision encoder that a checkpoint holds and load it.

    A whole CLIP or SigLIP model's file, or one of the vision tower alone. Every key of the tower is there and none is
    left over, but for `IGNORED_KEYS`.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.

    Raises:
        WeightsMismatchError: the checkpoint is of no known architecture, or not a whole vision tower.
    """
    state = replace(state, tensors=whole_names(state.tensors))
    arch = infer_arch(state.tensors, state.metadata)
    with torch.device("meta"):
        model = Vit(arch)
    model = model.to_empty(device="cpu")
    model.number_positions()
    load_into(model, state, what=f"the vision tower of {arch}", ignored=IGNORED_KEYS)
    return model.eval().requires_grad_(False)


def untrained_vit(arch: VitArch, seed: int) -> Vit:
    """Build a model with random weights, whose features mean nothing: the same for the same seed and transformers.

    The caller's random numbers go on as if nothing had happened.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Vit(arch).eval().requires_grad_(False)
