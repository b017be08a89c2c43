"""Which images contain a code: an inverted index, made once and kept in the user's cache.

Sidecars count all codes of a sample. Where images are padded to a square, codes of cells that show nothing but padding
are left out, so there the arrays of samples that have such cells are read.

Memory-mapped arrays, so that a question reads only the code's own part: `offsets` (codes + 1), and from `offsets[c]`
to `offsets[c + 1]` the `samples` that contain code c, ascending, with their `counts`. About 5 bytes for each distinct
code of each sample: 1 GB for a million images of 200 codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.reader import iter_stored, sample_at
from patchmint.datasets.rows import image_sizes, iter_tables, rows_at, size_columns
from patchmint.errors import InputError, ShardError
from patchmint.geometry import Fit
from patchmint.inspection.cache import open_index, reserve
from patchmint.inspection.codes.terms import Background, TermCounter, terms_of
from patchmint.shards.layout import TokensLayout
from patchmint.shards.reader import StoredSample
from patchmint.types import Integers, Progress, Size

TERM_SAMPLES = 20_000
"""Images of the spread that tells how common words are everywhere."""

_NAME = "codes-1"
_NAME_OF_CONTENT = "content-codes-1"
_NONE = np.zeros(0)
_ROWS = 4096
# Rows at a time, so that a lone tar of a million samples takes no more memory than any other.

_Numbers = npt.NDArray[np.unsignedinteger[Any]]

_CODE = re.compile(r"(?:([0-9]{1,9}):)?([0-9]{1,12})", re.ASCII)


@dataclass(frozen=True)
class Code:
    """A code.

    Attributes:
        number: its row in an index of all codebooks, one after another (as in the sidecars).
        book: which codebook, from 0.
        code: its number there, from 0: what stands in the sample's array.
        name: `code`, or `book:code` where there are several codebooks.
    """

    number: int
    book: int
    code: int
    name: str


def tokens_layout(dataset: Dataset) -> TokensLayout:
    """What the data set's codes are; of an unfinished build or a lone tar, what its first sample says.

    Raises:
        InputError: it has no codes, or no samples.
        ShardError: the sample is damaged.
        StorageError: it can't be read.
    """
    if not dataset.samples:
        raise InputError(f"{dataset.uri} has no samples yet, so there are no codes to look at")
    if dataset.manifest is not None:
        tokens = dataset.manifest.layout.tokens
    else:
        told = sample_at(dataset, 0).key_json.tokens
        try:
            tokens = TokensLayout.model_validate(told.model_dump(exclude={"grids"})) if told.member else None
        except ValidationError as error:
            raise ShardError(f"the first sample of {dataset.uri} describes its codes wrongly; run verify") from error
    if tokens is None:
        raise InputError(
            f"{dataset.uri} has no codes; `patchmint extend {dataset.uri} OUT --tokens.size 256` makes them"
        )
    return tokens


def book_starts(tokens: TokensLayout) -> Integers:
    """Number of each codebook's first code, and of all codes at the end: int64 (codebooks + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(tokens.codebook_sizes, np.int64))])


def parse_code(text: str, tokens: TokensLayout) -> Code:
    """What a user calls a code.

    Raises:
        InputError: it is no number, there is no such code or codebook, or it must be said which codebook.
    """
    match = _CODE.fullmatch(text)
    if match is None:
        raise InputError(f"{text[:40]!r} isn't a code; give its number, or BOOK:NUMBER with several codebooks")
    sizes = tokens.codebook_sizes
    if match[1] is None and len(sizes) > 1:
        raise InputError(
            f"there are {len(sizes)} codebooks, so code {text} could be in any; say which, such as 0:{text}"
        )
    book, code = int(match[1] or 0), int(match[2])
    if book >= len(sizes):
        raise InputError(f"there is no codebook {book}; they run from 0 to {len(sizes) - 1}")
    if code >= sizes[book]:
        named = f"codebook {book}" if len(sizes) > 1 else "the codebook"
        raise InputError(f"code {code} isn't in {named}, whose codes run from 0 to {sizes[book] - 1}")
    return named_code(int(book_starts(tokens)[book]) + code, tokens)


def named_code(number: int, tokens: TokensLayout) -> Code:
    """The code of a row of an index."""
    starts = book_starts(tokens)
    book = int(np.searchsorted(starts, number, side="right")) - 1
    code = number - int(starts[book])
    return Code(number, book, code, f"{book}:{code}" if len(tokens.codebook_sizes) > 1 else str(code))


