"""One unit of a plan -> one shard: read, decode ahead, annotate in batches, write, commit.

The same code runs in a local child process and in a Ray actor.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from patchmint.errors import (
    BuildError,
    ImageDecodeError,
    ImageMissingError,
    ImageTooLargeError,
    ImageUnreadableError,
    InputError,
    NotFoundError,
    ShardError,
    StorageError,
    TextError,
)
from patchmint.pipeline.annotate import AnnotatedImage, AnnotationModels
from patchmint.pipeline.decode import DecodedImage, decode_image
from patchmint.pipeline.extension import extended_manifest
from patchmint.pipeline.layout import layout_of
from patchmint.pipeline.orders import Order, UnitResult, WorkerInfo, WorkerSettings
from patchmint.pipeline.plan import check_models, read_unit
from patchmint.pipeline.sources import open_source
from patchmint.pipeline.sources.patchmint import PatchmintSource
from patchmint.pipeline.stored import stored_sample
from patchmint.samples import Fault, PlannedSample, Reject
from patchmint.shards.commit import Attempt, find_record
from patchmint.shards.reader import StoredSample
from patchmint.shards.rejects import write_rejects
from patchmint.shards.writer import ShardWriter
from patchmint.storage import open_storage
from patchmint.types import Text

Seconds = defaultdict[str, float]
"""By stage."""

_ALLOCATION_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
"""How libraries below torch say that memory ran out; torch passes it on as a plain RuntimeError."""


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the models."""

    planned: PlannedSample
    data: bytes
    image: DecodedImage
    texts: list[Text]
    extended: StoredSample | None


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
        torch.set_num_threads(threads)
        self._source = open_source(config.source)
        self._models = AnnotationModels.load(config, device)
        extended = extended_manifest(config)
        self._layout = layout_of(config, self._models, extended.layout if extended is not None else None)
        self._batch_size = config.runner.batch_size
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._device = device

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
        samples = read_unit(self._storage, order.unit)
        if order.probe is not None:
            probed = [sample for place, sample in enumerate(samples) if place in order.probe]
            deque(self._annotated(probed, defaultdict(float)), maxlen=0)
            return None
        attempt = Attempt(self._storage, order.unit.id, self._settings.run_id)
        try:
            return self._build(order, samples, attempt)
        except StorageError:
            # Another driver that finished this unit may have swept our files from under us: then all is well.
            if find_record(self._storage, order.unit.id) is None:
                raise
            return UnitResult(order.unit.id, len(samples), 0, {}, 0, won=False)
        finally:
            attempt.drop()

    def _build(self, order: Order, samples: Sequence[PlannedSample], attempt: Attempt) -> UnitResult:
        seconds: Seconds = defaultdict(float)
        rejects: list[Reject] = []
        written = size = 0
        good = [sample for place, sample in enumerate(samples) if place not in order.poison]
        with ExitStack() as stack:
            writer: ShardWriter | None = None
            for item in self._annotated(good, seconds):
                if isinstance(item, Reject):
                    rejects.append(item)
                    continue
                with _timed(seconds, "write"):
                    if writer is None:  # a unit of nothing but rejects has no shard
                        tar = stack.enter_context(attempt.new_file(f"shards/{order.unit.name}.tar"))
                        sidecar = stack.enter_context(attempt.new_file(f"shards/{order.unit.name}.parquet"))
                        writer = stack.enter_context(ShardWriter(tar, sidecar, self._layout))
                    prepared, annotated = item
                    writer.add(
                        stored_sample(prepared.planned, prepared.data, prepared.image, annotated, prepared.extended)
                    )
                    written += 1
            start = time.perf_counter()
        texts, label_share = 0, None
        if writer is not None:
            size, texts, label_share = tar.size, writer.texts, writer.label_share
        rejects += [_poisoned(samples[place]) for place in order.poison]
        rejects.sort(key=lambda reject: reject.ordinal)
        if rejects:
            with attempt.new_file(f"rejects/{order.unit.name}.parquet") as file:
                write_rejects(file, rejects)
        reasons = Counter(reject.fault.reason for reject in rejects)
        won = attempt.commit(
            planned=len(samples),
            written=written,
            rejects=reasons,
            plan_digest=self._settings.plan_digest,
            texts=texts,
            label_share=label_share,
        )
        seconds["commit"] = time.perf_counter() - start
        return UnitResult(order.unit.id, len(samples), written, dict(reasons), size, dict(seconds), won)

    def _annotated(
        self, samples: Sequence[PlannedSample], seconds: Seconds
    ) -> Iterator[Reject | tuple[Prepared, AnnotatedImage]]:
        """Each sample's annotation or reject; the annotated ones in order."""
        batch: list[Prepared] = []
        for item in self._prepared(samples, seconds):
            if isinstance(item, Reject):
                yield item
                continue
            batch.append(item)
            if len(batch) >= self._batch_size:
                yield from self._annotate(batch, seconds)
                batch = []
        if batch:
            yield from self._annotate(batch, seconds)

    def _prepared(self, samples: Iterable[PlannedSample], seconds: Seconds) -> Iterator[Reject | Prepared]:
        """Read and decode ahead of the models, in order, at most two batches."""
        waiting: deque[Future[Reject | Prepared]] = deque()
        iterator = iter(samples)
        try:
            for sample in islice(iterator, 2 * self._batch_size):
                waiting.append(self._decoders.submit(self._prepare, sample))
            while waiting:
                with _timed(seconds, "wait"):
                    item = waiting.popleft().result()
                for sample in islice(iterator, 1):
                    waiting.append(self._decoders.submit(self._prepare, sample))
                yield item
        finally:
            for future in waiting:
                future.cancel()

    def _prepare(self, planned: PlannedSample) -> Reject | Prepared:
        sample, path = planned.sample, planned.sample.image.path
        if sample.fault is not None:
            return _reject(planned, sample.fault)
        stage, reason = "text", "text-invalid"
        extended: StoredSample | None = None
        if isinstance(self._source, PatchmintSource):
            try:
                planned, extended = self._source.read_whole(planned)
            except ShardError as error:
                return _reject(planned, Fault("read", "sample-damaged", str(error)))
            sample = planned.sample
        try:
            texts = [text.to_text() for text in sample.texts]
            if not any(text.content.strip() for text in texts):
                return _reject(planned, Fault("text", "text-empty", "none of the sample's texts says anything"))
            stage, reason = "read", "image-missing"
            data = extended.image if extended is not None else self._source.read_image(sample.image)
            stage = "decode"
            image = decode_image(data, max_megapixels=self._settings.config.limits.max_image_megapixels)
        except ImageUnreadableError as error:
            return _reject(planned, Fault(stage, "image-unreadable", str(error)))
        except MemoryError:
            return _reject(planned, Fault(stage, "out-of-memory", f"{path}: there isn't enough memory to decode it"))
        except (TextError, ImageMissingError) as error:
            return _reject(planned, Fault(stage, reason, str(error)))
        except ImageTooLargeError as error:
            return _reject(planned, Fault(stage, "image-too-large", f"{path}: {error}"))
        except ImageDecodeError as error:
            return _reject(planned, Fault(stage, "image-damaged", f"{path}: {error}"))
        return Prepared(planned, data, image, texts, extended)

    def _annotate(self, batch: list[Prepared], seconds: Seconds) -> Iterator[Reject | tuple[Prepared, AnnotatedImage]]:
        with _timed(seconds, "annotate"):
            answers = self._annotate_or_halve(batch)
        yield from answers

    def _annotate_or_halve(self, batch: list[Prepared]) -> list[Reject | tuple[Prepared, AnnotatedImage]]:
        """Annotate; where memory runs out, or a sample is at fault, go on with halves, down to the one sample."""
        try:
            annotated = self._models.annotate([item.image.pixels for item in batch], [item.texts for item in batch])
            return list(zip(batch, annotated, strict=True))
        except InputError as error:
            fault = Fault("annotate", "not-annotatable", str(error))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            fault = Fault("annotate", "out-of-memory", f"alone it takes more memory than there is: {error}")
        if fault.reason == "out-of-memory":  # outside the except block, which kept the failed pass's tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._batch_size = max(1, min(self._batch_size, len(batch) // 2))
        if len(batch) == 1:
            return [_reject(batch[0].planned, fault)]
        middle = len(batch) // 2
        return self._annotate_or_halve(batch[:middle]) + self._annotate_or_halve(batch[middle:])

    def _check_output_visible(self) -> None:
        try:
            self._storage.size("plan.parquet")
        except NotFoundError as error:
            raise BuildError(
                f"the worker on {socket.gethostname()} (pid {os.getpid()}) can't see the plan in "
                f"{self._storage.uri}; with several machines output.uri must be a folder that all of them mount at the "
                "same path, or an object store such as s3://bucket/folder"
            ) from error


def _reject(planned: PlannedSample, fault: Fault) -> Reject:
    return Reject(planned.ordinal, planned.key, planned.sample.id, fault)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _ALLOCATION_FAILED)


def _poisoned(planned: PlannedSample) -> Reject:
    message = (
        "processing this sample alone killed its worker each time it was tried (a crash in a library, or the machine "
        "ran out of memory); look at the image by itself"
    )
    return _reject(planned, Fault("worker", "kills-worker", message))


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start
