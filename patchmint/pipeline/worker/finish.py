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
from patchmint.config.build import BuildConfig
from patchmint.datasets.extension import added
from patchmint.errors import BuildError, InputError
from patchmint.geometry import Grid
from patchmint.pipeline.worker.prepare import Prepared, PreparedImage, Repeated, Repeats, dropped_images, reject
from patchmint.samples import Fault, PlannedSample, Reject
from patchmint.shards.commit import Attempt
from patchmint.shards.layout import FurtherGridLayout, GridLayout, Layout, TokensLayout
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.shards.rejects import write_rejects
from patchmint.shards.sample import (
    FurtherLabels,
    ShardImage,
    ShardSample,
    codes_by_name,
    codes_of,
    instances_of,
    masks_of,
    phrases_of,
    stored_codes,
    stored_labels,
)
from patchmint.shards.saved import SavedUnit
from patchmint.shards.schema import ImageDocument, first_error
from patchmint.shards.writer import ShardWriter
from patchmint.storage import NewFile, Storage

Answer = ModelAnswers | Fault
"""What the models said of an image, or why they couldn't."""

Answered = tuple[int, Prepared, Sequence[Answer | None]]
"""A sample's position in its unit, the sample, and the answers to its images; None where `Finisher.has` what was made
of the image, or another sample of the batch has the answer."""


@dataclass(frozen=True)
class MadeSample:
    """A sample to be written.

    Attributes:
        sample: without its dropped images.
        dropped: these, by number.
    """

    sample: ShardSample
    dropped: tuple[Reject, ...] = ()


@dataclass(frozen=True)
class SavedSample:
    """A sample that an interrupted run had annotated."""

    planned: PlannedSample
    stored: StoredSample


Finished = MadeSample | SavedSample | Reject


class Finisher:
    """Labels and writes batches in a thread, one at a time: while one is in work, the models' next may be handed over.

    As a context manager it waits for its thread at the end; what failed there is raised unless something else was.

    Args:
        models: make labels.
        write: takes positions and what is finished there, in order; in a thread, but never twice at once.
        pool: of one thread.
        passed: positions that aren't waited for; the caller adds those of which it learns later.
        early: what is finished already, by position.
        repeats: the unit's.
        kept: what an interrupted run had made of them, in samples that are written or in `early`.
        drop: whether documents do without their bad images.
        layout: as for `made_sample`.

    Attributes:
        finished: how many samples are, in this run.
        repeats: as given.
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
        *,
        repeats: Repeats | None = None,
        kept: Mapping[Repeated, ShardImage] = MappingProxyType({}),
        drop: bool = False,
        layout: Layout | None = None,
    ) -> None:
        self._models = models
        self._write = write
        self._pool = pool
        self._passed = passed
        self._job: Future[None] | None = None
        self.early = dict(early)
        self.repeats = repeats or Repeats(())
        # Of samples that are written or early, and of no others: so a run that resumes knows of the same ones.
        self._kept = dict(kept)
        self._in_work: Collection[Repeated] = ()
        self._drop = drop
        self._layout = layout
        self.finished = 0
        self._turn = 0

    def take(self, batch: Sequence[Answered]) -> None:
        """Have a batch finished, as soon as the one before is.

        Raises:
            StorageError, ShardError: the batch before couldn't be written.
        """
        self.wait()
        if self.repeats.last:
            self._in_work = {
                repeated
                for _, prepared, _ in batch
                for image in prepared.images
                if (repeated := self.repeats.of(prepared.planned, image.number)) is not None
            }
        self._job = self._pool.submit(self._finish, batch)

    def has(self, repeated: Repeated) -> bool:
        """Whether an image need not be asked about. Waits where the batch in work decides that; raises as `take`."""
        job = self._job
        if job is not None and repeated in self._in_work:
            job.result()  # not `wait`, which another thread may be in
        return repeated in self._kept

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
        made: dict[Repeated, ShardImage | Fault] = {}
        for position, prepared, answers in batch:
            self.early[position] = self._finished(prepared, answers, made)
            self.finished += 1
        while self._turn in self.early or self._turn in self._passed:
            if (item := self.early.pop(self._turn, None)) is not None:
                self._write(self._turn, item)
            self._turn += 1
        if self._kept:
            self._kept = {each: image for each, image in self._kept.items() if self.repeats.last[each] >= self._turn}

    def _finished(
        self, prepared: Prepared, answers: Sequence[Answer | None], made: dict[Repeated, ShardImage | Fault]
    ) -> MadeSample | Reject:
        """A finished sample.

        Args:
            prepared: the sample.
            answers: to its images.
            made: what was made in this batch of images that are shown again; is added to.
        """
        images: dict[int, ShardImage] = {}
        faults = dict(prepared.dropped)
        repeated = [self.repeats.of(prepared.planned, image.number) for image in prepared.images]
        for image, answer, again in zip(prepared.images, answers, repeated, strict=True):
            if answer is not None:
                found = self._image(prepared, image, answer)
            else:
                assert again is not None  # else it was asked about
                found = made[again] if again in made else self._kept[again]
            if again is not None:
                made[again] = found
            if isinstance(found, Fault):
                faults[image.number] = found
            else:
                images[image.number] = replace(found, data=image.data)
        if not images or (faults and not self._drop):
            return reject(prepared.planned, faults[min(faults)])
        self._kept |= {
            again: replace(images[image.number], data=b"")
            for image, again in zip(prepared.images, repeated, strict=True)
            if again is not None and image.number in images
        }
        return made_sample(prepared, images, faults, self._layout)

    def _image(self, prepared: Prepared, image: PreparedImage, answer: Answer) -> ShardImage | Fault:
        if isinstance(answer, Fault):
            return answer
        if prepared.extended is not None and self._models.stored is not None:
            found = instances_of(prepared.extended.images[image.number])
            answer = replace(answer, instances=self._models.stored.apply(found))
        try:
            labelled = self._models.label(answer, image.image.size, len(image.texts))
        except Exception as error:
            error.add_note(f"This happened while sample {prepared.planned.key} was labelled.")
            fault = fault_of(error)
            if fault.reason == "out-of-memory":  # not alone: the models are at the next batch
                message = f"beside the models there wasn't enough memory for its labels (runner.batch_size?): {error}"
                fault = replace(fault, message=message)
            return fault
        return made_image(image, labelled)


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


def made_image(image: PreparedImage, annotated: AnnotatedImage) -> ShardImage:
    """What an image's members are made of; its phrases count the image's own texts, not the sample's."""
    decoded, labels, found = image.image, annotated.labels, annotated.instances
    assert decoded.format != "array"  # it was decoded from a file's bytes
    height, width = decoded.size
    return ShardImage(
        data=image.data,
        image=ImageDocument(
            width=width, height=height, format=decoded.format, mode=decoded.mode, orientation=decoded.orientation
        ),
        views=len(annotated.placement.views),
        placement=annotated.placement,
        phrases=phrases_of(found, image.texts) if found is not None else (),
        selector=labels.selector if labels else None,
        coverage=labels.coverage if labels else None,
        features=annotated.features,
        further={
            name: FurtherLabels(len(placed.views), placed, made.selector, made.coverage)
            for name, (placed, made) in annotated.further.items()
        },
        masks=annotated.masks,
        **codes_by_name({member: tokens.codes for member, tokens in annotated.tokens.items()}),
    )


