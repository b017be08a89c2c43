"""Which feature encoder a config means."""

from __future__ import annotations

from patchmint.config import UNTRAINED, FeaturesConfig, ModelsConfig
from patchmint.features.arch import OFFICIAL, VitArch, infer_arch, untrained_arch
from patchmint.features.plan import plan_features
from patchmint.geometry import PatchGrid
from patchmint.interfaces import FeatureEncoder, FeatureSpec
from patchmint.types import Precision
from patchmint.weights.store import read_arch


def check_features(models: ModelsConfig, features: FeaturesConfig, grid: PatchGrid) -> FeatureSpec:
    """Check the settings without loading weights: of a file of your own only the header is read.

    Returns:
        What `build_feature_encoder` will give.

    Raises:
        ConfigError: a setting doesn't fit the encoder, or the grid isn't the encoder's.
        WeightsError: the file is missing, damaged, unsafe or of another architecture.
    """
    name = models.vit
    known = untrained_arch(grid) if name == UNTRAINED else OFFICIAL.get(name)
    return _plan(features, known or read_arch(name, infer_arch), grid, name)


def build_feature_encoder(
    models: ModelsConfig, features: FeaturesConfig, grid: PatchGrid, device: str, precision: Precision = "auto"
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
    # torch and transformers take seconds to import, which checking settings need not wait for
    import torch

    from patchmint.compute.precision import resolve_precision
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
