"""What can be found wrong before any model is loaded. No torch."""

from __future__ import annotations

import warnings

from patchmint.config import DEMO, UNTRAINED, UNTRAINED_NOTICE, AnnotatorConfig
from patchmint.config.annotator import resolve_grid
from patchmint.errors import DemoWarning, UntrainedWarning, WeightsMissingError
from patchmint.features.build import check_features
from patchmint.plugins import is_outside_tokenizer
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate


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
    """Check that every file which a config needs is on this machine, and that its features can be made on its grid.

    Raises:
        ConfigError: a setting of the features doesn't fit the vision encoder, or the grid isn't the encoder's.
        WeightsMissingError: some aren't; one message names them all and the command that gets them.
        WeightsCorruptError: a file that comes with the package isn't whole.
    """
    if config.features is not None:
        check_features(config.models, config.features, resolve_grid(config.grid))
    missing = []
    for role, name in config.models_used.items():
        outside = role == "segmenter" or (role == "tokenizer" and is_outside_tokenizer(name))
        if name == UNTRAINED or outside:
            continue
        try:
            locate(name)
        except WeightsMissingError:
            if name not in CHECKPOINTS or CHECKPOINTS[name].bundled:
                raise
            missing.append(name)
    if missing:
        total = sum(CHECKPOINTS[name].size or 0 for name in missing) / 1e9
        raise WeightsMissingError(
            f"weights are missing on this machine: {', '.join(missing)}. Get them ({total:.1f} GB) with\n"
            f"  patchmint models pull {' '.join(missing)}\n"
            f"or give paths of files that you have, or the models preset {DEMO}, which needs no download but knows "
            "only drawn shapes",
            names=missing,
        )
