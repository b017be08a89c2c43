"""What training is given of a sample: some of its fields, or those of a stage of MaVEn (arXiv 2408.12321)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.reader import SampleRef
from patchmint.datasets.rows import text_trusts
from patchmint.errors import ConfigError, ImageError, InputError, ShardError
from patchmint.geometry import Placement
from patchmint.geometry.coverage import pool_coverage
from patchmint.geometry.presets import has_fixed_cells
from patchmint.geometry.processing import fit_image
from patchmint.images.decode import decode_image
from patchmint.interfaces import FeatureSpec
from patchmint.samples import Part, Turn
from patchmint.shards.endings import COVERAGE, FEATURES, IMAGE, SELECTOR
from patchmint.shards.layout import Layout
from patchmint.shards.manifest import Manifest
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.schema import KeyJson, SampleDocument
from patchmint.training.sequences import TokenSequence, parts_of
from patchmint.training.vocabulary import Codebook
from patchmint.types import Size

Field = Literal["pixels", "labels", "codes", "features", "conversation"]
Stage = Literal[1, 2, 3, 4]
TextChoice = Literal["random", "first"]

_STAGES: dict[Stage, frozenset[Field]] = {
    1: frozenset({"pixels", "labels", "codes"}),
    2: frozenset({"codes"}),
    3: frozenset({"features"}),
    4: frozenset({"pixels", "codes", "conversation"}),
}
_WITH_FEATURES = (1, 4)
# These stages are given features where the data set has them.


@dataclass(frozen=True, eq=False)
class StageImage:
    """An image of a sample; a field that isn't included is None.

    A view is one input of the vision encoder: 1, or for anyres 1 + tiles. Views, then rows, then columns are the order
    of the encoder's patch tokens.

    Attributes:
        labelled: whether the chosen text labels it; if not, selector and coverage are zeros that mean nothing.
        trust: how far its labels can be relied on, 0..1 (`patchmint trust`); None where the data set doesn't say.
        pixels: uint8 (views, 3, height, width), RGB, 0..255: the image fitted to the data set's patch grid, so that the
            labels lie on it; None where the grid depends on the image.
        image: uint8 (3, height, width), RGB, 0..255: the upright image, which the consumer's own processor fits; only
            where the grid depends on the image.
        selector: uint8 (views, rows, cols), 0 or 1: whether the text talks about the patch. Views smaller than others
            are filled up at the right and the bottom.
        coverage: uint8 (views, rows, cols), 0..255: how much of the patch is covered.
        patch_mask: bool (views, rows, cols): whether the patch shows any of the image; False for padding.
        token_order: int64 (tokens,): which patch of `selector.reshape(-1)` each image token of the consumer shows; -1
            for newlines.
        codes: int64 (*grid[, codebooks]), before any vocabulary offset.
        code_mask: bool (rows, cols): whether the code's cell shows any of the image; None where its place isn't known.
        features: float16 (views, tokens, channels); (views, rows, cols, channels) where rows and columns depend on the
            image.
        feature_mask: bool (views, rows, cols): whether the patch of the features' grid shows any of the image.
        feature_selector: uint8 (views, rows, cols): the selector on the grid of the features, which is another where
            these are pooled (DeCo).
        feature_coverage: uint8 (views, rows, cols): the coverage on that grid.
    """

    labelled: bool = True
    trust: float | None = None
    pixels: torch.Tensor | None = None
    image: torch.Tensor | None = None
    selector: torch.Tensor | None = None
    coverage: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    token_order: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    code_mask: torch.Tensor | None = None
    features: torch.Tensor | None = None
    feature_mask: torch.Tensor | None = None
    feature_selector: torch.Tensor | None = None
    feature_coverage: torch.Tensor | None = None


class _OfTheOnlyImage:
    """A field of `StageImage`, for samples of one image."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sample: StageSample | None, owner: type) -> torch.Tensor | None:
        if sample is None:
            return None
        if len(sample.images) != 1:
            raise InputError(
                f"sample {sample.key!r} has {len(sample.images)} images; read {self._name} of its `images`"
            )
        value: torch.Tensor | None = getattr(sample.images[0], self._name)
        return value