@dataclass(eq=False)
class CodeIndex:
    """The index. Codes are numbered over all codebooks, one after another.

    Attributes:
        offsets: int64 (codes + 1,), where each code's entries begin.
        totals: int64 (codes,), how often each code is there.
        samples: positions of samples in the data set, ascending within a code.
        counts: how often the code is in that sample, in all its images.
        background: how often words are in the texts of a spread of all images.
        tokens: what the codes are.
        padding: whether cells that show nothing but padding count.
        made_anew: makes another one.
    """

    offsets: Integers
    totals: Integers
    samples: _Numbers
    counts: _Numbers
    background: Background
    tokens: TokensLayout
    padding: bool
    made_anew: Callable[[], CodeIndex]

    def renew(self) -> None:
        """Make it anew: it turned out to be of another data set."""
        vars(self).update(vars(self.made_anew()))

    def agrees(self, dataset: Dataset, numbers: Iterable[int], limit: int) -> bool:
        """Whether sidecars, or arrays, say the same of the `limit` first images of these codes.

        Raises:
            ShardError: a sidecar is damaged.
            StorageError: one can't be read.
        """
        told: dict[int, dict[int, int]] = {}
        for number in numbers:
            for position, count in zip(*(part.tolist() for part in self.ranked(number, limit)), strict=True):
                told.setdefault(position, {})[number] = count
        columns = ["codes", "code_counts", *size_columns(dataset)]
        rows = dict(rows_at(dataset, np.array(sorted(told), np.int64), columns))
        found = {at: dict(zip(row["codes"], row["code_counts"], strict=False)) for at, row in rows.items()}
        sizes = dict(zip(rows, image_sizes(pa.Table.from_pylist(list(rows.values()))), strict=True)) if rows else {}
        found |= {
            at: dict(zip(numbers.tolist(), times.tolist(), strict=True))
            for at, numbers, times in _content(dataset, self.tokens, sizes, padding=self.padding)
        }
        return all(told[at].items() <= found[at].items() for at in told)

    def counted_cells(self, size: Size) -> npt.NDArray[np.bool_] | None:
        """Which cells of an image count: bool (rows, cols); None: all.

        Args:
            size: (height, width) of the image.
        """
        return None if self.padding else _shown_cells(self.tokens, size)

    @property
    def images(self) -> Integers:
        """In how many samples each code is (of pictures: images): int64 (codes,)."""
        return np.diff(self.offsets)

    def ranked(self, number: int, limit: int) -> tuple[Integers, Integers]:
        """Samples that contain a code, those that have it most often first, among equals in the data set's order.

        Returns:
            Positions in the data set and counts: int64, at most `limit` of each.
        """
        entries = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        counts = np.asarray(self.counts[entries])
        if not counts.size:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        order = np.argsort(counts.max() - counts, kind="stable")[:limit]  # stable on short integers: a radix sort
        return np.asarray(self.samples[entries])[order].astype(np.int64), counts[order].astype(np.int64)


def has_padding(tokens: TokensLayout) -> bool:
    """Whether images are padded for the tokenizer, so that codes may show nothing but padding."""
    return tokens.cells is not None and tokens.cells.fit is Fit.PAD


def _shown_cells(tokens: TokensLayout, size: Size) -> npt.NDArray[np.bool_] | None:
    """Which cells show any of an image (height, width): bool (rows, cols); None: all, or where that can't be told."""
    shown = tokens.shown(size) if has_padding(tokens) else None
    return None if shown is None or shown.all() else shown


def stored_codes(sample: StoredSample, tokens: TokensLayout) -> list[npt.NDArray[Any]]:
    """The codes of a sample's images.

    Raises:
        ShardError: there are none, or they aren't of the data set's shape.
    """
    codes = sample.arrays(f"{tokens.member}.npy")
    wrong = (
        array.ndim != len(tokens.shape) if tokens.varies else array.shape != tokens.shape for array in codes or [_NONE]
    )
    if any(wrong):
        raise ShardError(f"sample {sample.key!r} has no codes of shape {tokens.shape}; run `patchmint inspect verify`")
    return [*codes]


def open_code_index(
    dataset: Dataset, tokens: TokensLayout, progress: Progress | None = None, *, padding: bool = False
) -> CodeIndex:
    """The index of a data set; made if there is none yet.

    Args:
        dataset: what to look into.
        tokens: what its codes are.
        progress: told while it is made.
        padding: count codes of cells that show nothing but padding too; then only sidecars are read.

    Raises:
        InputError: the cache can't be written.
        ShardError: a sidecar or a sample is damaged.
        StorageError: one can't be read.
    """
    padding = padding or not has_padding(tokens)

    def build(folder: Path) -> None:
        _build(dataset, tokens, padding, folder, progress)

    def load(folder: Path) -> CodeIndex:
        return _load(tokens, padding, partial(opened, anew=True), folder)

    def opened(*, anew: bool) -> CodeIndex:
        name = f"{_NAME if padding else _NAME_OF_CONTENT}{dataset.further_codes and '-'}{dataset.further_codes}"
        return open_index(dataset, name, build, load, anew=anew)

    return opened(anew=False)


