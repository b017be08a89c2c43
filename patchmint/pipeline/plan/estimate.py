"""What a build would be, before it is one: samples, rejects, shards, disk, memory."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile
from math import prod

from patchmint.config import TokensConfig
from patchmint.config.build import BuildConfig
from patchmint.config.grids import resolve_grid
from patchmint.errors import InputError, ShardError
from patchmint.features.plan import check_features
from patchmint.geometry import Grid, Placement
from patchmint.images.decode import decode_image
from patchmint.images.reading import check_texts, read_sample
from patchmint.pipeline.plan.make import no_samples
from patchmint.pipeline.plan.memory import Memory, batch_size, estimate_memory
from patchmint.pipeline.plan.reading import Divided, Section
from patchmint.plugins import is_outside
from patchmint.samples import WHOLE_FILE, Absent, Fault, Found, ImageRef, SourceSample, count_parts
from patchmint.storage import Entry
from patchmint.storage.ahead import done_ahead
from patchmint.tokenizers.build import input_pixels, tokenizer_arch
from patchmint.types import Size

_LOOKED_AT = 200
_LOOKED_SECONDS = 30
_READ_SECONDS = 30
_LISTED = 1_000_000
"""Most files to list, since they are held in memory."""
_READERS = 4
_TYPICAL_SIZE = (480, 640)

_TAR_BYTES_A_MEMBER = 512 + 256
"""Its header, and half a block of padding."""
_NPY_HEADER = 128
_DOCUMENT = 800
"""Bytes of a sample's JSON without its texts."""
_PHRASES = 300
"""Bytes of the phrases that a text gets, in its JSON: three with their boxes and scores."""
_MASKS = 3000
"""Bytes of an image's instances: three masks of a photograph."""
_CODE_CELL_PX = 16
"""Side of what one code of a plug-in stands for, as with most VQGANs."""


class Sampled:
    """Samples from all over sources, for as long as there is time: all of them where it is enough.

    Iterate once; a source that can't be divided is read whole, and one of which a few are taken from its beginning.

    Attributes:
        shares: of each source's listed files' bytes, what was read.
        listed: whether there was time to list all files.
        part: number of the source that the last sample was of.
    """

    def __init__(self, sources: Sequence[Divided], seconds: float = _READ_SECONDS) -> None:
        self.shares = [1.0] * len(sources)
        self.listed = True
        self.part = 0
        self._sources = sources
        self._seconds = seconds / max(1, len(sources))
        self._deadline = 0.0

    @property
    def share(self) -> float:
        """The least of the shares."""
        return min(self.shares)

    def __iter__(self) -> Iterator[Found]:
        """Sections in random order, always the same one.

        Raises:
            ConfigError, StorageError: a source can't be read.
        """
        for part, source in enumerate(self._sources):
            self.part = part
            if source.sections() is None:
                yield from source.samples()
            elif source.take is not None:
                yield from self._first(source, source.take)
            else:
                yield from self._here_and_there(source)

    def _first(self, source: Divided, take: int) -> Iterator[Found]:
        """The samples to take, from the first on."""
        self._deadline = time.monotonic() + self._seconds
        count = 0
        for found in source.samples():
            yield found
            count += isinstance(found, SourceSample)
            if count == take:  # of a source without duplicates it ends here by itself
                return
            if count and time.monotonic() > self._deadline:
                self.shares[self.part] = count / take
                return

    def _here_and_there(self, source: Divided) -> Iterator[Found]:
        self._deadline = time.monotonic() + self._seconds
        sections = source.sections()
        assert sections is not None
        found, files = [], 0
        for section in sections:
            found.append(section)
            files += len(section)
            if files >= _LISTED or time.monotonic() > self._deadline:
                self.listed = self.listed and next(sections, None) is None
                break
        random.Random(0).shuffle(found)  # noqa: S311 (no secret)
        self._deadline = time.monotonic() + self._seconds
        read, threads = 0, source.at_once
        with closing(done_ahead(partial(self._begin, source), found, threads=threads, ahead=threads)) as done:
            for _, (samples, size) in done:
                read += size
                yield from samples
        self.shares[self.part] = read / max(1, _size(chain.from_iterable(found))) or 1.0

    def _begin(self, source: Divided, section: Section) -> tuple[list[Found], int]:
        """What is in a section as far as there is time, and of how many of its bytes that is."""
        samples: list[Found] = []
        if time.monotonic() > self._deadline:
            return samples, 0
        for sample in source.in_section(section):
            samples.append(sample)
            if time.monotonic() > self._deadline and isinstance(sample, SourceSample):
                end = _end(section, sample.images[-1])
                if end is not None:
                    return samples, end
        return samples, _size(section)


