"""A batch of decoded images and texts -> labels, codes, features. The one code path of the API and of builds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from patchmint.annotate.preflight import check_loadable
from patchmint.compute.stages import stage
from patchmint.config import AnnotatorConfig
from patchmint.config.annotator import role_of
from patchmint.config.build import CPU_BATCH_SIZES, CPU_INPUT_BYTES
from patchmint.config.grids import resolve_grid
from patchmint.errors import PluginError
from patchmint.geometry import Grid, Placement, RleMasks
from patchmint.interfaces import (
    FeatureEncoder,
    FeatureSpec,
    Instances,
    PrefersLikeSizes,
    PreparesImages,
    Segmenter,
    Tokenizer,
    TokenizerSpec,
    Tokens,
    check_answers,
    check_found,
    handed,
    prepared_by,
)
from patchmint.labelers.build import build_segmenter
from patchmint.labelers.mask_rules import MaskRules
from patchmint.labelers.patches import PatchLabels, label_texts
from patchmint.plugins import is_outside, named
from patchmint.shards.endings import VQGAN, codes_member, token_member, tokenizer_name
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import RgbImage, Rle, Size, Text

_USUAL_SIZE = (480, 640)


@dataclass(frozen=True)
class ModelInputs:
    """What the models made of one image ahead; None for a model that has no `prepare`."""

    segmenter: object = None
    encoder: object = None
    tokenizers: Mapping[str, object] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in it."""
        return _nbytes((self.segmenter, self.encoder, *self.tokenizers.values()))


def _nbytes(prepared: object) -> int:
    if isinstance(prepared, tuple | list):
        return sum(map(_nbytes, prepared))
    return int(getattr(prepared, "nbytes", 0))


@runtime_checkable
class _Rehearses(Protocol):
    """What our own segmenter has besides: work for a given number of boxes, whatever is found."""

    def rehearse(
        self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]], boxes: int, prepared: Any = None
    ) -> None: ...


@dataclass(frozen=True)
class ModelAnswers:
    """What the models said of one image.

    Attributes:
        instances: what the texts talk about; None where no labels were asked for.
        tokens: codes by the members' names in shards ("vqgan", "codes.fine"); empty where none were asked for.
        features: float16 (tokens of all views, channels); None where none were asked for.
    """

    instances: Instances | None
    tokens: Mapping[str, Tokens]
    features: npt.NDArray[np.float16] | None


@dataclass(frozen=True)
class AnnotatedImage(ModelAnswers):
    """What one image and its texts became.

    Attributes:
        placement: the patch grid on the image.
        labels: patch labels, a grid a text; None where no labels were asked for.
        further: placements and labels on further grids, by the grids' names.
        masks: of the instances; None where they aren't kept.
    """

    placement: Placement
    labels: PatchLabels | None
    further: Mapping[str, tuple[Placement, PatchLabels]] = field(default_factory=dict)
    masks: tuple[Rle, ...] | None = None


