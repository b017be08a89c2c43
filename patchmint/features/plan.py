"""Which hidden states become features, and of what shape: settings checked against an architecture, without torch.

Dense Connector (arXiv 2405.13800; facts read in its authors' repository, HJYao00/DenseConnector) joins V_L, the state
that LLaVA takes, with earlier ones. Its code puts V_L first, and the paper's formula for `dci` puts it last; trained
projectors read the code's order, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from patchmint.config import UNTRAINED, FeaturesConfig, ModelsConfig
from patchmint.errors import ConfigError
from patchmint.features.arch import OFFICIAL, TINY_LAYERS, VitArch, infer_arch, untrained_arch
from patchmint.geometry import Grid, PatchGrid
from patchmint.geometry.presets import require_fixed
from patchmint.interfaces import FeatureEncoder, FeatureSpec
from patchmint.types import Precision
from patchmint.weights.store import read_arch

STI_WINDOW = 8
"""Neighbouring tokens, in row-major order, that STI averages into one."""

Parts = tuple[tuple[int, ...], ...]


def _halves(end: int) -> Parts:
    return (tuple(range(end // 2)), tuple(range(end // 2, end)))


def _table(singles: Parts, dci: Parts) -> Mapping[str, Parts]:
    return MappingProxyType({"sti": singles, "sci": singles, "dci": dci})


PAPER_LAYERS: Mapping[tuple[str, int], Mapping[str, Parts]] = MappingProxyType(
    {
        ("clip", 24): _table(((7,), (15,)), _halves(24)),
        ("siglip", 27): _table(((7,), (15,)), _halves(26)),
        ("clip", TINY_LAYERS): _table(((1,), (2,)), _halves(TINY_LAYERS)),  # of no paper: for `untrained-tiny`
    }
)
"""The connectors' further parts by family and number of blocks: CLIP ViT-L and SigLIP SO400M as in the authors'
`dc/model/multimodal_projector/dense_connector.py`."""


def plan_features(features: FeaturesConfig, arch: VitArch, name: str) -> FeatureSpec:
    """Decide what is made of an encoder's hidden states.

    Args:
        features: the settings.
        arch: the encoder's architecture.
        name: the encoder, as manifests record it.

    Raises:
        ConfigError: a setting doesn't fit the encoder or another setting; the message says what is allowed.
    """
    layers = _layers(features, arch)
    leading = _leading(features, arch, name)
    grid = _pooled_grid(features, arch)
    # STI's extra tokens come of the pooled tokens, or of all of them.
    averaged = grid[0] * grid[1] if features.pool_when == "before" else arch.side**2
    trailing = 0
    if features.connector == "sti":
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
        select_feature=features.select_feature,
        pool=features.pool_when if features.pool is not None else "",
        grid=grid,
        leading=leading,
        trailing=trailing,
        channels=arch.hidden * (len(layers) if features.connector in ("sci", "dci") else 1),
    )


def _leading(features: FeaturesConfig, arch: VitArch, name: str) -> int:
    if features.select_feature == "patch":
        return 0
    if not arch.leading:
        raise ConfigError(
            f"features.select_feature cls_patch needs a CLS token, which {name} (SigLIP) hasn't; set it to patch"
        )
    return arch.leading


def _pooled_grid(features: FeaturesConfig, arch: VitArch) -> tuple[int, int]:
    whole = (arch.side, arch.side)
    if features.pool is None:
        return whole
    if not all(1 <= bins <= length for bins, length in zip(features.pool, whole, strict=True)):
        raise ConfigError(
            f"features.pool must lie in 1 x 1 to {_text(whole)}, the encoder's patches, not {_text(features.pool)}"
        )
    return features.pool


def _layers(features: FeaturesConfig, arch: VitArch) -> Parts:
    """V_L, then the further parts; every index 0..`arch.layers`."""
    # LLaVA takes CLIP's last state but one. Dense Connector removes SigLIP's last block, which comes to the same.
    selected = -2 if features.select_layer is None else features.select_layer
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


def _paper_layers(connector: str, arch: VitArch) -> Parts:
    table = PAPER_LAYERS.get((arch.family, arch.layers))
    if table is None:
        raise ConfigError(
            f"no paper says which layers {connector} takes of a {arch.family} encoder with {arch.layers} blocks; "
            "give features.layers, for example [[7], [15]]"
        )
    return table[connector]


def _part(part: tuple[int, ...], connector: str, arch: VitArch) -> tuple[int, ...]:
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


def _index(index: int, arch: VitArch, setting: str) -> int:
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


def check_features(models: ModelsConfig, features: FeaturesConfig, grid: Grid) -> FeatureSpec:
    """Check the settings without loading weights: of a file of your own only the header is read.

    Returns:
        What `build_feature_encoder` will give.

    Raises:
        ConfigError: a setting doesn't fit the encoder, or the grid isn't the encoder's.
        WeightsError: the file is missing, damaged, unsafe or of another architecture.
    """
    grid = require_fixed(grid, "features")
    name = models.vit
    known = untrained_arch(grid) if name == UNTRAINED else OFFICIAL.get(name)
    return _plan(features, known or read_arch(name, infer_arch), grid, name)


def build_feature_encoder(
    models: ModelsConfig, features: FeaturesConfig, grid: Grid, device: str, precision: Precision = "auto"
) -> FeatureEncoder:
    """Build the feature encoder that the settings name, and load its weights.

    Args:
        models: `vit` is its name or path.
        features: what is made of its hidden states.
        grid: the data set's grid: the encoder's patches must be its cells.
        device: where the model runs, such as "cpu" or "cuda".
        precision: number format of its large products.

    Raises:
        WeightsError: the checkpoint is missing, damaged, unsafe or of another architecture.
        ConfigError: a setting doesn't fit the encoder, or the grid isn't the encoder's; raised before weights are read.
    """
    check_features(models, features, grid)
    grid = require_fixed(grid, "features")
    # torch and transformers take seconds to import, which checking settings need not wait for
    import torch

    from patchmint.compute.devices import resolve_precision
    from patchmint.features.encoder import VitFeatureEncoder
    from patchmint.features.model import load_vit, untrained_vit
    from patchmint.weights.loading import load_named

    name = models.vit
    model = untrained_vit(untrained_arch(grid), seed=0) if name == UNTRAINED else load_vit(load_named(name))
    spec = _plan(features, model.arch, grid, name)
    dtype = resolve_precision(precision, device, cpu=torch.float32, gpu=torch.float16)
    cut = model.cut(max(max(part) for part in spec.layers))
    return VitFeatureEncoder(cut, spec, grid, device=device, precision=dtype)


def _plan(features: FeaturesConfig, arch: VitArch, grid: PatchGrid, name: str) -> FeatureSpec:
    arch.require(grid, name)
    return plan_features(features, arch, name)
