"""Which tokenizer a config means."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from patchmint.config import UNTRAINED, ModelsConfig, TokensConfig
from patchmint.interfaces import Tokenizer
from patchmint.plugins import is_outside_tokenizer, load_plugin
from patchmint.types import Precision
from patchmint.weights.loading import load_named


def build_tokenizer(
    models: ModelsConfig, tokens: TokensConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Tokenizer:
    """Build the tokenizer that the settings name, and load its weights.

    An outside tokenizer brings its own size and preprocessing; `tokens` and `compiled` (its encoder, on a GPU) are for
    VQGAN.

    Raises:
        WeightsError: the checkpoint is missing, damaged, unsafe or of another architecture.
        PluginError: an outside tokenizer is broken.
        ConfigError: a setting doesn't fit the model.
    """
    name = models.tokenizer
    if is_outside_tokenizer(name):
        return cast(Tokenizer, load_plugin("patchmint.tokenizers", name, Tokenizer, device))
    # taming's classes take seconds to import, which a build with an outside tokenizer need not wait for
    import torch

    from patchmint.compute.precision import resolve_precision
    from patchmint.tokenizers.vqgan import TINY, Remap, VqganTokenizer, load_vqgan, untrained_vqgan

    model = untrained_vqgan(TINY, seed=0) if name == UNTRAINED else load_vqgan(load_named(name))
    remap = Remap.load(Path(tokens.remap), model.arch.n_embed) if tokens.remap is not None else None
    dtype = resolve_precision(precision, device, cpu=torch.float32, gpu=torch.float16)
    return VqganTokenizer(
        model,
        name=name,
        size=tokens.size,
        fit=tokens.fit,
        device=device,
        precision=dtype,
        remap=remap,
        compiled=compiled,
    )
