"""Which segmenter a config means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig
from patchmint.errors import ConfigError
from patchmint.interfaces import Segmenter
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.owlv2.arch import Owlv2Arch, infer_detector
from patchmint.labelers.phrases import plain
from patchmint.labelers.sam import arch as sam
from patchmint.plugins import check_plugin, is_outside, load_plugin
from patchmint.types import Precision
from patchmint.weights.folder import file_in
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate, read_arch


def check_segmenter(models: ModelsConfig, labels: LabelsConfig) -> None:
    """Check the models without loading weights: of a file the header is read, of a published model nothing.

    Raises:
        PluginError: no installed package offers an outside model, or it takes no such settings.
        ConfigError: a setting doesn't fit the segmenter, a plug-in's settings are wrong, or no thresholds can be read.
        WeightsError: a file is missing, damaged, unsafe or of another kind, or the vocabulary isn't the detector's.
    """
    if models.segmenter is not None:
        if is_outside("segmenter", models.segmenter):
            why = (
                f"is for detectors and maskers; the segmenter {models.segmenter} is a plug-in, with settings of its own"
            )
            _refuse(labels, _OF_LABELERS, why)
            check_plugin("patchmint.segmenters", models.segmenter, **models.given(models.segmenter, locate))
        else:
            _check_sam3(models.segmenter, labels)
        return
    if labels.needs_masker and models.masker is not None:
        if is_outside("masker", models.masker):
            check_plugin("patchmint.maskers", models.masker, **models.given(models.masker, locate))
        elif models.masker not in (UNTRAINED, *sam.OFFICIAL):
            read_arch(models.masker, sam.infer_arch)
    if not labels.needs_detector:
        _refuse(labels, ("presence",), "is for a detector's boxes, and none is asked")
        return
    if labels.presence is not None:
        labels.presence.learnt()
    if is_outside("detector", models.detector):
        check_plugin("patchmint.detectors", models.detector, **models.given(models.detector, locate))
        return
    known = {UNTRAINED: dino.TINY, **dino.OFFICIAL}
    arch = known.get(models.detector) or read_arch(models.detector, infer_detector)
    if isinstance(arch, Owlv2Arch):
        if models.vocabulary in (UNTRAINED, *CHECKPOINTS):
            raise ConfigError(
                f"models.vocabulary: OWLv2 reads CLIP's words, not {models.vocabulary}; give its folder as "
                "models.detector, or its tokenizer.json as models.vocabulary"
            )
        arch.words(locate(models.vocabulary, "vocabulary"))
    elif models.vocabulary != UNTRAINED:
        Vocabulary.from_file(locate(models.vocabulary, "vocabulary")).check_fits(arch)


def build_segmenter(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> Segmenter:
    """Build the segmenter that the settings name, and load its weights.

    Args:
        models: their names or paths.
        labels: what makes labels of their answers.
        device: where they run.
        precision: number format of their large products.
        compiled: compile what is worth it, on a GPU; an outside segmenter sees to itself.

    Raises:
        WeightsError: a checkpoint is missing, damaged, unsafe or of another architecture.
        PluginError: an outside model is missing or broken.
    """
    if models.segmenter is not None:
        if not is_outside("segmenter", models.segmenter):
            return _build_sam3(models.segmenter, labels, device, precision)
        given = models.given(models.segmenter, locate) | {"precision": precision}
        return cast(Segmenter, load_plugin("patchmint.segmenters", models.segmenter, Segmenter, device, **given))
    # upstream's classes take seconds to import, which a build with an outside segmenter need not wait for
    from patchmint.labelers.grounded_sam import build_grounded_sam

    segmenter = build_grounded_sam(models, labels, device, precision, compiled=compiled)
    if labels.tiles is None:
        return segmenter
    from patchmint.labelers.tiled import TiledSegmenter

    return TiledSegmenter(segmenter, labels.tiles)


_OF_BOXES = ("negative_phrases", "nms", "box_area", "presence", "tiles")
_OF_LABELERS = (*_OF_BOXES, "phrase_thresholds", "mask_area", "clip_to_box")


def _refuse(labels: LabelsConfig, settings: Sequence[str], why: str) -> None:
    given = [setting for setting in settings if getattr(labels, setting) not in (None, False)]
    if given:
        raise ConfigError(f"labels.{given[0]} {why}: leave it out")


def _check_sam3(name: str, labels: LabelsConfig) -> None:
    _refuse(labels, _OF_BOXES, "is for detectors; SAM 3 finds masks without one")
    read_arch(name, sam.infer_sam3)
    file_in(locate(name).parent, ["tokenizer.json"])


def _build_sam3(name: str, labels: LabelsConfig, device: str, precision: Precision) -> Segmenter:
    import torch

    from patchmint.compute.devices import resolve_precision
    from patchmint.labelers.mask_rules import MaskRules

    try:
        from patchmint.labelers.sam.sam3 import Sam3
        from patchmint.labelers.sam.sam3_model import load_sam3
    except ImportError as error:
        raise ConfigError("this transformers has no SAM 3; install transformers 5") from error
    from patchmint.weights.loading import load_named

    state = load_named(name)
    model, words = load_sam3(state, sam.infer_sam3(state.tensors, state.metadata))
    return Sam3(
        model,
        words,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        threshold=labels.box_threshold,
        thresholds={plain(key): value for key, value in (labels.phrase_thresholds or {}).items()},
        splits=labels.prompt == "phrases",
        coverage=labels.coverage,
        rules=MaskRules(labels.mask_area, labels.clip_to_box),
    )
