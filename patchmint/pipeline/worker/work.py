"""One unit of a plan -> one shard: read, decode ahead, ask the models in batches, label, write, commit.

The same code runs in a local child process and in a Ray actor. The thread that `Worker.do` is called in does little but
ask the models; images are prepared in threads (`prepare`), labels are made and shards written in one more (`finish`).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from patchmint.annotate.models import AnnotationModels, ModelAnswers
from patchmint.compute.devices import machine_device
from patchmint.compute.memory import (
    device_peak,
    keep_few_kernels,
    keep_freed_memory,
    peak_memory,
    ran_out,
)
from patchmint.compute.stages import Timing, stage, start_timing
from patchmint.config.build import BATCHES_AHEAD
from patchmint.datasets.extension import extended_manifest
from patchmint.errors import BuildError, NotFoundError, PatchmintError, ShardError, StorageError
from patchmint.pipeline.orders import STAGES, Order, UnitResult, WorkerInfo, WorkerProfile, WorkerSettings, Working
from patchmint.pipeline.plan import check_models
from patchmint.pipeline.sources import open_sources
from patchmint.pipeline.worker.batches import BatchSize, choose_batch_size, like_batches, pieces
from patchmint.pipeline.worker.finish import Answer, Finished, Finisher, SavedSample, UnitShard, fault_of, layout_of
from patchmint.pipeline.worker.prepare import Items, Prepared, PreparedImage, Preparer, Repeated, Repeats, reject
from patchmint.samples import Fault, PlannedSample, Reject
from patchmint.shards.columns import Joiner
from patchmint.shards.commit import Attempt, find_record
from patchmint.shards.plan import load_plans
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.reader import StoredSample
from patchmint.shards.records import ImageCounts
from patchmint.shards.sample import ShardImage
from patchmint.shards.saved import SavedUnit, find_saved, forget_saved
from patchmint.storage import open_storage
from patchmint.storage.ahead import done_ahead
from patchmint.storage.patience import trouble

_LOG = logging.getLogger(__name__)
_MOST_MISTAKES = 8
"""At so many samples in a row the models fail for another reason than the samples."""

_READERS = 8
"""Threads that read samples which are copied."""


class Worker:
    """Holds the models, the source and the output; does orders one after another."""

    def __init__(self, settings: WorkerSettings, device: str, threads: int) -> None:
        """Set up.

        Args:
            settings: the build.
            device: "cpu", "cuda" or "cuda:N".
            threads: CPU threads for the models, and as many for decoding. The same number gives the same bytes.

        Raises:
            BuildError: the output isn't visible from here, or the model files aren't those of the plan.
            WeightsError, PluginError, ConfigError: as for `AnnotationModels.load`.
        """
        config = settings.config
        self._settings = settings
        outage_seconds = config.limits.outage_seconds
        self._storage = open_storage(config.output.uri, outage_seconds=outage_seconds)
        self._check_output_visible()
        source = open_sources(config, outage_seconds=outage_seconds)
        check_models(config, settings.models)
        keep_few_kernels()
        keep_freed_memory()
        torch.set_num_threads(threads)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        if config.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._models = AnnotationModels.load(config, device, compiled=settings.compiled)
        read = partial(read_unit, self._storage)
        self._preparer = Preparer(
            source,
            read,
            config.limits.max_image_megapixels,
            threads,
            self._models.prepare,
            drawn=config.drawn,
            drop=config.on_bad_image == "drop",
        )
        self._source, base = source.extended, extended_manifest(config)
        self._layout = layout_of(config, self._models, base.layout if base is not None else None)
        self._joiner = Joiner(base.layout.with_column(self._layout)) if base is not None and config.makes else None
        self._batch_size = BatchSize(choose_batch_size(self._models, config.runner, device))
        self._device = device
        formats = f"precision {config.precision}, {threads} threads, batches of {self._batch_size.now}"
        _LOG.info("worker on %s, %s", device, formats)
        # without a profile only what every result says, which no GPU need be asked for
        self._stopwatch = start_timing(device) if settings.profile else start_timing(most_events=0, only=STAGES)
        self._mistakes, self._mistaken, self._last_mistake, self._has_answered = 0, "", "", False
        self._in_work: _InWork | None = None
        self._told: Working | None = None
        self._handing_over = threading.Lock()
        self._stopping, self._between = threading.Event(), threading.Event()

    @property
    def info(self) -> WorkerInfo:
        """Who this is."""
        return WorkerInfo(host=socket.gethostname(), device=machine_device(self._device))

    def working(self, worker: int) -> Working | None:
        """How far this is with its unit, in any thread; None while it neither annotates nor waits for a storage.

        Args:
            worker: what its pool calls this one.
        """
        waits_for = trouble()
        if (work := self._in_work) is None:
            # before the first sample, or after the last one, nothing goes on but reading and writing
            told = self._told if waits_for else None
            return replace(told, worker=worker, waits_for=waits_for) if told is not None else None
        awaited = self._preparer.awaited
        positions = work.positions or ((awaited,) if awaited is not None else ())
        self._told = told = Working(
            worker=worker,
            unit=work.unit,
            samples=work.finisher.finished + work.saved + work.unreadable,
            saved=work.saved,
            rejects=_reasons(list(work.shard.rejects.values())) if work.shard is not None else {},
            doing=self._stopwatch.doing,
            positions=positions,
            images=max((len(work.samples[position].sample.images) for position in positions), default=1),
            waits_for=waits_for,
        )
        return told

    def save(self, seconds: float) -> int | None:
        """Leave what is annotated of the unit in work to the run that resumes the build; called in another thread.

        From then on nothing is annotated or committed: this process is to be ended.

        Args:
            seconds: to wait for the models to answer for the batch that they have; if they don't, it is lost.

        Returns:
            How many samples are saved, rejects among them; None where no unit is being annotated. One that is being
            committed goes on.

        Raises:
            StorageError: it can't be written.
        """
        self._stopping.set()
        if self._in_work is not None:
            self._between.wait(seconds)
        self._handing_over.acquire()
        if (work := self._in_work) is None or work.shard is None:
            self._handing_over.release()
            return None
        work.finisher.wait()  # the lock is kept: nothing is handed over any more
        return work.shard.save(work.finisher.early, work.looked, self._settings.plan_digest)

    def do(self, order: Order) -> UnitResult | None:
        """Build a unit, or probe some of its samples.

        Raises:
            StorageError: reading or writing failed, even after retries; the unit isn't built.
        """
        self._told = Working(0, order.unit.id, 0, 0, {}, "wait")
        try:
            return self._do(order)
        except torch.AcceleratorError as error:
            # The device's context is lost to this process for good. As a dead worker it is replaced and its unit tried
            # again; if it is the fault of a sample, that sample is found.
            print(f"patchmint: the device failed, this worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        finally:
            self._told = None

    def _do(self, order: Order) -> UnitResult | None:
        saved: SavedUnit | None = None
        with stage("wait"):
            if order.probe is None:
                saved = find_saved(self._storage, order.unit.id, self._settings.plan_digest)
            done = saved.positions if saved is not None else set()
            samples, items = self._preparer.prepared(order, 2 * self._batch_size.now, done)
        if order.probe is not None:
            passed = set(range(len(samples))) - order.probe | order.poison
            with Finisher(self._models, lambda *_: None, self._finishing, passed) as finisher:
                self._annotate(items, _InWork(order.unit.id, samples, None, finisher, passed))
            return None
        prefix = self._settings.config.output.prefix
        attempt = Attempt(self._storage, order.unit.id, self._settings.run_id, prefix)
        try:
            result = self._build(order, samples, items, attempt, saved)
            if saved is not None:
                forget_saved(self._storage, order.unit.id)
            return result
        except StorageError:
            # Another driver that finished this unit may have swept our files from under us: then all is well.
            if find_record(self._storage, order.unit.id) is None:
                raise
            return UnitResult(order.unit.id, len(samples), 0, {}, 0, won=False)
        finally:
            attempt.drop()

    def _build(
        self,
        order: Order,
        samples: Sequence[PlannedSample],
        items: Items,
        attempt: Attempt,
        saved: SavedUnit | None,
    ) -> UnitResult:
        with ExitStack() as files:
            shard, repeats = UnitShard(order.unit.name, self._layout, attempt, files), Repeats(samples)
            early: dict[int, Finished] = {}
            kept: dict[Repeated, ShardImage] = {}
            if saved is not None:
                early, kept = shard.resume(saved, samples, self._storage, repeats, self._models.grid, self._whole)
            if self._settings.config.copies:
                items.close()
                self._copy(samples, order.poison, shard)
            passed = set(order.poison) | {*shard.written, *shard.rejects}
            with Finisher(
                self._models,
                shard.add,
                self._finishing,
                passed,
                early,
                repeats=repeats,
                kept=kept,
                drop=self._settings.config.on_bad_image == "drop",
                layout=self._layout if self._joiner is not None else None,
            ) as finisher:
                work = _InWork(order.unit.id, samples, shard, finisher, passed)
                if saved is not None:
                    work.looked, work.saved = saved.looked, len(saved.positions)
                self._annotate(items, work)
            with stage("commit"):
                files.close()
                poison = (_poisoned(samples[position], hangs=position in order.hanging) for position in order.poison)
                rejects = [*shard.rejects.values(), *poison]
                images = None
                if self._layout.documents:
                    images = ImageCounts(order.unit.images, shard.images, len(shard.dropped_images), shard.most)
                won = self._commit(samples, shard, rejects, images, attempt)
        timing = self._stopwatch.drain()
        return UnitResult(
            unit=order.unit.id,
            planned=len(samples),
            written=len(shard.written),
            rejects=_reasons(rejects),
            images=images,
            bytes=shard.tar.size if shard.tar is not None else 0,
            saved=work.saved,
            seconds={path: total.seconds for (_, path), total in timing.totals.items() if path in STAGES},
            won=won,
            batch_size=self._batch_size.now,
            dark=work.dark,
            unconfirmed=work.unconfirmed,
            profile=self._profile(timing) if self._settings.profile else None,
        )

    def _copy(self, samples: Sequence[PlannedSample], poison: Collection[int], shard: UnitShard) -> None:
        """Write samples of the data set that is read as they are."""

        def read(position: int) -> Finished:
            assert self._source is not None
            try:
                return SavedSample(*self._source.read_whole(samples[position]))
            except ShardError as error:
                return reject(samples[position], Fault("read", "sample-damaged", str(error)))

        positions = (position for position in range(len(samples)) if position not in poison)
        for position, item in done_ahead(read, positions, threads=_READERS, ahead=_READERS):
            shard.add(position, item)

    def _whole(self, planned: PlannedSample, stored: StoredSample) -> StoredSample:
        """A saved sample; of a column with what its base has of it."""
        if self._source is None or self._joiner is None:
            return stored
        return self._joiner.join(self._source.read_stored(planned.sample.image), [stored])

    def _commit(
        self,
        samples: Sequence[PlannedSample],
        shard: UnitShard,
        rejects: list[Reject],
        images: ImageCounts | None,
        attempt: Attempt,
    ) -> bool:
        shard.write_rejects([*rejects, *shard.dropped_images])
        self._check_plan()
        return attempt.commit(
            planned=len(samples),
            written=len(shard.written),
            rejects=_reasons(rejects),
            plan_digest=self._settings.plan_digest,
            texts=shard.writer.texts if shard.writer is not None else 0,
            label_share=shard.writer.label_share if shard.writer is not None else None,
            images=images,
            rules={tokens.member: tokens.rule for tokens in shard.layout.all_tokens if tokens.rule},
        )

    def _annotate(self, items: Items, work: _InWork) -> None:
        """Give each sample to the unit's shard: rejects of reading at any time, the rest in order."""
        batches = like_batches(
            work.taken(items),
            size=lambda: self._batch_size.now,
            key=lambda item: self._models.batch_key(item.images[0].image.size),
            weight=lambda item: item.nbytes,
            count=lambda item: len(item.images),
            looked=work.looked,
            waiting=work.looked
            + 1
            - sum(position <= work.looked for position in work.passed | work.finisher.early.keys()),
            ahead=BATCHES_AHEAD if self._models.prefers_like_sizes else 1,
        )
        finisher = work.finisher
        self._in_work = work
        try:
            with closing(items):
                before_last: tuple[int, ...] = ()
                for batch in batches:
                    before = copy(self._batch_size)
                    work.positions = tuple(position for position, _ in batch)
                    with stage("annotate"):
                        answers = self._ask([item for _, item in batch], finisher)
                    work.unconfirmed += sum(_unconfirmed_in(own) for own in answers)
                    if any(
                        isinstance(each, Fault) and each.reason == "out-of-memory" for own in answers for each in own
                    ):
                        self._batch_size = before  # the fault of a sample that is too large for any batch
                    # what was for the models isn't needed any more
                    asked = [(position, item.without_inputs()) for position, item in batch]
                    answered = [(*placed, answer) for placed, answer in zip(asked, answers, strict=True)]
                    # what is waited for is the batch before
                    before_last, work.positions = work.positions, before_last
                    with stage("hold"), self._handing_over:
                        finisher.take(answered)
                    work.positions = ()
                    if self._stopping.is_set():
                        self._between.set()
                        threading.Event().wait()  # for this process's end
                    del batch, asked, answers, answered  # or they would be held while the next batch is waited for
                if self._mistakes and not self._has_answered:  # nobody knows yet whether they ever work
                    self._blame_models()
                work.positions = before_last
                with stage("hold"):
                    finisher.take([])  # saved samples may be all that is left
                    finisher.wait()
        finally:
            self.working(0)  # so that what is told while it is committed is up to date
            with self._handing_over:
                self._in_work = None

    def _ask(self, batch: list[Prepared], finisher: Finisher) -> list[list[Answer | None]]:
        """Ask the models about the images of samples, but for those of which the finisher has the answers, or will."""
        asked: list[tuple[str, PreparedImage]] = []
        places: list[tuple[int, int]] = []
        coming: set[Repeated] = set()
        answers: list[list[Answer | None]] = [[None] * len(item.images) for item in batch]
        for number, item in enumerate(batch):
            for place, image in enumerate(item.images):
                if (again := finisher.repeats.of(item.planned, image.number)) is not None:
                    if again in coming or finisher.has(again):
                        continue
                    coming.add(again)
                asked.append((item.planned.key, image))
                places.append((number, place))
        found = (
            answer
            for part in pieces(asked, self._batch_size.now, lambda each: each[1].nbytes)
            for answer in self._ask_or_halve(part)
        )
        for (number, place), answer in zip(places, found, strict=True):
            answers[number][place] = answer
        return answers

    def _ask_or_halve(self, batch: list[tuple[str, PreparedImage]]) -> list[Answer]:
        """Ask the models about images, given with the keys of their samples.

        Where memory runs out, or an image is at fault, go on with halves, down to the one image.
        """
        try:
            images = [image for _, image in batch]
            answers: list[Answer] = [
                *self._models.ask(
                    [image.image.pixels for image in images],
                    [image.texts for image in images],
                    [image.inputs for image in images],
                )
            ]
        except Exception as error:
            fault = self._fault_of(error, batch)
        else:
            self._mistakes, self._mistaken, self._has_answered = 0, "", True
            self._batch_size.went_well()
            return answers
        if fault.reason == "out-of-memory":  # outside the except block, which kept the failed pass's tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._batch_size.ran_out(len(batch))
        if len(batch) == 1:
            return [fault]
        middle = len(batch) // 2
        return self._ask_or_halve(batch[:middle]) + self._ask_or_halve(batch[middle:])

    def _fault_of(self, error: Exception, batch: list[tuple[str, PreparedImage]]) -> Fault:
        """What is wrong with a batch. Where the models' code failed, it is an image in it, unless they always fail.

        Raises:
            BuildError: they have failed at too many samples, one after another.
            The error itself, if it is no sample's fault.
        """
        if isinstance(error, PatchmintError | torch.AcceleratorError) or ran_out(error):
            return fault_of(error)
        if len(batch) == 1:
            ((key, _),) = batch
            self._mistakes += key != self._mistaken  # a document is one sample, however many images it has
            self._mistaken, self._last_mistake = key, f"{key}\n{traceback.format_exc()}"
            if self._mistakes >= _MOST_MISTAKES:
                self._blame_models()
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return Fault("annotate", "model-error", f"the models failed at it: {type(error).__name__}: {error} ({where})")

    def _blame_models(self) -> NoReturn:
        raise BuildError(
            f"the models failed at {self._mistakes} samples, one after another; the last one was {self._last_mistake}"
        )

    def _profile(self, timing: Timing) -> WorkerProfile:
        return WorkerProfile(
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device,
            peak_bytes=peak_memory(),
            device_peak_bytes=device_peak(self._device),
            timing=timing,
        )

    def _check_plan(self) -> None:
        """A driver that believes this one dead may have replaced a plan of which nothing was finished.

        Raises:
            NotFoundError: it may be about to: another try will tell.
        """
        plans = load_plans(self._storage)
        if not plans:
            raise NotFoundError(
                f"there is no plan.parquet in {self._storage.uri}; run the build again to make a new plan"
            )
        if self._settings.plan_digest not in [plan.digest for plan in plans]:
            raise BuildError(
                f"plan.parquet in {self._storage.uri} isn't the plan that this build goes by any more: another driver "
                "has taken over this output and replaced it; it continues there"
            )

    def _check_output_visible(self) -> None:
        try:
            self._storage.size("plan.parquet")
        except NotFoundError as error:
            raise BuildError(
                f"the worker on {socket.gethostname()} (pid {os.getpid()}) can't see the plan in "
                f"{self._storage.uri}; with several machines output.uri must be a folder that all of them mount at the "
                "same path, or an object store such as s3://bucket/folder"
            ) from error


