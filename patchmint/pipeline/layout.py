"""What every sample of a data set has, from the config and the loaded models."""

from __future__ import annotations

from patchmint.config import AnnotatorConfig
from patchmint.pipeline.annotate import AnnotationModels
from patchmint.plugins import is_outside_tokenizer
from patchmint.shards.keys import VQGAN, token_member
from patchmint.shards.layout import GridLayout, Layout, TokensLayout


def layout_of(config: AnnotatorConfig, models: AnnotationModels) -> Layout:
    """The layout of what these models make."""
    grid = models.grid
    tokens = None
    if models.tokenizer is not None:
        spec = models.tokenizer.spec
        tokens = TokensLayout(
            member=token_member(spec.name) if is_outside_tokenizer(config.models.tokenizer) else VQGAN,
            grid=spec.grid_shape,
            codebook_sizes=spec.codebook_sizes,
            preprocessing=spec.preprocessing,
        )
    return Layout(
        grid=GridLayout(rows=grid.rows, cols=grid.cols, patch_px=grid.patch_px, fit=grid.fit.value),
        min_coverage=config.labels.min_coverage if config.labels else None,
        tokens=tokens,
        notice=config.notice,
    )
