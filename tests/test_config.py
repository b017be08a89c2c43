"""Settings: presets, and errors that say what to write instead."""

import pytest

from patchmint.config import MODEL_PRESETS, UNTRAINED, AnnotatorConfig, LabelsConfig
from patchmint.config.grids import resolve_grid
from patchmint.errors import ConfigError
from patchmint.geometry import Fit, PatchGrid


def test_defaults_are_the_papers():
    config = AnnotatorConfig.parse({"models": "official"})
    assert config.labels == LabelsConfig(box_threshold=0.35, text_threshold=0.25, min_coverage=0.0)
    assert resolve_grid(config.grid) == PatchGrid(24, 24, 14, Fit.PAD)
    assert config.models.masker == "sam-vit-h"
    assert config.notice == ""


def test_models_by_name_or_one_by_one():
    assert AnnotatorConfig.parse({"models": UNTRAINED}).models == MODEL_PRESETS[UNTRAINED]
    mixed = AnnotatorConfig.parse({"models": {"masker": "sam-vit-b", "tokenizer": UNTRAINED}})
    assert (mixed.models.masker, mixed.models.detector) == ("sam-vit-b", "groundingdino-swint-ogc")
    assert "mean nothing" in mixed.notice
    outside = AnnotatorConfig.parse({"models": {"segmenter": "toy", "detector": UNTRAINED}, "tokens": None})
    assert outside.models_used == {"segmenter": "toy"}
    assert outside.notice == ""


def test_grid_spelled_out():
    grid = {"rows": 16, "cols": 8, "patch_px": 14, "fit": "squash"}
    config = AnnotatorConfig.parse({"models": UNTRAINED, "grid": grid})
    assert resolve_grid(config.grid) == PatchGrid(16, 8, 14, Fit.SQUASH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": "offical"}, "no models preset 'offical'"),
        ({"models": UNTRAINED, "label": {}}, "did you mean 'labels'"),
        ({"models": UNTRAINED, "labels": {"box_treshold": 0.3}}, "did you mean 'box_threshold'"),
        ({"models": {"detektor": "x"}}, "did you mean 'detector'"),
        ({"models": UNTRAINED, "labels": {"box_threshold": 1.3}}, "labels.box_threshold"),
        ({"models": UNTRAINED, "labels": {"prompt": "words"}}, "'caption' or 'phrases'"),
        ({"models": UNTRAINED, "labels": None, "tokens": None}, "nothing to make"),
        ({"models": UNTRAINED, "tokens": {"fit": "anyres"}}, "'pad', 'crop' or 'squash'"),
        ({"models": None}, "models: it must be a mapping"),
        ({"models": UNTRAINED, "grid": "llava-1.5-fintune"}, r"did you mean 'llava-1\.5-finetune'"),
        ("build.yaml", "safe_load"),
    ],
)
def test_errors_name_the_setting(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve_grid(AnnotatorConfig.parse(settings).grid)
