"""Settings, validated: what to label with, on which grid, into which codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from patchmint.config.grids import AnyGridConfig, named_grids, resolve_grid
from patchmint.config.parsing import ONE_OR_TWO, Settings, parse_settings
from patchmint.errors import ConfigError, did_you_mean
from patchmint.geometry.coverage import LEVELS, coverage_to_uint8
from patchmint.geometry.presets import Grid
from patchmint.plugins import is_outside
from patchmint.types import Precision

UNTRAINED = "untrained-tiny"
"""Name of the tiny models with random weights, for trying the machinery without any download."""

UNTRAINED_NOTICE = "untrained weights: these labels and codes mean nothing"
"""What every output of an untrained model says."""

OFFICIAL = "official"
"""Name of the published models whose labels and codes are best."""

SMALL = "small"
"""Name of smaller published models: SAM ViT-B, and 1024 codes. Half the download, and much faster on a CPU."""

DEMO = "demo"
"""Name of the small trained models that lie in the package: what is used when no model is named."""

DEMO_NOTICE = (
    "demo models: they know only drawn scenes of coloured shapes, from 64 pixels and up to 5:1; for photographs name "
    "models (`models: official`)"
)
"""What every output of a demo model says."""

_DEMO_DETECTOR, _DEMO_VOCABULARY = "demo-detector", "demo-vocabulary"


def _vocabulary_of(models: Mapping[str, Any]) -> str:
    detector = models.get("detector", "")
    if detector == _DEMO_DETECTOR:
        return _DEMO_VOCABULARY
    if detector.startswith("hub:"):
        return str(detector)
    with suppress(OSError, RuntimeError):  # too long a name, no such user
        if os.sep in detector and Path(detector).expanduser().is_dir():
            return str(detector)
    return "bert-base-uncased-vocab"


def role_of(kind: str, name: str) -> str:
    """The role of a model ("tokenizer") that may be one of several with names ("tokenizer.fine")."""
    return f"{kind}.{name}" if name else kind


class PluginConfig(Settings):
    """What an outside model gets besides device and precision."""

    checkpoint: str | None = Field(
        default=None, description="Its weights: a path, URI, folder or hub: name, as for any model."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="Its own settings.")


class ModelsConfig(Settings):
    """Which models: each a name from `patchmint models list`, a path or URI of a checkpoint, or `untrained-tiny`.

    A path may be that of a folder in Hugging Face's layout, and `hub:ORG/NAME[@REVISION]` is a model on its Hub. Those
    that a mapping doesn't name are the official ones.
    """

    segmenter: str | None = Field(
        default=None,
        description="SAM 3 (its folder or hub: name) or a segmenter plug-in, instead of detector and masker.",
    )
    detector: str = Field(
        default="groundingdino-swint-ogc", description="Grounding DINO, OWLv2, or a detector plug-in (entry point)."
    )
    vocabulary: str = Field(
        default_factory=_vocabulary_of,
        description="The detector's vocab.txt. Default: that in the detector's folder or repository; "
        "demo-vocabulary for demo-detector; else bert-base-uncased-vocab. A plug-in has none.",
    )
    masker: str | None = Field(
        default="sam-vit-h", description="SAM, or a masker plug-in. Null: labels of the boxes' areas."
    )
    tokenizer: str = Field(
        default="vqgan-imagenet-f16-16384",
        description="A VQGAN (taming, Chameleon, LlamaGen, Janus, IBQ), or a tokenizer plug-in (entry point).",
    )
    vit: str = Field(
        default="clip-vit-l-14-336",
        description="The vision encoder of `features`: CLIP or SigLIP; a folder with one, or with SigLIP 2, DINOv3 "
        "or Qwen-VL's; or a plug-in.",
    )

    plugins: dict[str, PluginConfig] = Field(
        default_factory=dict, description="Checkpoint and settings of plug-ins, by their names."
    )

    def given(self, name: str, locate: Callable[[str], Path]) -> dict[str, Any]:
        """What a plug-in's callable gets of the settings.

        Args:
            name: the plug-in's.
            locate: finds the file that a name means (`patchmint.weights.store.locate`).
        """
        plugin = self.plugins.get(name, PluginConfig())
        checkpoint = locate(plugin.checkpoint) if plugin.checkpoint is not None else None
        return {"checkpoint": checkpoint, "settings": plugin.settings}

    def used(
        self,
        *,
        labels: bool,
        tokens: bool,
        features: bool = False,
        detector: bool = True,
        masker: bool = True,
    ) -> dict[str, str]:
        """The models that take part, by role: an outside segmenter stands for detector, vocabulary and masker."""
        if self.segmenter is not None:
            labelers = {"segmenter": self.segmenter}
        else:
            labelers = {"detector": self.detector} if detector else {}
            if detector and not is_outside("detector", self.detector):
                labelers["vocabulary"] = self.vocabulary
            labelers |= {"masker": self.masker} if masker and self.masker is not None else {}
        return (
            (labelers if labels else {})
            | ({"tokenizer": self.tokenizer} if tokens else {})
            | ({"vit": self.vit} if features else {})
        )


MODEL_PRESETS: Mapping[str, ModelsConfig] = MappingProxyType(
    {
        OFFICIAL: ModelsConfig(),
        SMALL: ModelsConfig(masker="sam-vit-b", tokenizer="vqgan-imagenet-f16-1024"),
        DEMO: ModelsConfig(
            detector=_DEMO_DETECTOR,
            vocabulary=_DEMO_VOCABULARY,
            masker="demo-masker",
            tokenizer="demo-tokenizer",
            vit="demo-vit",
        ),
        UNTRAINED: ModelsConfig(
            detector=UNTRAINED, vocabulary=UNTRAINED, masker=UNTRAINED, tokenizer=UNTRAINED, vit=UNTRAINED
        ),
    }
)

_DEMO_MODELS = frozenset(name for _, name in MODEL_PRESETS[DEMO] if isinstance(name, str)) - {UNTRAINED}


_Share = Annotated[float, Field(ge=0, le=1)]


_Word = Annotated[str, Field(min_length=1, pattern=r"\S")]


def _rising(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    if limits is not None and limits[0] > limits[1]:
        raise ValueError(f"give the least first: {list(limits[::-1])}")
    return limits


class PresenceConfig(Settings):
    """A second look at what was found: a phrase counts if it wins at one of its boxes."""

    alternatives: tuple[Annotated[tuple[_Word, ...], Field(min_length=2)], ...] = Field(
        default=(),
        description="Groups of words, of which one at most is true of a thing: [[red, blue], [cat, dog]]. A phrase "
        "must score better than with each other word of the group in the place of its own.",
    )
    margins: Annotated[tuple[Annotated[float, Field(ge=0, le=4)] | None, ...], Field(min_length=1)] = Field(
        default=(None,),
        description="How much is seen around a box, as a share of its longer side; null: the whole image. Of several "
        "looks the mean counts.",
    )
    threshold: float = Field(
        default=0.0,
        ge=-1,
        lt=1,
        description="By how much a phrase must score better than its best alternative (which is 0 where it has none).",
    )
    thresholds: dict[str, Annotated[float, Field(ge=-1, lt=1)]] = Field(
        default_factory=dict, description="The same of single phrases."
    )
    calibration: str | None = Field(
        default=None,
        description="A file of `patchmint calibrate --presence`, which has all of these, instead of them.",
    )

    @model_validator(mode="after")
    def _calibrated_alone(self) -> Self:
        if self.calibration is not None and self.model_dump(exclude_defaults=True).keys() != {"calibration"}:
            raise ValueError("calibration stands for all other settings; leave these out, or calibration")
        return self

    def learnt(self) -> Self:
        """The settings, from the calibration where there is one.

        Raises:
            ConfigError: it can't be read, or has none.
        """
        if self.calibration is None:
            return self
        try:
            told = json.loads(Path(self.calibration).expanduser().read_bytes())
            return type(self).model_validate(told["presence"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"labels.presence.calibration: {self.calibration} can't be read, or knows nothing of a second look; "
                "write one with: patchmint calibrate DATASET OUT.json --presence SETTINGS"
            ) from error


class LabelsConfig(Settings):
    """How patches are labelled."""

    boxes: Literal["detector", "annotators", "annotators-else-detector"] = Field(
        default="detector",
        description="Whose boxes: the detector's; the source's annotators', without a detector; or these, and the "
        "detector's for texts that have none.",
    )
    masks: Literal["masker", "annotators", "annotators-else-masker", "stored"] = Field(
        default="masker",
        description="Whose masks: the masker's of the boxes; the source's annotators', without detector and masker; "
        "these, and the masker's for boxes without any; or the stored instances of the data set that is extended, "
        "without any model (extend --from-instances).",
    )
    prompt: Literal["caption", "phrases"] = Field(
        default="caption",
        description="Detect the whole text, or each phrase between full stops (unless the text names phrases).",
    )
    box_threshold: float = Field(default=0.35, ge=0, lt=1, description="Minimum score of a box's best word.")
    text_threshold: float = Field(
        default=0.25, ge=0, le=1, description="Minimum score of a word to belong to a box's phrase."
    )
    min_coverage: float = Field(
        default=0.0, ge=0, lt=1, description="A patch is selected if more than this share is covered (MaVEn: 0)."
    )
    coverage: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: as from full-size masks; fast: nearly the same (docs/quality.md).",
    )

    instances: bool = Field(
        default=False,
        description="Store each instance with its mask (KEY.instances.json): for export, and for labels on another "
        "grid without models. Takes 3 to 9 % of the bytes of photographs.",
    )

    phrase_thresholds: dict[str, Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        default=None,
        description="Minimum scores of single phrases, instead of box_threshold: {cat: 0.5, red car: 0.3}.",
    )
    negative_phrases: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        description="Phrases to look for in each image, too: a box is dropped if one of theirs, with a better score, "
        "overlaps it by more than half (IoU).",
    )
    nms: float | None = Field(
        default=None, ge=0, lt=1, description="Of a phrase's boxes that overlap by more than this IoU, the best stays."
    )
    box_area: Annotated[tuple[_Share, _Share] | None, AfterValidator(_rising)] = Field(
        default=None, description="The least and the most of an image that a box may cover: [0.001, 0.9]."
    )
    mask_area: Annotated[tuple[_Share, _Share] | None, AfterValidator(_rising)] = Field(
        default=None, description="The same of a mask; full-size masks are made for it."
    )
    clip_to_box: bool = Field(
        default=False, description="Cut masks off at their boxes; full-size masks are made for it."
    )

    tiles: int | None = Field(
        default=None,
        ge=64,
        description="Side in pixels of overlapping tiles that are looked at besides the whole image, for small things "
        "in images larger than that. Null: none.",
    )

    presence: PresenceConfig | None = Field(
        default=None,
        description="Look again at what was found: is it there, or only something like it? Null: one look is enough.",
    )

    @model_validator(mode="after")
    def _areas_of_whole_images(self) -> Self:
        if self.tiles is not None and (self.box_area is not None or self.mask_area is not None):
            raise ValueError("box_area and mask_area are shares of a whole image; leave them out, or tiles")
        return self

    @model_validator(mode="after")
    def _full_masks_are_exact(self) -> Self:
        if self.instances and self.coverage == "fast":
            raise ValueError("coverage: fast makes labels without masks, and instances stores these; leave out one")
        return self

    @model_validator(mode="after")
    def _masks_without_boxes(self) -> Self:
        if self.masks == "annotators" and self.boxes == "annotators-else-detector":
            raise ValueError(
                "masks: annotators asks neither detector nor masker, and boxes: annotators-else-detector asks both; "
                "did you mean masks: annotators-else-masker?"
            )
        return self

    @property
    def needs_detector(self) -> bool:
        """Whether boxes are looked for."""
        return self.boxes != "annotators" and self.needs_masker

    @property
    def needs_masker(self) -> bool:
        """Whether boxes become masks."""
        return self.masks not in ("annotators", "stored")

    @property
    def from_stored(self) -> bool:
        """Whether instances are those of the data set that is extended, and nothing is looked for."""
        return self.masks == "stored"

    @property
    def drawn(self) -> frozenset[str]:
        """What of that which annotators drew counts: "boxes", "masks"."""
        boxes = {"boxes"} if self.boxes != "detector" and self.needs_masker else set()
        return frozenset(boxes | ({"masks"} if self.masks.startswith("annotators") else set()))

    @field_validator("min_coverage")
    @classmethod
    def _keeps_what_is_covered(cls, value: float) -> float:
        if coverage_to_uint8(np.array(value)) == LEVELS:
            raise ValueError(
                f"over {LEVELS - 1}/{LEVELS} ({(LEVELS - 1) / LEVELS:.6f}) not even a fully covered patch is kept, so "
                f"every label would be empty, not {value:g}"
            )
        return value


Rule = Literal["nearest", "dot", "cosine", "logit"]
"""How a codebook's entry is chosen for a vector (`patchmint.tokenizers.vqgan.arch.VqganArch`)."""