def _load(tokens: TokensLayout, padding: bool, made_anew: Callable[[], CodeIndex], folder: Path) -> CodeIndex:
    codes = sum(tokens.codebook_sizes)
    offsets, totals = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("offsets", "totals"))
    samples, counts = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("samples", "counts")
    )
    if (offsets.shape, totals.shape) != ((codes + 1,), (codes,)) or not samples.shape == counts.shape == (offsets[-1],):
        raise ValueError("its arrays don't go together")
    stored = json.loads((folder / "terms.json").read_text("utf-8"))
    background = Background(int(stored["samples"]), dict(stored["counts"]))
    return CodeIndex(offsets, totals, samples, counts, background, tokens, padding, made_anew)


def _build(dataset: Dataset, tokens: TokensLayout, padding: bool, folder: Path, progress: Progress | None) -> None:
    with TemporaryFile(dir=folder) as kept:
        _write_index(dataset, tokens, None if padding else kept, folder, progress)


def _write_index(
    dataset: Dataset, tokens: TokensLayout, kept: IO[bytes] | None, folder: Path, progress: Progress | None
) -> None:
    """Make the index, in two passes.

    Args:
        dataset: what it is of.
        tokens: what its codes are.
        kept: where the first pass keeps the entries of images without their padding, for the second; None: padding
            counts, and both read the sidecars.
        folder: empty.
        progress: told after each shard.
    """
    images, totals, most = _count(dataset, tokens, kept, folder, _half(progress, 0) if kept is None else progress)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(images)])
    if not offsets[-1]:
        raise ShardError(f"the sidecars of {dataset.uri} hold no codes; run `patchmint inspect verify {dataset.uri}`")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "totals.npy", totals)
    kinds = {"samples": np.min_scalar_type(dataset.samples), "counts": np.min_scalar_type(most)}
    arrays = {name: _new_array(folder / f"{name}.npy", kind, int(offsets[-1])) for name, kind in kinds.items()}
    entries: Iterator[_Entries]
    if kept is None:
        batches = _batches(dataset, ["codes", "code_counts"], _half(progress, 1))
        entries = (_of_batch(dataset, tokens, first, batch) for first, batch in batches)
    else:
        entries = _kept(kept)
    _fill(entries, offsets[:-1].copy(), arrays["samples"], arrays["counts"])
    for array in arrays.values():
        array.flush()


def _new_array(path: Path, kind: np.dtype[Any], length: int) -> np.memmap[Any, Any]:
    """Zeros on the disk, with room for them: a full disk is an error here, not the end of the process later."""
    array = np.lib.format.open_memmap(path, "w+", kind, (length,))
    reserve(path)
    return array


def _half(progress: Progress | None, part: int) -> Progress | None:
    """Progress of one of two passes, as a part of both."""
    return None if progress is None else lambda done, total: progress(done + part * total, 2 * total)


_Entries = tuple[Integers, Integers, Integers]
"""Codes, how often each is there, and in which image of the data set; images ascend."""


def _count(
    dataset: Dataset, tokens: TokensLayout, kept: IO[bytes] | None, folder: Path, progress: Progress | None
) -> tuple[Integers, Integers, int]:
    """In how many images each code is, how often, and the most of one in one; on the way, the background of words."""
    codes = sum(tokens.codebook_sizes)
    images, totals, most = np.zeros(codes, np.int64), np.zeros(codes, np.int64), 0
    chosen = spread(dataset.samples, TERM_SAMPLES)
    terms = TermCounter()
    columns = ["codes", "code_counts", "texts", "phrases", *size_columns(dataset)]
    for first, batch in _batches(dataset, columns, progress):
        entries = _of_batch(dataset, tokens, first, batch)
        if kept is not None:
            entries = _without_padding(dataset, tokens, first, batch, entries)
            np.save(kept, np.stack(entries).astype(np.int32))
        numbers, times, _ = entries
        images += np.bincount(numbers, minlength=codes)
        totals += np.bincount(numbers, weights=times, minlength=codes).astype(np.int64)
        most = max(most, int(times.max(initial=0)))
        begin, end = np.searchsorted(chosen, [first, first + batch.num_rows])
        rows = batch.select(["texts", "phrases"]).take(pa.array(chosen[begin:end] - first))
        for row in rows.to_pylist():
            terms.add(terms_of(row["texts"], row["phrases"]))
    background = terms.background()
    stored = json.dumps({"samples": background.samples, "counts": background.counts}, ensure_ascii=True)
    (folder / "terms.json").write_text(stored, "utf-8")
    return images, totals, most