class AnnotationModels:
    """The loaded models and the grid: everything a worker holds.

    Attributes:
        tokenizers: by the members' names in shards ("vqgan", "codes.fine").
        keeps_masks: whether labels are made of full masks, which an `AnnotatedImage` then has.
        stored: where labels are made of stored instances: what becomes of their masks.
    """

    def __init__(
        self,
        segmenter: Segmenter | None,
        tokenizers: Mapping[str, Tokenizer],
        encoder: FeatureEncoder | None,
        grid: Grid,
        min_coverage: float,
        names: Mapping[str, str] = MappingProxyType({}),
        further_grids: Mapping[str, Grid] = MappingProxyType({}),
        *,
        keeps_masks: bool = False,
        stored: MaskRules | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.tokenizers = tokenizers
        self.encoder = encoder
        self.grid = grid
        self.further_grids = further_grids
        self.min_coverage = min_coverage
        self.keeps_masks = keeps_masks
        self.stored = stored
        self._names = names

    @classmethod
    def load(cls, config: AnnotatorConfig, device: str, *, compiled: bool = False) -> AnnotationModels:
        """Load what a config names.

        Args:
            config: the settings.
            device: "cpu", "cuda" or "cuda:N".
            compiled: compile the models' large networks, on a GPU.

        Raises:
            WeightsError: a checkpoint is missing or can't be used.
            PluginError: an outside model is missing or broken.
            ConfigError: settings don't fit the models.
        """
        grid = resolve_grid(config.grid)
        check_loadable(config)
        models, precision = config.models, config.precision
        segmenter = None
        if config.labels is not None and not config.labels.from_stored:
            segmenter = build_segmenter(models, config.labels, device, precision, compiled=compiled)
        tokenizers = {}
        for name, tokens in config.tokenizers.items():
            tokenizer = build_tokenizer(models, tokens, device, precision, compiled=compiled)
            own = token_member(tokenizer.spec.name) if is_outside("tokenizer", tokens.tokenizer or "") else VQGAN
            tokenizers[codes_member(name) if name else own] = tokenizer
        encoder: FeatureEncoder | None = None
        if config.features is not None:
            # transformers' vision classes take seconds to import
            from patchmint.features.plan import build_feature_encoder

            encoder = build_feature_encoder(models, config.features, grid, device, precision)
        min_coverage = config.labels.min_coverage if config.labels else 0.0
        stored = None
        if config.labels is not None and config.labels.from_stored:
            stored = MaskRules(config.labels.mask_area, config.labels.clip_to_box)
        return cls(
            segmenter,
            tokenizers,
            encoder,
            grid,
            min_coverage,
            config.models_used,
            config.further_grids,
            keeps_masks=config.labels is not None and config.labels.instances,
            stored=stored,
        )

    def _segment(
        self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]], inputs: Sequence[ModelInputs]
    ) -> list[Instances]:
        """Ask the segmenter; texts that say nothing (data sets have them) are kept from it and get empty labels.

        So are images without a text: no text is about some of a document's.
        """
        assert self.segmenter is not None
        saying = [[index for index, text in enumerate(own) if text.content.strip()] for own in texts]
        asked = [[own[index] for index in kept] for own, kept in zip(texts, saying, strict=True) if kept]
        seen = [image for image, kept in zip(images, saying, strict=True) if kept]
        answers: list[Instances] = []
        if seen:
            prepared = handed(
                self.segmenter, [each.segmenter for each, kept in zip(inputs, saying, strict=True) if kept]
            )
            with named(self._names.get("segmenter")):
                answers = self.segmenter.segment(seen, asked, **prepared)
                check_answers("a segmenter", len(seen), answers, Instances)
                for image, answer, image_texts in zip(seen, answers, asked, strict=True):
                    size = (image.shape[0], image.shape[1])
                    if tuple(answer.image_size) != size:
                        raise PluginError(
                            f"a segmenter says that an image of {size} (height, width) is {answer.image_size}"
                        )
                    check_found("a segmenter", answer, size, image_texts)
        found, left = list[Instances](), iter(answers)
        for image, kept in zip(images, saying, strict=True):
            if kept:
                answer = next(left)
                found.append(replace(answer, text_index=np.array(kept, dtype=np.int64)[answer.text_index]))
            else:
                found.append(_nothing_in((image.shape[0], image.shape[1])))
        return found

    def annotate(self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]]) -> list[AnnotatedImage]:
        """Label, tokenise and encode a batch.

        Args:
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts.

        Raises:
            PluginError: an outside model returned something that breaks its contract.
        """
        return [
            self.label(answers, (image.shape[0], image.shape[1]), len(image_texts))
            for answers, image, image_texts in zip(self.ask(images, texts), images, texts, strict=True)
        ]

    def prepare(self, image: RgbImage) -> ModelInputs:
        """What can be done ahead of `ask`, without the device; in any thread."""
        models = (self.segmenter, self.encoder, *self.tokenizers.values())
        if not any(isinstance(model, PreparesImages) for model in models):
            return ModelInputs()
        with stage("prepare"):
            tokenizers = {member: prepared_by(model, image) for member, model in self.tokenizers.items()}
            return ModelInputs(prepared_by(self.segmenter, image), prepared_by(self.encoder, image), tokenizers)

    def ask(
        self,
        images: Sequence[RgbImage],
        texts: Sequence[Sequence[Text]],
        inputs: Sequence[ModelInputs | None] | None = None,
    ) -> list[ModelAnswers]:
        """The models' part of `annotate`.

        Args:
            images: HWC uint8 RGB, any sizes.
            texts: for each image its texts.
            inputs: what `prepare` made of each image; where there is None it is done now.
        """
        nothing = [None] * len(images)
        given = zip(images, nothing if inputs is None else inputs, strict=True)
        ready = [self.prepare(image) if made is None else made for image, made in given]
        instances = self._segment(images, texts, ready) if self.segmenter else nothing
        codes = {member: self._tokenize(member, images, ready) for member in self.tokenizers}
        tokens = [{member: answers[number] for member, answers in codes.items()} for number in range(len(images))]
        features: Sequence[npt.NDArray[np.float16] | None] = nothing
        if self.encoder:
            with stage("features"):
                features = self.encoder.encode(images, **handed(self.encoder, [each.encoder for each in ready]))
            with named(self._names.get("vit")):
                check_answers("a vision encoder", len(images), features)
                for image, found in zip(images, features, strict=True):
                    _check_features(found, self.encoder.spec, self.grid.place((image.shape[0], image.shape[1])))
        return [ModelAnswers(*answers) for answers in zip(instances, tokens, features, strict=True)]

    def rehearse(
        self, images: Sequence[RgbImage], texts: Sequence[Sequence[Text]], inputs: Sequence[ModelInputs], boxes: int
    ) -> None:
        """Do all the work of `ask`, and for as many boxes an image, on whatever images, in which nothing may be found.

        Outside segmenters do what they do on these images.
        """
        if isinstance(self.segmenter, _Rehearses):
            prepared = handed(self.segmenter, [each.segmenter for each in inputs])
            self.segmenter.rehearse(images, texts, boxes, **prepared)
            AnnotationModels(None, self.tokenizers, self.encoder, self.grid, 0.0).ask(images, texts, inputs)
        else:
            self.ask(images, texts, inputs)

    def label(self, answers: ModelAnswers, size: Size, texts: int) -> AnnotatedImage:
        """The rest of `annotate`, for which no model is needed: patch labels from masks, on the CPU.

        Where masks are kept, labels are made of these, and not of what a masker's logits say: who has them makes the
        same labels again.

        Args:
            answers: what the models said of an image.
            size: its (height, width).
            texts: how many it has.
        """
        placement, further = self.grid.place(size), {}
        labels, masks, found = None, None, answers.instances
        if found is not None:
            with stage("label"):
                if self.keeps_masks:
                    masks = _full_masks(found)
                    found = replace(found, masks=RleMasks(masks))
                labels = label_texts(found, texts, placement, self.min_coverage)
                for name, grid in self.further_grids.items():
                    placed = grid.place(size)
                    further[name] = placed, label_texts(found, texts, placed, self.min_coverage)
        return AnnotatedImage(found, answers.tokens, answers.features, placement, labels, further, masks)

    def batch_key(self, size: Size) -> Hashable:
        """Images with equal keys are best put into one batch; None for all sizes where it doesn't matter.

        Args:
            size: (height, width) of an image.
        """
        return self.segmenter.batch_key(size) if isinstance(self.segmenter, PrefersLikeSizes) else None

    @property
    def prefers_like_sizes(self) -> bool:
        """Whether `batch_key` tells sizes apart."""
        return isinstance(self.segmenter, PrefersLikeSizes)

    def _tokenize(self, member: str, images: Sequence[RgbImage], inputs: Sequence[ModelInputs]) -> list[Tokens]:
        tokenizer = self.tokenizers[member]
        with named(self._names.get(role_of("tokenizer", tokenizer_name(member)))):
            with stage("tokens"):
                prepared = [each.tokenizers.get(member) for each in inputs]
                tokens = tokenizer.tokenize(images, **handed(tokenizer, prepared))
            check_answers("a tokenizer", len(images), tokens)
            for image, answer in zip(images, tokens, strict=True):
                _check_tokens(answer, tokenizer.spec, (image.shape[0], image.shape[1]))
        return tokens