class TokensConfig(Settings):
    """How images are turned into codes."""

    tokenizer: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="The tokenizer, where there are several. Null: models.tokenizer.",
    )
    size: int = Field(default=256, ge=8, le=4096, description="Side of the tokenizer's square input in pixels.")
    fit: Literal["pad", "crop", "squash"] = Field(default="pad", description="How an image becomes square.")
    remap: str | None = Field(default=None, description="An .npy list of used codes; codes become positions in it.")
    rule: Rule | None = Field(
        default=None,
        description="How a VQGAN of your own chooses codes: nearest (taming), dot (IBQ), cosine (LlamaGen) or logit "
        "(Gumbel). Null: as its file says; one that doesn't is refused.",
    )


def _tokens_form(value: Any) -> str:
    if value is None:
        return "none"
    inner = value.values() if isinstance(value, Mapping) and not value.keys() & TokensConfig.model_fields.keys() else ()
    return "named" if inner and all(isinstance(each, Mapping | TokensConfig) for each in inner) else "TokensConfig"


TokenizerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,17}$")]
"""A tokenizer's name among several: in names of members (KEY.codes.NAME.npy) and of the sidecars' columns."""

AnyTokensConfig = Annotated[
    Annotated[TokensConfig, Tag("TokensConfig")]
    | Annotated[dict[TokenizerName, TokensConfig], Tag("named")]
    | Annotated[None, Tag("none")],
    Discriminator(_tokens_form),
]
"""What the setting `tokens` may be."""


