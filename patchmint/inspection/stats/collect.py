"""Statistics of a data set: from the sidecars in one pass, and of where labels lie from a spread of the samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.ledger import RejectCount, count_rejects
from patchmint.datasets.reader import dataset_notice, iter_stored, sample_at
from patchmint.datasets.rows import image_sizes, iter_tables, size_columns
from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.geometry import Fit, Grid, NativeGrid, PatchGrid, Placement
from patchmint.inspection.codes.index import book_starts, code_entries, has_padding, open_code_index, tokens_layout
from patchmint.inspection.stats.distributions import Counts, Distribution
from patchmint.shards.endings import COVERAGE, DOCUMENT, SELECTOR
from patchmint.shards.layout import GridLayout, TokensLayout
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import EntryDocument
from patchmint.types import Integers, Progress, Size

_COLUMNS = ("size", "texts", "label_shares", "phrase_texts", "scores", "origins", "codes", "code_counts")
_OF_PICTURES = ("format",)
_OF_DOCUMENTS = ("images", "formats", "share_images", "share_texts", "phrase_images")
_ROWS = 4096
_SHARE_STEPS = 10_000
_PARTS = 24
# Of a side of the image, where positions are relative.
_KILOBYTE = 1000

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelStats:
    """Labels and what they were made of.

    Attributes:
        labels: how many there are: one a text, of documents one for each image and text that labels it.
        shares: by label, share of the patches that show any of the image that are 1 (to 0.0001).
        empty_texts: labels that keep no patch.
        phrases: found, in all texts and images.
        phrases_per_text: by label.
        scores: of phrases (stored with four decimals, so exact); None where the model gives none.
        unscored: phrases without a score.
        origins: how many phrases are of each origin (`patchmint.types.Origin`).
        trust: of labels, how far they can be relied on; None where nobody asked (`patchmint trust`).
    """

    labels: int
    shares: Distribution
    empty_texts: int
    phrases: int
    phrases_per_text: Distribution
    scores: Distribution | None
    unscored: int
    origins: dict[str, int]
    trust: Distribution | None = None


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
        dropped: images that documents were written without, in the same way.
        images: number of images; of pictures as many as samples.
        formats: image format -> images.
        images_per_sample: by document; None where samples are pictures.
        texts: number of texts.
        texts_per_sample: by sample.
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
    dropped: tuple[RejectCount, ...]
    images: int
    formats: dict[str, int]
    images_per_sample: Distribution | None
    texts: int
    texts_per_sample: Distribution | None
    words_per_text: Distribution | None
    width: Distribution | None
    height: Distribution | None
    kilobytes: Distribution | None
    labels: LabelStats | None
    codes: tuple[BookUsage, ...]
    positions: Positions | None


def collect_stats(dataset: Dataset, samples: int, progress: Progress | None = None, *, padding: bool = False) -> Stats:
    """Collect the statistics. Memory doesn't grow with the data set.

    Args:
        dataset: what to look into.
        samples: labels are read of so many samples, evenly spread; 0 = of all.
        progress: told while sidecars are read, and then, from 0 again, while codes are indexed and labels are read.
        padding: count cells that show nothing but padding too. Codes then come from the sidecars, else from the index.

    Raises:
        InputError: there are neither samples nor rejects; or the index's cache can't be written.
        ShardError: a sidecar, a table of rejects or a sample is damaged.
        StorageError: one can't be read.
    """
    rejects, dropped = count_rejects(dataset)
    if not dataset.samples and not rejects:
        raise InputError(f"{dataset.uri} has neither samples nor rejects, so there is nothing to count")
    tokens, grid = _tokens(dataset), None if padding else _padded_grid(dataset)
    sums = _Sums(dataset, tokens, grid)
    kind = _OF_DOCUMENTS if dataset.has_documents else _OF_PICTURES
    kind = (*kind, "trusts") if dataset.has_trust else kind
    for _, table in iter_tables(dataset, [*_COLUMNS, *kind, *size_columns(dataset)], progress):
        for batch in table.to_batches(max_chunksize=_ROWS):
            sums.add(batch)
    labelled, codes = sums.labels(), sums.codes
    if tokens is not None and has_padding(tokens) and dataset.samples and not padding:
        codes = open_code_index(dataset, tokens, progress).totals
    return Stats(
        dataset=dataset.uri,
        notice=dataset_notice(dataset),
        samples=dataset.samples,
        shards=sum(shard.samples > 0 for shard in dataset.shards),
        unbuilt=dataset.unbuilt,
        rejects=rejects,
        dropped=dropped,
        images=sums.images,
        formats=dict(sums.formats.most_common()),
        texts=sums.texts,
        **sums.distributions(),
        labels=labelled,
        codes=book_usage(codes, tokens) if tokens is not None else (),
        positions=label_positions(dataset, samples, grid, progress) if labelled is not None else None,
    )


def _tokens(dataset: Dataset) -> TokensLayout | None:
    try:
        return tokens_layout(dataset)
    except InputError:  # there are none
        return None


def _padded_grid(dataset: Dataset) -> Grid | None:
    """The grid of the labels, where it may have cells of padding; None where it hasn't, or isn't known."""
    try:
        if dataset.manifest is not None:
            grid: Grid = dataset.grid
        else:
            told = sample_at(dataset, 0).images[0].grid
            if told.placement_json:
                return None
            grid = PatchGrid(told.rows, told.cols, told.patch_px, Fit(told.fit))
    except (InputError, ShardError, ConfigError, ValueError):
        return None
    return None if grid.fit in (Fit.CROP, Fit.SQUASH, NativeGrid.fit) else grid


@lru_cache(maxsize=1 << 14)
def _cells(grid: Grid, size: Size) -> tuple[int, int]:
    """Cells of an image's labels, and those of them that show any of the image."""
    inside = grid.place(size).inside
    return inside.size, int(np.count_nonzero(inside))


