"""What a VQGAN is built from, the published ones, and which of them a file holds. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Self, TypeVar, get_args

from patchmint.config.annotator import Rule
from patchmint.errors import ConfigError, WeightsMismatchError
from patchmint.weights.architecture import ARCH_METADATA_KEY, Architecture, Shaped
from patchmint.weights.folder import described
from patchmint.weights.recognise import looks_like

Tensor = TypeVar("Tensor")

_GROUPS = 32
# Upstream's GroupNorm always has 32 groups (taming/modules/diffusionmodules/model.py, `Normalize`).

_MAX_NUMBER = 65536
_MAX_CODES = 1 << 20
_MAX_BLOCKS = 64
# An architecture can come from a file, so it must not be able to ask for a huge model.

_EMBEDDING = "quantize.embedding.weight"
_LOGIT = "quantize.embed.weight"

_UNUSED = re.compile(r"loss\.|colorize|quantize\.codebook_used$")
"""Keys of published files that inference doesn't need: the discriminator and LPIPS, the random projection that taming
draws segmentations with, and LlamaGen's count of used codes."""

_PREFIXES = ("gen_vision_model.", "model.vqmodel.", "vqmodel.")
"""What a tokenizer's keys begin with in a whole model's file: Janus; Chameleon and Janus in transformers."""


@dataclass(frozen=True)
class VqganArch(Architecture):
    """The shape of a VQGAN for RGB images, and the rule by which it chooses codes.

    Chameleon, LlamaGen, Janus and IBQ have taming-transformers' encoder with other numbers (its `ddconfig`). Fixed, as
    in every published RGB model: 3 channels in and out, `double_z` False, dropout 0, resampling by convolution.

    Attributes:
        ch: channels of the first level, a multiple of 32 (upstream's GroupNorm has 32 groups).
        ch_mult: channels of each level as multiples of `ch`; every level but the last halves the size.
        num_res_blocks: residual blocks a level.
        attn_resolutions: sizes in pixels, at an input of `resolution`, of the levels that have attention; may be empty.
        resolution: input size in pixels that the model was trained at. Other sizes work too; it only says at which
            levels attention sits.
        z_channels: channels of the encoder's output.
        embed_dim: length of a codebook entry.
        n_embed: number of codebook entries, 2^20 at most.
        rule: which code is chosen for a vector. nearest: the entry at the least distance (upstream's `VQModel`); dot:
            that with the highest dot product (IBQ); cosine: that at the smallest angle (LlamaGen, Janus); logit: the
            highest output of a learnt projection (upstream's `GumbelVQ`).
        decodes: whether it has a decoder; transformers' Chameleon has none.

    Raises:
        ConfigError: a number is out of range, or numbers contradict each other.
    """

    WHAT = "VQGAN"

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    embed_dim: int
    n_embed: int
    rule: Rule
    decodes: bool = True

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"a VQGAN's rule is one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        for name, value in asdict(self).items():
            most = _MAX_CODES if name == "n_embed" else _MAX_NUMBER
            for number in value if isinstance(value, tuple) else (value,):
                if name not in ("rule", "decodes") and not 1 <= number <= most:
                    raise ConfigError(f"a VQGAN's {name} must lie in 1..{most}, not {number}")
        if not self.ch_mult:
            raise ConfigError("a VQGAN's ch_mult is empty; give one number a level, for example [1, 1, 2, 2, 4]")
        if len(self.ch_mult) * self.num_res_blocks > _MAX_BLOCKS or self.ch * max(self.ch_mult) > _MAX_NUMBER:
            raise ConfigError(
                f"a VQGAN of {len(self.ch_mult)} levels with {self.num_res_blocks} blocks each and up to "
                f"{self.ch * max(self.ch_mult)} channels is too large; {_MAX_BLOCKS} blocks and {_MAX_NUMBER} channels "
                "are the most"
            )
        if self.ch % _GROUPS:
            raise ConfigError(f"a VQGAN's ch must be a multiple of {_GROUPS} (its GroupNorm's groups), not {self.ch}")
        if self.resolution % self.factor:
            raise ConfigError(
                f"a VQGAN with {len(self.ch_mult)} levels shrinks by {self.factor}, so its resolution must be a "
                f"multiple of that, not {self.resolution}"
            )
        if self.rule == "logit" and self.embed_dim != self.z_channels:
            # Upstream's quant_conv makes embed_dim channels, and its quantize.proj reads z_channels of them.
            raise ConfigError(
                f"a VQGAN of the rule logit needs embed_dim = z_channels, not {self.embed_dim} and {self.z_channels}"
            )

    @property
    def factor(self) -> int:
        """Input pixels along one side of a code's cell: 16 for f16, 8 for f8."""
        return 1 << (len(self.ch_mult) - 1)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """As `Architecture.from_metadata`; the demo's file says `gumbel` where others say `rule`."""
        text = metadata.get(ARCH_METADATA_KEY)
        if text is None:
            return None
        text = text.replace('"gumbel": false', '"rule": "nearest"').replace('"gumbel": true', '"rule": "logit"')
        return super().from_metadata({ARCH_METADATA_KEY: text})

    def upstream_config(self) -> dict[str, Any]:
        """Keyword arguments of upstream's `Encoder` and `Decoder` (its `ddconfig`)."""
        return {
            "double_z": False,
            "z_channels": self.z_channels,
            "resolution": self.resolution,
            "in_channels": 3,
            "out_ch": 3,
            "ch": self.ch,
            "ch_mult": self.ch_mult,
            "num_res_blocks": self.num_res_blocks,
            "attn_resolutions": self.attn_resolutions,
            "dropout": 0.0,
        }