class FeaturesConfig(Settings):
    """Which continuous features of the vision encoder are stored."""

    connector: Literal["none", "sti", "sci", "dci"] = Field(
        default="none", description="How Dense Connector joins several layers; none: a single layer."
    )
    select_layer: int | None = Field(
        default=None,
        description="The hidden state that is V_L: 0 = the first block's input; negative: from the last. Null: -2; of "
        "DINOv3 and Qwen-VL -1.",
    )
    select_feature: Literal["patch", "cls_patch"] = Field(
        default="patch", description="Patches only, or with a leading CLS token."
    )
    layers: tuple[tuple[int, ...], ...] | None = Field(
        default=None,
        description="The connector's further parts, a list of hidden states each; dci takes their mean. Null: the "
        "paper's.",
    )
    pool: Annotated[tuple[int, int] | None, ONE_OR_TWO] = Field(
        default=None, description="Rows and columns to pool each view's patches to (DeCo), or one number for both."
    )
    pool_when: Literal["before", "after"] = Field(
        default="before", description="Pool before or after the connector; makes a difference for sti only."
    )


ModelsPreset = Literal["official", "small", "demo", "untrained-tiny"]


def _models(value: object) -> object:
    if isinstance(value, str):
        if value not in MODEL_PRESETS:
            raise ValueError(
                f"there is no models preset {value!r}{did_you_mean(value, MODEL_PRESETS)} "
                f"(presets: {', '.join(MODEL_PRESETS)})"
            )
        return MODEL_PRESETS[value]
    return value