def cpu_batch_size(models: AnnotationModels) -> int:
    """Images that a CPU best takes at once: many where models make them small, as the demo's do.

    Each product is short work then, and has a start.
    """
    least, most = CPU_BATCH_SIZES
    taken = models.prepare(np.zeros((*_USUAL_SIZE, 3), dtype=np.uint8)).nbytes
    return max(least, min(most, CPU_INPUT_BYTES // taken)) if taken else least


def _full_masks(found: Instances) -> tuple[Rle, ...]:
    rles = found.masks.rles()
    if any(tuple(rle["size"]) != found.image_size for rle in rles):
        raise PluginError(
            f"a segmenter gave masks that aren't of the image's size {found.image_size}; set labels.instances to false"
        )
    return rles


def _nothing_in(size: Size) -> Instances:
    none = np.zeros(0, dtype=np.int64)
    boxes, spans = np.zeros((0, 4), dtype=np.float32), np.zeros((0, 2), dtype=np.int64)
    return Instances(size, RleMasks([]), none, np.zeros(0, dtype=np.float32), boxes, spans)


def _check_tokens(answer: object, spec: TokenizerSpec, size: Size) -> None:
    shape = (*spec.grid_on(size), len(spec.codebook_sizes))
    codes = answer.codes if isinstance(answer, Tokens) else None
    if not isinstance(codes, np.ndarray) or codes.shape != shape or codes.dtype.kind not in "iu":
        raise PluginError(f"the tokenizer {spec.name!r} must give Tokens with integer codes of shape {shape}")
    if ((codes < 0) | (codes >= np.array(spec.codebook_sizes))).any():
        raise PluginError(f"the tokenizer {spec.name!r} gave codes outside its codebooks of {spec.codebook_sizes}")


def _check_features(answer: object, spec: FeatureSpec, placement: Placement) -> None:
    tokens = sum(spec.tokens_of(view.rows * view.cols) for view in placement.views)
    wanted = (tokens, spec.channels)
    if not isinstance(answer, np.ndarray) or answer.shape != wanted or answer.dtype != np.float16:
        raise PluginError(f"the vision encoder {spec.encoder!r} must give float16 features of shape {wanted}")