_F16 = VqganArch(
    ch=128,
    ch_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attn_resolutions=(16,),
    resolution=256,
    z_channels=256,
    embed_dim=256,
    n_embed=16384,
    rule="nearest",
)
_F8 = replace(_F16, ch_mult=(1, 1, 2, 4), attn_resolutions=(32,), n_embed=8192, rule="logit")
_LLAMAGEN = replace(_F16, embed_dim=8, rule="cosine")
_IBQ = replace(_F16, num_res_blocks=4, rule="dot")
_CHAMELEON = replace(_F16, attn_resolutions=(), n_embed=8192)

OFFICIAL: Mapping[str, VqganArch] = MappingProxyType(
    {
        "vqgan-imagenet-f16-1024": replace(_F16, n_embed=1024),
        "vqgan-imagenet-f16-16384": _F16,
        "vqgan-gumbel-f8-8192": _F8,
        "llamagen-vq-ds16-c2i": _LLAMAGEN,
        "llamagen-vq-ds16-t2i": _LLAMAGEN,
        "llamagen-vq-ds8-c2i": replace(_LLAMAGEN, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,)),
        "ibq-1024": replace(_IBQ, n_embed=1024),
        "ibq-8192": replace(_IBQ, n_embed=8192),
        "ibq-16384": _IBQ,
        "ibq-262144": replace(_IBQ, n_embed=262144),
    }
)
"""Published models by name: taming-transformers (its README; `configs/imagenet_vqgan.yaml`; `model.yaml` beside each
checkpoint), LlamaGen (`tokenizer/tokenizer_image/vq_model.py`), IBQ (SEED-Voken's `configs/IBQ/gpu`)."""

_TOLD_BY_SHAPE = (
    *(known for known in OFFICIAL.values() if known.rule in ("nearest", "dot")),
    *(replace(_F16, n_embed=codes) for codes in (4096, 8192)),  # taming's of ADE20K and of COCO
    _CHAMELEON,
)

TINY = VqganArch(
    ch=32,
    ch_mult=(1, 1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(8,),
    resolution=64,
    z_channels=32,
    embed_dim=32,
    n_embed=64,
    rule="nearest",
)
"""The same classes, small: 64 px become 8 x 8 codes out of 64. For tests and the `untrained-tiny` preset."""


def by_upstreams_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Rule | None]:
    """Tensors by taming-transformers' names, and the rule that the names they had tell.

    LlamaGen's and Janus's names (`encoder.conv_blocks`), and those of Janus in transformers (whose decoder counts its
    levels from the other end), belong to models of the rule cosine; `quantize.proj` to those of logit. Taming's own
    names, which Chameleon and IBQ have too, tell nothing: None.

    Keys that inference doesn't need are left out. Where averages of the weights are stored besides (`model_ema.*`,
    IBQ), they count, for IBQ's own evaluation encodes with them.
    """
    for prefix in _PREFIXES:
        if f"{prefix}encoder.conv_in.weight" in tensors:
            tensors = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("model_ema.")}
    kept |= {name: tensors[ema] for name in kept if (ema := f"model_ema.{name.replace('.', '')}") in tensors}
    kept = {name: tensor for name, tensor in kept.items() if not _UNUSED.match(name)}
    if "quantize.proj.weight" in kept:
        return kept, "logit"
    llamagen = "encoder.conv_blocks.0.res.0.conv1.weight" in kept
    if not llamagen and "decoder.up.0.upsample.conv.weight" not in kept:
        return kept, None
    levels = len({name.split(".")[2] for name in kept if re.match(r"decoder\.(conv_blocks|up)\.\d", name)})
    return {_renamed(name, levels): tensor for name, tensor in kept.items()}, "cosine"


