"""Statistics of a data set: from the sidecars in one pass, and of where labels lie from a spread of the samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchmint.datasets.dataset import Dataset
from patchmint.datasets.notice import dataset_notice
from patchmint.datasets.rows import Progress, iter_tables
from patchmint.errors import InputError, ShardError
from patchmint.inspection.codes.books import tokens_layout
from patchmint.inspection.codes.index import code_entries
from patchmint.inspection.stats.distributions import Counts, Distribution
from patchmint.inspection.stats.positions import Positions, label_positions
from patchmint.inspection.stats.rejects import RejectCount, count_rejects
from patchmint.inspection.stats.usage import BookUsage, book_usage
from patchmint.shards.layout import TokensLayout

_COLUMNS = (
    "size",
    "width",
    "height",
    "format",
    "texts",
    "label_shares",
    "phrase_texts",
    "scores",
    "codes",
    "code_counts",
)
_ROWS = 4096
_SHARE_STEPS = 10_000
_KILOBYTE = 1000

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelStats:
    """Labels and what they were made of.

    Attributes:
        shares: by text, share of the patches that are 1 (to 0.0001).
        empty_texts: texts that no patch is kept for.
        phrases: found, in all texts.
        phrases_per_text: by text.
        scores: of phrases (stored with four decimals, so exact); None where the model gives none.
        unscored: phrases without a score.
    """

    shares: Distribution
    empty_texts: int
    phrases: int
    phrases_per_text: Distribution
    scores: Distribution | None
    unscored: int


@dataclass(frozen=True)
class Stats:
    """Everything. Where no sample was written, distributions are None.

    Attributes:
        dataset: as given.
        notice: a warning that belongs on every use; else empty.
        samples: in the shards.
        shards: that have samples.
        unbuilt: units of the plan that aren't done yet.
        rejects: samples that are in no shard, by stage and reason, the most frequent first.
        formats: image format -> samples.
        texts: number of texts.
        texts_per_image: by sample.
        words_per_text: by text; words are what stands between spaces.
        width: of images in pixels, orientation applied.
        height: the same.
        kilobytes: of samples in the tars, in 1000 bytes, image and arrays together.
        labels: None where there are none.
        codes: by codebook; empty where there are none.
        positions: where labels lie; None where there are none, or none were read.
    """

    dataset: str
    notice: str
    samples: int
    shards: int
    unbuilt: int
    rejects: tuple[RejectCount, ...]
    formats: dict[str, int]
    texts: int
    texts_per_image: Distribution | None
    words_per_text: Distribution | None
    width: Distribution | None
    height: Distribution | None
    kilobytes: Distribution | None
    labels: LabelStats | None
    codes: tuple[BookUsage, ...]
    positions: Positions | None


def collect_stats(dataset: Dataset, samples: int, progress: Progress | None = None) -> Stats:
    """Collect the statistics. Memory doesn't grow with the data set.

    Args:
        dataset: what to look into.
        samples: labels are read of so many samples, evenly spread; 0 = of all.
        progress: told while sidecars are read, and then, from 0 again, while labels are.

    Raises:
        InputError: there are neither samples nor rejects.
        ShardError: a sidecar, a table of rejects or a sample is damaged.
        StorageError: one can't be read.
    """
    rejects = count_rejects(dataset)
    if not dataset.samples and not rejects:
        raise InputError(f"{dataset.uri} has neither samples nor rejects, so there is nothing to count")
    sums = _Sums(dataset, _tokens(dataset))
    for _, table in iter_tables(dataset, _COLUMNS, progress):
        for batch in table.to_batches(max_chunksize=_ROWS):
            sums.add(batch)
    labelled = sums.labels()
    return Stats(
        dataset=dataset.uri,
        notice=dataset_notice(dataset),
        samples=dataset.samples,
        shards=sum(shard.samples > 0 for shard in dataset.shards),
        unbuilt=dataset.unbuilt,
        rejects=rejects,
        formats=dict(sums.formats.most_common()),
        texts=sums.texts,
        **sums.distributions(),
        labels=labelled,
        codes=book_usage(sums.codes, sums.tokens) if sums.tokens is not None else (),
        positions=label_positions(dataset, samples, progress) if labelled is not None else None,
    )


def _tokens(dataset: Dataset) -> TokensLayout | None:
    try:
        return tokens_layout(dataset)
    except InputError:  # there are none
        return None


class _Sums:
    """What is summed up over all rows."""

    def __init__(self, dataset: Dataset, tokens: TokensLayout | None) -> None:
        self._uri = dataset.uri
        self.tokens = tokens
        self.codes = np.zeros(sum(tokens.codebook_sizes) if tokens is not None else 0, np.int64)
        self.formats: Counter[str] = Counter()
        self.texts = 0
        self.plain = {
            "texts_per_image": Counts(),
            "words_per_text": Counts(),
            "width": Counts(),
            "height": Counts(),
            "kilobytes": Counts(),
        }
        self._shares = Counts(_SHARE_STEPS, full=1)
        self._phrases_per_text = Counts()
        self._scores = Counts(_SHARE_STEPS, full=1)
        self._empty = self._phrases = self._unscored = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows of a sidecar in."""
        texts = pc.list_value_length(batch.column("texts")).to_numpy()
        self.texts += int(texts.sum())
        self.plain["texts_per_image"].add(texts)
        self.plain["words_per_text"].add(_numbers(pc.count_substring_regex(batch.column("texts").flatten(), r"\S+")))
        for name, column, unit in (("width", "width", 1), ("height", "height", 1), ("kilobytes", "size", _KILOBYTE)):
            values = batch.column(column).to_numpy() / unit
            self._check(_within(values, 0, np.inf))
            self.plain[name].add(values)
        for entry in pc.value_counts(batch.column("format")).to_pylist():
            self.formats[entry["values"]] += entry["counts"]
        if self.tokens is not None:
            numbers, times, _ = code_entries(batch, len(self.codes), self._uri)
            self.codes += np.bincount(numbers, weights=times, minlength=len(self.codes)).astype(np.int64)
        shares = _numbers(batch.column("label_shares").flatten())
        if shares.size:
            self._add_labels(batch, texts, shares)

    def _add_labels(self, batch: pa.RecordBatch, texts: _Array, shares: _Array) -> None:
        lengths = pc.list_value_length(batch.column("phrase_texts")).to_numpy()
        which = _numbers(batch.column("phrase_texts").flatten()).astype(np.int64)
        of_sample = np.repeat(texts, lengths)
        scores = _numbers(batch.column("scores").flatten())
        sound = len(shares) == texts.sum() and len(scores) == len(which) and ((which >= 0) & (which < of_sample)).all()
        self._check(bool(sound) and _within(shares, 0, 1) and _within(scores, -1, 1))
        first_text = np.cumsum(texts) - texts
        phrases = np.bincount(np.repeat(first_text, lengths) + which, minlength=int(texts.sum()))
        self._phrases_per_text.add(phrases)
        self._phrases += len(which)
        self._shares.add(shares)
        self._empty += int((shares == 0).sum())
        self._unscored += int((scores < 0).sum())
        self._scores.add(scores[scores >= 0])

    def _check(self, sound: bool) -> None:
        if not sound:
            raise ShardError(
                f"a sidecar of {self._uri} has sizes, label shares, phrases or scores that are impossible; run "
                f"`patchmint inspect verify {self._uri}`",
                uri=self._uri,
            )

    def distributions(self) -> dict[str, Distribution | None]:
        """Of what every sample has."""
        found = {name: counts.distribution() for name, counts in self.plain.items()}
        if self.formats and not all(found.values()):
            message = f"the sidecars of {self._uri} hold no texts; run `patchmint inspect verify {self._uri}`"
            raise ShardError(message, uri=self._uri)
        return found

    def labels(self) -> LabelStats | None:
        """What was found out about labels; None where there are none."""
        shares, phrases_per_text = self._shares.distribution(), self._phrases_per_text.distribution()
        if shares is None or phrases_per_text is None:
            return None
        scores = self._scores.distribution()
        return LabelStats(shares, self._empty, self._phrases, phrases_per_text, scores, self._unscored)


def _within(values: _Array, low: float, high: float) -> bool:
    """Whether all are; NaN isn't."""
    return bool(((values >= low) & (values <= high)).all())


def _numbers(values: pa.Array) -> _Array:
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