def made_sample(
    prepared: Prepared, images: Mapping[int, ShardImage], dropped: Mapping[int, Fault], layout: Layout | None = None
) -> MadeSample:
    """Put a sample together.

    Args:
        prepared: the sample.
        images: by number, those that are good.
        dropped: the others.
        layout: of a column, to which not all belongs that was made; None: that of all that was made.
    """
    planned = prepared.planned
    texts = planned.sample.image_texts
    written = []
    for number, image in images.items():
        if texts:
            own = texts[number]
            phrases = (phrase.model_copy(update={"text_index": own[phrase.text_index]}) for phrase in image.phrases)
            image = replace(image, phrases=tuple(phrases))
        written.append(image if layout is None else only(image, layout))
    if dropped:
        planned = replace(planned, sample=planned.sample.without(dropped))
    return MadeSample(ShardSample(planned, tuple(written)), dropped_images(prepared.planned, dropped))


def only(image: ShardImage, layout: Layout) -> ShardImage:
    """What of an image belongs to a layout."""
    grids = {grid.name for grid in layout.further_grids}
    labelled = layout.min_coverage is not None
    codes = {tokens.member: codes_of(image, tokens) for tokens in layout.all_tokens}
    return replace(
        image,
        phrases=image.phrases if labelled else (),
        masks=image.masks if layout.instances else None,
        selector=image.selector if labelled else None,
        coverage=image.coverage if labelled else None,
        further={name: labels for name, labels in image.further.items() if name in grids},
        **codes_by_name({member: grid for member, grid in codes.items() if grid is not None}),
        features=image.features if layout.features else None,
    )


def kept_image(stored: StoredImage, grid: Grid, layout: Layout) -> ShardImage:
    """What `made_image` had made of an image before it was stored, as far as it belongs to a layout, without its bytes.

    Raises:
        ShardError: a member is damaged.
    """
    told, own = stored.info, stored.texts
    image = ShardImage(
        data=b"",
        image=ImageDocument(**{name: getattr(told, name) for name in ImageDocument.model_fields}),
        views=stored.grid.views,
        placement=grid.place((told.height, told.width)),
        phrases=tuple(
            phrase.model_copy(update={"text_index": own.index(phrase.text_index)}) for phrase in stored.phrases
        ),
        selector=stored.selector,
        coverage=stored.coverage,
        features=stored.features,
        further=stored_labels(stored),
        masks=masks_of(stored),
        **stored_codes(stored),
    )
    return only(image, layout)


