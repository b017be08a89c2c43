"""What an image and its texts became, with everything needed to look at it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from patchmint.annotate.models import AnnotatedImage
from patchmint.api.document import (
    AnnotationDocument,
    ExplanationDocument,
    FurtherGridDocument,
    GridDocument,
    ImageDocument,
)
from patchmint.config import AnnotatorConfig
from patchmint.config.grids import named_grids, resolve_grid
from patchmint.errors import InputError
from patchmint.images.decode import DecodedImage
from patchmint.interfaces import Explanation
from patchmint.labelers.patches import PatchLabels, PhraseLabel, label_phrases
from patchmint.pictures.overlay import draw_overlay
from patchmint.shards.endings import tokenizer_name
from patchmint.shards.schema import MaskDocument, PhraseDocument
from patchmint.types import Phrase, Rle, Text

Grids = npt.NDArray[np.uint8]

_NOTEBOOK_SIDE = 800
_LEAST_NOTEBOOK_SIDE = 320
# of the photo in a notebook, in pixels: the more texts, the smaller the pictures


class Annotation:
    """Labels and codes of one image. Made by `Annotator.annotate`.

    Attributes:
        image: the decoded image; `image.pixels` is HWC uint8 RGB.
        texts: the texts, in the order given.
        placement: the patch grid on the image: cells to pixels and back; of several grids the first (`on_grid`).
        notice: a warning that belongs on every use of it (untrained or demo models); else empty.
    """

    def __init__(
        self, image: DecodedImage, texts: list[Text], annotated: AnnotatedImage, config: AnnotatorConfig
    ) -> None:
        self.image = image
        self.texts = texts
        self.placement = annotated.placement
        self.notice = config.notice
        self._annotated = annotated
        self._config = config
        self._fit = str(resolve_grid(config.grid).fit)

    def __repr__(self) -> str:
        height, width = self.image.size
        return f"<Annotation of a {width} x {height} image: {len(self.texts)} texts, {len(self.phrases)} phrases>"

    @property
    def selector(self) -> Grids:
        """Patch labels: uint8 (T, rows, cols), 1 = the patch shows what the text names.

        Raises:
            InputError: no labels were asked for.
        """
        return self._labels.selector

    @property
    def coverage(self) -> Grids:
        """How much of each patch the text's masks cover: uint8 (T, rows, cols), 0..255, any overlap at least 1.

        Raises:
            InputError: no labels were asked for.
        """
        return self._labels.coverage

    def on_grid(self, grid: str) -> Annotation:
        """The annotation with its labels on one of the config's `grids` alone; on another than the first no features.

        Args:
            grid: its name, as the config has it ("qwen3-vl") or as in shards ("llava-1-5-finetune").

        Raises:
            InputError: no labels were made on such a grid.
        """
        grids = named_grids(self._config.grids or (self._config.grid,))
        name = grid if grid in grids else grid.replace(".", "-")
        if name not in grids:
            raise InputError(f"no labels were made on a grid {grid!r} (grids: {', '.join(grids)})")
        if name not in self._annotated.further:
            return self
        placement, labels = self._annotated.further[name]
        alone = replace(self._annotated, placement=placement, labels=labels, features=None, further={})
        found = Annotation(self.image, self.texts, alone, self._config)
        found._fit = str(grids[name].fit)
        return found

    @property
    def inside(self) -> npt.NDArray[np.float64]:
        """How much of each patch lies in the image: float64 (rows, cols), 0..1. Less than 1 at padding."""
        return self.placement.inside

    @property
    def codes(self) -> npt.NDArray[np.int32]:
        """Visual codes, before any vocabulary offset: int32 (rows, cols) for VQGAN, row-major.

        In general the tokenizer's grid; with a last axis of codebooks where there is more than one. Of several
        tokenizers the first one's; `all_codes` has the others'.

        Raises:
            InputError: no codes were asked for.
        """
        if not self._annotated.tokens:
            raise InputError("no codes were made: the config's tokens are null")
        return next(iter(self.all_codes.values()))

    @property
    def all_codes(self) -> dict[str, npt.NDArray[np.int32]]:
        """The codes of each tokenizer, as `codes`, by its name; empty where none were asked for."""
        found = {tokenizer_name(member) or member: tokens.codes for member, tokens in self._annotated.tokens.items()}
        return {name: codes[..., 0] if codes.shape[-1] == 1 else codes for name, codes in found.items()}

    @property
    def features(self) -> npt.NDArray[np.float16]:
        """Continuous features of the vision encoder: float16 (tokens of all views, channels), in the order of labels.

        Raises:
            InputError: no features were asked for.
        """
        if self._annotated.features is None:
            raise InputError("no features were made: the config's features are null")
        return self._annotated.features

    @cached_property
    def phrases(self) -> list[Phrase]:
        """What was found, texts in order, best first within each; empty where nothing was."""
        found = self._annotated.instances
        return found.phrases([text.content for text in self.texts]) if found is not None else []

    @cached_property
    def masks(self) -> tuple[Rle, ...]:
        """The mask of each phrase as COCO RLE; `patchmint.geometry.rle` turns it into arrays and COCO files."""
        found = self._annotated.instances
        return found.masks.rles() if found is not None else ()

    @cached_property
    def phrase_labels(self) -> list[PhraseLabel]:
        """Patch labels per phrase (all things that go by the same words), in order of text and place in it."""
        if self._annotated.instances is None or self._config.labels is None:
            return []
        return label_phrases(self._annotated.instances, self.placement, self._config.labels.min_coverage)

    def overlay(self, text_index: int = 0, *, max_side: int = 1280) -> Image.Image:
        """Draw the image with boxes, phrases, grid and kept patches of one text.

        Args:
            text_index: which text.
            max_side: longest side of the picture in pixels.

        Raises:
            InputError: there is no such text, or no labels were asked for.
        """
        if not 0 <= text_index < len(self.texts):
            raise InputError(f"there is no text {text_index}; this image has texts 0 to {len(self.texts) - 1}")
        shown = [index for index, phrase in enumerate(self.phrases) if phrase.text_index == text_index]
        picture = draw_overlay(
            self.image.pixels,
            placement=self.placement,
            selector=self.selector[text_index],
            coverage=self.coverage[text_index],
            phrases=[self.phrases[index] for index in shown],
            masks=[self.masks[index] for index in shown],
            caption=self.texts[text_index].content,
            notice=self.notice,
            fit=self._fit,
            max_side=max_side,
        )
        return Image.fromarray(picture)

    def to_document(self, explanations: Sequence[Explanation] = ()) -> AnnotationDocument:
        """Everything as plain data with a documented schema; `.model_dump_json()` writes it.

        Args:
            explanations: of `Annotator.explain`, to go with it.
        """
        labels, codes = self._annotated.labels, self.all_codes
        further = {name: self.on_grid(name) for name in self._annotated.further}
        return AnnotationDocument(
            schema="patchmint.annotation/1",
            notice=self.notice,
            image=ImageDocument(
                width=self.image.size[1],
                height=self.image.size[0],
                format=self.image.format,
                mode=self.image.mode,
                orientation=self.image.orientation,
            ),
            models=self._config.models_used,
            texts=[text.content for text in self.texts],
            phrases=[PhraseDocument.of(phrase) for phrase in self.phrases],
            explanations=[ExplanationDocument.of(each) for each in explanations],
            masks=[MaskDocument.of(mask) for mask in self.masks],
            grid=self._grid_document(),
            selector=labels.selector.tolist() if labels else [],
            coverage=labels.coverage.tolist() if labels else [],
            codes=self.codes.tolist() if codes else [],
            further_codes={name: grid.tolist() for name, grid in list(codes.items())[1:]},
            further_grids=[
                FurtherGridDocument(
                    name=name,
                    grid=other._grid_document(),
                    selector=other.selector.tolist(),
                    coverage=other.coverage.tolist(),
                )
                for name, other in further.items()
            ],
        )

    def _grid_document(self) -> GridDocument:
        grid = self.placement
        return GridDocument(
            rows=grid.rows,
            cols=grid.cols,
            patch_px=grid.patch_px,
            fit=self._fit,
            views=len(grid.views),
            view_cells=[(view.rows, view.cols) for view in grid.views],
            token_order=grid.token_order().tolist(),
        )

    def _repr_html_(self) -> str | None:
        """Show every text in a notebook; without labels there is nothing to draw, and the notebook takes `repr`."""
        if self._annotated.labels is None:
            return None
        side = max(_LEAST_NOTEBOOK_SIDE, round(_NOTEBOOK_SIDE / math.sqrt(len(self.texts))))
        return "".join(self._figure(index, side) for index in range(len(self.texts)))

    def _figure(self, index: int, side: int) -> str:
        # a palette makes the picture a quarter as large, and a notebook keeps all of them
        picture = self.overlay(index, max_side=side).quantize(method=Image.Quantize.FASTOCTREE)
        caption = html.escape(self.texts[index].content)
        return (
            f'<figure style="display: inline-block; margin: 4px; max-width: {picture.width}px">'
            f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(_png(picture)).decode()}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def _repr_png_(self) -> bytes | None:
        """Show the first text where a notebook takes no HTML."""
        return _png(self.overlay(max_side=_NOTEBOOK_SIDE)) if self._annotated.labels is not None else None

    @property
    def _labels(self) -> PatchLabels:
        if self._annotated.labels is None:
            raise InputError("no labels were made: the config's labels are null")
        return self._annotated.labels


@dataclass(frozen=True)
class DocumentAnnotation:
    """Labels and codes of a document's images. Made by `Annotator.annotate_document`.

    Attributes:
        texts: the document's, in order.
        images: one annotation an image, in order, with the texts that label it: its `selector` is uint8
            (len(image_texts[i]), rows, cols).
        image_texts: for each image the numbers of these texts, ascending.
    """

    texts: tuple[Text, ...]
    images: tuple[Annotation, ...]
    image_texts: tuple[tuple[int, ...], ...]

    def _repr_html_(self) -> str | None:
        """Show every image in a notebook, as an annotation does."""
        shown = [image._repr_html_() for image in self.images]
        return "".join(filter(None, shown)) or None


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
