"""Which tokenizer a config means."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

from patchmint.config import UNTRAINED, ModelsConfig, TokensConfig
from patchmint.config.annotator import Rule
from patchmint.errors import ConfigError
from patchmint.interfaces import Tokenizer
from patchmint.plugins import check_plugin, is_outside, load_plugin
from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY, VqganArch, infer_arch
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.types import Precision
from patchmint.weights.store import locate, read_arch


def check_tokens(models: ModelsConfig, tokens: TokensConfig) -> None:
    """Check the settings of a tokenizer without loading weights: of a file the header is read.

    Raises:
        ConfigError: a setting doesn't fit the tokenizer, or the list of used codes can't be read.
        WeightsError: the file is missing, damaged, unsafe or no VQGAN.
    """
    name = tokens.tokenizer or models.tokenizer
    if is_outside("tokenizer", name):
        for setting in ("remap", "rule"):
            if getattr(tokens, setting) is not None:
                raise ConfigError(f"tokens.{setting} is for VQGAN, but the tokenizer {name} is a plug-in; leave it out")
        check_plugin("patchmint.tokenizers", name, **models.given(name, locate))
        return
    arch = vqgan_of(name, tokens.rule)
    cell = arch.factor
    if tokens.size % cell:
        raise ConfigError(
            f"tokens.size: {tokens.size} px can't be cut into cells of {cell} px, which the tokenizer {name} has; "
            f"give a multiple of {cell}, such as {max(1, round(tokens.size / cell)) * cell}"
        )
    _remap(tokens, arch.n_embed)


def vqgan_of(name: str, rule: Rule | None = None) -> VqganArch:
    """What the VQGAN of this name or path is, from the name or the file's header.

    Args:
        name: `models.tokenizer`.
        rule: `tokens.rule`.

    Raises:
        ConfigError: `rule` isn't that of a known model.
        WeightsError: the file is missing, damaged, unsafe or no VQGAN, or its rule can't be told.
    """
    known = {UNTRAINED: TINY, **OFFICIAL}.get(name)
    if known is None:
        return read_arch(name, partial(infer_arch, rule=rule, told=_told(name)))
    if rule not in (None, known.rule):
        raise ConfigError(f"tokens.rule is {rule}, but the tokenizer {name} has the rule {known.rule}; leave it out")
    return known


def _told(name: str) -> Rule | None:
    """The rule that a published name tells."""
    return OFFICIAL[name].rule if name in OFFICIAL else None


def build_tokenizer(
    models: ModelsConfig, tokens: TokensConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Tokenizer:
    """Build the tokenizer that the settings name (`tokens.tokenizer`, else `models.tokenizer`), and load its weights.

    An outside tokenizer brings its own size and preprocessing; `tokens` and `compiled` (its encoder, on a GPU) are for
    VQGAN.

    Raises:
        WeightsError: the checkpoint is missing, damaged, unsafe or of another architecture.
        PluginError: an outside tokenizer is broken.
        ConfigError: a setting doesn't fit the model.
    """
    name = tokens.tokenizer or models.tokenizer
    if is_outside("tokenizer", name):
        given = models.given(name, locate) | {"precision": precision}
        return cast(Tokenizer, load_plugin("patchmint.tokenizers", name, Tokenizer, device, **given))
    # torch and taming take seconds to import, which checking settings need not wait for
    import torch

    from patchmint.compute.devices import resolve_precision
    from patchmint.tokenizers.vqgan.model import load_vqgan, untrained_vqgan
    from patchmint.tokenizers.vqgan.tokenizer import VqganTokenizer
    from patchmint.weights.loading import load_named

    if name == UNTRAINED:
        model = untrained_vqgan(TINY, seed=0)
    else:
        model = load_vqgan(load_named(name), rule=tokens.rule, told=_told(name))
    dtype = resolve_precision(precision, device, cpu=torch.float32, gpu=torch.float16)
    return VqganTokenizer(
        model,
        name=name,
        size=tokens.size,
        fit=tokens.fit,
        device=device,
        precision=dtype,
        remap=_remap(tokens, model.arch.n_embed),
        compiled=compiled,
    )


def _remap(tokens: TokensConfig, codes: int) -> Remap | None:
    if tokens.remap is None:
        return None
    try:
        return Remap.load(Path(tokens.remap).expanduser(), codes)
    except ConfigError as error:
        raise ConfigError(f"tokens.remap: {error}") from error