def _of_batch(dataset: Dataset, tokens: TokensLayout, first: int, batch: pa.RecordBatch) -> _Entries:
    numbers, times, rows = code_entries(batch, sum(tokens.codebook_sizes), dataset.uri)
    return numbers, times, first + rows


def _without_padding(
    dataset: Dataset, tokens: TokensLayout, first: int, batch: pa.RecordBatch, entries: _Entries
) -> _Entries:
    """The entries of a batch; of samples that have cells of padding those that their arrays have in the other cells."""
    read = list(_content(dataset, tokens, dict(enumerate(image_sizes(batch), start=first)), padding=False))
    others = ~np.isin(entries[2], [at for at, _, _ in read])
    parts = [tuple(part[others] for part in entries)]
    parts += [(numbers, times, np.full(len(numbers), at)) for at, numbers, times in read]
    numbers, times, at = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(at, kind="stable")
    return numbers[order], times[order], at[order]


def _content(
    dataset: Dataset, tokens: TokensLayout, sizes: Mapping[int, Sequence[Size]], *, padding: bool
) -> Iterator[tuple[int, Integers, Integers]]:
    """The codes of cells that show any of the images, and how often they do, of samples that have other cells.

    Args:
        dataset: whose.
        tokens: what its codes are.
        sizes: (height, width) of samples' images by the samples' positions, ascending.
        padding: whether padding counts; then there are none.
    """
    masks = {} if padding else {at: [_shown_cells(tokens, size) for size in own] for at, own in sizes.items()}
    shown = {at: own for at, own in masks.items() if any(mask is not None for mask in own)}
    starts = book_starts(tokens)[:-1]
    for at, sample in iter_stored(dataset, list(shown), (f"{tokens.member}.npy",)):
        found = [codes.reshape(*tokens.grid, -1).astype(np.int64) for codes in stored_codes(sample, tokens)]
        if len(found) != len(shown[at]) or any((codes >= tokens.codebook_sizes).any() for codes in found):
            raise ShardError(f"sample {sample.key!r} of {dataset.uri} has codes outside its codebooks; run verify")
        counted = [
            (codes if mask is None else codes[mask]).reshape(-1, len(starts)) + starts
            for codes, mask in zip(found, shown[at], strict=True)
        ]
        yield at, *np.unique(np.concatenate(counted), return_counts=True)


def _kept(file: IO[bytes]) -> Iterator[_Entries]:
    """What the first pass has kept."""
    end = file.tell()
    file.seek(0)
    while file.tell() < end:
        numbers, times, at = np.load(file, allow_pickle=False)
        yield numbers, times, at


def _fill(entries: Iterable[_Entries], places: Integers, samples: _Numbers, counts: _Numbers) -> None:
    """Write each entry into its code's part; `places` is where each code's next one goes."""
    for numbers, times, at in entries:
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        begins = np.flatnonzero(np.diff(ascending, prepend=-1))
        lengths = np.diff(begins, append=len(ascending))
        present = ascending[begins]
        targets = np.repeat(places[present] - begins, lengths) + np.arange(len(ascending))
        samples[targets] = at[order]
        counts[targets] = times[order]
        places[present] += lengths


def _batches(dataset: Dataset, columns: list[str], progress: Progress | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows of the whole data set, with the position of each batch's first sample."""
    first = 0
    for _, table in iter_tables(dataset, columns, progress):
        for batch in table.to_batches(max_chunksize=_ROWS):
            yield first, batch
            first += batch.num_rows


def code_entries(batch: pa.RecordBatch, codes: int, uri: str) -> tuple[Integers, Integers, Integers]:
    """The columns `codes` and `code_counts` of a sidecar, flat.

    Args:
        batch: rows of a sidecar.
        codes: how many there are, over all codebooks.
        uri: of the data set, for errors.

    Returns:
        The code, how often it is there and in which row of the batch: int64, one an entry.

    Raises:
        ShardError: a code is outside the codebooks, or the columns don't go together.
    """
    lists, times = batch.column("codes"), batch.column("code_counts")
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if not np.array_equal(lengths, pc.list_value_length(times).to_numpy(zero_copy_only=False)) or (
        flat.size and int(flat.max()) >= codes
    ):
        raise ShardError(
            f"a sidecar of {uri} has codes outside its codebooks ({codes} codes), or not as many counts as codes; run "
            f"`patchmint inspect verify {uri}`"
        )
    rows = np.repeat(np.arange(batch.num_rows), lengths)
    return flat.astype(np.int64), times.flatten().to_numpy(zero_copy_only=False).astype(np.int64), rows