@dataclass(frozen=True, eq=False)
class StageSample:
    """One sample, or a group of samples that belong together.

    Of a sample with one image the image's fields are the sample's, too: `sample.codes` is `sample.images[0].codes`.
    A group has the images of its samples, one sample after another, each with the labels of its own sample's text; all
    keys, joined by "+"; and else what its first sample has.

    Attributes:
        key: its name in its data set.
        dataset: number of the data set, in the order given.
        text: the text that was chosen, as its source had it.
        text_index: which one that is.
        conversation: the turns of a picture that has any; else empty.
        parts: texts and images in their order, what `SequenceBuilder.document` takes, of documents and conversations;
            else empty.
        images: one of a picture, one or more of a document.
        sequences: what the data set's `sequences` made of all this, by name; "" where there is one without a name.
        group: its single samples, if it is a group; else empty.
    """

    key: str
    dataset: int
    text: str
    text_index: int
    conversation: tuple[Turn, ...] = ()
    parts: tuple[Part, ...] = ()
    images: tuple[StageImage, ...] = ()
    sequences: Mapping[str, TokenSequence] = field(default_factory=dict)
    group: tuple[StageSample, ...] = ()

    pixels = _OfTheOnlyImage()
    image = _OfTheOnlyImage()
    selector = _OfTheOnlyImage()
    coverage = _OfTheOnlyImage()
    patch_mask = _OfTheOnlyImage()
    token_order = _OfTheOnlyImage()
    codes = _OfTheOnlyImage()
    code_mask = _OfTheOnlyImage()
    features = _OfTheOnlyImage()
    feature_mask = _OfTheOnlyImage()
    feature_selector = _OfTheOnlyImage()
    feature_coverage = _OfTheOnlyImage()


def fields_of(stage: Stage | None, include: Collection[Field] | None, datasets: Sequence[Dataset]) -> frozenset[Field]:
    """Which fields the samples of these data sets are given.

    Args:
        stage: of MaVEn, which names some; None: `include` does.
        include: these; None, without a stage: all that the data sets have.
        datasets: at least one.

    Raises:
        ConfigError: there is no such stage or field, both or wrong ones are named, or a data set lacks one of them.
    """
    layouts = [manifest_of(dataset).layout for dataset in datasets]
    there: dict[Field, bool] = {
        "pixels": True,
        "labels": any(layout.min_coverage is not None for layout in layouts),
        "codes": any(layout.tokens is not None for layout in layouts),
        "features": any(layout.features is not None for layout in layouts),
    }
    if stage is not None and (stage not in _STAGES or include is not None):
        raise ConfigError(f"give a stage of MaVEn (1, 2, 3 or 4) or include, not stage {stage!r} and include {include}")
    fields = frozenset(include if include is not None else (name for name, has in there.items() if has))
    if stage is not None:
        fields = _STAGES[stage] | (fields & {"features"} if stage in _WITH_FEATURES else frozenset())
    if not fields <= set(get_args(Field)):
        raise ConfigError(f"include has {sorted(fields)}; choose of {', '.join(get_args(Field))}")
    for dataset in datasets[1:]:
        _check_mixable(fields, datasets[0], dataset)
    for dataset, layout in zip(datasets, layouts, strict=True):
        _check_fields(fields, dataset.uri, layout)
    return fields


def _check_mixable(fields: Collection[Field], first: Dataset, other: Dataset) -> None:
    """One batch holds samples of all, and one model learns from them."""
    ours, theirs = manifest_of(first).layout, manifest_of(other).layout
    pairs: dict[str, tuple[object, object]] = {}
    if "pixels" in fields or "labels" in fields:
        without: dict[str, Any] = {"settings": {}}  # format 1 has none
        pairs["patch grids"] = (ours.grid.model_copy(update=without), theirs.grid.model_copy(update=without))
    if "pixels" in fields or not (ours.grid.rows and theirs.grid.rows):
        pairs["ways of fitting images"] = (first.grid, other.grid)
    if "labels" in fields:
        pairs["thresholds of labels (min_coverage)"] = (ours.min_coverage, theirs.min_coverage)
    if "codes" in fields and ours.tokens and theirs.tokens:
        pairs["codebooks"] = (Codebook.of(manifest_of(first)), Codebook.of(manifest_of(other)))
    if "features" in fields:
        pairs["features"] = (_form(ours), _form(theirs))
        pairs["vision encoders"] = (_encoder(first), _encoder(other))
    for what, (one, two) in pairs.items():
        if one != two:
            raise ConfigError(
                f"{first.uri} and {other.uri} can't be mixed: their {what} differ ({one} and {two}); "
                "build or extend one as the other is, or train on them one after another"
            )


def _form(layout: Layout) -> FeatureSpec | None:
    """What the features are, whatever the encoder's file is called."""
    return layout.features.model_copy(update={"encoder": ""}) if layout.features is not None else None


def _encoder(dataset: Dataset) -> str:
    """The vision encoder: by its file's content, or its name where there is no file."""
    entry = manifest_of(dataset).models.get("vit")
    return (entry.sha256 or entry.name) if entry is not None else ""


