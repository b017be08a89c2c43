"""Which tokenizer a config means."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from patchmint.config import UNTRAINED, ModelsConfig, TokensConfig
from patchmint.plugins import load_plugin, plugin_names
from patchmint.tokenizers.vqgan import TINY, Remap, VqganTokenizer, load_vqgan, untrained_vqgan
from patchmint.types import Tokenizer
from patchmint.weights.loading import load_named


def build_tokenizer(models: ModelsConfig, tokens: TokensConfig, device: str) -> Tokenizer:
    """Build the tokenizer that the settings name, and load its weights.

    An outside tokenizer brings its own size and preprocessing; `tokens` is for VQGAN.

    Raises:
        WeightsError: the checkpoint is missing, damaged, unsafe or of another architecture.
        PluginError: an outside tokenizer is broken.
        ConfigError: a setting doesn't fit the model.
    """
    name = models.tokenizer
    if name in plugin_names("patchmint.tokenizers"):
        return cast(Tokenizer, load_plugin("patchmint.tokenizers", name, Tokenizer, device))
    model = untrained_vqgan(TINY, seed=0) if name == UNTRAINED else load_vqgan(load_named(name))
    remap = Remap.load(Path(tokens.remap), model.arch.n_embed) if tokens.remap is not None else None
    return VqganTokenizer(model, name=name, size=tokens.size, fit=tokens.fit, device=device, remap=remap)
