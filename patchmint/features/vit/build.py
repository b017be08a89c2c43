"""From weights, or from a seed, to a vision encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from patchmint.errors import WeightsMismatchError
from patchmint.features.vit.arch import OFFICIAL, VitArch
from patchmint.features.vit.model import Vit
from patchmint.weights.loading import ARCH_METADATA_KEY, StateFile, load_into

_PREFIX = "vision_model."
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"

IGNORED_KEYS = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
)
"""Starts of keys in official checkpoints that aren't the vision tower's, and the position numbers of old ones."""


def infer_arch(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> VitArch:
    """Tell the architecture from a state dict with `vision_model.*`.

    It must be that of a published model, which the weights' shapes tell. A metadata entry `ARCH_METADATA_KEY` wins over
    that, and must agree with the weights.

    Args:
        tensors: the state dict.
        metadata: a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsMismatchError: the weights are of no known architecture, or not of the one that the metadata names.
    """
    described = metadata.get(ARCH_METADATA_KEY)
    measured = _measured(tensors)
    if described is not None:
        arch = VitArch.from_json(described)
        if _measures(arch) != measured:
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) names, {arch}; "
                "write the file again from the model that it holds"
            )
        return arch
    for arch in OFFICIAL.values():
        if _measures(arch) == measured:
            return arch
    found = ", ".join(f"{name} {value}" for name, value in measured.items())
    raise WeightsMismatchError(
        f"the file holds a vision encoder of none of the known architectures ({found}); known: {', '.join(OFFICIAL)}. "
        f"For another one, give a safetensors file with the metadata entry {ARCH_METADATA_KEY} (VitArch.to_json)"
    )


def load_vit(state: StateFile) -> Vit:
    """Build the vision encoder that a checkpoint holds and load it.

    A whole CLIP or SigLIP model's file, or one of the vision tower alone. Every key of the tower is there and none is
    left over, but for `IGNORED_KEYS`.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.

    Raises:
        WeightsMismatchError: the checkpoint is of no known architecture, or not a whole vision tower.
    """
    if _PATCHES in state.tensors:  # transformers 5 saves a tower alone without the prefix
        state = replace(state, tensors={_PREFIX + key: value for key, value in state.tensors.items()})
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


def _measures(arch: VitArch) -> dict[str, object]:
    """What of an architecture shows in the weights' shapes: not the heads, the activation and the exact input size."""
    return {
        "family": arch.family,
        "hidden": arch.hidden,
        "layers": arch.layers,
        "mlp": arch.mlp,
        "patch_px": arch.patch_px,
        "patches": arch.side**2,
    }


def _measured(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The same, of weights.

    Raises:
        WeightsMismatchError: the weights are no vision tower's.
    """
    clip = f"{_PREFIX}embeddings.class_embedding" in tensors
    patches, positions = tensors.get(_PREFIX + _PATCHES), tensors.get(_PREFIX + _POSITIONS)
    mlp = tensors.get(f"{_PREFIX}encoder.layers.0.mlp.fc1.weight")
    if patches is None or positions is None or mlp is None or (patches.ndim, positions.ndim, mlp.ndim) != (4, 2, 2):
        raise WeightsMismatchError(
            f"the file holds no vision encoder of transformers' CLIP or SigLIP (it lacks {_PREFIX}{_PATCHES}, "
            f"{_POSITIONS} or blocks); give the pytorch_model.bin or model.safetensors of one: "
            f"{', '.join(OFFICIAL)}"
        )
    blocks = {match[1] for key in tensors if (match := re.match(r"vision_model\.encoder\.layers\.(\d+)\.", key))}
    return {
        "family": "clip" if clip else "siglip",
        "hidden": patches.shape[0],
        "layers": len(blocks),
        "mlp": mlp.shape[0],
        "patch_px": patches.shape[-1],
        "patches": positions.shape[0] - clip,
    }
