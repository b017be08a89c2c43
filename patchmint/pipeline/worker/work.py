"""One unit of a plan -> one shard: read, decode ahead, ask the models in batches, label, write, commit.

The same code runs in a local child process and in a Ray actor. The thread that `Worker.do` is called in does little but
ask the models; images are prepared in threads (`prepare`), labels are made and shards written in one more (`finish`).
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from patchmint.annotate.models import AnnotationModels, ModelAnswers
from patchmint.compute.memory import keep_few_kernels, keep_freed_memory, peak_memory
from patchmint.compute.spans import span, start_recording
from patchmint.datasets.extension import extended_manifest
from patchmint.errors import BuildError, InputError, NotFoundError, StorageError
from patchmint.pipeline.orders import Order, UnitResult, WorkerInfo, WorkerProfile, WorkerSettings
from patchmint.pipeline.plan import check_models
from patchmint.pipeline.sources import open_source
from patchmint.pipeline.worker.batch_size import choose_batch_size
from patchmint.pipeline.worker.batches import BATCHES_AHEAD, like_batches
from patchmint.pipeline.worker.finish import Finisher, fault_of
from patchmint.pipeline.worker.layout import layout_of
from patchmint.pipeline.worker.prepare import Items, Prepared, Preparer, reject
from patchmint.pipeline.worker.unit_shard import Seconds, UnitShard, timed
from patchmint.samples import Fault, PlannedSample, Reject
from patchmint.shards.commit import Attempt, find_record
from patchmint.shards.plan_parts import read_unit
from patchmint.shards.planned import read_planned_units
from patchmint.shards.rejects import write_rejects
from patchmint.shards.sample import ShardSample
from patchmint.storage import open_storage


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
        self._storage = open_storage(config.output.uri)
        self._check_output_visible()
        check_models(config, settings.models)
        keep_few_kernels()
        keep_freed_memory()
        torch.set_num_threads(threads)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        if config.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        source = open_source(config.source)
        self._finishing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._models = AnnotationModels.load(config, device, compiled=config.runner.compile)
        self._preparer = Preparer(source, config.limits.max_image_megapixels, threads, self._models.prepare)
        extended = extended_manifest(config)
        self._layout = layout_of(config, self._models, extended.layout if extended is not None else None)
        self._batch_size = choose_batch_size(self._models, config.runner, device)
        self._device = device
        self._recorder = start_recording(device) if settings.profile else None

    @property
    def info(self) -> WorkerInfo:
        """Who this is."""
        return WorkerInfo(host=socket.gethostname(), device=self._device)

    def do(self, order: Order) -> UnitResult | None:
        """Build a unit, or probe some of its samples.

        Raises:
            StorageError: reading or writing failed, even after retries; the unit isn't built.
        """
        try:
            return self._do(order)
        except torch.AcceleratorError as error:
            # The device's context is lost to this process for good. As a dead worker it is replaced and its unit tried
            # again; if it is the fault of a sample, that sample is found.
            print(f"patchmint: the device failed, this worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _do(self, order: Order) -> UnitResult | None:
        with span("wait"):
            samples, items = self._samples(order)
        if order.probe is not None:
            self._annotate(items, lambda _: None, defaultdict(float))
            return None
        attempt = Attempt(self._storage, order.unit.id, self._settings.run_id)
        try:
            return self._build(order, samples, items, attempt)
        except StorageError:
            # Another driver that finished this unit may have swept our files from under us: then all is well.
            if find_record(self._storage, order.unit.id) is None:
                raise
            return UnitResult(order.unit.id, len(samples), 0, {}, 0, won=False)
        finally:
            attempt.drop()

    def _samples(self, order: Order) -> tuple[Sequence[PlannedSample], Items]:
        """A unit's samples, and those that the order is about, prepared."""
        begun = None
        if order.poison or order.probe is not None:
            self._preparer.forget()
        else:
            begun = self._preparer.take_begun(order.unit, self._decoded_ahead, lambda: self._begin_next(order))
        if begun is not None:
            return begun
        samples = read_unit(self._storage, order.unit)
        wanted = [
            sample
            for place, sample in enumerate(samples)
            if (place not in order.poison if order.probe is None else place in order.probe)
        ]
        return samples, self._preparer.prepared(wanted, self._decoded_ahead, lambda: self._begin_next(order))

    def _begin_next(self, order: Order) -> None:
        """The decoding threads have time: prepare what the models are to have when this unit's last batch is done."""
        if (unit := order.ahead) is not None:
            self._preparer.begin(unit, lambda: read_unit(self._storage, unit), self._decoded_ahead)

    @property
    def _decoded_ahead(self) -> int:
        return 2 * self._batch_size

    def _build(self, order: Order, samples: Sequence[PlannedSample], items: Items, attempt: Attempt) -> UnitResult:
        seconds: Seconds = defaultdict(float)
        with ExitStack() as files:
            shard = UnitShard(order.unit.name, self._layout, attempt, files, seconds)
            self._annotate(items, shard.add, seconds)
            with timed(seconds, "commit"):
                files.close()
                rejects = shard.rejects + [_poisoned(samples[place]) for place in order.poison]
                won = self._commit(order, samples, shard, rejects, attempt)
        return UnitResult(
            unit=order.unit.id,
            planned=len(samples),
            written=shard.written,
            rejects=_reasons(rejects),
            bytes=shard.tar.size if shard.tar is not None else 0,
            seconds=dict(seconds),
            won=won,
            batch_size=self._batch_size,
            profile=self._profile(),
        )

    def _commit(
        self, order: Order, samples: Sequence[PlannedSample], shard: UnitShard, rejects: list[Reject], attempt: Attempt
    ) -> bool:
        if rejects:
            with attempt.new_file(f"rejects/{order.unit.name}.parquet") as file:
                write_rejects(file, sorted(rejects, key=lambda reject: reject.ordinal))
        self._check_plan()
        return attempt.commit(
            planned=len(samples),
            written=shard.written,
            rejects=_reasons(rejects),
            plan_digest=self._settings.plan_digest,
            texts=shard.writer.texts if shard.writer is not None else 0,
            label_share=shard.writer.label_share if shard.writer is not None else None,
        )

    def _annotate(self, items: Items, write: Callable[[ShardSample | Reject], None], seconds: Seconds) -> None:
        """Give each sample, annotated or rejected, to `write`: rejects of reading at any time, the rest in order."""
        rejects: list[Reject] = []
        batches = like_batches(
            _prepared(items, rejects, seconds),
            size=lambda: self._batch_size,
            key=lambda item: self._models.batch_key(item.image.size),
            weight=lambda item: item.nbytes,
            ahead=BATCHES_AHEAD if self._models.prefers_like_sizes else 1,
        )
        with closing(items), Finisher(self._models, write, self._finishing) as finisher:
            for batch in batches:
                before = self._batch_size
                with timed(seconds, "annotate"):
                    answers = self._ask_or_halve([item for _, item in batch])
                if any(isinstance(answer, Fault) and answer.reason == "out-of-memory" for answer in answers):
                    self._batch_size = before  # the fault of a sample that is too large for any batch
                # what was for the models isn't needed any more
                asked = [(number, replace(item, inputs=None)) for number, item in batch]
                answered = [(*numbered, answer) for numbered, answer in zip(asked, answers, strict=True)]
                with timed(seconds, "hold"):
                    finisher.take(answered)
                del batch, asked, answers, answered  # or they would be held while the next batch is waited for
            with timed(seconds, "hold"):
                finisher.wait()
        for rejected in rejects:
            write(rejected)

    def _ask_or_halve(self, batch: list[Prepared]) -> list[ModelAnswers | Fault]:
        """Ask the models; where memory runs out, or a sample is at fault, go on with halves, down to the one sample."""
        try:
            images, texts = [item.image.pixels for item in batch], [item.texts for item in batch]
            return list(self._models.ask(images, texts, [item.inputs for item in batch]))
        except (InputError, RuntimeError, MemoryError) as error:
            fault = fault_of(error)
        if fault.reason == "out-of-memory":  # outside the except block, which kept the failed pass's tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._batch_size = max(1, min(self._batch_size, len(batch) // 2))
        if len(batch) == 1:
            return [fault]
        middle = len(batch) // 2
        return self._ask_or_halve(batch[:middle]) + self._ask_or_halve(batch[middle:])

    def _profile(self) -> WorkerProfile | None:
        if self._recorder is None:
            return None
        on_gpu = self._device.startswith("cuda")
        return WorkerProfile(
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device,
            peak_bytes=peak_memory(),
            device_peak_bytes=torch.cuda.max_memory_allocated(self._device) if on_gpu else 0,
            record=self._recorder.drain(),
        )

    def _check_plan(self) -> None:
        """A driver that believes this one dead may have replaced a plan of which nothing was finished.

        Raises:
            NotFoundError: it may be about to: another try will tell.
        """
        if self._settings.plan_digest not in read_planned_units(self._storage).digests:
            raise BuildError(
                f"plan.parquet in {self._storage.uri} isn't the plan that this build goes by any more: another driver "
                "has taken over this output and replaced it; it goes on there"
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


def _prepared(items: Items, rejects: list[Reject], seconds: Seconds) -> Iterator[Prepared]:
    while True:
        with timed(seconds, "wait"):
            item = next(items, None)
        if item is None:
            return
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            yield item


def _reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(reject.fault.reason for reject in rejects))


def _poisoned(planned: PlannedSample) -> Reject:
    message = (
        "processing this sample alone killed its worker each time it was tried (a crash in a library, or the machine "
        "ran out of memory); look at the image by itself"
    )
    return reject(planned, Fault("worker", "kills-worker", message))
