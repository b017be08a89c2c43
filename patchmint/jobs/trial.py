"""A trial before a build: a few of its samples labelled with its models, timed and drawn."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from patchmint.compute.threads import default_threads, limit_threads
from patchmint.config.build import BuildConfig, LocalRunner
from patchmint.errors import DemoWarning, InputError, UntrainedWarning
from patchmint.images.decode import DecodedImage, decode_image
from patchmint.images.reading import read_sample
from patchmint.pipeline.plan import LookedAt
from patchmint.pipeline.plan.keys import key_of
from patchmint.samples import Fault, ImageRef, SourceSample
from patchmint.types import Text

if TYPE_CHECKING:
    from patchmint.api import Annotation

_TIMED_SECONDS = 4
_MOST_PASSES = 20
# Quick models are timed several times: on a machine that others use, a second says little.


@dataclass(frozen=True)
class Trial:
    """What a trial tells.

    Attributes:
        samples: how many were labelled, each by itself.
        device: where the models ran.
        threads: CPU threads that they had, as many as a worker.
        start_seconds: from nothing to loaded models that have labelled an image once, as each worker has to.
        seconds: of a sample, the mean, labelled again until `_TIMED_SECONDS` are over; reading and decoding, which a
            worker does ahead, aren't in it.
        least: seconds of the quickest.
        most: seconds of the slowest.
        peak_bytes: the most memory that this process had resident.
        device_peak_bytes: and of a GPU's memory; 0 on a CPU.
        overlays: pictures that were written.
    """

    samples: int
    device: str
    threads: int
    start_seconds: float
    seconds: float
    least: float
    most: float
    peak_bytes: int
    device_peak_bytes: int
    overlays: tuple[str, ...]

    def build_seconds(self, samples: int, workers: int) -> tuple[float, float, float]:
        """Seconds of a build of so many samples: if all were as quick as the quickest, on average, as the slowest."""
        least, mean, most = (
            self.start_seconds + samples * each / workers for each in (self.least, self.seconds, self.most)
        )
        return least, mean, most


def spread(looked: Sequence[LookedAt], count: int) -> list[LookedAt]:
    """So many of the sound samples, evenly spread over the source."""
    sound = [each for each in looked if each.fault is None]
    count = min(count, len(sound))
    return [sound[(2 * place + 1) * len(sound) // (2 * count)] for place in range(count)]


def try_samples(
    samples: Sequence[LookedAt], config: BuildConfig, read: Callable[[ImageRef], bytes], folder: Path
) -> Trial:
    """Label samples one by one in this process, as `patchmint label` does.

    Args:
        samples: at least one, all sound.
        config: the build.
        read: reads an image file.
        folder: where overlays go, if labels are asked for: KEY-T.png, a picture a text, and of documents KEY.I-T.png,
            one for each text of image I. Made if need be.

    Raises:
        WeightsError, PluginError, ConfigError: the models can't be loaded, or used.
        InputError: the folder can't be written.
    """
    start = time.perf_counter()
    # torch, which a dry run without a trial needs as little as a driver does
    from patchmint.api import Annotator
    from patchmint.compute.memory import device_peak, keep_few_kernels, keep_freed_memory, peak_memory

    keep_few_kernels()
    keep_freed_memory()
    runner = config.runner
    if isinstance(runner, LocalRunner):
        threads, device = runner.num_cpus or default_threads(runner.workers), runner.device
    else:
        threads, device = runner.num_cpus, "auto" if runner.num_gpus else "cpu"
    with warnings.catch_warnings():
        for said in (DemoWarning, UntrainedWarning):  # by the caller
            warnings.simplefilter("ignore", said)
        annotator = Annotator(config, device)
    limit_threads(threads)
    ready = [list(_asked(tried.sample, config, read)) for tried in samples]
    overlays: list[str] = []
    for number, (tried, images) in enumerate(zip(samples, ready, strict=True)):
        key = tried.sample.key or key_of(tried.sample.id)
        names = [f"{key}.{image}" if tried.sample.parts else key for image, _ in images]
        annotations = zip(names, [annotator.annotate(*asked) for _, asked in images], strict=True)
        if number == 0:
            start = time.perf_counter() - start
        if config.labels is not None:
            overlays += [path for name, annotation in annotations for path in _draw(annotation, folder, name)]
    # what is compiled for their shapes is there by now; a build's batches share that
    taken: list[list[float]] = [[] for _ in ready]
    began = time.perf_counter()
    while not taken[0] or (len(taken[0]) < _MOST_PASSES and time.perf_counter() - began < _TIMED_SECONDS):
        for each, images in zip(taken, ready, strict=True):
            before = time.perf_counter()
            for _, asked in images:
                annotator.annotate(*asked)
            each.append(time.perf_counter() - before)
    seconds = [median(each) for each in taken]
    return Trial(
        samples=len(samples),
        device=annotator.device,
        threads=threads,
        start_seconds=start,
        seconds=fmean(seconds),
        least=min(seconds),
        most=max(seconds),
        peak_bytes=peak_memory(),
        device_peak_bytes=device_peak(annotator.device),
        overlays=tuple(overlays),
    )


def _asked(
    sample: SourceSample, config: BuildConfig, read: Callable[[ImageRef], bytes]
) -> Iterator[tuple[int, tuple[DecodedImage, list[Text]]]]:
    """The good images of a sound sample, by number, each with the texts that label it."""
    decode = partial(decode_image, max_megapixels=config.limits.max_image_megapixels)
    drop = config.on_bad_image == "drop"
    found = read_sample(sample, lambda _, ref: read(ref), decode, drawn=config.drawn, drop=drop)
    assert not isinstance(found, Fault), "it was read before"
    for image in found.images:
        if said := [text for text in image.texts if text.content.strip()]:
            yield image.number, (image.image, said)


def _draw(annotation: Annotation, folder: Path, key: str) -> Iterator[str]:
    for index in range(len(annotation.texts)):
        path = folder / f"{key}-{index}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            annotation.overlay(index).save(path, "PNG")
        except OSError as error:
            raise InputError(f"can't write {path}: {error.strerror or error}; give another --try-out") from error
        yield str(path)
