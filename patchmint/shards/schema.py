"""KEY.json: what a sample says of itself. `python -m patchmint.shards.schema` prints its JSON Schema.

Every field is present and none is null, and no list in it can be empty in one sample and full in another: Hugging Face
`datasets` takes a column's type from the first five samples, takes an empty list for a list of nulls, and then fails on
the first full one. Lists that may be empty (phrases, annotators, conversation) are therefore JSON in a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from patchmint.errors import InputError, ShardError
from patchmint.geometry.placement import AxisMap, Placement, View
from patchmint.geometry.rle import from_coco
from patchmint.images import FileFormat
from patchmint.interfaces import FeatureSpec
from patchmint.samples import Part
from patchmint.shards.endings import MAX_IMAGES, tokenizer_name
from patchmint.shards.versions import schema_name
from patchmint.types import Instance, Origin, Phrase, Rle, Size

SCHEMA: Final = "patchmint.sample/2"

Json = Annotated[str, Field(description="JSON")]
BoxDocument = tuple[float, float, float, float]
_Items = TypeVar("_Items")
_Changed = TypeVar("_Changed", bound=BaseModel)
_BOX_DIGITS = 2
_SCORE_DIGITS = 4
_TRUST_DIGITS = 3
_NO_FEATURES = "{}"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True, allow_inf_nan=False)


class ImageDocument(_Document):
    """The image."""

    width: int = Field(ge=1, description="Pixels, EXIF orientation applied.")
    height: int = Field(ge=1, description="Pixels, EXIF orientation applied.")
    format: FileFormat = Field(description="What the bytes of KEY.jpg are.")
    mode: str = Field(description="Pillow's name for the file's pixels, such as RGB, P or CMYK.")
    orientation: int = Field(ge=1, le=8, description="EXIF orientation of the file: sizes and boxes have it applied.")


# As in layouts: what a hostile KEY.json says is made room for, so it has to end somewhere.
_MAX_SIDE = 1 << 13
_MAX_CELLS = 1 << 20
_MAX_TOKENS = 1 << 20
_Axis = tuple[int, int, int]
_Borders = Annotated[tuple[int, ...], Field(min_length=2, max_length=_MAX_SIDE)]


class PhraseDocument(_Document):
    """One thing found."""

    # in shards boxes are rounded to two decimals, scores to four

    text: str = Field(description="The words, as they stand in the text.")
    text_index: int = Field(ge=0, description="Which text.")
    start: int = Field(ge=0, description="First character of the words in that text.")
    end: int = Field(ge=0, description="One past the last character.")
    box: BoxDocument = Field(description="XYXY in original pixels.")
    score: float = Field(ge=-1, le=1, description="0..1; -1 where the model gives none.")
    origin: Origin = Field(
        default="model",
        description="Whose box and mask: the model's, an annotator's, mixed (an annotator's box, a model's mask), or "
        "corrected by hand.",
    )
    image: int = Field(default=0, ge=0, exclude=True, description="Which image; only a document says it.")

    @property
    def phrase(self) -> Phrase:
        """The same as the models' room has it."""
        return Phrase(self.text, self.text_index, (self.start, self.end), self.box, self.score, self.origin)

    @classmethod
    def of(cls, phrase: Phrase) -> PhraseDocument:
        """The document of a phrase."""
        start, end = phrase.span
        return cls(
            text=phrase.text,
            text_index=phrase.text_index,
            start=start,
            end=end,
            box=phrase.box,
            score=phrase.score,
            origin=phrase.origin,
        )


class MaskDocument(_Document):
    """A mask as COCO run-length encoding."""

    size: tuple[int, int] = Field(description="Height, width.")
    counts: str = Field(description="Compressed counts.")

    @classmethod
    def of(cls, rle: Rle) -> Self:
        """The document of a mask."""
        height, width = rle["size"]
        return cls(size=(height, width), counts=rle["counts"].decode("ascii"))

    @property
    def rle(self) -> Rle:
        """The same as geometry has it; a ShardError where it is damaged."""
        try:
            return from_coco(self.model_dump())
        except InputError as error:
            raise ShardError(f"a mask is damaged: {error}") from error