def _renamed(name: str, levels: int) -> str:
    name = re.sub(r"^(encoder|decoder)\.mid\.(\d)", lambda m: f"{m[1]}.mid.{_MIDDLE[int(m[2])]}", name)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = re.sub(r"^decoder\.(?:conv_blocks|up)\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
    return re.sub(r"(\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)


_MIDDLE = ("block_1", "attn_1", "block_2")


def infer_arch(
    tensors: Mapping[str, Shaped], metadata: Mapping[str, str], *, rule: Rule | None = None, told: Rule | None = None
) -> VqganArch:
    """Tell the architecture from a state dict, or from its shapes alone.

    A metadata entry `ARCH_METADATA_KEY` says it all. Otherwise the numbers are read off the shapes, and the rule
    follows from the names (`by_upstreams_names`), from `told`, or from exactly the shapes of a published model. Where
    none of these decides, and no rule is named, the file is refused: a wrong rule gives wrong codes without an error.

    Args:
        tensors: the state dict, with its publisher's names.
        metadata: of its `StateFile` or `Header`; a config.json beside the file may tell the rule.
        rule: the rule that the settings name; None = that of the file.
        told: the rule that the file's name tells.

    Raises:
        WeightsMismatchError: it is no VQGAN's, its rule can't be told, or it has another one than `rule`.
    """
    arch = VqganArch.from_metadata(metadata)
    named, by_names = by_upstreams_names(tensors)
    if arch is not None:
        if _shapes(arch) != _shapes(_measured(named, arch.rule)):
            raise WeightsMismatchError(
                f"its weights are not of the architecture that its metadata ({ARCH_METADATA_KEY}) names, {arch}; "
                "write the file again from the model that it holds"
            )
    else:
        certain = by_names or told or _rule_of_config(described(metadata))
        arch = _measured(named, certain or "nearest")
        if certain is None and rule != "logit":
            rules = {known.rule for known in _TOLD_BY_SHAPE if _shapes(known) == _shapes(arch)}
            if not rules and rule is None:
                raise WeightsMismatchError(
                    f"the file holds a VQGAN of {arch.n_embed} codes that is none of the published ones "
                    f"({', '.join(OFFICIAL)}), and its weights don't say how it chooses codes. Name the rule that it "
                    "was trained with, for any other gives wrong codes: `tokens: {rule: nearest}` (taming, Chameleon), "
                    "dot (IBQ, Emu3.5) or cosine (LlamaGen, Janus; those with l2_normalize)"
                )
            # Shapes are no proof: a rule that the settings name goes before.
            return replace(arch, rule=rule or rules.pop())
    if rule not in (None, arch.rule):
        raise WeightsMismatchError(
            f"tokens.rule is {rule}, but the file holds a VQGAN of the rule {arch.rule}; leave the setting out"
        )
    return arch


def _measured(tensors: Mapping[str, Shaped], rule: Rule) -> VqganArch:
    """The architecture of these shapes. Equal ones mean an equal function, but for the rule."""
    codebook = tensors.get(_LOGIT if rule == "logit" else _EMBEDDING)
    if codebook is None or codebook.ndim != 2:
        raise WeightsMismatchError(
            f"the file holds no VQGAN: it has no matrix {_EMBEDDING} or {_LOGIT}. "
            f"Known architectures: {', '.join(OFFICIAL)}.{looks_like(tensors)}"
        )
    parts = [match for match in map(re.compile(r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.").match, tensors) if match]
    levels = range(1 + max((int(part[1]) for part in parts), default=-1))
    with_attention = sorted({int(part[1]) for part in parts if part[2] == "attn"})
    resolution = max(256, 1 << (len(levels) - 1)) if levels else 256
    try:
        ch = tensors["encoder.conv_in.weight"].shape[0]
        return VqganArch(
            ch=ch,
            ch_mult=tuple(tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // ch for level in levels),
            num_res_blocks=1 + max((int(part[3]) for part in parts), default=-1),
            attn_resolutions=tuple(resolution >> level for level in with_attention),
            resolution=resolution,
            z_channels=tensors["encoder.conv_out.weight"].shape[0],
            embed_dim=codebook.shape[1],
            n_embed=codebook.shape[0],
            rule=rule,
            decodes="decoder.conv_in.weight" in tensors,
        )
    except (KeyError, IndexError, ZeroDivisionError, ConfigError) as error:
        raise WeightsMismatchError(
            f"the file has a codebook, but not a VQGAN's encoder ({error}). Known architectures: {', '.join(OFFICIAL)}"
        ) from error


def _shapes(arch: VqganArch) -> dict[str, object]:
    """What the shapes of an encoder and a codebook tell: of attention only at which levels it sits."""
    levels = [level for level in range(len(arch.ch_mult)) if arch.resolution >> level in arch.attn_resolutions]
    told = {name: value for name, value in asdict(arch).items() if name not in ("rule", "decodes", "resolution")}
    return told | {"attn_resolutions": levels}


def _rule_of_config(config: Mapping[str, Any]) -> Rule | None:
    """The rule that a model's config.json in transformers' layout tells; None where it tells none.

    transformers' Janus searches without normalising, which is its error: the vectors that it decodes are normalised,
    and DeepSeek's own code normalises both.
    """
    return _RULES_OF_TYPES.get(str(config.get("model_type")))


_RULES_OF_TYPES: Mapping[str, Rule] = {
    "chameleon": "nearest",
    "chameleon_vqgan": "nearest",
    "janus": "cosine",
    "janus_vqgan": "cosine",
}
