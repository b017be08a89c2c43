"""Settings, validated."""

from patchmint.config.annotator import (
    DEMO,
    DEMO_NOTICE,
    MODEL_PRESETS,
    OFFICIAL,
    SMALL,
    UNTRAINED,
    UNTRAINED_NOTICE,
    AnnotatorConfig,
    FeaturesConfig,
    LabelsConfig,
    ModelsConfig,
    PresenceConfig,
    TokensConfig,
)
from patchmint.config.build import BuildConfig, LocalRunner, RayRunner
from patchmint.config.grids import GridConfig

__all__ = [
    "DEMO",
    "DEMO_NOTICE",
    "MODEL_PRESETS",
    "OFFICIAL",
    "SMALL",
    "UNTRAINED",
    "UNTRAINED_NOTICE",
    "AnnotatorConfig",
    "BuildConfig",
    "FeaturesConfig",
    "GridConfig",
    "LabelsConfig",
    "LocalRunner",
    "ModelsConfig",
    "PresenceConfig",
    "RayRunner",
    "TokensConfig",
]