class FoundDocument(_Document):
    """One instance that was found: a phrase of KEY.json without its words, and its mask."""

    text_index: int = Field(ge=0, description="Which text.")
    start: int = Field(ge=0, description="First character of its words in that text.")
    end: int = Field(ge=0, description="One past the last character.")
    box: BoxDocument = Field(description="XYXY in original pixels.")
    score: float = Field(ge=-1, le=1, description="0..1; -1 where the model gives none.")
    origin: Origin = Field(description="Whose box and mask, as of a phrase.")
    mask: MaskDocument = Field(description="Of the image's size, EXIF orientation applied.")

    @classmethod
    def of(cls, phrase: PhraseDocument, mask: Rle) -> Self:
        """The document of an instance.

        Args:
            phrase: what KEY.json has of it.
            mask: of the image's size.
        """
        return cls(**phrase.model_dump(exclude={"text"}), mask=MaskDocument.of(mask))

    def is_of(self, phrase: PhraseDocument) -> bool:
        """Whether that is what KEY.json has of it."""
        return self.model_dump(exclude={"mask"}) == phrase.model_dump(exclude={"text"})


class InstancesDocument(_Document):
    """KEY.instances.json."""

    instances_json: Json = Field(description="As many as there are phrases, in their order: a list of them, as JSON.")

    @classmethod
    def of(cls, phrases: Iterable[PhraseDocument], masks: Iterable[Rle]) -> Self:
        """The document of what was found in an image."""
        return cls(instances_json=dump_list(FoundDocument.of(*pair) for pair in zip(phrases, masks, strict=True)))

    @classmethod
    def read(cls, data: bytes) -> tuple[FoundDocument, ...]:
        """The instances in the member's bytes.

        Raises:
            ShardError: they aren't of this form.
        """
        try:
            told = cls.model_validate_json(data)
        except ValidationError as error:
            raise ShardError(f"instances.json isn't of its form: {first_error(error)}") from error
        return _parse(_FOUND, told.instances_json, "instances_json")

    def to_bytes(self) -> bytes:
        """The member's bytes."""
        return encode_text(_dump(self.model_dump()), "KEY.instances.json")


class InstanceDocument(_Document):
    """One thing that a text names, as the source's annotators drew it, in the source's own pixels."""

    box: BoxDocument = Field(description="XYXY.")
    span: tuple[int, int] | None = Field(
        default=None,
        exclude_if=lambda span: span is None,
        description="Characters [start, end) that name it; absent where that isn't known.",
    )
    mask: MaskDocument | None = Field(
        default=None,
        exclude_if=lambda mask: mask is None,
        description="Before any EXIF orientation; absent where none was read.",
    )

    @classmethod
    def of(cls, instance: Instance) -> Self:
        """The document of an instance."""
        mask = MaskDocument.of(instance.mask) if instance.mask is not None else None
        return cls(box=round_box(instance.box), span=instance.span, mask=mask)

    @property
    def instance(self) -> Instance:
        """The same as the models' room has it; a ShardError where the mask is damaged."""
        return Instance(self.box, self.span, self.mask.rle if self.mask is not None else None)


class AnnotatorDocument(_Document):
    """What the source's annotators say about one text."""

    spans: tuple[tuple[int, int], ...] = Field(description="Characters [start, end) that name things.")
    instances: tuple[InstanceDocument, ...] = Field(default=(), description="What the text is about.")
    boxes: tuple[BoxDocument, ...] = Field(
        default=(), exclude_if=lambda boxes: not boxes, description="The same in version 1; absent since."
    )

    @property
    def drawn(self) -> tuple[Instance, ...]:
        """What the text is about, as the models' room has it; a ShardError where a mask is damaged."""
        return (*(Instance(box) for box in self.boxes), *(each.instance for each in self.instances))


class TurnDocument(_Document):
    """One turn of a conversation."""

    role: str = Field(description="Who speaks: human, gpt or system.")
    content: str = Field(description="What is said; the <image> mark is where the image is.")


