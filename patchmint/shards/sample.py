"""A sample as it is handed to the writer, and the document that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from patchmint.errors import ShardError
from patchmint.geometry import Placement
from patchmint.interfaces import Instances
from patchmint.samples import PlannedSample, SourceText
from patchmint.shards.layout import Layout
from patchmint.shards.schema import (
    SCHEMA,
    AnnotatorDocument,
    GridDocument,
    ImageDocument,
    InstanceDocument,
    PhraseDocument,
    SampleDocument,
    SourceDocument,
    TokensDocument,
    TurnDocument,
    dump_features,
    dump_list,
    encode_text,
    round_box,
    round_score,
)


@dataclass(frozen=True, eq=False)
class ShardSample:
    """A sample to be written.

    Attributes:
        planned: its key, and what its source says.
        data: the image file's bytes, which are written as they are.
        image: what the image is.
        views: inputs of the encoder that the grid has on this image.
        placement: the grid on this image; needed where the layout's grid has settings.
        phrases: what was found, texts in order, best first within each (`phrases_of`).
        selector: uint8 (T, rows of all views, cols), 0 or 1; None exactly where the layout has no labels.
        coverage: uint8 (T, rows of all views, cols); None exactly where the layout has no labels.
        codes: integers (*grid, codebooks), or (*grid,) where there is one codebook; None exactly where the layout has
            no tokens.
        features: float16 (views * tokens, channels); None exactly where the layout has no features.
    """

    planned: PlannedSample
    data: bytes = field(repr=False)
    image: ImageDocument
    views: int = 1
    placement: Placement | None = None
    phrases: tuple[PhraseDocument, ...] = ()
    selector: npt.NDArray[Any] | None = field(default=None, repr=False)
    coverage: npt.NDArray[Any] | None = field(default=None, repr=False)
    codes: npt.NDArray[Any] | None = field(default=None, repr=False)
    features: npt.NDArray[Any] | None = field(default=None, repr=False)


def phrases_of(instances: Instances, texts: Sequence[SourceText]) -> tuple[PhraseDocument, ...]:
    """What a segmenter found, as it is stored: boxes to two decimals, scores to four.

    Args:
        instances: of one image.
        texts: that image's texts.
    """
    found = instances.phrases([text.content for text in texts])
    return tuple(
        PhraseDocument.of(replace(phrase, box=round_box(phrase.box), score=round_score(phrase.score)))
        for phrase in found
    )


def document_of(sample: ShardSample, layout: Layout) -> SampleDocument:
    """The document that becomes KEY.json.

    Raises:
        ShardError: the source's texts or boxes can't be stored.
    """
    planned, source = sample.planned, sample.planned.sample
    if not source.texts:
        raise ShardError(f"sample {planned.key!r} has no text; a sample without one is a reject")
    tokens = layout.tokens
    try:
        annotators = [_annotator(text) for text in source.texts]
        return SampleDocument(
            schema=SCHEMA,
            key=planned.key,
            id=source.id,
            notice=layout.notice,
            image=sample.image,
            texts=tuple(text.content for text in source.texts),
            phrases_json=dump_list(sample.phrases),
            annotators_json=dump_list(annotators),
            conversation_json=dump_list(
                TurnDocument(role=turn.role, content=turn.content) for turn in source.conversation
            ),
            grid=_grid(sample, layout),
            tokens=TokensDocument(
                member=tokens.member if tokens else "",
                grid=tokens.grid if tokens else (),
                codebook_sizes=tokens.codebook_sizes if tokens else (),
                preprocessing=tokens.preprocessing if tokens else "",
            ),
            features_json=dump_features(layout.features),
            source=SourceDocument(name=source.image.source, path=source.image.path, start=source.image.start),
        )
    except ValueError as error:
        # pydantic may not even show a string with lone surrogates.
        encode_text(planned.sample.id, f"the id of sample {planned.key!r}")
        raise ShardError(f"sample {planned.key!r} can't be stored: {error}; it is a reject") from error


def _grid(sample: ShardSample, layout: Layout) -> GridDocument:
    if not layout.grid.settings:
        return GridDocument(**layout.grid.model_dump(), views=sample.views)
    if sample.placement is None:
        raise ShardError(f"sample {sample.planned.key!r} needs a placement: its grid depends on the image")
    return GridDocument.of(sample.placement, layout.grid.fit)


def _annotator(text: SourceText) -> AnnotatorDocument:
    return AnnotatorDocument(spans=text.phrases, instances=tuple(map(InstanceDocument.of, text.instances)))
