"""Samples made ready for the models in threads, ahead of them: read, checked, decoded, resized."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from patchmint.annotate.models import ModelInputs
from patchmint.compute.stages import stage
from patchmint.config.build import MOST_BYTES_AHEAD
from patchmint.errors import (
    ImageMissingError,
    ImageUnreadableError,
    InputError,
    PatchmintError,
    PlaceError,
    ShardError,
)
from patchmint.images.decode import DecodedImage, decode_image
from patchmint.images.reading import read_sample
from patchmint.pipeline.orders import Order
from patchmint.pipeline.sources import Sources
from patchmint.samples import PART, Fault, ImageRef, PlannedSample, Reject, SourceSample, SourceText
from patchmint.shards.plan import Unit
from patchmint.shards.reader import StoredSample
from patchmint.types import RgbImage, Text


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for the models.

    Attributes:
        number: among the images of the planned sample.
        data: the image file's bytes.
        image: the same, decoded.
        texts: those that label it; of a document there may be none.
        inputs: what the models could have done ahead; None = nothing yet.
    """

    number: int
    data: bytes
    image: DecodedImage
    texts: list[Text]
    inputs: ModelInputs | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of pixels that it holds, of the image and for the models."""
        return self.image.pixels.nbytes + (self.inputs.nbytes if self.inputs is not None else 0)


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the models.

    Attributes:
        planned: its position and source.
        images: at least one, in order; a picture's only one.
        extended: the sample in the data set that is extended.
        dropped: what is wrong with the document's other images, by number.
    """

    planned: PlannedSample
    images: tuple[PreparedImage, ...]
    extended: StoredSample | None = None
    dropped: Mapping[int, Fault] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of pixels that its images hold."""
        return sum(image.nbytes for image in self.images)

    def without_inputs(self) -> Prepared:
        """The same, once the models have answered."""
        return replace(self, images=tuple(replace(image, inputs=None) for image in self.images))


Repeated = tuple[ImageRef | Fault, tuple[SourceText, ...]]
"""An image and the texts that label it, which several documents of a unit have."""


class Repeats:
    """The images that a unit's documents show again with the same texts: one answer will do for each.

    Attributes:
        first, last: the positions at which each is shown first and last.
    """

    def __init__(self, samples: Sequence[PlannedSample]) -> None:
        """Find them; where samples are pictures there are none."""
        self.first: dict[Repeated, int] = {}
        self.last: dict[Repeated, int] = {}
        for position, planned in enumerate(samples):
            for number in range(len(planned.sample.image_texts)):
                if self.first.setdefault(repeated := _repeated(planned.sample, number), position) != position:
                    self.last[repeated] = position

    def of(self, planned: PlannedSample, number: int) -> Repeated | None:
        """An image of a sample, by its number there, if it is shown again."""
        if not self.last:
            return None
        repeated = _repeated(planned.sample, number)
        return repeated if repeated in self.last else None


def _repeated(sample: SourceSample, number: int) -> Repeated:
    return sample.images[number], tuple(sample.texts[text] for text in sample.image_texts[number])


_MOST_UNREADABLE = 8
"""So many images in a row that can't be read, on a machine that has read none yet, are the machine's fault."""

Items = Generator[tuple[int, Reject | Prepared], None, None]
"""Places in the unit, and the samples there, prepared or rejected, in order; what is begun and not taken is dropped
when it is closed."""


class Preparer:
    """Prepares samples in threads: a unit's, and at the end of one the first of the next.

    Args:
        source: of the samples.
        read: reads a unit's samples from the plan.
        max_megapixels: larger images are rejected.
        threads: how many.
        prepare: does what the models can have done ahead (`AnnotationModels.prepare`).
        drawn: what annotators drew and texts get: "boxes", "masks".
        drop: whether documents do without their bad images.

    Attributes:
        awaited: the position whose sample is waited for now.
    """

    def __init__(
        self,
        source: Sources,
        read: Callable[[Unit], Sequence[PlannedSample]],
        max_megapixels: float,
        threads: int,
        prepare: Callable[[RgbImage], ModelInputs | None],
        *,
        drawn: Collection[str] = (),
        drop: bool = False,
    ) -> None:
        self._extended = source.extended
        self._witness = Witness(source.read_image)
        self._read_unit = read
        self._max_megapixels = max_megapixels
        self._prepare_image = prepare
        self._drawn = drawn
        self._drop = drop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._threads = threads
        self._heaviest = 0
        self.awaited: int | None = None
        self._next: tuple[Unit, Future[_Begun]] | None = None

    def prepared(self, order: Order, ahead: int, done: Collection[int] = ()) -> tuple[Sequence[PlannedSample], Items]:
        """A unit's samples, and those that the order is about, each prepared or rejected, in order.

        Once all of them are begun, threads have time for the first samples of `order.ahead`.

        Args:
            order: which samples; poisoned ones are left out.
            ahead: so many are at work or wait to be taken at most; fewer large ones, but one a thread.
            done: positions whose samples are left out as well.

        Raises:
            StorageError: the plan or an image couldn't be read; another try may do.
            PlaceError: nothing of the source can be read here; another machine may.
        """
        left_out = order.poison.union(done)
        begun = self._take_begun(order, whole=order.probe is None and not left_out)
        if begun is None:
            unit = self._read_unit(order.unit)
            begun = _Begun(unit, sorted(set(range(len(unit)) if order.probe is None else order.probe) - left_out))
        return begun.unit, self._taken(begun, ahead, order.ahead)

    def _take_begun(self, order: Order, *, whole: bool) -> _Begun | None:
        """What was begun ahead, if the order is about that whole unit; anything else is dropped."""
        if self._next is None:
            return None
        (unit, future), self._next = self._next, None
        if unit != order.unit or not whole:
            future.add_done_callback(_drop)
            return None
        try:
            return future.result()
        except PatchmintError:  # who reads it next will be told again, in the right place
            return None

    def _begin(self, unit: Unit, ahead: int) -> _Begun:
        samples = self._read_unit(unit)
        begun = _Begun(samples, range(len(samples)))
        self._fill(begun, ahead)
        return begun

    def _fill(self, begun: _Begun, ahead: int) -> None:
        if self._heaviest:
            ahead = min(ahead, max(self._threads, MOST_BYTES_AHEAD // self._heaviest))
        else:  # nothing is known yet
            ahead = min(ahead, 2 * self._threads)
        missing = max(0, ahead - len(begun.waiting))
        for position in begun.positions[begun.taken : begun.taken + missing]:
            planned, again = begun.unit[position], begun.shown_before(position)
            begun.waiting.append((position, self._pool.submit(self._prepare, planned, again)))
            begun.taken += 1

    def _taken(self, begun: _Begun, ahead: int, following: Unit | None) -> Items:
        try:
            while True:
                self._fill(begun, ahead)
                if following is not None and begun.taken == len(begun.positions):
                    self._next = (following, self._pool.submit(self._begin, following, ahead))
                    following = None
                if not begun.waiting:
                    return
                self.awaited, future = begun.waiting.popleft()
                item = future.result()
                position, self.awaited = self.awaited, None
                yield position, item
        finally:
            begun.drop()

    def _prepare(self, planned: PlannedSample, again: Collection[int]) -> Reject | Prepared:
        """Prepare a sample; `again` are its images that the models will hardly be asked about."""
        extended: StoredSample | None = None
        if planned.sample.fault is None and self._extended is not None:
            try:
                with stage("read"):
                    planned, extended = self._extended.read_whole(planned)
            except ShardError as error:
                return reject(planned, Fault("read", "sample-damaged", str(error)))

        def read(number: int, image: ImageRef) -> bytes:
            return extended.images[number].data if extended is not None else self._read(image)

        found = read_sample(planned.sample, read, self._decode, drawn=self._drawn, drop=self._drop)
        if isinstance(found, Fault):
            return reject(planned, found)
        images = [PreparedImage(each.number, each.data, each.image, each.texts) for each in found.images]
        ready = (image if image.number in again else self._with_inputs(image) for image in images)
        prepared = Prepared(planned, tuple(ready), extended, found.dropped)
        self._heaviest = max(self._heaviest, prepared.nbytes)  # a hint: that threads race for it does no harm
        return prepared

    def _with_inputs(self, image: PreparedImage) -> PreparedImage:
        try:
            return replace(image, inputs=self._prepare_image(image.image.pixels))
        except (InputError, RuntimeError, MemoryError):
            # The models will meet the same, alone in the end, and there it is known whose fault it is.
            return image

    def _read(self, image: ImageRef) -> bytes:
        with stage("read"):
            return self._witness.read(image)

    def _decode(self, data: bytes) -> DecodedImage:
        with stage("decode"):
            return decode_image(data, max_megapixels=self._max_megapixels)


class Witness:
    """Reads images. If one can't be read, another is read that could be before: whose fault is it, the file's?

    Args:
        read: as `Source.read_image`; called from several threads.
    """

    def __init__(self, read: Callable[[ImageRef], bytes]) -> None:
        self._read = read
        self._good: ImageRef | None = None
        self._unreadable = 0

    def read(self, image: ImageRef) -> bytes:
        """As `Source.read_image`.

        Raises:
            PlaceError: the other can't be read any more either; or none has been read yet, and so many in a row can't.
        """
        try:
            data = self._read(image)
        except ImageUnreadableError as error:
            if (why := self._fault_of_place()) is not None:
                raise PlaceError(f"{socket.gethostname()} {why}: {error}", uri=image.path) from error
            raise
        self._good, self._unreadable = image, 0
        return data

    def _fault_of_place(self) -> str | None:
        self._unreadable += 1
        if self._good is not None:
            try:
                self._read(self._good)
            except ImageUnreadableError:
                return f"can't read the source any more, not even {self._good.path!a}, which it has read before"
            except ImageMissingError:
                self._good = None
            else:
                self._unreadable = 0
        if self._unreadable < _MOST_UNREADABLE:
            return None
        return f"can't read the source: {self._unreadable} images in a row, the last time"


@dataclass
class _Begun:
    """A unit, the positions in it to prepare, of which `taken` were handed to threads, and those that wait there."""

    unit: Sequence[PlannedSample]
    positions: Sequence[int]
    waiting: deque[tuple[int, Future[Reject | Prepared]]] = field(default_factory=deque)
    taken: int = 0
    repeats: Repeats = field(init=False)

    def __post_init__(self) -> None:
        self.repeats = Repeats(self.unit)

    def shown_before(self, position: int) -> Collection[int]:
        """Numbers of the sample's images that an earlier sample has with the same texts."""
        planned = self.unit[position]
        again = ((number, self.repeats.of(planned, number)) for number in range(len(planned.sample.image_texts)))
        return [number for number, repeated in again if repeated and self.repeats.first[repeated] != position]

    def drop(self) -> None:
        for _, future in self.waiting:
            future.cancel()


def _drop(future: Future[_Begun]) -> None:
    if future.exception() is None:
        future.result().drop()


def reject(planned: PlannedSample, fault: Fault) -> Reject:
    """A sample that can't be written, and why."""
    return Reject(planned.ordinal, planned.key, planned.sample.id, fault)


def dropped_images(planned: PlannedSample, faults: Mapping[int, Fault]) -> tuple[Reject, ...]:
    """The images that a document is written without, and why; by number."""
    return tuple(
        replace(reject(planned, replace(fault, reason=PART + fault.reason)), image=number)
        for number, fault in sorted(faults.items())
    )
