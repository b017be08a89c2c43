"""From instances to patch labels: which patches does each text, and each phrase, talk about?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchmint.geometry import Placement, coverage_to_uint8
from patchmint.interfaces import Instances
from patchmint.types import Span

Grid = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PatchLabels:
    """Labels of one image, a grid a text.

    Attributes:
        selector: uint8 (T, rows, cols), 1 where a patch is kept.
        coverage: uint8 (T, rows, cols), covered share 0..255, rounded up.
    """

    selector: Grid
    coverage: Grid


@dataclass(frozen=True)
class PhraseLabel:
    """Labels of one phrase: of all instances that go by the same characters of the same text.

    Attributes:
        text_index: which of the image's texts.
        span: characters of it.
        selector: uint8 (rows, cols).
        coverage: uint8 (rows, cols).
    """

    text_index: int
    span: Span
    selector: Grid
    coverage: Grid


def label_texts(instances: Instances, texts: int, placement: Placement, min_coverage: float) -> PatchLabels:
    """Label patches per text: a patch is kept if the union of the text's masks covers enough of it.

    MaVEn (arXiv 2408.12321, section 3.3) keeps a patch that overlaps a mask at all, hence its `min_coverage` is 0.

    Args:
        instances: what was found in the image, for all its texts.
        texts: T, how many texts the image has; one without instances gets an all-zero grid.
        placement: the grid on the image.
        min_coverage: share of a patch that must be exceeded, 0..1.
    """
    coverage = np.zeros((texts, *placement.shape), dtype=np.uint8)
    for text in range(texts):
        members = np.flatnonzero(instances.text_index == text).tolist()
        coverage[text] = coverage_to_uint8(instances.masks.coverage(members, placement))
    return PatchLabels(select_patches(coverage, min_coverage), coverage)


def label_phrases(instances: Instances, placement: Placement, min_coverage: float) -> list[PhraseLabel]:
    """Label patches per phrase, in order of text and place in the text."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (text, (start, end)) in enumerate(zip(instances.text_index, instances.spans, strict=True)):
        groups.setdefault((int(text), int(start), int(end)), []).append(index)
    labels = []
    for (text, start, end), members in sorted(groups.items()):
        coverage = coverage_to_uint8(instances.masks.coverage(members, placement))
        labels.append(PhraseLabel(text, (start, end), select_patches(coverage, min_coverage), coverage))
    return labels


def select_patches(coverage: Grid, min_coverage: float) -> Grid:
    """Turn stored coverage into labels: 1 where a patch is covered by more than `min_coverage`.

    Coverage is rounded up, so the threshold is too: a patch covered by exactly that share is not kept (nor one that is
    over it by less than the 1/255 that is stored).
    """
    threshold = coverage_to_uint8(np.array(min_coverage))
    return (coverage > threshold).astype(np.uint8)
