"""What every sample of a data set has, from the config and the loaded models."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import ValidationError

from patchmint.annotate.models import AnnotationModels
from patchmint.config import AnnotatorConfig
from patchmint.errors import BuildError
from patchmint.plugins import is_outside_tokenizer
from patchmint.shards.endings import VQGAN, token_member
from patchmint.shards.layout import FeaturesLayout, GridLayout, Layout, TokensLayout
from patchmint.shards.schema import first_error


def layout_of(config: AnnotatorConfig, models: AnnotationModels, extended: Layout | None = None) -> Layout:
    """The layout of what these models make.

    Args:
        config: the settings.
        models: that were loaded for them.
        extended: of the data set that is extended: what isn't made anew is carried over from it.

    Raises:
        BuildError: an outside model makes what the format has no room for.
    """
    try:
        made = _made(config, models)
    except ValidationError as error:
        raise BuildError(f"what the models make can't be stored: {first_error(error)}; see docs/format.md") from error
    if extended is None:
        return made
    return made.model_copy(
        update={
            "min_coverage": made.min_coverage if config.labels else extended.min_coverage,
            "tokens": made.tokens or extended.tokens,
            "features": made.features or extended.features,
            # what is carried over may be all that a warning is about
            "notice": " | ".join(
                dict.fromkeys(part for notice in (extended.notice, made.notice) for part in notice.split(" | ") if part)
            ),
        }
    )


def _made(config: AnnotatorConfig, models: AnnotationModels) -> Layout:
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
        features=FeaturesLayout(**asdict(models.encoder.spec)) if models.encoder else None,
        notice=config.notice,
    )
