"""What follows the models: patch labels, and writing in the plan's order, while the models do the next batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from patchmint.annotate.models import AnnotationModels, ModelAnswers
from patchmint.compute.memory import ran_out
from patchmint.errors import InputError
from patchmint.pipeline.worker.prepare import Prepared, reject
from patchmint.pipeline.worker.stored import stored_sample
from patchmint.samples import Fault, Reject
from patchmint.shards.sample import ShardSample

Answered = tuple[int, Prepared, ModelAnswers | Fault]
"""A sample's number among those that were prepared, the sample, and what the models said or why they couldn't."""


class Finisher:
    """Labels and writes batches in a thread, one at a time: while one is in work, the models' next may be handed over.

    As a context manager it waits for its thread at the end; what failed there is raised unless something else was.

    Args:
        models: make labels.
        write: takes what is finished, in order of the samples' numbers; in a thread, but never twice at once.
        pool: of one thread.
    """

    def __init__(
        self, models: AnnotationModels, write: Callable[[ShardSample | Reject], None], pool: ThreadPoolExecutor
    ) -> None:
        self._models = models
        self._write = write
        self._pool = pool
        self._job: Future[None] | None = None
        # Batches take samples out of their order. None is held for longer than `like_batches` looks ahead.
        self._early: dict[int, ShardSample | Reject] = {}
        self._turn = 0

    def take(self, batch: Sequence[Answered]) -> None:
        """Have a batch finished, as soon as the one before is.

        Raises:
            StorageError, ShardError: the batch before couldn't be written.
        """
        self.wait()
        self._job = self._pool.submit(self._finish, batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._job is not None:
            self._job.exception()

    def wait(self) -> None:
        """Wait until all that was handed over is finished. Raises as `take`."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _finish(self, batch: Sequence[Answered]) -> None:
        for number, prepared, answers in batch:
            self._early[number] = self._finished(prepared, answers)
        while (item := self._early.pop(self._turn, None)) is not None:
            self._write(item)
            self._turn += 1

    def _finished(self, prepared: Prepared, answers: ModelAnswers | Fault) -> ShardSample | Reject:
        if isinstance(answers, Fault):
            return reject(prepared.planned, answers)
        try:
            labelled = self._models.label(answers, prepared.image.size, len(prepared.texts))
        except (InputError, RuntimeError, MemoryError) as error:
            fault = fault_of(error)
            if fault.reason == "out-of-memory":  # not alone: the models are at the next batch
                message = f"beside the models there wasn't enough memory for its labels (runner.batch_size?): {error}"
                fault = replace(fault, message=message)
            return reject(prepared.planned, fault)
        return stored_sample(prepared.planned, prepared.data, prepared.image, labelled, prepared.extended)


def fault_of(error: Exception) -> Fault:
    """What is wrong with a sample that can't be annotated.

    Raises:
        The error itself, if it is no sample's fault.
    """
    if isinstance(error, InputError):
        return Fault("annotate", "not-annotatable", str(error))
    if ran_out(error):
        return Fault("annotate", "out-of-memory", f"it takes more memory than there is, also alone: {error}")
    raise error