def _check_fields(fields: Collection[Field], uri: str, layout: Layout) -> None:
    wrong = f"{', '.join(sorted(fields))} can't be had of {uri}: it has no"
    if "labels" in fields and layout.min_coverage is None:
        raise ConfigError(f"{wrong} patch labels; `patchmint extend` adds them (or `patchmint build` with `labels`)")
    if "codes" in fields and layout.tokens is None:
        raise ConfigError(f"{wrong} codes; `patchmint extend` adds them (or `patchmint build` with `tokens`)")
    if "features" in fields and layout.features is None:
        raise ConfigError(
            f"{wrong} features; `patchmint extend` adds them (or `patchmint build` with `features`), or include pixels "
            "and make features of them in training"
        )


def manifest_of(dataset: Dataset) -> Manifest:
    """dataset.json of a finished data set."""
    manifest = dataset.manifest
    assert manifest is not None
    return manifest


class SampleMaker:
    """Makes stage samples of stored ones.

    Args:
        datasets: which the places number.
        fields: of `fields_of`.
        text: which of a sample's texts: "random", by seed, epoch and sample, or the "first".
        seed: not negative.
    """

    def __init__(self, datasets: Sequence[Dataset], fields: Collection[Field], text: TextChoice, seed: int) -> None:
        self._datasets = datasets
        self._fields = fields
        self._text = text
        self._seed = seed

    def make(self, place: SampleRef, stored: StoredSample) -> StageSample:
        """The sample that comes at a place.

        Raises:
            ShardError: it isn't what its data set says.
        """
        told = stored.key_json
        index = self._text_index(place, told)
        turns: tuple[Turn, ...] = ()
        if isinstance(told, SampleDocument):
            turns = tuple(Turn(turn.role, turn.content) for turn in told.conversation)
        parts = tuple(parts_of(turns)) if isinstance(told, SampleDocument) else told.parts
        dataset, trust = self._datasets[place.dataset], iter(told.trust)
        images = []
        for image in stored.images:
            own = dict(zip(image.texts, trust, strict=False))
            images.append(self._image(image, dataset, index, own.get(index)))
        return StageSample(stored.key, place.dataset, told.texts[index], index, turns, parts, tuple(images))

    def _image(self, stored: StoredImage, dataset: Dataset, text: int, trust: float | None) -> StageImage:
        fields, layout = self._fields, manifest_of(dataset).layout
        given: dict[str, Any] = {"labelled": text in stored.texts, "trust": trust}
        if "pixels" in fields:
            given |= _pixels(stored, dataset)
        if "codes" in fields and (tokens := layout.tokens) is not None:
            grid = stored.key_json.tokens.grid_of(stored.number) if tokens.varies else tokens.grid
            codes = _checked(stored, f"{tokens.member}.npy", tokens.shape_of(grid), tokens.dtype)
            given["codes"] = torch.from_numpy(codes.astype(np.int64))
            shown = tokens.shown((stored.info.height, stored.info.width))
            given["code_mask"] = None if shown is None else torch.from_numpy(shown.copy())
        if "labels" in fields or "features" in fields:
            placed = dataset.placement(stored)
            if "labels" in fields:
                given |= _labels(stored, placed, layout, text, with_features="features" in fields)
            if "features" in fields and layout.features is not None:
                given |= _features(stored, placed, layout.features)
        return StageImage(**given)

    def _text_index(self, place: SampleRef, told: KeyJson) -> int:
        # A blank text has empty labels, which would teach that nothing of the image matters; one that labels no image
        # of a document teaches nothing.
        all_texts = range(len(told.texts))
        labelling = all_texts if isinstance(told, SampleDocument) else sorted(set().union(*told.image_texts))
        saying = [index for index in labelling if told.texts[index].strip()] or [0]
        if least := self._datasets[place.dataset].min_trust:
            pairs = None if isinstance(told, SampleDocument) else [text for own in told.image_texts for text in own]
            trust = text_trusts(told.trust, pairs)
            saying = [index for index in saying if np.float32(trust.get(index, 0)) >= np.float32(least)] or saying
        if len(saying) == 1 or self._text == "first":
            return saying[0]
        key = (self._seed, place.dataset, place.epoch, place.index)
        return saying[int(np.random.SeedSequence(key).generate_state(1)[0]) % len(saying)]


