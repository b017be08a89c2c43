"""Which hidden states become features, and of what shape: settings checked against an architecture, without torch.

Dense Connector (arXiv 2405.13800; facts read in its authors' repository, HJYao00/DenseConnector) joins V_L, the state
that LLaVA takes, with earlier ones. Its code puts V_L first, and the paper's formula for `dci` puts it last; trained
projectors read the code's order, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import cast

from patchmint.config import UNTRAINED, FeaturesConfig, ModelsConfig
from patchmint.errors import ConfigError
from patchmint.features.arch import OFFICIAL, TINY_LAYERS, EncoderArch, VitArch, infer_arch, untrained_arch
from patchmint.geometry import Grid
from patchmint.interfaces import FeatureEncoder, FeatureSpec
from patchmint.plugins import check_plugin, is_outside, load_plugin
from patchmint.types import Precision, Size
from patchmint.weights.store import locate, read_arch

STI_WINDOW = 8
"""Neighbouring tokens, in row-major order, that STI averages into one."""

Parts = tuple[tuple[int, ...], ...]

_DEFAULTS = FeaturesConfig().model_dump()


def _halves(end: int) -> Parts:
    return (tuple(range(end // 2)), tuple(range(end // 2, end)))


def _table(singles: Parts, dci: Parts) -> Mapping[str, Parts]:
    return MappingProxyType({"sti": singles, "sci": singles, "dci": dci})


PAPER_LAYERS: Mapping[tuple[str, int], Mapping[str, Parts]] = MappingProxyType(
    {
        ("clip", 24): _table(((7,), (15,)), _halves(24)),
        ("siglip", 27): _table(((7,), (15,)), _halves(26)),
        # of no paper: `untrained-tiny` and the demo's
        ("clip", TINY_LAYERS): _table(((1,), (2,)), _halves(TINY_LAYERS)),
        ("clip", 6): _table(((2,), (4,)), _halves(6)),
    }
)
"""The connectors' further parts by family and number of blocks: CLIP ViT-L and SigLIP SO400M as in the authors'
`dc/model/multimodal_projector/dense_connector.py`."""


def plan_features(
    features: FeaturesConfig, arch: EncoderArch, name: str, whole: Size | None = None, *, merged: bool = False
) -> FeatureSpec:
    """Decide what is made of an encoder's hidden states.

    Args:
        features: the settings.
        arch: the encoder's architecture.
        name: the encoder, as manifests record it.
        whole: rows and columns of a view's tokens, (0, 0) where they depend on the image; None: CLIP's or SigLIP's own.
        merged: whether the tokens are those that the encoder makes of several patches each.

    Raises:
        ConfigError: a setting doesn't fit the encoder or another setting; the message says what is allowed.
    """
    if whole is None:
        assert isinstance(arch, VitArch)
        whole = (arch.side, arch.side)
    layers = _merged_layers(features, arch, name) if merged else _layers(features, arch)
    leading = _leading(features, arch, name, whole)
    grid = _pooled_grid(features, whole)
    # STI's extra tokens come of the pooled tokens, or of all of them.
    averaged = prod(grid) if features.pool_when == "before" else prod(whole)
    trailing = 0
    if features.connector == "sti":
        if not averaged:
            raise ConfigError(
                "features.connector sti appends tokens that have no place on a grid that depends on the image; take "
                "sci or dci, or pool to a fixed grid before it (features.pool, pool_when: before)"
            )
        if averaged < STI_WINDOW:
            raise ConfigError(
                f"features.connector sti averages {STI_WINDOW} tokens into one, but features.pool {_text(grid)} leaves "
                f"{averaged}; pool to more, or set pool_when: after"
            )
        trailing = averaged // STI_WINDOW * (len(layers) - 1)
    return FeatureSpec(
        encoder=name,
        connector=features.connector,
        layers=layers,
        select_feature="merged" if merged else features.select_feature,
        pool=features.pool_when if features.pool is not None else "",
        grid=grid,
        leading=leading,
        trailing=trailing,
        channels=_channels(arch, layers, features.connector, merged=merged),
    )


def _channels(arch: EncoderArch, layers: Parts, connector: str, *, merged: bool) -> int:
    if merged:
        assert not isinstance(arch, VitArch)
        return arch.merged
    return arch.hidden * (len(layers) if connector in ("sci", "dci") else 1)


def _merged_layers(features: FeaturesConfig, arch: EncoderArch, name: str) -> Parts:
    """The last state, of which the encoder makes its merged tokens."""
    if features.connector != "none" or features.select_layer is not None or features.layers is not None:
        raise ConfigError(
            f"features.connector, select_layer and layers choose among hidden states of patches, but the cells of this "
            f"grid are tokens that {name} has merged at its end; leave these settings out, or set the grid's merge: 1 "
            "for features of its patches"
        )
    return ((arch.layers,),)


def _leading(features: FeaturesConfig, arch: EncoderArch, name: str, whole: Size) -> int:
    if features.select_feature == "patch":
        return 0
    if whole == (0, 0) and features.pool is None:
        raise ConfigError(
            "features.select_feature cls_patch has no place for CLS on a grid that depends on the image; set it to "
            "patch, or pool to a fixed grid (features.pool)"
        )
    if not arch.leading:
        raise ConfigError(
            f"features.select_feature cls_patch needs a CLS token, which {name} ({arch.family}) hasn't; set it to patch"
        )
    return arch.leading


def _pooled_grid(features: FeaturesConfig, whole: Size) -> Size:
    if features.pool is None or whole == (0, 0):
        return features.pool or whole
    if not all(1 <= bins <= length for bins, length in zip(features.pool, whole, strict=True)):
        raise ConfigError(
            f"features.pool must lie in 1 x 1 to {_text(whole)}, the encoder's patches, not {_text(features.pool)}"
        )
    return features.pool


def _layers(features: FeaturesConfig, arch: EncoderArch) -> Parts:
    """V_L, then the further parts; every index 0..`arch.layers`."""
    selected = arch.default_layer if features.select_layer is None else features.select_layer
    first = (_index(selected, arch, "select_layer"),)
    if features.connector == "none":
        if features.layers is not None:
            raise ConfigError(
                "features.layers are a connector's; set features.connector to sti, sci or dci, or no layers"
            )
        return (first,)
    given = features.layers if features.layers is not None else _paper_layers(features.connector, arch)
    if not given:
        raise ConfigError(
            f"features.layers is empty, but {features.connector} joins V_L with further parts; give at least one, or "
            "set features.connector to none"
        )
    return (first, *(_part(part, features.connector, arch) for part in given))


def _paper_layers(connector: str, arch: EncoderArch) -> Parts:
    table = PAPER_LAYERS.get((arch.family, arch.layers))
    if table is None:
        raise ConfigError(
            f"no paper says which layers {connector} takes of a {arch.family} encoder with {arch.layers} blocks; "
            "give features.layers, for example [[7], [15]]"
        )
    return table[connector]


def _part(part: tuple[int, ...], connector: str, arch: EncoderArch) -> tuple[int, ...]:
    indices = tuple(_index(index, arch, "layers") for index in part)
    if connector != "dci" and len(indices) != 1:
        raise ConfigError(
            f"features.layers of {connector} name one hidden state a part, for example [[7], [15]], not {list(part)}"
        )
    if not indices or len(set(indices)) != len(indices):
        raise ConfigError(
            f"features.layers of {connector} name the hidden states of a part, at least one and each once, "
            f"not {list(part)}"
        )
    return indices


def _index(index: int, arch: EncoderArch, setting: str) -> int:
    """Count from the end where negative, as LLaVA's `select_layer` does."""
    states = arch.layers + 1
    if not -states <= index < states:
        raise ConfigError(
            f"features.{setting}: this encoder has hidden states 0 (the first block's input) to {arch.layers}, or -1 "
            f"to {-states} counted from the last, not {index}"
        )
    return index % states