class ViewDocument(_Document):
    """One input of the encoder: borders of its cells, how they lie on the image, and their tokens.

    Border `b` of an axis (n, d, s) is at `(b * n - s) / d` pixels of the image. Cell (row, col) has the token
    `token + row // block * block * stride + col // block * block ** 2 + row % block * block + col % block`, if `seen`
    has it.
    """

    y: _Axis = Field(description="Map of the rows to the image: numerator, denominator, shift.")
    x: _Axis = Field(description="Map of the columns.")
    y_borders: _Borders = Field(description="Of the rows of cells, rising: one more than there are rows.")
    x_borders: _Borders = Field(description="Of the columns.")
    token: int = Field(ge=0, le=_MAX_TOKENS, description="Token of cell (0, 0), if that has one.")
    stride: int = Field(ge=1, le=_MAX_TOKENS, description="Tokens from a cell to the one below it.")
    block: int = Field(ge=1, le=_MAX_SIDE, description="Side of the blocks of cells whose tokens follow each other.")
    seen: tuple[int, int, int, int] = Field(description="Cells with tokens: first row, end, first column, end.")

    @classmethod
    def of(cls, view: View) -> Self:
        """The document of a view."""
        return cls(
            y=(view.y.numerator, view.y.denominator, view.y.shift),
            x=(view.x.numerator, view.x.denominator, view.x.shift),
            y_borders=tuple(view.y_borders),
            x_borders=tuple(view.x_borders),
            token=view.token,
            stride=view.stride or view.cols,
            block=view.block,
            seen=view.seen or (0, view.rows, 0, view.cols),
        )

    @property
    def view(self) -> View:
        """The same as geometry has it."""
        return View(
            AxisMap(*self.y),
            AxisMap(*self.x),
            self.y_borders,
            self.x_borders,
            self.token,
            self.stride,
            self.block,
            self.seen,
        )

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        for axis, borders in ((self.y, self.y_borders), (self.x, self.x_borders)):
            if axis[0] < 1 or axis[1] < 1 or any(a >= b for a, b in pairwise(borders)):
                raise ValueError("its borders don't rise, or its maps aren't positive")
        top, bottom, left, right = self.seen
        if not (0 <= top <= bottom < len(self.y_borders) and 0 <= left <= right < len(self.x_borders)):
            raise ValueError("it has tokens for cells that it hasn't")
        return self


class PlacementDocument(_Document):
    """A grid on one image: `KEY.json`'s `grid.placement_json`."""

    tokens: int = Field(ge=0, le=_MAX_TOKENS, description="Image tokens of the language model.")
    views: tuple[ViewDocument, ...] = Field(
        min_length=1, max_length=_MAX_SIDE, description="In the order in which arrays have them, from top to bottom."
    )

    @classmethod
    def of(cls, placement: Placement) -> Self:
        """The document of a placement."""
        return cls(tokens=placement.tokens, views=tuple(map(ViewDocument.of, placement.views)))

    def placement(self, image_size: Size) -> Placement:
        """The same as geometry has it."""
        return Placement(image_size, tuple(view.view for view in self.views), self.tokens)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        placement = self.placement((1, 1))
        if prod(placement.shape) > _MAX_CELLS:
            raise ValueError(f"it has more than {_MAX_CELLS} cells")
        try:
            placement.token_order()
        except IndexError as error:
            raise ValueError("its cells have tokens beyond the last one") from error
        return self


class GridDocument(_Document):
    """The grid on this image."""

    rows: int = Field(ge=1, description="Rows of one view; of the first, where views differ.")
    cols: int = Field(ge=1, description="Columns.")
    patch_px: int = Field(ge=1, description="Side of a cell in pixels of the encoder's input.")
    fit: str = Field(description="How the image becomes the input: pad, crop, squash, anyres, tiles or native.")
    views: int = Field(ge=1, description="Inputs of the encoder; their grids are stacked from top to bottom.")
    placement_json: Json = Field(
        default="",
        exclude_if=lambda text: not text,
        description="Where cells lie, and which tokens show them, as JSON; absent where every image becomes one input "
        "of the same size.",
    )

    @classmethod
    def of(cls, placement: Placement, fit: str) -> Self:
        """The document of a grid that depends on the image."""
        return cls(
            rows=placement.rows,
            cols=placement.cols,
            patch_px=placement.patch_px,
            fit=fit,
            views=len(placement.views),
            placement_json=_dump(PlacementDocument.of(placement).model_dump()),
        )


class FurtherGridDocument(GridDocument):
    """Another grid on this image, on which there are labels as well."""

    name: str = Field(description="The labels are in KEY.selector.NAME.npy and KEY.coverage.NAME.npy.")


_FurtherGrids = Annotated[
    tuple[FurtherGridDocument, ...],
    Field(
        default=(),
        exclude_if=lambda grids: not grids,
        description="The others, where there are labels on several grids; absent where there are none.",
    ),
]