@dataclass(frozen=True)
class Positions:
    """Mean labels by position, of the view that shows the whole image.

    Attributes:
        samples: that were read, evenly spread over the data set.
        texts: labels of these: a text's, in each image that it labels.
        relative: positions are equal parts of the image, since rows and columns depend on the image; else patches.
        selector: (rows, cols), share of the texts that keep the patch, 0..1, of those whose image it shows any of.
        coverage: (rows, cols), mean covered share of the patch, 0..1.
        centre_bias: mean of `selector` over the middle (half the rows and half the columns), over that of the rest;
            None where the rest is never kept. Patches that no image reaches aren't among them.
    """

    samples: int
    texts: int
    relative: bool
    selector: tuple[tuple[float, ...], ...]
    coverage: tuple[tuple[float, ...], ...]
    centre_bias: float | None


def label_positions(dataset: Dataset, samples: int, padded: Grid | None, progress: Progress | None = None) -> Positions:
    """Average labels by position.

    Args:
        dataset: that has labels.
        samples: how many to read, evenly spread; 0 = all.
        padded: the grid, if its cells of padding don't count.
        progress: told after each sample.

    Raises:
        ShardError: a sample is damaged, or its labels aren't of the data set's grid.
        StorageError: one can't be read.
    """
    grid = dataset.manifest.layout.grid if dataset.manifest is not None else sample_at(dataset, 0).images[0].grid
    relative = grid.rows == 0 if isinstance(grid, GridLayout) else bool(grid.placement_json)
    # Grows with the first sample: a grid may be said to be of any size.
    sums: _Array = np.zeros((2, 1, 1))
    counted: _Array = np.zeros((1, 1))
    texts = 0
    chosen = spread(dataset.samples, samples)
    members = (DOCUMENT, SELECTOR, COVERAGE) if relative or padded is not None else (SELECTOR, COVERAGE)
    for sample, image, selector, coverage in _labels(dataset, chosen, members, progress):
        placement = image.placement if relative and image is not None else None
        if selector is None or coverage is None or selector.ndim != 3 or selector.shape != coverage.shape:
            fits = False
        elif placement is not None:
            fits = selector.shape[1:] == placement.shape
        else:
            fits = not relative and not selector.shape[1] % grid.rows and selector.shape[2] == grid.cols
        if not fits or selector is None or coverage is None:
            shown = "its grid" if relative else f"{grid.rows} x {grid.cols} patches"
            raise ShardError(
                f"sample {sample.key!r} of {dataset.uri} has no labels of {shown}; run "
                f"`patchmint inspect verify {dataset.uri}`"
            )
        texts += len(selector)
        rows, cols = placement.cells_of(placement.overview) if placement else (slice(grid.rows), slice(None))
        summed = np.stack([(selector[:, rows, cols] != 0).sum(0, np.int64), coverage[:, rows, cols].sum(0, np.int64)])
        sums = sums + (_on_parts(summed, placement) if placement else summed)
        reached: _Array = np.ones(sums.shape[1:], np.bool_)
        if padded is not None and not relative and image is not None:
            reached = padded.place((image.height, image.width)).inside[rows, cols] > 0
        counted = counted + len(selector) * reached
    means = sums / np.maximum(counted, 1) / np.array([1, 255])[:, None, None]
    selectors, coverages = (tuple(tuple(row) for row in mean.tolist()) for mean in means)
    return Positions(len(chosen), texts, relative, selectors, coverages, _centre_bias(means[0], counted > 0))


