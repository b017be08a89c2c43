"""What can be found wrong before any model is loaded. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType

from patchmint.config import DEMO, UNTRAINED, UNTRAINED_NOTICE, AnnotatorConfig
from patchmint.config.grids import resolve_grid
from patchmint.errors import ConfigError, DemoWarning, InputError, UntrainedWarning, WeightsMissingError, did_you_mean
from patchmint.features.plan import check_features
from patchmint.labelers.build import check_segmenter
from patchmint.plugins import group_of, is_outside, plugin_names
from patchmint.tokenizers.build import check_tokens
from patchmint.weights.registry import CHECKPOINTS, CheckpointKind, total_size
from patchmint.weights.store import locate

_KINDS: Mapping[str, CheckpointKind] = MappingProxyType(
    {
        "detector": "grounding-dino",
        "vocabulary": "vocabulary",
        "masker": "sam",
        "tokenizer": "vqgan",
        "vit": "vit",
    }
)
"""What a checkpoint must be to have a role."""


def warn_of_models(config: AnnotatorConfig, stacklevel: int) -> None:
    """Issue the `DemoWarning` or `UntrainedWarning` that belongs on everything these models make, if any does.

    Args:
        config: the settings.
        stacklevel: as for `warnings.warn`; 2 is the caller.
    """
    if config.notice:
        category = UntrainedWarning if config.notice == UNTRAINED_NOTICE else DemoWarning
        warnings.warn(config.notice, category, stacklevel=stacklevel + 1)


def check_loadable(config: AnnotatorConfig) -> None:
    """Check that every model of a config is on this machine, and that the settings fit the models.

    No weights are loaded: architectures are told from names, or from the headers of files.

    Raises:
        ConfigError: a setting doesn't fit a model, or a model can't have its role.
        PluginError: no installed package offers an outside segmenter.
        WeightsMissingError: some weights aren't here; one message names them all and the command that gets them.
        WeightsCorruptError, WeightsUnsafeError, WeightsMismatchError: a file can't be used.
    """
    missing = [name for role, name in config.models_used.items() if _is_missing(role, name)]
    try:
        for tokens in config.tokenizers.values():
            check_tokens(config.models, tokens)
        if config.features is not None:
            check_features(config.models, config.features, resolve_grid(config.grid))
        if config.labels is not None and not config.labels.from_stored:
            check_segmenter(config.models, config.labels)
    except WeightsMissingError:
        if not missing:
            raise
    if missing:
        raise WeightsMissingError(
            f"weights are missing on this machine: {', '.join(missing)}. Get them ({total_size(missing)}) with\n"
            f"  patchmint models pull {' '.join(missing)}\n"
            f"or give paths of files that you have, or the models preset {DEMO}, which needs no download but knows "
            "only drawn shapes",
            names=missing,
        )


def check_explained(config: AnnotatorConfig) -> None:
    """Check that labels can be explained.

    Raises:
        InputError: there are none, or none of boxes that rules may drop.
    """
    if config.labels is None or config.labels.from_stored or config.models.segmenter is not None:
        raise InputError(
            "labels are explained where a detector finds boxes, which rules may drop; a segmenter (SAM 3, or a "
            "segmenter plug-in) gives all that it finds, and where nothing is labelled there is nothing to explain"
        )


def _is_missing(role: str, name: str) -> bool:
    """Whether a model is one that has to be pulled yet.

    Raises:
        ConfigError: it is of another kind than its role needs.
        WeightsMissingError, WeightsCorruptError: it isn't there, and can't be pulled.
    """
    if name == UNTRAINED or is_outside(role, name):
        return False
    if role == "vocabulary" and name not in CHECKPOINTS:
        return False  # a folder that isn't a detector's has none, either: `check_segmenter` looks at the detector first
    kinds = {known: checkpoint.kind for known, checkpoint in CHECKPOINTS.items()}
    fitting = [known for known, kind in kinds.items() if kind == _KINDS.get(role.partition(".")[0])]
    if name in kinds and name not in fitting:
        raise ConfigError(
            f"models.{role}: {name} is of the kind {kinds[name]}; choose one of {', '.join(fitting)}, or give a path"
        )
    try:
        locate(name, role)
    except WeightsMissingError as error:
        if name in kinds and not CHECKPOINTS[name].bundled:
            return True
        hint = ""
        group = group_of(role)
        if group is not None and not set(name) & set("/:"):
            offered = plugin_names(group)
            hint = f"; plug-ins: {', '.join(offered) or 'none'}{did_you_mean(name, offered)}"
        raise WeightsMissingError(f"models.{role}: {error}{hint}") from error
    return False
