"""Grounded SAM from the models that a config names."""

from __future__ import annotations

import torch

from patchmint.compute.precision import resolve_precision
from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig
from patchmint.labelers.grounded_sam import GroundedSam
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.detector import GroundingDino, PromptMode
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.masker import SamMasker
from patchmint.types import Precision
from patchmint.weights.loading import load_named
from patchmint.weights.store import locate


def build_grounded_sam(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> GroundedSam:
    """Build detector and masker, and load their weights; see `patchmint.labelers.build.build_segmenter`.

    Raises:
        WeightsError: a checkpoint is missing, damaged, unsafe or of another architecture.
    """
    return GroundedSam(
        _build_detector(models, labels, device, precision, compiled=compiled),
        build_masker(models, labels, device, precision, compiled=compiled),
    )


def _build_detector(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> GroundingDino:
    if models.detector == UNTRAINED:
        model, arch = dino_model.untrained(dino_arch.TINY), dino_arch.TINY
    else:
        model, arch = dino_model.load_grounding_dino(load_named(models.detector))
    vocabulary = (
        Vocabulary.of_characters(arch.text_vocabulary)
        if models.vocabulary == UNTRAINED
        else Vocabulary.from_file(locate(models.vocabulary))
    )
    return GroundingDino(
        model,
        arch,
        vocabulary,
        prompt=PromptMode(labels.prompt),
        box_threshold=labels.box_threshold,
        text_threshold=labels.text_threshold,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        compiled=compiled,
    )


def build_masker(
    models: ModelsConfig, labels: LabelsConfig, device: str, precision: Precision = "auto", *, compiled: bool = False
) -> SamMasker:
    """Build the masker alone, and load its weights.

    Raises:
        WeightsError: as `build_grounded_sam`.
    """
    if models.masker == UNTRAINED:
        model = sam_model.untrained(sam_arch.TINY, seed=0)
    else:
        model = sam_model.load_sam(load_named(models.masker))
    return SamMasker(
        model,
        device=device,
        precision=resolve_precision(precision, device, cpu=torch.bfloat16, gpu=torch.bfloat16),
        coverage=labels.coverage,
        compiled=compiled,
    )
