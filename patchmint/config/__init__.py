"""Settings, validated."""

from patchmint.config.annotator import (
    MODEL_PRESETS,
    UNTRAINED,
    UNTRAINED_NOTICE,
    AnnotatorConfig,
    GridConfig,
    LabelsConfig,
    ModelsConfig,
    TokensConfig,
)

__all__ = [
    "MODEL_PRESETS",
    "UNTRAINED",
    "UNTRAINED_NOTICE",
    "AnnotatorConfig",
    "GridConfig",
    "LabelsConfig",
    "ModelsConfig",
    "TokensConfig",
]