def _end(section: Section, image: ImageRef | Fault) -> int | None:
    """Bytes of a section's files up to an image; None where its reference doesn't tell."""
    if isinstance(image, Fault) or not image.path or (image.start != WHOLE_FILE and image.length == WHOLE_FILE):
        return None
    return _size(takewhile(lambda file: file.path != image.path, section)) + max(0, image.start + image.length)


def _size(files: Iterable[Entry]) -> int:
    return sum(file.size for file in files)


@dataclass(frozen=True)
class LookedAt:
    """A sample whose images were read and decoded.

    Attributes:
        ordinal: its position among the samples that were read.
        sample: what the source says.
        bytes: of the image files; 0 where it is a reject.
        sizes: (height, width) of each good image; none where it is a reject.
        fault: why a build would reject it.
        dropped: what is wrong with images that a document would be written without.
    """

    ordinal: int
    sample: SourceSample
    bytes: int = 0
    sizes: tuple[Size, ...] = ()
    fault: Fault | None = None
    dropped: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` tells.

    Attributes:
        samples: planned ones.
        texts: of all samples.
        units: shards, if at least one sample of each is good.
        rejects: samples that would be rejected for what the source and the texts say, by reason.
        looked_at: of the others, how many were looked at, their images read and decoded as a build does: up to 200.
        looked_at_rejects: how many of these would be rejected, by reason.
        examples: one message for each reason of these rejects, and of images that are dropped.
        absent: what of the source is no sample, or isn't chosen, by reason. Duplicates aren't looked for.
        image_bytes: all image files together, from the mean of those looked at; 0 if none could be.
        output_bytes: about what the shards would take, image files included.
        memory: about what the processes would take.
        batch_size: images that the models take at once; None = found by the workers, where they run on a GPU.
        share: of the source, what was read; below 1, samples, texts, units, rejects and bytes follow from that part.
        listed: whether there was time to list all files; if not, there are more samples than these.
        images: of all documents, those that can't be read included; 0 where samples are pictures.
        dropped: images that documents would be written without for what the source says, by reason.
        looked_at_images: of the documents looked at.
        looked_at_dropped: images that these would be written without, by reason.
    """

    samples: int
    texts: int
    units: int
    rejects: dict[str, int]
    looked_at: int
    looked_at_rejects: dict[str, int]
    examples: dict[str, str]
    absent: dict[str, int]
    image_bytes: int
    output_bytes: int
    memory: Memory
    batch_size: int | None
    share: float = 1.0
    listed: bool = True
    images: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    looked_at_images: int = 0
    looked_at_dropped: dict[str, int] = field(default_factory=dict)

    @property
    def reject_share(self) -> float:
        """The share of samples that would be rejected, single texts aside, if all images are like those looked at."""
        parts, planned = count_parts(self.rejects), sum(self.rejects.values())
        of_images = sum(self.looked_at_rejects.values()) / self.looked_at if self.looked_at else 0.0
        whole = max(1, self.samples - parts)
        return (planned - parts + (self.samples - planned) * of_images) / whole


@dataclass
class _Tally:
    """What was read of one source."""

    samples: float = 0
    good: float = 0
    texts: float = 0
    text_bytes: float = 0
    images: float = 0
    good_images: float = 0
    labelled: float = 0
    rejects: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, sample: SourceSample, *, drop: bool) -> bool:
        """Count a sample; whether a build would look at its images."""
        self.samples += 1
        self.images += len(sample.images) if sample.parts else 0
        self.texts += len(sample.texts)
        self.text_bytes += sum(len(text.content) for text in sample.texts)
        self.text_bytes += sum(len(turn.content) for turn in sample.conversation)
        self.text_bytes += sum(len(part.text) for part in sample.parts)
        checked = check_texts(sample)
        bad = [image for image in sample.images if isinstance(image, Fault)]
        if isinstance(checked, list) and bad and not (drop and len(bad) < len(sample.images)):
            checked = bad[0]
        if isinstance(checked, Fault):
            self.rejects[checked.reason] += 1
            self.examples.setdefault(checked.reason, f"{sample.id}: {checked.message}")
            return False
        self.dropped.update(image.reason for image in bad)
        self.examples = {image.reason: f"{sample.id}: {image.message}" for image in bad} | self.examples
        self.good += 1
        self.good_images += len(sample.images) - len(bad)
        self.labelled += sum(map(len, sample.image_texts)) if sample.parts else len(sample.texts)
        return True

    def add_scaled(self, other: _Tally, share: float) -> None:
        """Add all of a source of which a share was read."""
        self.samples += other.samples / share
        self.good += other.good / share
        self.texts += other.texts / share
        self.text_bytes += other.text_bytes / share
        self.images += other.images / share
        self.good_images += other.good_images / share
        self.labelled += other.labelled / share
        self.examples = other.examples | self.examples
        for own, counts in ((self.rejects, other.rejects), (self.dropped, other.dropped), (self.absent, other.absent)):
            own.update({reason: round(count / share) for reason, count in counts.items()})


def estimate(
    samples: Iterable[Found] | Sampled,
    config: BuildConfig,
    read: Callable[[ImageRef], bytes],
    progress: Callable[[int], None] | None = None,
) -> tuple[DryRun, list[LookedAt]]:
    """Look at samples as a plan does, and at up to 200 with their images as workers do, and write nothing.

    Args:
        samples: what the sources yield, all or `Sampled`.
        config: the build.
        read: reads an image file, as `Source.read_image`; called from several threads.
        progress: called now and then with the number of samples read so far.

    Returns:
        What there is to tell, and the samples whose images were looked at, in their order.

    Raises:
        ConfigError: there are no samples.
        StorageError, WeightsError: an image, or a model file of your own, can't be read.
    """
    tallies: dict[int, _Tally] = {}
    count = good = 0
    chosen: list[tuple[int, SourceSample]] = []
    dice = random.Random(0)  # noqa: S311 (no secret: the same images are to be looked at each time)
    for sample in samples:
        tally = tallies.setdefault(samples.part if isinstance(samples, Sampled) else 0, _Tally())
        if isinstance(sample, Absent):
            tally.absent[sample.reason] += 1
            continue
        count += 1
        if tally.add(sample, drop=config.on_bad_image == "drop"):
            good += 1
            if len(chosen) < _LOOKED_AT:
                chosen.append((count - 1, sample))
            elif (place := dice.randrange(good)) < _LOOKED_AT:  # reservoir sampling: each has the same chance
                chosen[place] = (count - 1, sample)
        if progress is not None and count % config.output.samples_per_shard == 0:
            progress(count)
    shares, listed = (samples.shares, samples.listed) if isinstance(samples, Sampled) else ([1.0], True)
    total = _Tally()
    for part, tally in tallies.items():
        total.add_scaled(tally, shares[part])
    if not count:
        raise no_samples(config, total.absent)
    looked = _look_at(chosen, read, config, dice)
    sound = [each for each in looked if each.fault is None]
    share = len(sound) / len(looked) if looked else 0.0
    count, good, texts, text_bytes = map(round, (total.samples, total.good, total.texts, total.text_bytes))
    image_bytes = round(good * share * sum(each.bytes for each in sound) / len(sound)) if sound else 0
    units = -(-count // config.output.samples_per_shard)
    in_unit = min(good, config.output.samples_per_shard) * round(total.good_images / max(1, total.good))
    if most := config.output.images_per_shard:
        units = max(units, -(-round(total.images) // most))
        in_unit = min(in_unit, most)
    sizes = [size for each in sound for size in each.sizes]
    added = _added_bytes(config, good, round(total.good_images), round(total.labelled), sizes)
    dry = DryRun(
        samples=count,
        texts=texts,
        units=units,
        rejects=dict(total.rejects),
        looked_at=len(looked),
        looked_at_rejects=dict(Counter(each.fault.reason for each in looked if each.fault is not None)),
        examples=total.examples
        | {
            fault.reason: f"{each.sample.id}: {fault.message}"
            for each in looked
            for fault in (each.fault, *each.dropped)
            if fault is not None
        },
        absent=dict(sorted(total.absent.items())),
        image_bytes=image_bytes,
        output_bytes=image_bytes + round(share * (2 * text_bytes * (not config.extends) + added)),
        memory=estimate_memory(config, sizes, in_unit),
        batch_size=batch_size(config),
        share=min(shares),
        listed=listed,
        images=round(total.images),
        dropped=dict(total.dropped),
        looked_at_images=sum(
            isinstance(image, ImageRef) for each in looked if each.sample.parts for image in each.sample.images
        ),
        looked_at_dropped=dict(Counter(fault.reason for each in looked for fault in each.dropped)),
    )
    return dry, looked


def _look_at(
    chosen: Sequence[tuple[int, SourceSample]],
    read: Callable[[ImageRef], bytes],
    config: BuildConfig,
    dice: random.Random,
) -> list[LookedAt]:
    """Read and decode images, in any order, so that those which there is time for say as much of all as they can."""
    decode = partial(decode_image, max_megapixels=config.limits.max_image_megapixels)

    def look(numbered: tuple[int, SourceSample]) -> LookedAt:
        try:
            drop = config.on_bad_image == "drop"
            found = read_sample(numbered[1], lambda _, image: read(image), decode, drawn=config.drawn, drop=drop)
        except ShardError as error:
            found = Fault("read", "sample-damaged", str(error))
        if isinstance(found, Fault):
            return LookedAt(*numbered, fault=found)
        held = 0 if config.extends else sum(len(image.data) for image in found.images)
        sizes = tuple(image.image.size for image in found.images)
        read_first = [fault for fault in found.dropped.values() if fault.stage != "source"]
        return LookedAt(*numbered, held, sizes, dropped=tuple(read_first))

    looked, start = [], time.monotonic()
    for _, each in done_ahead(look, dice.sample(chosen, len(chosen)), threads=_READERS, ahead=_READERS):
        looked.append(each)
        if time.monotonic() - start > _LOOKED_SECONDS:
            break
    return sorted(looked, key=lambda each: each.ordinal)


def _placed(grid: Grid, size: Size) -> Placement | None:
    """A grid on an image; None where the consumer refuses the image, which will be a reject."""
    try:
        return grid.place(size)
    except InputError:
        return None


def _codes(tokens: TokensConfig, sizes: Sequence[Size]) -> float:
    """Codes of an image, on average."""
    name = tokens.tokenizer or ""
    if is_outside("tokenizer", name):
        return (tokens.size // _CODE_CELL_PX) ** 2
    arch = tokenizer_arch(name, tokens.rule)
    return sum(input_pixels(arch, tokens, size) for size in sizes) / len(sizes) / arch.factor**2


def _added_bytes(config: BuildConfig, samples: int, images: int, texts: int, sizes: Sequence[Size]) -> int:
    """What the shards hold besides images and texts; a text counts for each image that it labels."""
    whole = not config.extends
    grid = resolve_grid(config.grid)
    placed, *others = (
        [placement for size in sizes or [_TYPICAL_SIZE] if (placement := _placed(each, size)) is not None]
        for each in (grid, *config.further_grids.values())
    )
    cells = sum(prod(each.shape) / len(on_grid) for on_grid in (placed, *others) for each in on_grid)
    fixed, each_text = float(_TAR_BYTES_A_MEMBER) * whole, 0.0
    if config.labels is not None:
        fixed += 2 * (1 + len(others)) * (_NPY_HEADER + _TAR_BYTES_A_MEMBER)
        each_text = 2 * cells + _PHRASES
        fixed += _TAR_BYTES_A_MEMBER + _MASKS if config.labels.instances else 0
    if config.features is not None:
        spec = check_features(config.models, config.features, grid)
        if spec is not None:
            tokens = sum(spec.tokens_of(view.rows * view.cols) for each in placed for view in each.views)
            fixed += _NPY_HEADER + _TAR_BYTES_A_MEMBER + 2 * spec.channels * tokens / max(len(placed), 1)
    for codes in config.tokenizers.values():
        fixed += _NPY_HEADER + _TAR_BYTES_A_MEMBER + 2 * _codes(codes, sizes or [_TYPICAL_SIZE])
    return round(samples * (_DOCUMENT * whole + (1 + whole) * _TAR_BYTES_A_MEMBER) + images * fixed + texts * each_text)