def _text(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def encoder_arch(name: str, grid: Grid) -> EncoderArch:
    """What an encoder is built from, by its name or path: of a file of your own only the header is read.

    Raises:
        ConfigError: there is no untrained encoder for this grid.
        WeightsError: the file is missing, damaged, unsafe or of another architecture.
    """
    known = untrained_arch(grid) if name == UNTRAINED else OFFICIAL.get(name)
    return known or read_arch(name, infer_arch)


def check_features(models: ModelsConfig, features: FeaturesConfig, grid: Grid) -> FeatureSpec | None:
    """Check the settings without loading weights.

    Returns:
        What `build_feature_encoder` will give; None for an outside encoder, which says so once it is built.

    Raises:
        ConfigError: a setting doesn't fit the encoder, or the grid isn't the encoder's.
        WeightsError: as for `encoder_arch`.
    """
    if not is_outside("vit", models.vit):
        return _plan(features, encoder_arch(models.vit, grid), grid, models.vit)
    check_plugin("patchmint.encoders", models.vit, **models.given(models.vit, locate))
    given = [name for name in features.model_fields_set if getattr(features, name) != _DEFAULTS[name]]
    if given:
        raise ConfigError(
            f"features.{given[0]} is for patchmint's own encoders; {models.vit} is another package's, without "
            "such settings"
        )
    return None


def build_feature_encoder(
    models: ModelsConfig, features: FeaturesConfig, grid: Grid, device: str, precision: Precision = "auto"
) -> FeatureEncoder:
    """Build the feature encoder that the settings name, and load its weights.

    Args:
        models: `vit` is its name or path, or an entry point's name.
        features: what is made of its hidden states.
        grid: the data set's grid: the encoder's patches must be its cells.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of its large products.

    Raises:
        WeightsError: the checkpoint is missing, damaged, unsafe or of another architecture.
        ConfigError: a setting doesn't fit the encoder, or the grid isn't the encoder's; raised before weights are read.
        PluginError: an outside encoder can't be built.
    """
    name = models.vit
    if check_features(models, features, grid) is None:
        own = models.given(name, locate) | {"precision": precision, "grid": grid}
        return cast(FeatureEncoder, load_plugin("patchmint.encoders", name, FeatureEncoder, device, **own))
    # torch and transformers take seconds to import, which checking settings need not wait for
    import torch

    from patchmint.compute.devices import resolve_precision
    from patchmint.features.encoder import VitFeatureEncoder
    from patchmint.features.model import load_encoder, untrained_encoder
    from patchmint.weights.loading import load_named

    model = untrained_encoder(untrained_arch(grid), seed=0) if name == UNTRAINED else load_encoder(load_named(name))
    spec = _plan(features, model.arch, grid, name)
    dtype = resolve_precision(precision, device, cpu=torch.float32, gpu=torch.float16)
    cut = model.cut(max(max(part) for part in spec.layers), merging=spec.merged)
    return VitFeatureEncoder(cut, spec, grid, device=device, precision=dtype)


def _plan(features: FeaturesConfig, arch: EncoderArch, grid: Grid, name: str) -> FeatureSpec:
    arch.require(grid, name)
    return plan_features(features, arch, name, arch.whole(grid), merged=arch.merges(grid))