_NAMED_OR_NOT = BeforeValidator(_models, json_schema_input_type=ModelsPreset | ModelsConfig)


class AnnotatorConfig(Settings):
    """Everything that decides what an image's labels and codes are."""

    models: Annotated[ModelsConfig, _NAMED_OR_NOT] = Field(
        default_factory=lambda: MODEL_PRESETS[DEMO],
        description="A preset's name (official, small, demo, untrained-tiny), or a mapping of models; those that it "
        "doesn't name are the official ones. Default: demo.",
    )
    labels: LabelsConfig | None = Field(default_factory=LabelsConfig, description="Null: no patch labels.")
    grid: AnyGridConfig = Field(
        default="llava-1.5-finetune",
        description="A preset's name; {rows, cols, patch_px, fit}; or {processor: PATH}, the consumer's own files "
        "(docs/grids.md).",
    )
    grids: tuple[AnyGridConfig, ...] = Field(
        default=(),
        description="Several grids, in the place of one: labels are made on each, from the same masks; features on the "
        "first.",
    )
    tokens: AnyTokensConfig = Field(
        default_factory=TokensConfig,
        description="Null: no codes. Codes of several tokenizers side by side: {NAME: {tokenizer: ..., size: ...}, "
        "...}, stored as KEY.codes.NAME.npy.",
    )
    features: FeaturesConfig | None = Field(
        default=None, description="Continuous features of the vision encoder; null: none."
    )
    precision: Precision = Field(
        default="auto",
        description="Number format of the large products: float32, bfloat16, float16 (GPUs). Auto: for each model the "
        "fastest that keeps its answers (docs/performance.md), where the device has instructions for it.",
    )

    @field_validator("grid")
    @classmethod
    def _is_a_grid(cls, grid: AnyGridConfig) -> AnyGridConfig:
        try:
            resolve_grid(grid)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return grid

    @model_validator(mode="before")
    @classmethod
    def _first_of_grids(cls, settings: Any) -> Any:
        """`grid` is the first of `grids`; one grid alone is `grid`, however it was given."""
        grids = settings.get("grids") if isinstance(settings, Mapping) else None
        if not isinstance(grids, list | tuple) or not grids:
            return settings
        several = {"grids": grids if len(grids) > 1 else ()}
        return {"grid": grids[0], **settings, **several}

    @model_validator(mode="after")
    def _different_grids(self) -> Self:
        try:
            grids = list(named_grids(self.grids).values())
        except ConfigError as error:
            raise ValueError(f"grids: {error}") from error
        if grids and grids[0] != resolve_grid(self.grid):
            raise ValueError(f"grid and grids: give one of them, or the grid {self.grid!r} first among the grids")
        twice = next((number for number, grid in enumerate(grids, start=1) if grid in grids[: number - 1]), 0)
        if twice:
            raise ValueError(f"grids: two of them are the same; leave out number {twice}")
        if grids and self.labels is None:
            raise ValueError("grids: labels are made on them, and labels are null; give one grid")
        return self

    @model_validator(mode="after")
    def _different_tokenizers(self) -> Self:
        named = list(self.tokenizers.items())
        for number, (name, tokens) in enumerate(named):
            if twin := next((other for other, same in named[:number] if same == tokens), None):
                raise ValueError(f"tokens: {twin} and {name} are the same, and so would their codes be; leave one out")
        return self

    @property
    def makes(self) -> bool:
        """Whether anything is made of images."""
        return not (self.labels is None and self.tokens is None and self.features is None)

    @property
    def copies(self) -> bool:
        """Whether they are copied as they are, and nothing need be made: only a build may."""
        return False

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.makes and not self.copies:
            raise ValueError("labels, tokens and features are all null: there is nothing to make")
        return self

    @model_validator(mode="after")
    def _boxes_for_our_own(self) -> Self:
        if self.drawn and self.models.segmenter is not None:
            raise ValueError(
                f"labels.boxes and labels.masks of annotators stand for those of a detector and a masker, and the "
                f"segmenter {self.models.segmenter} stands for both; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _plugins_that_are_named(self) -> Self:
        named = {name for _, name in self.models if isinstance(name, str)} | set(self.models_used.values())
        for name in self.models.plugins:
            if name not in named:
                raise ValueError(
                    f"models.plugins: {name} is none of the models ({', '.join(sorted(named))})"
                    f"{did_you_mean(name, named)}"
                )
        return self

    @model_validator(mode="after")
    def _right_vocabulary(self) -> Self:
        used = self.models_used
        detector, vocabulary = used.get("detector"), used.get("vocabulary")
        if (detector == _DEMO_DETECTOR) != (vocabulary == _DEMO_VOCABULARY):
            raise ValueError(
                f"models.vocabulary: {vocabulary} isn't the vocabulary that the detector {detector} was trained with, "
                f"so its labels would mean nothing; {_DEMO_DETECTOR} reads {_DEMO_VOCABULARY}, official detectors read "
                "bert-base-uncased-vocab"
            )
        return self

    @property
    def further_grids(self) -> dict[str, Grid]:
        """The grids but for the first, by their names in shards."""
        return dict(list(named_grids(self.grids).items())[1:])

    @property
    def drawn(self) -> frozenset[str]:
        """As `LabelsConfig.drawn`; nothing without labels."""
        return self.labels.drawn if self.labels is not None else frozenset()

    @property
    def tokenizers(self) -> dict[str, TokensConfig]:
        """Settings of each tokenizer by its name, with its `tokenizer`; a single one's name is empty."""
        given = self.tokens or {}
        named = given if isinstance(given, dict) else {"": given}
        default = {"tokenizer": self.models.tokenizer}
        return {name: each if each.tokenizer else each.model_copy(update=default) for name, each in named.items()}

    @property
    def models_used(self) -> dict[str, str]:
        """Name or path of each model that takes part, by role; of several tokenizers "tokenizer.NAME"."""
        tokenizers = {role_of("tokenizer", name): each.tokenizer or "" for name, each in self.tokenizers.items()}
        used = self.models.used(
            labels=self.labels is not None and not self.labels.from_stored,
            tokens="tokenizer" in tokenizers,
            features=self.features is not None,
            detector=self.labels is None or self.labels.needs_detector,
            masker=self.labels is None or self.labels.needs_masker,
        )
        return used | tokenizers

    @property
    def notice(self) -> str:
        """Warning that belongs on every output; empty where all models are official, your own, or plug-ins.

        One untrained model makes the whole mean nothing, so its warning stands for that of demo models as well.
        """
        used = set(self.models_used.values())
        if UNTRAINED in used:
            return UNTRAINED_NOTICE
        return DEMO_NOTICE if used & _DEMO_MODELS else ""

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Self:
        """Validate settings from outside.

        Raises:
            ConfigError: one line for each thing that is wrong; an unknown key gets the nearest right one.
        """
        return parse_settings(cls, settings)
