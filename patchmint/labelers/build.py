"""Which segmenter a config means."""

from __future__ import annotations

from typing import cast

from patchmint.config import LabelsConfig, ModelsConfig
from patchmint.interfaces import Segmenter
from patchmint.plugins import load_plugin
from patchmint.types import Precision


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
        return cast(Segmenter, load_plugin("patchmint.segmenters", models.segmenter, Segmenter, device))
    # upstream's classes take seconds to import, which a build with an outside segmenter need not wait for
    from patchmint.labelers.grounded_sam import build_grounded_sam

    return build_grounded_sam(models, labels, device, precision, compiled=compiled)
