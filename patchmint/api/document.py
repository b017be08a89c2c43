"""An annotation as JSON. `python -m patchmint.api.document` prints the schema kept in docs/schemas."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from patchmint.interfaces import REASONS, Explanation, Reason
from patchmint.shards.schema import MaskDocument, PhraseDocument


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class ImageDocument(_Document):
    """The image."""

    width: int = Field(description="Pixels, EXIF orientation applied.")
    height: int = Field(description="Pixels, EXIF orientation applied.")
    format: str = Field(description="jpeg, png, webp, bmp, gif, tiff, avif, or array.")
    mode: str = Field(description="Pillow's name for the source's pixels, such as RGB, P or CMYK.")
    orientation: int = Field(ge=1, le=8, description="EXIF orientation of the source.")


class GridDocument(_Document):
    """The patch grid."""

    rows: int = Field(description="Rows of cells of the first view.")
    cols: int = Field(description="Columns of cells of the first view.")
    patch_px: int = Field(description="Side of a cell of the first view in pixels of the encoder's input.")
    fit: Literal["pad", "crop", "squash", "anyres", "tiles", "native"] = Field(
        description="How the image becomes the encoder's input."
    )
    views: int = Field(ge=1, description="Inputs of the encoder; their grids are stacked from top to bottom.")
    view_cells: list[tuple[int, int]] = Field(
        description="Rows and columns of each view. All rows together, and the most columns, are the labels' shape."
    )
    token_order: list[int] = Field(
        description="For each of the consumer's image tokens the cell that it shows, counted row-major in the labels' "
        "shape; -1 where it shows none (LLaVA's newlines)."
    )


class ExplanationDocument(_Document):
    """Why a phrase has boxes, or none."""

    text: str = Field(description="The words; a whole text where no phrases were asked for.")
    text_index: int = Field(description="Which text.")
    start: int = Field(description="First character of the words in that text.")
    end: int = Field(description="One past the last character.")
    boxes: int = Field(description="How many it has.")
    best: float = Field(description="The best score of any box, counted or not; -1 where none was looked for.")
    box: tuple[float, float, float, float] = Field(description="Of that score: XYXY in original pixels, or zeros.")
    threshold: float = Field(description="What a score must be over.")
    reason: Reason = Field(description="found, or what took the best box away: a setting of labels, or a tile.")
    words: str = Field(description="The same for people.")
    lost: dict[Reason, int] = Field(description="Boxes over the threshold that don't count, by reason.")

    @classmethod
    def of(cls, told: Explanation) -> ExplanationDocument:
        """The document of an explanation."""
        start, end = told.span
        fields = {name: value for name, value in vars(told).items() if name != "span"}
        return cls(**fields, start=start, end=end, words=REASONS[told.reason])


class FurtherGridDocument(_Document):
    """Labels on another of several grids."""

    name: str = Field(description="The grid's name, as in the members of shards.")
    grid: GridDocument
    selector: list[list[list[int]]] = Field(description="As the annotation's own.")
    coverage: list[list[list[int]]] = Field(description="As the annotation's own.")


class AnnotationDocument(_Document):
    """Labels and codes of one image. Every field is present, none is null; lists are empty where not asked for."""

    schema_: Literal["patchmint.annotation/1"] = Field(alias="schema", description="Name and version of this form.")
    notice: str = Field(description="A warning that belongs on every use (untrained or demo models); else empty.")
    image: ImageDocument
    models: dict[str, str] = Field(description="Name or path of each model.")
    texts: list[str] = Field(description="The texts, as given.")
    phrases: list[PhraseDocument] = Field(description="What was found, texts in order, best first within each.")
    explanations: list[ExplanationDocument] = Field(description="A phrase each, of `label --explain`.")
    masks: list[MaskDocument] = Field(description="Of each phrase: COCO RLE, of the image with EXIF applied.")
    grid: GridDocument
    selector: list[list[list[int]]] = Field(
        description="(T, rows, cols) of all views: 1 = the patch shows what the text names."
    )
    coverage: list[list[list[int]]] = Field(
        description="(T, rows, cols) of all views: covered share, 0..255, rounded up."
    )
    codes: list[Any] = Field(description="The tokenizer's grid of codes, row-major; (rows, cols) for VQGAN.")
    further_codes: dict[str, list[Any]] = Field(
        default={}, exclude_if=lambda codes: not codes, description="Those of further tokenizers; absent without."
    )
    further_grids: list[FurtherGridDocument] = Field(
        default=[], exclude_if=lambda grids: not grids, description="Labels on further grids; absent without."
    )


def json_schema() -> str:
    """The document's JSON Schema, as kept in docs/schemas/annotation.schema.json."""
    return json.dumps(AnnotationDocument.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
