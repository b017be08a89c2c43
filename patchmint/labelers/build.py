"""Which segmenter a config means."""

from __future__ import annotations

from typing import cast

from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig
from patchmint.interfaces import Segmenter
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam
from patchmint.plugins import check_plugin, load_plugin
from patchmint.types import Precision
from patchmint.weights.store import locate, read_arch


def check_segmenter(models: ModelsConfig, labels: LabelsConfig) -> None:
    """Check the models without loading weights: of a file the header is read, of a published model nothing.

    Raises:
        PluginError: no installed package offers the outside segmenter.
        WeightsError: a file is missing, damaged, unsafe or of another kind, or the vocabulary isn't the detector's.
    """
    if models.segmenter is not None:
        check_plugin("patchmint.segmenters", models.segmenter, **models.given(models.segmenter, locate))
        return
    if labels.needs_masker and models.masker is not None and models.masker not in (UNTRAINED, *sam.OFFICIAL):
        read_arch(models.masker, sam.infer_arch)
    if not labels.needs_detector:
        return
    known = {UNTRAINED: dino.TINY, **dino.OFFICIAL}
    arch = known.get(models.detector) or read_arch(models.detector, dino.infer_arch)
    if models.vocabulary != UNTRAINED:
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
        PluginError: an outside segmenter is missing or broken.
    """
    if models.segmenter is not None:
        given = models.given(models.segmenter, locate) | {"precision": precision}
        return cast(Segmenter, load_plugin("patchmint.segmenters", models.segmenter, Segmenter, device, **given))
    # upstream's classes take seconds to import, which a build with an outside segmenter need not wait for
    from patchmint.labelers.grounded_sam import build_grounded_sam

    segmenter = build_grounded_sam(models, labels, device, precision, compiled=compiled)
    if labels.tiles is None:
        return segmenter
    from patchmint.labelers.tiled import TiledSegmenter

    return TiledSegmenter(segmenter, labels.tiles)