class TokensDocument(_Document):
    """The codes."""

    member: str = Field(description="The codes are in KEY.MEMBER.npy; empty where there are none.")
    grid: tuple[int, ...] = Field(description="Shape without the axis of codebooks; 0, 0: it depends on the image.")
    codebook_sizes: tuple[int, ...] = Field(description="Number of codes in each codebook.")
    preprocessing: str = Field(description="How pixels were prepared; only codes with the same may be mixed.")
    grids: tuple[tuple[int, ...], ...] = Field(
        default=(),
        exclude_if=lambda grids: not grids,
        description="Of each image, where it depends on the image; else absent.",
    )

    def grid_of(self, image: int) -> tuple[int, ...]:
        """Shape of an image's codes without the axis of codebooks; a ShardError where it isn't told."""
        if all(self.grid):
            return self.grid
        if image >= len(self.grids):
            raise ShardError(f"KEY.json has no grid of {self.member} for image {image}")
        return self.grids[image]


class SourceDocument(_Document):
    """Where the sample comes from."""

    name: str = Field(default="", description="Which of several sources; empty where there is one without a name.")
    path: str = Field(description="File, relative to the source's root.")
    start: int = Field(ge=-1, description="First byte or row in it; -1: the whole file.")


class EntryDocument(ImageDocument):
    """An image of a document, with its grid and its source."""

    grid: GridDocument
    source: SourceDocument
    further_grids: _FurtherGrids = ()

    def on_grid(self, name: str) -> Self:
        """The image as if it had one of its further grids alone; a ShardError where there is none of that name."""
        found = [grid for grid in self.further_grids if grid.name == name]
        if not found:
            raise ShardError(f"KEY.json has no grid {name!r}")
        return _changed(self, grid=found[0], further_grids=())

    @cached_property
    def placement(self) -> Placement | None:
        """The grid on the image; None where nothing tells (one input of the same size, or format 1)."""
        grid = self.grid
        if not grid.placement_json:
            return None
        told = _parse(_PLACEMENT, grid.placement_json, "grid.placement_json")
        placement = told.placement((self.height, self.width))
        if (placement.rows, placement.cols, len(placement.views)) != (grid.rows, grid.cols, grid.views):
            raise ShardError("grid.placement_json tells of other rows, columns or views than grid")
        return placement

    @property
    def label_shape(self) -> Size:
        """(rows, cols) of a text's labels, views stacked; a ShardError where `placement` can't be read."""
        grid = self.grid
        return self.placement.shape if self.placement is not None else (grid.rows * grid.views, grid.cols)


class PartDocument(_Document):
    """A text of a document, or the place of one of its images."""

    text: str = Field(description="The text; empty where it is the place of an image.")
    image: int = Field(ge=-1, description="Number of the image; -1 where it is a text.")
    role: str = Field(description="Who begins to speak with this part: human, gpt or system; empty: it goes on.")


class _KeyJson(_Document):
    """What KEY.json of a picture and of a document have in common."""

    schema_: Literal["patchmint.sample/2", "patchmint.sample/1"] = Field(
        alias="schema", description="Name and version of this form."
    )
    key: str = Field(description="The sample's name in the data set.")
    id: str = Field(description="The source's own name for it.")
    notice: str = Field(description="A warning that belongs on every use (untrained or demo models); else empty.")
    texts: tuple[str, ...] = Field(min_length=1, description="The texts, as the source has them.")
    phrases_json: Json = Field(description="What was found, texts in order, best first: a list of phrases, as JSON.")
    annotators_json: Json = Field(description="What the source's annotators say, an entry a text, as JSON.")
    tokens: TokensDocument
    further_tokens: tuple[TokensDocument, ...] = Field(
        default=(),
        exclude_if=lambda tokens: not tokens,
        description="Codes of further tokenizers, in KEY.codes.NAME.npy; absent where there are none.",
    )
    features_json: Json = Field(
        description="What KEY.features.npy is (the manifest's layout.features), or {}, as JSON."
    )
    trust: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(),
        exclude_if=lambda trust: not trust,
        description="How far labels can be relied on: of a picture an entry a text, of a document one for each image "
        "and text that labels it, images in order; absent where nobody asked.",
    )

    @cached_property
    def phrases(self) -> tuple[PhraseDocument, ...]:
        """What was found; a ShardError where the string isn't JSON of that form, as for all such strings."""
        return _parse(_PHRASES, self.phrases_json, "phrases_json")

    @property
    def all_tokens(self) -> tuple[TokensDocument, ...]:
        """The codes of each tokenizer; empty where there are none."""
        return (self.tokens, *self.further_tokens) if self.tokens.member else ()

    def with_codes(self, name: str) -> Self:
        """As if the codes of one of several tokenizers were the only ones; a ShardError where there are none."""
        found = [tokens for tokens in self.all_tokens if name in (tokens.member, tokenizer_name(tokens.member))]
        if not found:
            raise ShardError(f"KEY.json has no codes {name!r}")
        return _changed(self, tokens=found[0], further_tokens=())

    def with_trust(self, trust: Iterable[float]) -> Self:
        """With other trust, stored to three decimals."""
        return _changed(self, trust=tuple(round(float(each), _TRUST_DIGITS) for each in trust))

    @property
    def annotators(self) -> tuple[AnnotatorDocument, ...]:
        """What the source's annotators say, an entry a text."""
        return _parse(_ANNOTATORS, self.annotators_json, "annotators_json")

    @property
    def features(self) -> FeatureSpec | None:
        """What the features are; None where there are none."""
        return parse_features(self.features_json)