def _labels(
    dataset: Dataset, chosen: Integers, members: Sequence[str], progress: Progress | None
) -> Iterator[tuple[StoredSample, EntryDocument | None, _Array | None, _Array | None]]:
    """The labels of each image of some samples; what the image is, where KEY.json is among the members."""
    for _, sample in iter_stored(dataset, chosen, members, progress):
        images = sample.key_json.images if DOCUMENT in members else ()
        arrays = zip_longest(images, sample.arrays(SELECTOR), sample.arrays(COVERAGE))
        for image, selector, coverage in list(arrays) or [(None, None, None)]:
            yield sample, image, selector, coverage


def _on_parts(labels: _Array, placement: Placement) -> _Array:
    """Means of (n, rows, cols), of the view that shows the whole, over equal parts of the image, by area."""
    edges = placement.edges(placement.views[placement.overview])
    for axis, (borders, length) in enumerate(zip(edges, placement.image_size, strict=True), start=1):
        parts = np.linspace(0, length, _PARTS + 1)[:, None]
        shared = np.minimum(parts[1:], borders[1:]) - np.maximum(parts[:-1], borders[:-1])
        labels = np.moveaxis(np.tensordot(shared.clip(0) * _PARTS / length, labels, (1, axis)), 0, axis)
    return labels