def _pixels(stored: StoredImage, dataset: Dataset) -> dict[str, torch.Tensor]:
    told = stored.info
    try:
        image = decode_image(stored.data, max_megapixels=dataset.max_megapixels)
    except ImageError as error:
        raise ShardError(f"its {stored.ending_of(IMAGE)} can't be read: {error}") from error
    if image.size != (told.height, told.width):
        raise ShardError(
            f"its {stored.ending_of(IMAGE)} has {image.size[1]} x {image.size[0]} pixels, its KEY.json says "
            f"{told.width} x {told.height}, on which the labels lie"
        )
    if not has_fixed_cells(dataset.grid):
        return {"image": torch.from_numpy(np.ascontiguousarray(image.pixels.transpose(2, 0, 1)))}
    views = np.stack(fit_image(image.pixels, dataset.grid))
    if len(views) != told.grid.views:
        raise ShardError(f"its {stored.ending_of(IMAGE)} has {len(views)} views, its KEY.json says {told.grid.views}")
    return {"pixels": torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))}


def _labels(
    stored: StoredImage, placement: Placement, layout: Layout, text: int, *, with_features: bool
) -> dict[str, torch.Tensor]:
    texts = stored.texts
    shape = (len(texts), *placement.shape)
    selectors = _checked(stored, SELECTOR, shape, np.dtype("u1"))
    coverages = _checked(stored, COVERAGE, shape, np.dtype("u1"))
    if text in texts:
        selector, coverage = selectors[texts.index(text)], coverages[texts.index(text)]
    else:
        selector = coverage = np.zeros(placement.shape, np.uint8)
    cells = {"selector": selector, "coverage": coverage, "patch_mask": placement.inside > 0}
    given = {name: torch.from_numpy(_by_view(array, placement)) for name, array in cells.items()}
    given["token_order"] = torch.from_numpy(_token_order(placement))
    if with_features and layout.features is not None:
        pooled = _feature_grid(layout.features, placement)
        if pooled != (placement.rows, placement.cols):
            coverage = pool_coverage(coverage[None], placement.rows, pooled)[0]
            selector = (coverage > (layout.threshold or 0)).astype(np.uint8)
        given["feature_selector"] = torch.from_numpy(selector.reshape(-1, *pooled).copy())
        given["feature_coverage"] = torch.from_numpy(coverage.reshape(-1, *pooled).copy())
    return given


def _feature_grid(features: FeatureSpec, placement: Placement) -> Size:
    """Rows and columns of the features of a view."""
    return features.grid if prod(features.grid) else (placement.rows, placement.cols)


def _features(stored: StoredImage, placement: Placement, form: FeatureSpec) -> dict[str, torch.Tensor]:
    views, grid = len(placement.views), _feature_grid(form, placement)
    shape = (views * form.tokens_of(prod(grid)), form.channels)
    features = _checked(stored, FEATURES, shape, np.dtype("<f2"))
    by_view = (views, -1) if prod(form.grid) else (views, *grid)
    shown = (placement.inside > 0).astype(np.uint8)
    if grid != (placement.rows, placement.cols):
        shown = pool_coverage(shown[None] * 255, placement.rows, grid)[0]
    return {
        "features": torch.from_numpy(features.reshape(*by_view, form.channels).copy()),
        "feature_mask": torch.from_numpy(shown.reshape(views, *grid) > 0),
    }


def _by_view(cells: npt.NDArray[Any], placement: Placement) -> npt.NDArray[Any]:
    """An array (rows, cols) of all views as (views, rows, cols), 0 where a view has no cell."""
    views = placement.views
    apart = np.zeros((len(views), max(view.rows for view in views), placement.shape[1]), cells.dtype)
    for index, view in enumerate(views):
        apart[index, : view.rows, : view.cols] = cells[placement.cells_of(index)]
    return apart


def _token_order(placement: Placement) -> npt.NDArray[np.int64]:
    """The token order over the cells of `_by_view`."""
    order, cells = placement.token_order(), prod(placement.shape)
    stood = _by_view(np.arange(1, cells + 1).reshape(placement.shape), placement).reshape(-1)
    moved = np.full(cells + 1, -1, np.int64)  # its last is that of -1, a newline
    moved[stood[stood > 0] - 1] = np.flatnonzero(stood)
    return moved[order]


def _checked(stored: StoredImage, ending: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array, name = stored.array(ending), stored.ending_of(ending)
    if array is None:
        raise ShardError(f"it has no member {name!r}")
    if not array.size and not prod(shape):
        array = array.reshape(shape)  # where no text labels an image; `datasets` has an empty list instead
    if array.shape != shape or array.dtype != dtype:
        raise ShardError(f"its {name} is {array.dtype} {array.shape}; its data set says {dtype} {shape}")
    return array
