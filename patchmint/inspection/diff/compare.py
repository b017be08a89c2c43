"""What changed between two builds: settings, keys, texts, phrases, labels and codes.

Not compared: images, boxes, coverage and features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.rows import Progress
from patchmint.inspection.diff.members import Codes, Labels, compare_members
from patchmint.inspection.diff.settings import Change, compare_settings, describe_gaps
from patchmint.inspection.diff.tables import digest_rows, mean_label_share, pair
from patchmint.inspection.find.samples import read_keys
from patchmint.types import Integers


@dataclass(frozen=True)
class Some:
    """Some samples.

    Attributes:
        count: how many there are.
        first: the keys of the first of them.
    """

    count: int
    first: list[str]


@dataclass(frozen=True)
class Difference:
    """What is otherwise in B than in A.

    Attributes:
        settings: fields of dataset.json.
        gaps: what couldn't be compared, and why; no difference by itself.
        samples: of A, of B, and of both.
        only_a: keys that only A has.
        only_b: keys that only B has.
        texts: samples of both with other texts.
        phrases: samples of both with other phrases or scores.
        phrase_counts: phrases that were found in the samples of both, in A and in B.
        label_shares: mean over the texts of the samples of both, in A and in B; None where there are no labels.
        labels: patch by patch.
        codes: cell by cell.
    """

    settings: list[Change]
    gaps: list[str]
    samples: tuple[int, int, int]
    only_a: Some
    only_b: Some
    texts: Some
    phrases: Some
    phrase_counts: tuple[int, int]
    label_shares: tuple[float | None, float | None]
    labels: Labels
    codes: Codes

    @property
    def is_same(self) -> bool:
        """Whether nothing that was compared differs, and nothing was in the way of comparing it."""
        samples = (self.only_a, self.only_b, self.texts, self.phrases)
        members = (self.labels, self.codes)
        return (
            not self.settings
            and not any(some.count for some in samples)
            and not any(part.obstacle or part.changed or part.other_shape for part in members)
            and self.label_shares[0] == self.label_shares[1]
        )


def compare(a: Dataset, b: Dataset, *, samples: int = 0, top: int = 20, progress: Progress | None = None) -> Difference:
    """Compare two data sets, sample by sample where they have the same keys.

    Args:
        a: the older.
        b: the newer.
        samples: compare labels and codes of so many, evenly spread over those that both have; 0: of all.
        top: so many keys of each kind are named.
        progress: told of shards while the sidecars are read, and then of samples.

    Raises:
        ShardError: something of theirs is damaged.
        StorageError: it can't be read.
    """
    rows_a, rows_b = digest_rows(a, progress), digest_rows(b, progress)
    pairs = pair(rows_a, rows_b)
    common_a, common_b = rows_a[pairs.a], rows_b[pairs.b]
    chosen = spread(len(pairs.a), samples)
    labels, codes = compare_members(a, b, (pairs.a[chosen], pairs.b[chosen]), top, progress)
    return Difference(
        settings=compare_settings(a, b),
        gaps=describe_gaps(a, b),
        samples=(a.samples, b.samples, len(pairs.a)),
        only_a=_some(a, pairs.only_a, top),
        only_b=_some(b, pairs.only_b, top),
        texts=_some(a, pairs.a[common_a["texts"] != common_b["texts"]], top),
        phrases=_some(a, pairs.a[common_a["phrases"] != common_b["phrases"]], top),
        phrase_counts=(int(np.sum(common_a["phrase_count"])), int(np.sum(common_b["phrase_count"]))),
        label_shares=(mean_label_share(common_a), mean_label_share(common_b)),
        labels=labels,
        codes=codes,
    )


def _some(dataset: Dataset, indices: Integers, top: int) -> Some:
    return Some(len(indices), list(read_keys(dataset, indices[:top])))
