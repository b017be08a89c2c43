"""A sample as it is handed to the writer, and the KEY.json that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchmint.errors import ShardError
from patchmint.geometry import Placement, RleMasks
from patchmint.interfaces import Instances
from patchmint.samples import ImageRef, PlannedSample, SourceText
from patchmint.shards.endings import COVERAGE, SELECTOR, on_grid, tokenizer_name
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import (
    SCHEMA,
    AnnotatorDocument,
    EntryDocument,
    FurtherGridDocument,
    GridDocument,
    ImageDocument,
    InstanceDocument,
    KeyJson,
    PartDocument,
    PhraseDocument,
    SampleDocument,
    SequenceDocument,
    SourceDocument,
    TokensDocument,
    TurnDocument,
    dump_features,
    dump_list,
    dump_numbers,
    dump_phrases,
    encode_text,
    round_box,
    round_score,
)
from patchmint.types import Rle, Text


@dataclass(frozen=True, eq=False)
class FurtherLabels:
    """Labels of an image on a further grid; see `ShardImage`."""

    views: int
    placement: Placement | None
    selector: npt.NDArray[Any] | None = field(repr=False)
    coverage: npt.NDArray[Any] | None = field(repr=False)


def stored_labels(image: StoredImage) -> dict[str, FurtherLabels]:
    """The labels on further grids that an image was stored with, by the grids' names. Raises ShardError."""
    found = {}
    for grid in image.info.further_grids:
        arrays = (image.array(on_grid(ending, grid.name)) for ending in (SELECTOR, COVERAGE))
        found[grid.name] = FurtherLabels(grid.views, image.info.on_grid(grid.name).placement, *arrays)
    return found


@dataclass(frozen=True, eq=False)
class ShardImage:
    """An image of a sample to be written, and what was made of it.

    Attributes:
        data: the image file's bytes, which are written as they are.
        image: what the image is.
        views: inputs of the encoder that the grid has on this image.
        placement: the grid on this image; needed where the layout's grid has settings.
        phrases: what was found, texts in order, best first within each (`phrases_of`).
        selector: uint8 (texts that label it, rows of all views, cols), 0 or 1; None exactly where the layout has no
            labels.
        coverage: uint8 (texts that label it, rows of all views, cols); None exactly where the layout has no labels.
        codes: integers (*grid, codebooks), or (*grid,) where there is one codebook; None exactly where the layout has
            no tokens without a name.
        features: float16 (views * tokens, channels); None exactly where the layout has no features.
        further: labels on the layout's further grids, by their names.
        masks: of the phrases, each of the image's size; None exactly where the layout has no instances.
        named_codes: codes of the layout's tokens that have names, by these.
    """

    data: bytes = field(repr=False)
    image: ImageDocument
    views: int = 1
    placement: Placement | None = None
    phrases: tuple[PhraseDocument, ...] = ()
    selector: npt.NDArray[Any] | None = field(default=None, repr=False)
    coverage: npt.NDArray[Any] | None = field(default=None, repr=False)
    codes: npt.NDArray[Any] | None = field(default=None, repr=False)
    features: npt.NDArray[Any] | None = field(default=None, repr=False)
    further: Mapping[str, FurtherLabels] = field(default_factory=dict)
    masks: tuple[Rle, ...] | None = field(default=None, repr=False)
    named_codes: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class ShardSample:
    """A sample to be written.

    Attributes:
        planned: its key, and what its source says; of a document without the images that can't be written.
        images: those of the source's sample, in its order; a picture has one.
    """

    planned: PlannedSample
    images: tuple[ShardImage, ...]


def codes_of(image: ShardImage, tokens: TokensLayout) -> npt.NDArray[Any] | None:
    """An image's codes of one tokenizer; None where it has none."""
    return image.named_codes.get(name) if (name := tokenizer_name(tokens.member)) else image.codes


