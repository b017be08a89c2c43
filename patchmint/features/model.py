"""CLIP and SigLIP: transformers' own modules, run block by block; and which encoder a file holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from patchmint.errors import WeightsMismatchError
from patchmint.features.arch import EncoderArch, VitArch, infer_arch, whole_names
from patchmint.features.tower import MeanStates, Parts, Tower, load_tower, untrained_tower_of
from patchmint.features.towers import TowerArch
from patchmint.types import Size
from patchmint.weights.loading import StateFile, load_into

_CLASSES = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (SiglipVisionModel, SiglipVisionConfig)}

IGNORED_KEYS = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
)
"""Starts of keys in official checkpoints that aren't the vision tower's, and the position numbers of old ones."""


class Vit(nn.Module):
    """A CLIP or SigLIP vision tower whose hidden states can be read one after another.

    Keys of the state dict are those of a whole CLIP or SigLIP model's vision half, `vision_model.*`, whatever the
    version of transformers: 4.57 has that level of modules, 5 hasn't.
    """

    def __init__(self, arch: VitArch) -> None:
        super().__init__()
        self.arch = arch
        model_class, config_class = _CLASSES[arch.family]
        model = model_class(
            config_class(
                hidden_size=arch.hidden,
                intermediate_size=arch.mlp,
                num_hidden_layers=arch.layers,
                num_attention_heads=arch.heads,
                image_size=arch.image_px,
                patch_size=arch.patch_px,
                hidden_act=arch.activation,
                layer_norm_eps=arch.layer_norm_eps,
            )
        )
        self.vision_model: Any = getattr(model, "vision_model", model)
        self._masks: dict[str, None] = {
            name: None
            for name in ("attention_mask", "causal_attention_mask")  # the second: CLIP in transformers 4
            if name in inspect.signature(self.vision_model.encoder.layers[0].forward).parameters
        }

    def number_positions(self) -> None:
        """Write the position numbers, which no checkpoint has to hold, into memory that `to_empty` left unset."""
        numbers: Tensor = self.vision_model.embeddings.position_ids
        numbers.copy_(torch.arange(numbers.shape[-1]).expand_as(numbers))

    def cut(self, blocks: int, *, merging: bool = False) -> Vit:  # noqa: ARG002 (it never merges)
        """Drop what lies after the first `blocks` blocks, to save its memory; then only states 0..blocks exist."""
        del self.vision_model.encoder.layers[blocks:]
        self.vision_model.post_layernorm = None
        self.vision_model.head = None
        return self

    @torch.no_grad()
    def states(self, pixels: Tensor, last: int) -> Iterator[Tensor]:
        """Compute hidden states one after another, never normalised after the block.

        Args:
            pixels: float (B, 3, image_px, image_px), normalised.
            last: index of the last state, 0..`arch.layers`; the blocks after it don't run.

        Yields:
            float (B, leading + patches, hidden): state 0, the first block's input (after CLIP's `pre_layrnorm`), then
            the output of block 1, 2, ... `last`.
        """
        hidden: Tensor = self.vision_model.embeddings(pixels)
        if self.arch.family == "clip":
            hidden = self.vision_model.pre_layrnorm(hidden)
        yield hidden
        for index in range(last):
            answer = self.vision_model.encoder.layers[index](hidden, **self._masks)
            # Of transformers 4.57, some blocks answer with a tuple.
            hidden = cast(Tensor, answer[0] if isinstance(answer, tuple) else answer)
            yield hidden

    @torch.no_grad()
    def parts(self, pixels: Sequence[Tensor], layers: Parts | None) -> Iterator[tuple[list[Tensor], Size]]:
        """Run the encoder.

        Args:
            pixels: float (3, image_px, image_px) each, normalised.
            layers: for each part the hidden states that are averaged, 0..`arch.layers`.

        Yields:
            Once, for all inputs: the parts, float (B, leading + patches, hidden), and (rows, cols) of the patches.
        """
        assert layers is not None
        states = self.states(torch.stack(list(pixels)), max(max(part) for part in layers))
        yield mean_states(states, layers), (self.arch.side, self.arch.side)


def mean_states(states: Iterable[Tensor], layers: Parts) -> list[Tensor]:
    """Average the states of each part, while they are computed.

    Args:
        states: hidden states 0, 1, ..., of one shape.
        layers: for each part the indices of its states, each once.
    """
    means = MeanStates(layers)
    for index, state in enumerate(states):
        means.add(index, state)
    return means.parts


def load_encoder(state: StateFile) -> Vit | Tower:
    """Build the vision encoder that a checkpoint holds, of whichever kind, and load it.

    Raises:
        WeightsMismatchError: as for `load_vit` and `load_tower`.
        ConfigError: the installed transformers doesn't know the encoder.
    """
    arch = infer_arch(state.tensors, state.metadata)
    return load_tower(state, arch) if isinstance(arch, TowerArch) else load_vit(state)


def load_vit(state: StateFile) -> Vit:
    """Build the CLIP or SigLIP that a checkpoint holds and load it.

    A whole CLIP or SigLIP model's file, or one of the vision tower alone. Every key of the tower is there and none is
    left over, but for `IGNORED_KEYS`.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.

    Raises:
        WeightsMismatchError: the checkpoint is of no known architecture, or not a whole vision tower.
    """
    state = replace(state, tensors=whole_names(state.tensors))
    arch = infer_arch(state.tensors, state.metadata)
    if isinstance(arch, TowerArch):
        raise WeightsMismatchError(f"{state.path} holds a {arch.family}, not a CLIP or SigLIP")
    with torch.device("meta"):
        model = Vit(arch)
    model = model.to_empty(device="cpu")
    model.number_positions()
    load_into(model, state, what=f"the vision tower of {arch}", ignored=IGNORED_KEYS)
    return model.eval().requires_grad_(False)


def untrained_encoder(arch: EncoderArch, seed: int) -> Vit | Tower:
    """Build an encoder with random weights, whose features mean nothing: the same for the same seed and libraries."""
    return untrained_tower_of(arch, seed) if isinstance(arch, TowerArch) else untrained_vit(arch, seed)


def untrained_vit(arch: VitArch, seed: int) -> Vit:
    """Build a model with random weights, whose features mean nothing: the same for the same seed and transformers.

    The caller's random numbers go on as if nothing had happened.

    Returns:
        The model on the CPU, float32, in eval mode, without gradients.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Vit(arch).eval().requires_grad_(False)
