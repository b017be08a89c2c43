"""What follows the models: patch labels, and the shard, written in the plan's order while they do the next batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Self

from pydantic import ValidationError

from patchmint.annotate.models import AnnotatedImage, AnnotationModels, ModelAnswers
from patchmint.compute.memory import ran_out
from patchmint.compute.stages import stage
from patchmint.config import AnnotatorConfig
from patchmint.errors import BuildError, InputError
from patchmint.pipeline.worker.prepare import Prepared, reject
from patchmint.plugins import is_outside_tokenizer
from patchmint.samples import Fault, PlannedSample, Reject
from patchmint.shards.commit import Attempt
from patchmint.shards.endings import VQGAN, token_member
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.reader import StoredSample
from patchmint.shards.rejects import write_rejects
from patchmint.shards.sample import ShardImage, ShardSample, phrases_of
from patchmint.shards.saved import SavedUnit
from patchmint.shards.schema import ImageDocument, first_error
from patchmint.shards.writer import ShardWriter
from patchmint.storage import NewFile, Storage

Answered = tuple[int, Prepared, ModelAnswers | Fault]
"""A sample's position in its unit, the sample, and what the models said or why they couldn't."""


@dataclass(frozen=True)
class SavedSample:
    """A sample that an interrupted run had annotated."""

    planned: PlannedSample
    stored: StoredSample


Finished = ShardSample | SavedSample | Reject


class Finisher:
    """Labels and writes batches in a thread, one at a time: while one is in work, the models' next may be handed over.

    As a context manager it waits for its thread at the end; what failed there is raised unless something else was.

    Args:
        models: make labels.
        write: takes positions and what is finished there, in order; in a thread, but never twice at once.
        pool: of one thread.
        passed: positions that aren't waited for; the caller adds those of which it learns later.
        early: what is finished already, by position.

    Attributes:
        finished: how many samples are, in this run.
        early: what is finished and waits for a position before it. Batches take samples out of their order, but none is
            held for longer than `like_batches` looks ahead.
    """

    def __init__(
        self,
        models: AnnotationModels,
        write: Callable[[int, Finished], None],
        pool: ThreadPoolExecutor,
        passed: Collection[int] = (),
        early: Mapping[int, Finished] = MappingProxyType({}),
    ) -> None:
        self._models = models
        self._write = write
        self._pool = pool
        self._passed = passed
        self._job: Future[None] | None = None
        self.early = dict(early)
        self.finished = 0
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
        for position, prepared, answers in batch:
            self.early[position] = self._finished(prepared, answers)
            self.finished += 1
        while self._turn in self.early or self._turn in self._passed:
            if (item := self.early.pop(self._turn, None)) is not None:
                self._write(self._turn, item)
            self._turn += 1

    def _finished(self, prepared: Prepared, answers: ModelAnswers | Fault) -> ShardSample | Reject:
        if isinstance(answers, Fault):
            return reject(prepared.planned, answers)
        try:
            labelled = self._models.label(answers, prepared.image.size, len(prepared.texts))
        except Exception as error:
            error.add_note(f"This happened while sample {prepared.planned.key} was labelled.")
            fault = fault_of(error)
            if fault.reason == "out-of-memory":  # not alone: the models are at the next batch
                message = f"beside the models there wasn't enough memory for its labels (runner.batch_size?): {error}"
                fault = replace(fault, message=message)
            return reject(prepared.planned, fault)
        return stored_sample(prepared, labelled)


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


def stored_sample(prepared: Prepared, annotated: AnnotatedImage) -> ShardSample:
    """Put together what one sample's members are made of: what was made, else what the extended sample has of it.

    Raises:
        ShardError: a member that is carried over is damaged.
    """
    image, labels, found, tokens = prepared.image, annotated.labels, annotated.instances, annotated.tokens
    assert image.format != "array"  # it was decoded from a file's bytes
    height, width = image.size
    made = ShardImage(
        data=prepared.data,
        image=ImageDocument(
            width=width, height=height, format=image.format, mode=image.mode, orientation=image.orientation
        ),
        views=len(annotated.placement.views),
        placement=annotated.placement,
        phrases=phrases_of(found, prepared.planned.sample.texts) if found is not None else (),
        selector=labels.selector if labels else None,
        coverage=labels.coverage if labels else None,
        codes=tokens.codes if tokens else None,
        features=annotated.features,
    )
    if prepared.extended is not None:
        (extended,) = prepared.extended.images
        made = replace(
            made,
            phrases=made.phrases if made.selector is not None else extended.phrases,
            selector=made.selector if made.selector is not None else extended.selector,
            coverage=made.coverage if made.coverage is not None else extended.coverage,
            codes=made.codes if made.codes is not None else extended.codes,
            features=made.features if made.features is not None else extended.features,
        )
    return ShardSample(prepared.planned, (made,))


@dataclass
class UnitShard:
    """A unit's shard in the making. Its files are begun with the first sample: a unit of only rejects has none.

    Attributes:
        unit: the unit's name.
        layout: of the samples.
        attempt: owns the files.
        files: closes them.
        rejects: so far, by position in the unit.
        written: positions of the samples so far, in the shard's order.
        tar, writer: None before the first sample.
    """

    unit: str
    layout: Layout
    attempt: Attempt
    files: ExitStack
    rejects: dict[int, Reject] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)
    tar: NewFile | None = None
    writer: ShardWriter | None = None

    def add(self, position: int, item: Finished) -> None:
        """Write a sample, or note a reject."""
        if isinstance(item, Reject):
            self.rejects[position] = item
            return
        with stage("write"):
            if self.writer is None:
                _, table, tar = self.attempt.paths
                self.tar = self.files.enter_context(self.attempt.new_file(tar))
                sidecar = self.files.enter_context(self.attempt.new_file(table))
                self.writer = self.files.enter_context(ShardWriter(self.tar, sidecar, self.layout))
            if isinstance(item, SavedSample):
                self.writer.add_stored(item.stored, item.planned.ordinal)
            else:
                self.writer.add(item)
            self.written.append(position)

    def resume(self, saved: SavedUnit, samples: Sequence[PlannedSample], storage: Storage) -> dict[int, Finished]:
        """Begin with what an interrupted run has saved of the unit.

        Args:
            saved: that.
            samples: the unit's.
            storage: where it lies.

        Returns:
            By position, what has to wait for a position before it.

        Raises:
            StorageError, ShardError: it can't be read.
        """
        self.rejects = saved.read_rejects(storage)
        early: dict[int, Finished] = {}
        turn = 0
        for position, stored in saved.read_samples(storage):
            while turn in self.rejects:
                turn += 1
            item = SavedSample(samples[position], stored)
            if position == turn:
                self.add(position, item)
                turn += 1
            else:
                early[position] = item
        return early

    def save(self, early: Mapping[int, Finished], looked: int, plan_digest: str) -> int:
        """Leave what is annotated to the run that resumes, and write no more.

        Args:
            early: what is finished and waits for a position before it.
            looked: the last position that was considered for a batch.
            plan_digest: of the plan.

        Returns:
            How many samples are saved, rejects among them.

        Raises:
            StorageError: it can't be written.
        """
        for position, item in sorted(early.items()):
            self.add(position, item)
        if not self.written and not self.rejects:
            return 0
        self.files.close()
        self.write_rejects(self.rejects.values())
        self.attempt.save(plan_digest, self.written, sorted(self.rejects), looked)
        return len(self.written) + len(self.rejects)

    def write_rejects(self, rejects: Collection[Reject]) -> None:
        """Write the table of rejects, if there are any. Raises StorageError."""
        if rejects:
            with self.attempt.new_file(f"rejects/{self.unit}.parquet") as file:
                write_rejects(file, rejects)


def layout_of(config: AnnotatorConfig, models: AnnotationModels, extended: Layout | None = None) -> Layout:
    """The layout of what these models make.

    Args:
        config: the settings.
        models: that were loaded for them.
        extended: of the data set that is extended: what isn't made anew is carried over from it.

    Raises:
        BuildError: an outside model makes what the format has no room for.
    """
    try:
        made = _made_layout(config, models)
    except ValidationError as error:
        raise BuildError(f"what the models make can't be stored: {first_error(error)}; see docs/format.md") from error
    if extended is None:
        return made
    return made.model_copy(
        update={
            "min_coverage": made.min_coverage if config.labels else extended.min_coverage,
            "tokens": made.tokens or extended.tokens,
            "features": made.features or extended.features,
            # what is carried over may be all that a warning is about
            "notice": " | ".join(
                dict.fromkeys(part for notice in (extended.notice, made.notice) for part in notice.split(" | ") if part)
            ),
        }
    )


def _made_layout(config: AnnotatorConfig, models: AnnotationModels) -> Layout:
    tokens = None
    if models.tokenizer is not None:
        spec = models.tokenizer.spec
        tokens = TokensLayout(
            member=token_member(spec.name) if is_outside_tokenizer(config.models.tokenizer) else VQGAN,
            grid=spec.grid_shape,
            codebook_sizes=spec.codebook_sizes,
            preprocessing=spec.preprocessing,
            rule=spec.rule,
        )
    return Layout(
        grid=GridLayout.of(models.grid),
        min_coverage=config.labels.min_coverage if config.labels else None,
        tokens=tokens,
        features=models.encoder.spec if models.encoder else None,
        notice=config.notice,
    )