@dataclass
class UnitShard:
    """A unit's shard in the making. Its files are begun with the first sample: a unit of only rejects has none.

    Attributes:
        unit: the unit's name.
        layout: of the samples.
        attempt: owns the files.
        files: closes them.
        rejects: so far, by position in the unit.
        dropped: images that documents were written without, by position.
        images: written so far.
        most: images of one written sample.
        written: positions of the samples so far, in the shard's order.
        tar, writer: None before the first sample.
    """

    unit: str
    layout: Layout
    attempt: Attempt
    files: ExitStack
    rejects: dict[int, Reject] = field(default_factory=dict)
    dropped: dict[int, Sequence[Reject]] = field(default_factory=dict)
    images: int = 0
    most: int = 0
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
                images = len(item.stored.images)
                self.writer.add_stored(item.stored, item.planned.ordinal)
            else:
                images = len(item.sample.images)
                self.writer.add(item.sample)
                if item.dropped:
                    self.dropped[position] = item.dropped
            self.images, self.most = self.images + images, max(self.most, images)
            self.written.append(position)

    @property
    def dropped_images(self) -> list[Reject]:
        """All of `dropped`."""
        return [each for position in sorted(self.dropped) for each in self.dropped[position]]

    def resume(
        self,
        saved: SavedUnit,
        samples: Sequence[PlannedSample],
        storage: Storage,
        repeats: Repeats,
        grid: Grid,
        whole: Callable[[PlannedSample, StoredSample], StoredSample] = lambda _, stored: stored,
    ) -> tuple[dict[int, Finished], dict[Repeated, ShardImage]]:
        """Begin with what an interrupted run has saved of the unit.

        Args:
            saved: that.
            samples: the unit's.
            storage: where it lies.
            repeats: the unit's.
            grid: of the labels.
            whole: puts a column's sample together with its base's.

        Returns:
            By position, what has to wait for a position before it; and what was made of images that are shown again.

        Raises:
            StorageError, ShardError: it can't be read.
        """
        self.rejects, dropped = saved.read_rejects(storage)
        self.dropped |= dropped
        early: dict[int, Finished] = {}
        kept: dict[Repeated, ShardImage] = {}
        turn = 0
        for position, stored in saved.read_samples(storage):
            while turn in self.rejects:
                turn += 1
            item = SavedSample(samples[position], stored := whole(samples[position], stored))
            if position == turn:
                self.add(position, item)
                turn += 1
            else:
                early[position] = item
            if repeats.last:
                bad = {each.image for each in dropped.get(position, ())}
                numbers = (number for number in range(len(samples[position].sample.images)) if number not in bad)
                for number, image in zip(numbers, stored.images, strict=True):
                    if (again := repeats.of(samples[position], number)) is not None and again not in kept:
                        kept[again] = kept_image(image, grid, self.layout)
        return early, kept

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
        self.write_rejects([*self.rejects.values(), *self.dropped_images])
        images = (position for position, images in self.dropped.items() for _ in images)
        self.attempt.save(plan_digest, self.written, sorted([*self.rejects, *images]), looked)
        return len(self.written) + len(self.rejects)

    def write_rejects(self, rejects: Collection[Reject]) -> None:
        """Write the table of rejects and dropped images, if there are any. Raises StorageError."""
        if rejects:
            with self.attempt.new_file(f"rejects/{self.unit}.parquet") as file:
                write_rejects(file, rejects, documents=self.layout.documents)


def layout_of(config: BuildConfig, models: AnnotationModels, base: Layout | None) -> Layout:
    """The layout of what these models make.

    Args:
        config: the settings.
        models: that were loaded for them.
        base: of the data set that the build reads; None for other sources.

    Raises:
        BuildError: an outside model makes what the format has no room for.
    """
    if base is not None and not config.makes:
        return base
    try:
        made = _made_layout(config, models)
    except ValidationError as error:
        raise BuildError(f"what the models make can't be stored: {first_error(error)}; see docs/format.md") from error
    return made if base is None else added(made, base, keep_labels=config.keeps_labels)


def _made_layout(config: BuildConfig, models: AnnotationModels) -> Layout:
    tokens = [TokensLayout.of(member, tokenizer.spec) for member, tokenizer in models.tokenizers.items()]
    return Layout(
        grid=GridLayout.of(models.grid),
        further_grids=tuple(FurtherGridLayout.of(grid, name=name) for name, grid in models.further_grids.items()),
        min_coverage=config.labels.min_coverage if config.labels else None,
        instances=models.keeps_masks,
        tokens=tokens[0] if tokens else None,
        further_tokens=tuple(tokens[1:]),
        features=models.encoder.spec if models.encoder else None,
        notice=config.notice,
        documents=config.gives_documents,
    )