def codes_by_name(codes: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """The fields `codes` and `named_codes` of a `ShardImage`, of codes by their members."""
    named = {tokenizer_name(member): grid for member, grid in codes.items()}
    return {"codes": named.pop("", None), "named_codes": named}


def stored_codes(image: StoredImage) -> dict[str, Any]:
    """The same of those that an image was stored with. Raises a ShardError where they are damaged."""
    members = (tokens.member for tokens in image.key_json.all_tokens)
    return codes_by_name({member: found for member in members if (found := image.array(f"{member}.npy")) is not None})


def phrases_of(instances: Instances, texts: Sequence[Text]) -> tuple[PhraseDocument, ...]:
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


def masks_of(stored: StoredImage) -> tuple[Rle, ...] | None:
    """The masks of a stored image's instances; None where it has none. Raises a ShardError where one is damaged."""
    return None if stored.instances is None else tuple(found.mask.rle for found in stored.instances)


def instances_of(stored: StoredImage) -> Instances:
    """A stored image's instances as a segmenter had given them, but for what rounding took from boxes and scores.

    Raises:
        ShardError: it has none, or they are damaged.
    """
    found, masks = stored.instances, masks_of(stored)
    if found is None or masks is None:
        raise ShardError(f"sample {stored.key!r} has no instances.json; run `patchmint inspect verify` on its data set")
    return Instances(
        image_size=(stored.info.height, stored.info.width),
        masks=RleMasks(masks),
        text_index=np.array([stored.texts.index(each.text_index) for each in found], np.int64),
        scores=np.array([each.score for each in found], np.float32),
        boxes=np.array([each.box for each in found], np.float32).reshape(-1, 4),
        spans=np.array([(each.start, each.end) for each in found], np.int64).reshape(-1, 2),
        origins=tuple(each.origin for each in found),
    )


def key_json_of(sample: ShardSample, layout: Layout) -> KeyJson:
    """What becomes KEY.json.

    Raises:
        ShardError: the source's texts or boxes can't be stored, or it is no sample of this layout.
    """
    planned, source = sample.planned, sample.planned.sample
    if not source.texts:
        raise ShardError(f"sample {planned.key!r} has no text; a sample without one is a reject")
    if len(sample.images) != len(source.images) or bool(source.parts) != layout.documents:
        kind = "documents" if layout.documents else "pictures"
        held = f"{len(sample.images)} of its source's {len(source.images)} images and {len(source.parts)} parts"
        raise ShardError(f"sample {planned.key!r} has {held}; the data set is of {kind}")
    tokens = [_tokens(each, sample) for each in layout.all_tokens]
    try:
        entries = tuple(_entry(sample, number, layout) for number in range(len(sample.images)))
        common: dict[str, Any] = {
            "schema": SCHEMA,
            "key": planned.key,
            "id": source.id,
            "notice": layout.notice,
            "texts": tuple(text.content for text in source.texts),
            "annotators_json": dump_list(_annotator(text) for text in source.texts),
            "tokens": tokens[0] if tokens else TokensDocument(member="", grid=(), codebook_sizes=(), preprocessing=""),
            "further_tokens": tuple(tokens[1:]),
            "features_json": dump_features(layout.features),
        }
        if layout.documents:
            return SequenceDocument(
                **common,
                phrases_json=dump_phrases(image.phrases for image in sample.images),
                images=entries,
                sequence=tuple(PartDocument(text=part.text, image=part.image, role=part.role) for part in source.parts),
                image_texts_json=dump_numbers(source.image_texts),
            )
        turns = (TurnDocument(role=turn.role, content=turn.content) for turn in source.conversation)
        return SampleDocument(
            **common,
            image=sample.images[0].image,
            phrases_json=dump_list(sample.images[0].phrases),
            conversation_json=dump_list(turns),
            grid=entries[0].grid,
            further_grids=entries[0].further_grids,
            source=entries[0].source,
        )
    except ValueError as error:
        # pydantic may not even show a string with lone surrogates.
        encode_text(planned.sample.id, f"the id of sample {planned.key!r}")
        raise ShardError(f"sample {planned.key!r} can't be stored: {error}; it is a reject") from error


def _tokens(layout: TokensLayout, sample: ShardSample) -> TokensDocument:
    codes = [codes_of(image, layout) for image in sample.images if layout.varies]
    return TokensDocument(
        **layout.model_dump(include={"member", "grid", "codebook_sizes", "preprocessing"}),
        grids=tuple(each.shape[: len(layout.grid)] for each in codes if each is not None),
    )


def _entry(sample: ShardSample, number: int, layout: Layout) -> EntryDocument:
    image, ref = sample.images[number], sample.planned.sample.images[number]
    assert isinstance(ref, ImageRef)  # of a fault there are no bytes
    if missing := [each.name for each in layout.further_grids if each.name not in image.further]:
        raise ShardError(f"sample {sample.planned.key!r} has no labels on the grid {missing[0]}")
    grid = GridDocument(**_on_image(layout.grid, image, sample.planned.key))
    further = tuple(
        FurtherGridDocument(**_on_image(each, image.further[each.name], sample.planned.key), name=each.name)
        for each in layout.further_grids
    )
    source = SourceDocument(name=ref.source, path=ref.path, start=ref.start)
    return EntryDocument(**dict(image.image), grid=grid, source=source, further_grids=further)


def _on_image(layout: GridLayout, image: ShardImage | FurtherLabels, key: str) -> dict[str, Any]:
    """What KEY.json says of a grid on an image."""
    if not layout.settings:
        return layout.model_dump(exclude={"name"}) | {"views": image.views}
    if image.placement is None:
        raise ShardError(f"sample {key!r} needs a placement: its grid depends on the image")
    return GridDocument.of(image.placement, layout.fit).model_dump()


def _annotator(text: SourceText) -> AnnotatorDocument:
    return AnnotatorDocument(spans=text.phrases, instances=tuple(map(InstanceDocument.of, text.instances)))