def _centre_bias(kept: _Array, counted: _Array) -> float | None:
    rows, cols = kept.shape
    middle = np.zeros(kept.shape, np.bool_)
    middle[rows // 4 : rows - rows // 4, cols // 4 : cols - cols // 4] = True
    around = float(kept[~middle & counted].mean()) if (~middle & counted).any() else 0.0
    return float(kept[middle & counted].mean()) / around if around else None


@dataclass(frozen=True)
class BookUsage:
    """Use of one codebook.

    Attributes:
        book: which, from 0.
        size: codes that it has.
        occurrences: codes in the data set that are of it.
        used: codes that are there at least once.
        dead: codes that never are.
        perplexity: 2 ** entropy of the codes' shares: so many codes, equally frequent, would be as hard to guess. At
            most `size`.
        counts: how often each code is there.
    """

    book: int
    size: int
    occurrences: int
    used: int
    dead: int
    perplexity: float
    counts: tuple[int, ...]


def book_usage(counts: Integers, tokens: TokensLayout) -> tuple[BookUsage, ...]:
    """Use of each codebook.

    Args:
        counts: int64, how often each code is there; codebooks one after another.
        tokens: what the codes are.
    """
    starts = book_starts(tokens)
    parts = [counts[starts[book] : starts[book + 1]] for book in range(len(tokens.codebook_sizes))]
    return tuple(_usage(book, part) for book, part in enumerate(parts))


def _usage(book: int, counts: Integers) -> BookUsage:
    total, used = int(counts.sum()), int((counts > 0).sum())
    shares = counts[counts > 0] / max(total, 1)
    return BookUsage(
        book=book,
        size=len(counts),
        occurrences=total,
        used=used,
        dead=len(counts) - used,
        perplexity=float(2 ** -(shares * np.log2(shares)).sum()) if total else 0.0,
        counts=tuple(counts.tolist()),
    )


class _Sums:
    """What is summed up over all rows."""

    def __init__(self, dataset: Dataset, tokens: TokensLayout | None, padded: Grid | None) -> None:
        self._uri = dataset.uri
        self._padded = padded
        self.tokens = tokens
        self.codes = np.zeros(sum(tokens.codebook_sizes) if tokens is not None else 0, np.int64)
        self.formats: Counter[str] = Counter()
        self.images = self.texts = 0
        self.plain = {
            "images_per_sample": Counts(),
            "texts_per_sample": Counts(),
            "words_per_text": Counts(),
            "width": Counts(),
            "height": Counts(),
            "kilobytes": Counts(),
        }
        self._shares = Counts(_SHARE_STEPS, full=1)
        self._phrases_per_text = Counts()
        self._scores, self._trust = Counts(_SHARE_STEPS, full=1), Counts(_SHARE_STEPS, full=1)
        self._labels = self._empty = self._phrases = self._unscored = 0
        self._origins: Counter[str] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows of a sidecar in."""
        texts = pc.list_value_length(batch.column("texts")).to_numpy()
        self.texts += int(texts.sum())
        self.plain["texts_per_sample"].add(texts)
        self.plain["words_per_text"].add(_numbers(pc.count_substring_regex(batch.column("texts").flatten(), r"\S+")))
        documents = "images" in batch.schema.names
        images = batch.column("images").to_numpy() if documents else np.ones(batch.num_rows, np.int64)
        sizes = image_sizes(batch)
        self._check(list(map(len, sizes)) == images.tolist())
        self.images += int(images.sum())
        if documents:
            self.plain["images_per_sample"].add(images)
        sides = np.array([size for of_one in sizes for size in of_one], np.float64).reshape(-1, 2)
        kilobytes = batch.column("size").to_numpy() / _KILOBYTE
        for name, values in (("height", sides[:, 0]), ("width", sides[:, 1]), ("kilobytes", kilobytes)):
            self._check(_within(values, 0, np.inf))
            self.plain[name].add(values)
        formats = batch.column("formats").flatten() if documents else batch.column("format")
        for entry in pc.value_counts(formats).to_pylist():
            self.formats[entry["values"]] += entry["counts"]
        if self.tokens is not None:
            numbers, times, _ = code_entries(batch, len(self.codes), self._uri)
            self.codes += np.bincount(numbers, weights=times, minlength=len(self.codes)).astype(np.int64)
        shares = _numbers(batch.column("label_shares").flatten())
        if shares.size:
            self._add_labels(batch, texts, images, sizes, shares)

    def _add_labels(
        self, batch: pa.RecordBatch, texts: _Array, images: _Array, sizes: list[list[Size]], shares: _Array
    ) -> None:
        first_image, first_text = np.cumsum(images) - images, np.cumsum(texts) - texts
        every = int(texts.sum())

        def numbers(column: str) -> tuple[_Array, _Array]:
            """A column's numbers, and the row of each."""
            lengths = pc.list_value_length(batch.column(column)).to_numpy()
            return _numbers(batch.column(column).flatten()).astype(np.int64), np.repeat(np.arange(len(texts)), lengths)

        def pairs(texts_column: str, images_column: str) -> tuple[_Array, _Array]:
            """Image (of the batch) and pair of image and text of each entry; the first image where all are pictures."""
            which, rows = numbers(texts_column)
            image = numbers(images_column)[0] if images_column in batch.schema.names else np.zeros(len(which), np.int64)
            self._check(len(image) == len(which) and bool(_below(which, texts[rows]) and _below(image, images[rows])))
            image = image + first_image[rows]
            return image, image * every + first_text[rows] + which

        if "share_images" in batch.schema.names:
            of_image, labelled = pairs("share_texts", "share_images")
        else:
            of_image = np.repeat(np.arange(len(texts)), texts)
            labelled = of_image * every + np.arange(every)
        _, found = pairs("phrase_texts", "phrase_images")
        scores = _numbers(batch.column("scores").flatten())
        places = np.searchsorted(labelled, found)
        self._check(len(shares) == len(labelled) and len(scores) == len(found) and bool((np.diff(labelled) > 0).all()))
        self._check(bool((places < len(labelled)).all()) and bool((labelled[places] == found).all()))
        self._check(_within(shares, 0, 1) and _within(scores, -1, 1))
        self._phrases_per_text.add(np.bincount(places, minlength=len(labelled)))
        self._labels += len(shares)
        self._phrases += len(found)
        origins = batch.column("origins").flatten()
        self._origins["model"] += len(found) - len(origins)  # version 1 has none
        for entry in pc.value_counts(origins).to_pylist():
            self._origins[entry["values"]] += entry["counts"]
        self._shares.add(shares if self._padded is None else self._of_shown(self._padded, sizes, of_image, shares))
        self._empty += int((shares == 0).sum())
        self._unscored += int((scores < 0).sum())
        self._scores.add(scores[scores >= 0])
        if "trusts" in batch.schema.names:
            trust = _numbers(batch.column("trusts").flatten())
            self._check(len(trust) == len(shares) and _within(trust, 0, 1))
            self._trust.add(trust)

    def _of_shown(self, padded: Grid, sizes: list[list[Size]], of_image: _Array, shares: _Array) -> _Array:
        """Shares of all cells as shares of those that show any of the image: no other is ever kept."""
        flat = [size for of_one in sizes for size in of_one]
        self._check(all(min(size) > 0 for size in flat))
        cells = np.array([_cells(padded, size) for size in flat])[of_image]
        of_shown: _Array = np.minimum(np.rint(shares * cells[:, 0]) / np.maximum(cells[:, 1], 1), 1)
        return of_shown

    def _check(self, sound: bool) -> None:
        if not sound:
            raise ShardError(
                f"a sidecar of {self._uri} has sizes, label shares, phrases or scores that are impossible; run "
                f"`patchmint inspect verify {self._uri}`"
            )

    def distributions(self) -> dict[str, Distribution | None]:
        """Of what every sample has."""
        found = {name: counts.distribution() for name, counts in self.plain.items()}
        if self.formats and not all(found[name] for name in found if name != "images_per_sample"):
            raise ShardError(f"the sidecars of {self._uri} hold no texts; run `patchmint inspect verify {self._uri}`")
        return found

    def labels(self) -> LabelStats | None:
        """What was found out about labels; None where there are none."""
        shares, phrases_per_text = self._shares.distribution(), self._phrases_per_text.distribution()
        if shares is None or phrases_per_text is None:
            return None
        scores = self._scores.distribution()
        return LabelStats(
            self._labels,
            shares,
            self._empty,
            self._phrases,
            phrases_per_text,
            scores,
            self._unscored,
            dict(+self._origins),
            self._trust.distribution(),
        )


def _below(values: _Array, bounds: _Array) -> bool:
    """Whether all are 0 or more, and less than their bounds."""
    return bool(((values >= 0) & (values < bounds)).all())


def _within(values: _Array, low: float, high: float) -> bool:
    """Whether all are; NaN isn't."""
    return bool(((values >= low) & (values <= high)).all())


def _numbers(values: pa.Array) -> _Array:
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def named_distributions(stats: Stats) -> list[tuple[str, Distribution]]:
    """The distributions that there are, in the order and with the names that people see."""
    found = [
        ("images a document", stats.images_per_sample),
        ("texts a sample", stats.texts_per_sample),
        ("words a text", stats.words_per_text),
    ]
    if stats.labels is not None:
        found += [("label share of a text", stats.labels.shares), ("phrases a text", stats.labels.phrases_per_text)]
        if stats.labels.scores is not None:
            found.append(("score of a phrase", stats.labels.scores))
        if stats.labels.trust is not None:
            found.append(("trust of a text", stats.labels.trust))
    sizes = [("image width", stats.width), ("image height", stats.height), ("kB a sample", stats.kilobytes)]
    return [(name, distribution) for name, distribution in (*found, *sizes) if distribution is not None]


def top_codes(counts: tuple[int, ...], limit: int) -> list[tuple[int, int]]:
    """The codes that are there most often, with their counts, the first of equals first."""
    ranked = sorted(range(len(counts)), key=lambda code: (-counts[code], code))[:limit]
    return [(code, counts[code]) for code in ranked if counts[code]]
