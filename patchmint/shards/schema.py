"""KEY.json: what a sample says of itself. `python -m patchmint.shards.schema` prints its JSON Schema.

Every field is present and none is null, and no list in it can be empty in one sample and full in another: Hugging Face
`datasets` takes a column's type from the first five samples, takes an empty list for a list of nulls, and then fails on
the first full one. Lists that may be empty (phrases, annotators, conversation) are therefore JSON in a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from patchmint.errors import ShardError
from patchmint.images import FileFormat
from patchmint.interfaces import FeatureSpec
from patchmint.types import Phrase

SCHEMA: Final = "patchmint.sample/1"

Json = Annotated[str, Field(description="JSON")]
BoxDocument = tuple[float, float, float, float]
_Items = TypeVar("_Items")
_BOX_DIGITS = 2
_SCORE_DIGITS = 4
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


class PhraseDocument(_Document):
    """One thing found."""

    # in shards boxes are rounded to two decimals, scores to four

    text: str = Field(description="The words, as they stand in the text.")
    text_index: int = Field(ge=0, description="Which text.")
    start: int = Field(ge=0, description="First character of the words in that text.")
    end: int = Field(ge=0, description="One past the last character.")
    box: BoxDocument = Field(description="XYXY in original pixels.")
    score: float = Field(ge=-1, le=1, description="0..1; -1 where the model gives none.")

    @property
    def phrase(self) -> Phrase:
        """The same as the models' room has it."""
        return Phrase(self.text, self.text_index, (self.start, self.end), self.box, self.score)

    @classmethod
    def of(cls, phrase: Phrase) -> PhraseDocument:
        """The document of a phrase."""
        start, end = phrase.span
        return cls(
            text=phrase.text, text_index=phrase.text_index, start=start, end=end, box=phrase.box, score=phrase.score
        )


class AnnotatorDocument(_Document):
    """What the source's annotators say about one text; never used as a label."""

    spans: tuple[tuple[int, int], ...] = Field(description="Characters [start, end) that name things.")
    boxes: tuple[BoxDocument, ...] = Field(description="What the text is about: XYXY, in the source's own pixels.")


class TurnDocument(_Document):
    """One turn of a conversation."""

    role: str = Field(description="As in the source: human or gpt.")
    content: str = Field(description="As in the source, with its <image> mark.")


class GridDocument(_Document):
    """The patch grid on this image."""

    rows: int = Field(ge=1, description="Patch rows of one view.")
    cols: int = Field(ge=1, description="Patch columns.")
    patch_px: int = Field(ge=1, description="Side of a patch in pixels of the encoder's input.")
    fit: str = Field(description="How the image becomes the encoder's input: pad, crop, squash or anyres.")
    views: int = Field(ge=1, description="Inputs of the encoder; their grids are stacked from top to bottom.")


class TokensDocument(_Document):
    """The codes."""

    member: str = Field(description="The codes are in KEY.MEMBER.npy; empty where there are none.")
    grid: tuple[int, ...] = Field(description="Shape without the axis of codebooks.")
    codebook_sizes: tuple[int, ...] = Field(description="Number of codes in each codebook.")
    preprocessing: str = Field(description="How pixels were prepared; only codes with the same may be mixed.")


class SourceDocument(_Document):
    """Where the sample comes from."""

    path: str = Field(description="File, relative to the source's root.")
    start: int = Field(ge=-1, description="First byte or row in it; -1: the whole file.")


class SampleDocument(_Document):
    """KEY.json. `phrases`, `annotators`, `conversation` and `features` read what is JSON in a string."""

    schema_: Literal["patchmint.sample/1"] = Field(alias="schema", description="Name and version of this form.")
    key: str = Field(description="The sample's name in the data set.")
    id: str = Field(description="The source's own name for it.")
    notice: str = Field(description="A warning that belongs on every use (untrained or demo models); else empty.")
    image: ImageDocument
    texts: tuple[str, ...] = Field(min_length=1, description="The texts, as the source has them.")
    phrases_json: Json = Field(description="What was found, texts in order, best first: a list of phrases, as JSON.")
    annotators_json: Json = Field(description="What the source's annotators say, an entry a text, as JSON.")
    conversation_json: Json = Field(description="LLaVA's turns, as JSON; an empty list for other sources.")
    grid: GridDocument
    tokens: TokensDocument
    features_json: Json = Field(
        description="What KEY.features.npy is (the manifest's layout.features), or {}, as JSON."
    )
    source: SourceDocument

    @property
    def phrases(self) -> tuple[PhraseDocument, ...]:
        """What was found; a ShardError where the string isn't JSON of that form, as for the other three."""
        return _parse(_PHRASES, self.phrases_json, "phrases_json")

    @property
    def annotators(self) -> tuple[AnnotatorDocument, ...]:
        """What the source's annotators say, an entry a text."""
        return _parse(_ANNOTATORS, self.annotators_json, "annotators_json")

    @property
    def conversation(self) -> tuple[TurnDocument, ...]:
        """LLaVA's turns."""
        return _parse(_CONVERSATION, self.conversation_json, "conversation_json")

    @property
    def features(self) -> FeatureSpec | None:
        """What the features are; None where there are none."""
        return None if self.features_json == _NO_FEATURES else _parse(_FEATURES, self.features_json, "features_json")

    def to_bytes(self) -> bytes:
        """The member's bytes: UTF-8, fields in order of the schema, no spaces.

        Raises:
            ShardError: a text isn't valid Unicode.
        """
        return encode_text(_dump(self.model_dump()), "KEY.json")

    @classmethod
    def from_bytes(cls, data: bytes) -> SampleDocument:
        """Read the member's bytes.

        Raises:
            ShardError: it isn't JSON of this form: not a dict at the top, a field absent, null or of another type.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ShardError(f"KEY.json isn't of the form {SCHEMA}: {first_error(error)}") from error


_PHRASES = TypeAdapter(tuple[PhraseDocument, ...])
_ANNOTATORS = TypeAdapter(tuple[AnnotatorDocument, ...])
_CONVERSATION = TypeAdapter(tuple[TurnDocument, ...])
_FEATURES = TypeAdapter(FeatureSpec)


def dump_features(features: FeatureSpec | None) -> str:
    """What the features are, as the JSON that goes into a string."""
    return _NO_FEATURES if features is None else _dump(features.model_dump(mode="json"))


def dump_list(items: Iterable[BaseModel]) -> str:
    """A list of documents as the JSON that goes into a string."""
    return _dump([item.model_dump() for item in items])


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
    """The document's JSON Schema, as kept in docs/schemas/sample.schema.json."""
    return json.dumps(SampleDocument.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