class SampleDocument(_KeyJson):
    """KEY.json of a picture. `phrases`, `annotators`, `conversation` and `features` read what is JSON in a string."""

    image: ImageDocument
    conversation_json: Json = Field(description="LLaVA's turns, as JSON; an empty list for other sources.")
    grid: GridDocument
    source: SourceDocument
    further_grids: _FurtherGrids = ()

    @model_validator(mode="after")
    def _has_all_of_its_version(self) -> Self:
        if self.schema_ != schema_name("sample", 1) and "name" not in self.source.model_fields_set:
            raise ValueError("source.name: Field required")
        return self

    @property
    def conversation(self) -> tuple[TurnDocument, ...]:
        """LLaVA's turns."""
        return _parse(_CONVERSATION, self.conversation_json, "conversation_json")

    @cached_property
    def images(self) -> tuple[EntryDocument, ...]:
        """The only image, as a document has it."""
        own = {**dict(self.image), "grid": self.grid, "source": self.source}
        return (EntryDocument.model_construct(None, **own, further_grids=self.further_grids),)

    def on_grid(self, name: str) -> Self:
        """As if labels were on one of the further grids alone, without features; a ShardError if it isn't there."""
        image = self.images[0].on_grid(name)
        return _changed(self, grid=image.grid, further_grids=(), features_json=_NO_FEATURES)

    def with_phrases(self, images: Iterable[Iterable[PhraseDocument]]) -> Self:
        """With other things found in its only image."""
        (phrases,) = images
        return _changed(self, phrases_json=dump_list(phrases))

    @property
    def parts(self) -> tuple[Part, ...]:
        """None: it is no document."""
        return ()

    @property
    def image_texts(self) -> tuple[tuple[int, ...], ...]:
        """All texts label the image."""
        return (tuple(range(len(self.texts))),)

    @property
    def placement(self) -> Placement | None:
        """The grid on the image; None where the document doesn't tell (one input of the same size, or format 1)."""
        return self.images[0].placement

    @property
    def label_shape(self) -> Size:
        """(rows, cols) of a text's labels, views stacked; a ShardError where `placement` can't be read."""
        return self.images[0].label_shape

    def to_bytes(self) -> bytes:
        """The member's bytes: UTF-8, fields in order of the format, no spaces.

        Raises:
            ShardError: a text isn't valid Unicode.
        """
        told = self.model_dump()
        return encode_text(_dump({name: told[name] for name in _FIELDS if name in told}), "KEY.json")


class SequenceDocument(_KeyJson):
    """KEY.json of a document. `phrases`, `annotators`, `image_texts` and `features` read what is JSON in a string."""

    images: tuple[EntryDocument, ...] = Field(min_length=1, max_length=MAX_IMAGES, description="By number.")
    sequence: tuple[PartDocument, ...] = Field(min_length=1, description="Texts and images in their order.")
    image_texts_json: Json = Field(
        description="For each image the numbers of the texts that label it, ascending: a list of lists, as JSON."
    )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Texts and images in their order."""
        return tuple(Part(part.text, part.image, part.role) for part in self.sequence)

    def on_grid(self, name: str) -> Self:
        """As a picture's. Raises a ShardError, as that does."""
        images = tuple(image.on_grid(name) for image in self.images)
        return _changed(self, images=images, features_json=_NO_FEATURES)

    def with_phrases(self, images: Iterable[Iterable[PhraseDocument]]) -> Self:
        """With other things found in its images."""
        return _changed(self, phrases_json=dump_phrases(images))

    @cached_property
    def image_texts(self) -> tuple[tuple[int, ...], ...]:
        """For each image the numbers of the texts that label it."""
        told = _parse(_IMAGE_TEXTS, self.image_texts_json, "image_texts_json")
        if len(told) != len(self.images):
            raise ShardError(f"image_texts_json has {len(told)} entries for {len(self.images)} images")
        return told

    def to_bytes(self) -> bytes:
        """The member's bytes, as a picture's. Raises a ShardError, as that does."""
        return encode_text(_dump(self.model_dump()), "KEY.json")


