"""A finished data set, or several mixed, as training reads it."""

from __future__ import annotations

import hashlib
import logging
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, tee
from typing import Any, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from patchmint.datasets.columns import with_columns, with_trust, without_wrong
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.datasets.reader import SampleReader, SampleRef
from patchmint.datasets.rows import with_extents
from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.json_values import differences
from patchmint.shards.layout import Layout
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.shards.reader import StoredSample
from patchmint.training.fields import Field, SampleMaker, Stage, StageSample, TextChoice, fields_of, manifest_of
from patchmint.training.order import MixedOrder, Remainder, share_of
from patchmint.training.sequences import TokenSequence
from patchmint.types import Integers

Uri = str | os.PathLike[str]
Sequencer = Callable[[StageSample], TokenSequence | Mapping[str, TokenSequence]]
Group = tuple[SampleRef, ...]

_LOG = logging.getLogger(__name__)
_LOOKED_UP = 256


class _TooManyImagesError(InputError):
    """A document with more images than are taken."""


class StageDataset(IterableDataset[StageSample]):
    """Samples of one or more finished data sets, in an order that seed and epoch alone decide.

    Samples that a correction marked as wrong are left out; a warning in the log says how many.

    With `StageLoader` it gives batches that can be resumed at any step. `len(dataset)` is how many samples iterating
    gives an epoch, on this rank; `dataset[i]` is the i-th sample as the shards have them, all data sets one after
    another, whatever the order, rank and weights (its text that of epoch 0). It works under torch's own DataLoader too
    (`collate_fn=patchmint.training.collate`), where each worker takes its part; call `set_epoch` before each
    epoch there, since workers hold copies of this object.

    Args:
        data: the folder or URI of a finished data set, a list of these, or a list of (URI, weight). Without weights an
            epoch is every sample of every data set once. With weights an epoch is `samples_per_epoch` samples, split
            by weight; a data set goes on in the next epoch where it stopped, and begins anew when all of it was given.
        stage: of MaVEn, 1 (patch selector), 2 (embeddings), 3 (projector) or 4 (everything): includes what that needs,
            and features, if there are any, in stages 1 and 4.
        include: what samples have, of "pixels", "labels", "codes", "features" and "conversation"; None, without a
            stage: all that the data sets have. Texts and parts are always there.
        group: so many samples that follow each other in the order make one, with the images of all (`StageSample`);
            in each epoch others belong together. What remains of an epoch, less than a group, is left out.
        seed: decides the order and the choice of texts; not negative.
        shuffle: False: as the shards have it, in every epoch.
        shuffle_window: samples that are shuffled together, in whole shards; shards are shuffled over all the data set.
        samples_per_epoch: of all data sets and ranks together, with weights only; None: as many as there are.
        text: which of a sample's texts: "random" (another each epoch) or the "first".
        sequences: makes a token sequence, or several by name, of a sample or a group, in the worker; must be picklable
            for spawned workers.
        rank: of this process. None: torch.distributed's, else the environment's RANK, else 0.
        world_size: number of processes. None: as for `rank`.
        remainder: of samples that don't divide among the ranks: "keep" (all once; ranks may differ by a sample), "drop"
            or "repeat" (ranks have equally many).
        on_error: "raise", or "skip" damaged samples, which are logged and counted.
        max_images: documents with more images are left out and counted in `skipped`, too; None: none is.
        grid: which of a data set's grids labels are given on; None: the first. On another there are no features.
        columns: names of the columns that are read with each data set; None: those that add what nothing else has, and
            corrections (`patchmint.datasets.open_dataset`).
        codes: of which of a data set's tokenizers codes are given, by its name; None: the first.
        min_trust: texts whose labels have less trust (`patchmint trust`) aren't chosen, and samples without another
            text are left out; None: any will do. What wasn't found for a text at all has little trust, too.

    Attributes:
        layouts: of the data sets, in the order given.
        samples_per_epoch: of all ranks together.
        samples_of_rank: how many iterating gives an epoch; of groups, how many groups.
        skipped: samples or groups left out so far, in this process.

    Raises:
        ConfigError: a setting is wrong, there is no finished data set, it lacks what is included, or the data sets
            can't be mixed.
        ShardError: a data set is damaged or incomplete.
        StorageError: it can't be read.
    """

    def __init__(
        self,
        data: Uri | Sequence[Uri] | Sequence[tuple[Uri, float]],
        stage: Stage | None = None,
        *,
        include: Collection[Field] | None = None,
        group: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_window: int = 10_000,
        samples_per_epoch: int | None = None,
        text: TextChoice = "random",
        sequences: Sequencer | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder = "keep",
        on_error: Literal["raise", "skip"] = "raise",
        max_images: int | None = None,
        grid: str | None = None,
        columns: Sequence[str] | None = None,
        codes: str | None = None,
        min_trust: float | None = None,
    ) -> None:
        if min_trust is not None and not 0 < min_trust <= 1:
            raise ConfigError(f"min_trust must be more than 0 and at most 1, not {min_trust}")
        if seed < 0 or min(shuffle_window, group) < 1 or (max_images is not None and max_images < 1):
            raise ConfigError(
                f"seed ({seed}) mustn't be negative; shuffle_window ({shuffle_window}), group ({group}) and max_images "
                f"({max_images}) must be at least 1"
            )
        if text not in ("random", "first") or on_error not in ("raise", "skip"):
            raise ConfigError(f"text is random or first, not {text!r}; on_error is raise or skip, not {on_error!r}")
        uris, weights = _uris_and_weights(data)
        self._share = share_of(rank, world_size, remainder)
        self._datasets = [with_extents(open_view(uri, grid, columns, codes, min_trust)) for uri in uris]
        fields = fields_of(stage, include, self._datasets)
        self._maker = SampleMaker(self._datasets, fields, text, seed)
        draws = _draws(self._datasets, weights, samples_per_epoch)
        self._order = MixedOrder(
            [_counts(dataset) for dataset in self._datasets], draws, seed=seed, window=shuffle_window, shuffle=shuffle
        )
        self._sequences = sequences
        self._group = group
        self._skips = on_error == "skip"
        self._max_images = max_images
        self._settings: dict[str, Any] = {
            "include": sorted(fields),
            "group": group,
            "seed": seed,
            "shuffle": shuffle,
            "shuffle_window": shuffle_window,
            "text": text,
            "draws": draws,
            **{name: value for name, value in (("grid", grid), ("codes", codes), ("min_trust", min_trust)) if value},
        }
        self.samples_per_epoch = sum(draws)
        self.samples_of_rank = self._share.length(self.samples_per_epoch // group)
        self.skipped = 0
        self._epoch = self._position = 0
        self._process = os.getpid()
        if "conversation" in fields:
            self._check_conversations()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled, it belongs to another process."""
        self.__dict__.update(state, _process=os.getpid())

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """What the samples of each data set have."""
        return tuple(manifest_of(dataset).layout for dataset in self._datasets)

    @property
    def has_begun(self) -> bool:
        """Whether iteration in this process is anywhere but at the beginning of epoch 0."""
        return (self._epoch, self._position) != (0, 0)

    @property
    def is_local(self) -> bool:
        """Whether all data sets are on this machine's file systems."""
        return all(dataset.storage.is_local for dataset in self._datasets)

    @property
    def identity(self) -> dict[str, Any]:
        """What a position in an epoch belongs to."""
        return {
            **self._settings,
            "datasets": [_identity(dataset) for dataset in self._datasets],
            "world_size": self._share.world_size,
            "remainder": self._share.remainder,
        }

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the present one is gone on with, also in its middle."""
        if epoch < 0:
            raise ConfigError(f"there is no epoch {epoch}; the first is 0")
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where iteration in this process is. Workers have their own copies: `StageLoader` knows about those."""
        return {"epoch": self._epoch, "position": self._position, "of": self.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            ConfigError: it belongs to other data or settings.
        """
        self._epoch, self._position = checked_state(state, self.identity, "position")

    def __len__(self) -> int:
        """Samples of an epoch of this rank."""
        return self.samples_of_rank

    def __getitem__(self, index: int) -> StageSample:
        """A sample, or group, by its position in the shards, data sets one after another; negative from the end.

        Raises:
            IndexError: there are fewer samples.
            ShardError: it is damaged, also where damaged ones are skipped.
            InputError: `sequences` refuses it, or it has more images than `max_images`.
            StorageError: its shard can't be read.
        """
        ends = np.cumsum([dataset.samples for dataset in self._datasets])
        total, number = int(ends[-1]) // self._group, operator.index(index)
        if not -total <= number < total:
            raise IndexError(f"there is no sample {number}: the data sets have {total} samples")
        numbers = np.arange(self._group) + number % total * self._group
        owners = ends.searchsorted(numbers, side="right")
        within = numbers - (ends - [dataset.samples for dataset in self._datasets])[owners]
        group = tuple(SampleRef(dataset, 0, n) for dataset, n in zip(owners.tolist(), within.tolist(), strict=True))
        (found,) = self._read([group])
        if not isinstance(found, StageSample):
            raise found
        return found

    def __iter__(self) -> Iterator[StageSample]:
        """The rest of this rank's epoch, or this worker's part of it; afterwards the next epoch begins."""
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self._position + (part - self._position) % parts
        own = np.arange(first, self.samples_of_rank, parts, dtype=np.int64)
        epoch = self._epoch
        places = (
            place
            for start in range(0, len(own), _LOOKED_UP)
            for place in self.places(epoch, own[start : start + _LOOKED_UP])
        )
        for number, sample in zip(own.tolist(), self.stream(places), strict=True):
            self._position = number + 1
            if isinstance(sample, StageSample):
                yield sample
        self._epoch, self._position = epoch + 1, 0

    def places(self, epoch: int, own: Integers) -> list[Group]:
        """Which samples this rank has in an epoch, in groups.

        Args:
            epoch: from 0.
            own: numbers of the rank's groups, 0 to `samples_of_rank` - 1.
        """
        groups = self._share.positions(own, self.samples_per_epoch // self._group)
        positions = groups[:, None] * self._group + np.arange(self._group)
        refs = iter(self._order.places(epoch, positions.reshape(-1)))
        return list(zip(*[refs] * self._group, strict=True))

    def stream(self, places: Iterable[Group]) -> Iterator[StageSample | str]:
        """Read samples in the order asked for; in the place of one that is skipped comes the reason.

        Raises:
            ShardError: a sample is damaged (unless these are skipped).
            InputError: `sequences` refuses a sample (unless these are skipped).
            StorageError: a shard can't be read.
            ConfigError: this is a forked worker, and the data set is on an object store.
        """
        for found in self._read(places):
            if isinstance(found, StageSample):
                yield found
            elif self._skips or isinstance(found, _TooManyImagesError):
                self.skipped += 1
                # In some corpora every tenth document has too many.
                level = logging.INFO if isinstance(found, _TooManyImagesError) else logging.WARNING
                _LOG.log(level, "skipped %s", found)
                yield str(found)
            else:
                raise found

    def _read(self, places: Iterable[Group]) -> Iterator[StageSample | ShardError | InputError]:
        """Samples of groups, or what is wrong with them, by name."""
        if not self.is_local and os.getpid() != self._process:
            # A request would wait for ever: the threads that serve it stayed behind.
            raise ConfigError(
                "connections to object stores don't survive a fork; give torch's DataLoader "
                "multiprocessing_context='spawn' (StageLoader does so by itself)"
            )
        reader = SampleReader(self._datasets)
        groups, to_read = tee(places)
        read = reader.read(chain.from_iterable(to_read))
        for group in groups:
            stored = [next(read) for _ in group]
            found: StageSample | ShardError | InputError
            samples = []
            try:
                for place, one in stored:
                    samples.append(self._made(place, one))
                found = self._with_sequences(samples)
            except (ShardError, InputError) as error:
                kind = next(kind for kind in (ShardError, _TooManyImagesError, InputError) if isinstance(error, kind))
                found = kind(f"{reader.describe(place)}: {error}")
                found.__cause__ = error
            yield found

    def _made(self, place: SampleRef, stored: StoredSample | ShardError) -> StageSample:
        if isinstance(stored, ShardError):
            raise stored
        if self._max_images is not None and len(stored.images) > self._max_images:
            raise _TooManyImagesError(f"it has {len(stored.images)} images, max_images is {self._max_images}")
        return self._maker.make(place, stored)

    def _with_sequences(self, samples: Sequence[StageSample]) -> StageSample:
        sample = samples[0]
        if len(samples) > 1:
            images = tuple(image for one in samples for image in one.images)
            sample = replace(sample, key="+".join(one.key for one in samples), images=images, group=tuple(samples))
        made = self._sequences(sample) if self._sequences else {}
        return replace(sample, sequences={"": made} if isinstance(made, TokenSequence) else made)

    def _check_conversations(self) -> None:
        for number, dataset in enumerate(self._datasets):
            _, stored = next(SampleReader(self._datasets).read([SampleRef(number, 0, 0)]))
            if dataset.has_documents:
                continue
            if isinstance(stored, StoredSample) and stored.document.conversation_json == "[]":
                raise ConfigError(
                    f"{dataset.uri} can't be read with conversations: it has no conversations; `patchmint build` with "
                    "source kind llava makes a data set that has"
                )


def open_finished(uri: Uri, columns: Sequence[str] | None = None) -> Dataset:
    """Open a finished data set that is whole, with columns as `open_dataset` does.

    Raises:
        ConfigError: there is no finished data set, or no sample was written.
        ShardError: it is damaged, or not all of it is there.
        StorageError: it can't be read.
    """
    none = ConfigError(
        f"can't train on {uri}: there is no {MANIFEST_PATH}; it isn't a patchmint data set: make one with "
        "`patchmint build`, or correct the path"
    )
    if os.fspath(uri).endswith(".tar"):
        raise none
    try:
        dataset = open_dataset(uri, columns=())
    except InputError as error:
        raise none from error
    if not dataset.finished:
        raise ConfigError(
            f"can't train on {uri}: its build isn't finished, or wrote no sample: run the build's command again "
            f"(`patchmint status {uri}` says how far it is)"
        )
    totals = manifest_of(dataset).totals
    if not totals.written:
        raise ConfigError(f"can't train on {uri}: no sample was written; its rejects/ say why")
    shards, size = len(_counts(dataset)), sum(shard.size for shard in dataset.shards)
    if (shards, size) != (totals.shards, totals.bytes):
        raise ShardError(
            f"{uri} has {shards} shards of {size} bytes, its {MANIFEST_PATH} says {totals.shards} of {totals.bytes}: "
            f"the copy isn't complete; run `patchmint inspect verify {uri}`"
        )
    try:
        return with_columns(dataset, columns)
    except InputError as error:
        raise ConfigError(f"can't train on {uri}: {error}") from error


def open_view(
    uri: Uri,
    grid: str | None,
    columns: Sequence[str] | None = None,
    codes: str | None = None,
    min_trust: float | None = None,
) -> Dataset:
    """As `open_finished`, with labels on one of its grids and the codes of one tokenizer (None: the first).

    Without samples marked wrong, or of too little trust. A ConfigError where there is no such grid, codes or trust.
    """
    whole = open_finished(uri, columns)
    dataset = without_wrong(whole)
    if wrong := whole.samples - dataset.samples:
        _LOG.warning("%d samples of %s are marked wrong and left out", wrong, uri)
    if min_trust is not None:
        try:
            dataset = with_trust(dataset, min_trust)
        except InputError as error:
            raise ConfigError(f"can't train on {error}") from error
        if not dataset.samples:
            raise ConfigError(f"no sample of {uri} has labels of trust {min_trust}; lower min_trust")
    try:
        return dataset.on_grid(grid).with_codes(codes)
    except InputError as error:
        raise ConfigError(
            f"can't train on {error}; `patchmint extend` adds labels on a grid (--grids), or codes (--tokens)"
        ) from error


def _counts(dataset: Dataset) -> Integers:
    """Samples of each shard."""
    return np.array([shard.samples for shard in dataset.shards if shard.samples], np.int64)


def _identity(dataset: Dataset) -> dict[str, Any]:
    """What a position in an epoch depends on: which samples there are, and in which shards."""
    shards = hashlib.sha256(_counts(dataset).astype("<i8").tobytes()).hexdigest()[:16]
    columns = {column.name: manifest_of(column.dataset).plan_digest for column in dataset.columns}
    return {
        "plan": manifest_of(dataset).plan_digest,
        "samples": dataset.samples,
        "shards": shards,
        **({"columns": columns} if columns else {}),
    }


def _uris_and_weights(data: Any) -> tuple[list[Uri], list[float] | None]:
    several = isinstance(data, Sequence) and not isinstance(data, str)
    entries: list[Any] = list(data) if several else [data]
    pairs = [entry for entry in entries if isinstance(entry, tuple) and len(entry) == 2]
    uris = [pair[0] for pair in pairs] if pairs else entries
    if not entries or len(pairs) not in (0, len(entries)) or not all(isinstance(u, str | os.PathLike) for u in uris):
        raise ConfigError("data is the folder or URI of a data set, a list of these, or a list of (URI, weight)")
    weights = [float(pair[1]) for pair in pairs]
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(f"weights must be positive numbers, not {weights}; leave out what isn't wanted")
    return uris, weights or None


def _draws(datasets: Sequence[Dataset], weights: Sequence[float] | None, wanted: int | None) -> list[int]:
    """Samples of each data set in an epoch: whole numbers by weight, the largest remainders rounded up."""
    sizes = [dataset.samples for dataset in datasets]
    if weights is None:
        if wanted is not None:
            raise ConfigError("samples_per_epoch goes with weights; give the data as a list of (URI, weight)")
        return sizes
    total = sum(sizes) if wanted is None else wanted
    exact = [total * weight / sum(weights) for weight in weights]
    draws = [math.floor(share) for share in exact]
    largest = sorted(range(len(exact)), key=lambda number: draws[number] - exact[number])
    for number in largest[: total - sum(draws)]:
        draws[number] += 1
    if min(draws) < 1:
        raise ConfigError(
            f"an epoch of {total} samples has none of {datasets[draws.index(min(draws))].uri} with weights {weights}; "
            "raise samples_per_epoch, or leave that data set out"
        )
    return draws


def checked_state(state: Mapping[str, Any], identity: Mapping[str, Any], counter: str) -> tuple[int, int]:
    """Epoch and place in it, of a state that belongs here.

    Args:
        state: as `state_dict` gave it.
        identity: what the run that is to go on is about.
        counter: name of what is counted within an epoch.

    Raises:
        ConfigError: it is no state, or belongs to other data or settings; the message names what differs.
    """
    epoch, place, of = (state.get(name) for name in ("epoch", counter, "of"))
    if not isinstance(epoch, int) or not isinstance(place, int) or not isinstance(of, Mapping) or min(epoch, place) < 0:
        raise ConfigError(f"this isn't a state of this kind (epoch, {counter}, of); give what state_dict() returned")
    wrong = differences(of, identity)
    if wrong:
        raise ConfigError(
            f"the state belongs to another run: {'; '.join(wrong)}. Go on with the data and settings it was taken "
            "with, or start again without it"
        )
    return epoch, place
