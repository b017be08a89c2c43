"""Which tokenizer a config means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import cast

from patchmint.config import UNTRAINED, ModelsConfig, TokensConfig
from patchmint.config.annotator import Rule
from patchmint.errors import ConfigError, InputError
from patchmint.interfaces import Tokenizer
from patchmint.plugins import check_plugin, is_outside, load_plugin
from patchmint.tokenizers.emu3.arch import Emu3Arch, infer_emu3, is_emu3
from patchmint.tokenizers.vqgan.arch import OFFICIAL, TINY, VqganArch, infer_arch
from patchmint.tokenizers.vqgan.remap import Remap
from patchmint.types import Precision, Size
from patchmint.weights.architecture import Shaped
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
    arch = tokenizer_arch(name, tokens.rule)
    if isinstance(arch, Emu3Arch):
        if tokens.remap is not None:
            raise ConfigError(f"tokens.remap is for VQGAN, but {name} is Emu3's tokenizer; leave it out")
        return
    cell = arch.factor
    if tokens.size % cell:
        raise ConfigError(
            f"tokens.size: {tokens.size} px can't be cut into cells of {cell} px, which the tokenizer {name} has; "
            f"give a multiple of {cell}, such as {max(1, round(tokens.size / cell)) * cell}"
        )
    _remap(tokens, arch.n_embed)


def tokenizer_arch(name: str, rule: Rule | None = None) -> VqganArch | Emu3Arch:
    """What the tokenizer of this name or path is, from the name or the file's header.

    Args:
        name: `models.tokenizer`.
        rule: `tokens.rule`.

    Raises:
        ConfigError: `rule` isn't that of a known model.
        WeightsError: the file is missing, damaged, unsafe or no tokenizer, or its rule can't be told.
    """
    known: VqganArch | Emu3Arch | None = {UNTRAINED: TINY, **OFFICIAL}.get(name)
    if known is None:
        known = read_arch(name, partial(_infer, rule=rule, told=_told(name)))
    if rule not in (None, known.rule):
        raise ConfigError(f"tokens.rule is {rule}, but the tokenizer {name} has the rule {known.rule}; leave it out")
    return known


def input_pixels(arch: VqganArch | Emu3Arch, tokens: TokensConfig, size: Size) -> int:
    """Pixels of the input that an image (height, width) becomes; 0 where it is so long that it will be rejected."""
    if not isinstance(arch, Emu3Arch):
        return tokens.size**2
    try:
        return prod(arch.grid.input_size(size))
    except InputError:
        return 0


def _infer(
    tensors: Mapping[str, Shaped], metadata: Mapping[str, str], rule: Rule | None, told: Rule | None
) -> VqganArch | Emu3Arch:
    if is_emu3(tensors):
        return infer_emu3(tensors, metadata)
    return infer_arch(tensors, metadata, rule=rule, told=told)


def _told(name: str) -> Rule | None:
    """The rule that a published name tells."""
    return OFFICIAL[name].rule if name in OFFICIAL else None


def build_tokenizer(
    models: ModelsConfig, tokens: TokensConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Tokenizer:
    """Build the tokenizer that the settings name (`tokens.tokenizer`, else `models.tokenizer`), and load its weights.

    An outside tokenizer and Emu3's bring their own size and preprocessing; `tokens` and `compiled` (its encoder, on a
    GPU) are for VQGAN.

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
    elif is_emu3((state := load_named(name)).tensors):
        from patchmint.tokenizers.emu3.tokenizer import Emu3Tokenizer  # transformers takes seconds to import

        dtype = resolve_precision(precision, device, cpu=torch.float32, gpu=torch.float32)
        return Emu3Tokenizer(state, name=name, device=device, precision=dtype)
    else:
        model = load_vqgan(state, rule=tokens.rule, told=_told(name))
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