KeyJson = SampleDocument | SequenceDocument
"""KEY.json of a picture or of a document."""


def _changed(document: _Changed, **changes: object) -> _Changed:
    """A copy with other fields; `model_copy` would keep what is cached."""
    kept = {name: getattr(document, name) for name in type(document).model_fields}
    return type(document).model_construct(None, **kept | changes)


def of_this_version(told: KeyJson) -> KeyJson:
    """The same, as it is written now."""
    return told if told.schema_ == SCHEMA else _changed(told, schema_=SCHEMA)


def read_key_json(data: bytes) -> KeyJson:
    """Read the bytes of KEY.json; only a document's has a `sequence`.

    Raises:
        ShardError: it isn't JSON of its form: not a dict at the top, a field absent, null or of another type.
    """
    try:
        # Quotes inside strings are escaped, so what is found is a field.
        if _SEQUENCE.search(data):
            return SequenceDocument.model_validate_json(data)
        return SampleDocument.model_validate_json(data)
    except ValidationError as error:
        raise ShardError(f"KEY.json isn't of the form {SCHEMA}: {first_error(error)}") from error


_SEQUENCE = re.compile(rb'"sequence"\s*:')
_FIELDS = (
    *("schema", "key", "id", "notice", "image", "texts", "phrases_json", "annotators_json", "conversation_json"),
    *("grid", "further_grids", "tokens", "further_tokens", "features_json", "trust", "source"),
)
_IMAGE_TEXTS = TypeAdapter(tuple[tuple[Annotated[int, Field(ge=0)], ...], ...])
_PHRASES = TypeAdapter(tuple[PhraseDocument, ...])
_FOUND = TypeAdapter(tuple[FoundDocument, ...])
_ANNOTATORS = TypeAdapter(tuple[AnnotatorDocument, ...])
_CONVERSATION = TypeAdapter(tuple[TurnDocument, ...])
_FEATURES = TypeAdapter(FeatureSpec)
_PLACEMENT = TypeAdapter(PlacementDocument)


def dump_features(features: FeatureSpec | None) -> str:
    """What the features are, as the JSON that goes into a string."""
    return _NO_FEATURES if features is None else _dump(features.model_dump(mode="json"))


def parse_features(text: str) -> FeatureSpec | None:
    """What they are, of that JSON; None where there are none. Raises ShardError."""
    return None if text == _NO_FEATURES else _parse(_FEATURES, text, "features_json")


def dump_list(items: Iterable[BaseModel]) -> str:
    """A list of documents as the JSON that goes into a string."""
    return _dump([item.model_dump() for item in items])


def dump_phrases(images: Iterable[Iterable[PhraseDocument]]) -> str:
    """What was found in each image of a document as the JSON that goes into a string."""
    return _dump([phrase.model_dump() | {"image": n} for n, phrases in enumerate(images) for phrase in phrases])


def dump_numbers(lists: Iterable[Iterable[int]]) -> str:
    """Lists of numbers as the JSON that goes into a string."""
    return _dump([list(numbers) for numbers in lists])


def round_box(box: Iterable[float]) -> BoxDocument:
    """A box as stored: two decimals, no negative zero."""
    x0, y0, x1, y1 = (round(float(value), _BOX_DIGITS) + 0.0 for value in box)
    return x0, y0, x1, y1


def round_score(score: float) -> float:
    """A score as stored: four decimals."""
    return round(float(score), _SCORE_DIGITS) + 0.0


def encode_text(text: str, name: str) -> bytes:
    """UTF-8.

    Raises:
        ShardError: the text isn't valid Unicode.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ShardError(
            f"{name} holds what isn't valid Unicode (a lone surrogate at character {error.start}); "
            "reject the sample, or fix its source's encoding"
        ) from error


def first_error(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line, without its web address."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in detail["loc"]) or "at the top"
    return f"{place}: {detail['msg']}"


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _parse(adapter: TypeAdapter[_Items], text: str, field: str) -> _Items:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ShardError(f"{field} isn't of the form {SCHEMA}: {first_error(error)}") from error


def json_schema() -> str:
    """The JSON Schema of both, as kept in docs/schemas/sample.schema.json."""
    return json.dumps(TypeAdapter(KeyJson).json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