@dataclass
class _InWork:
    """A unit being annotated.

    Attributes:
        unit: its id.
        samples: the unit's.
        shard: in the making; None for a probe.
        finisher: labels and writes.
        passed: positions that the finisher needn't wait for.
        looked: the last position that was considered for a batch.
        saved: samples that an interrupted run had annotated.
        unreadable: samples that were rejected before the models saw them.
        dark, unconfirmed: as in `UnitResult`.
        positions: of the samples that are in work now.
    """

    unit: int
    samples: Sequence[PlannedSample]
    shard: UnitShard | None
    finisher: Finisher
    passed: set[int]
    looked: int = -1
    saved: int = 0
    unreadable: int = 0
    dark: int = 0
    unconfirmed: int = 0
    positions: tuple[int, ...] = ()

    def taken(self, items: Items) -> Iterator[tuple[int, Prepared]]:
        """Places and samples that can be annotated; the others are rejected here."""
        while True:
            with stage("wait"):
                position, item = next(items, (-1, None))
            if item is None:
                return
            if isinstance(item, Reject):
                if self.shard is not None:
                    self.shard.add(position, item)
                self.passed.add(position)
                self.unreadable += 1
            else:
                self.looked = max(self.looked, position)
                self.dark += sum(image.image.dark for image in item.images)
                yield position, item


def _unconfirmed_in(answers: Sequence[Answer | None]) -> int:
    """How many phrases a second look didn't confirm in a sample's images."""
    found = [each.instances for each in answers if isinstance(each, ModelAnswers)]
    return sum(len(each.unconfirmed) for each in found if each is not None)


def _reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(reject.fault.reason for reject in rejects))


def _poisoned(planned: PlannedSample, *, hangs: bool) -> Reject:
    if hangs:
        message = (
            "processing this sample made its worker hang, in a batch and alone (limits.sample_timeout); look at the "
            "image by itself"
        )
        return reject(planned, Fault("worker", "hangs-worker", message))
    message = (
        "this sample alone killed its worker each time it was tried, where others survive (a crash in a library, or "
        "the machine ran out of memory); look at the image by itself"
    )
    return reject(planned, Fault("worker", "kills-worker", message))
