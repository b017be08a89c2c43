"""Which samples of a source are chosen: by their files, their own fields, their ids, and by number."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import duckdb
import pyarrow as pa

from patchmint.config.sources import CommonSettings
from patchmint.errors import ConfigError, ImageMissingError, ImageUnreadableError, InputError, did_you_mean
from patchmint.pipeline.sources.base import Section, Source
from patchmint.pipeline.sources.files import OTHER_FILE, FileChoice
from patchmint.pipeline.sources.records import faulty, printable, quoted
from patchmint.samples import Absent, Fault, Found, ImageRef, SourceSample
from patchmint.sql import check_expression, sandbox

_OTHER_WHERE = Absent("not-chosen-where")
_OTHER_SAMPLE = Absent("not-chosen-sample")

_LOOKED_AT = 100
"""Samples in which a column must be found: a typing error is to be told before the source is read."""
_ROWS = 1000
_UNSTABLE = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"


class Condition:
    """`where`: a condition in SQL over the fields of samples. Threads may share it.

    Attributes:
        columns: the fields that it names.
    """

    def __init__(self, written: str) -> None:
        """Read it.

        Raises:
            ConfigError: it isn't a condition.
        """
        self.columns = columns_of(written)
        self._base: duckdb.DuckDBPyConnection | None = None  # workers, which only read images, need none
        self._lock = threading.Lock()
        # A line of its own, so that a comment ends with it. It was found to be one expression.
        self._query = f"SELECT coalesce((\n{written}\n)::BOOLEAN, false) AS holds FROM samples"  # noqa: S608

    def check(self, samples: Iterable[SourceSample]) -> None:
        """Check it on a few samples.

        Raises:
            ConfigError: it names something that none of them has, or can't be computed.
        """
        rows = [_fields(sample) for sample in samples]
        known = {name for row in rows for name in row}
        folded = {name.casefold() for name in known}
        unknown = [name for name in self.columns if name.casefold() not in folded]
        if unknown and rows:
            raise ConfigError(
                f"source.where: none of the first {len(rows)} samples has {unknown[0]!r}"
                f"{did_you_mean(unknown[0], known)} (they have {', '.join(map(quoted, sorted(known)))})"
            )
        self._holds(rows)

    def holds(self, samples: Sequence[SourceSample]) -> list[bool]:
        """Of which samples it holds; where it is null, it doesn't.

        Raises:
            ConfigError: it can't be computed (a text that is no number, say).
        """
        return self._holds([_fields(sample) for sample in samples])

    def _holds(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        columns = {name: _array([_value(row, name) for row in rows]) for name in self.columns}
        table = pa.table({"": pa.array(range(len(rows))), **columns})  # the first, lest there be no column
        with self._lock:
            try:
                self._base = self._base or sandbox()
                self._base.register("samples", table)
                return [bool(holds) for (holds,) in self._base.execute(self._query).fetchall()]
            except duckdb.Error as error:
                form = ", ".join(f"{field.name} {field.type}" for field in list(table.schema)[1:])
                raise ConfigError(
                    f"source.where: the condition can't be computed: {error}\nIt is SQL (DuckDB's), here over: {form}"
                ) from error


def _fields(sample: SourceSample) -> Mapping[str, Any]:
    paths = [image.path for image in sample.images if isinstance(image, ImageRef)]
    own = {"id": sample.id, "path": paths[0] if paths else "", "texts": [text.content for text in sample.texts]}
    return {**own, **({"paths": paths} if sample.parts else {}), **sample.record}


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    return next((value for key, value in row.items() if key.casefold() == name.casefold()), None)


def _array(values: list[Any]) -> pa.Array:
    """A column of values from JSON: objects, lists of them, and columns of mixed types, are text."""
    if not any(_has_objects(value) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass
    return pa.array([value if value is None else _text(value) for value in values], pa.string())


def _has_objects(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _text(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


class Chosen:
    """A source, of which the settings choose samples. As `Source`, each image saying which source it is of.

    Attributes:
        source: the source itself.
        take: at most so many samples are to be taken, in order, of those that aren't `dedupe`d.
    """

    def __init__(self, source: Source, config: CommonSettings, max_images: int | None = None) -> None:
        """Read the settings.

        Args:
            source: to choose from.
            config: its settings.
            max_images: documents of more have a fault; None: of any number are good.

        Raises:
            ConfigError: one can't be used.
        """
        self.source = source
        self.take = config.take
        self._name = config.name
        self._max_images = max_images
        self._files = None if source.chooses_files else FileChoice(config, by_folder=True)
        self._condition = Condition(config.where) if config.where.strip() else None
        self._share = config.sample
        self._dedupe = config.dedupe

    @property
    def at_once(self) -> int:
        """As `Source.at_once`; fewer where few samples are needed, or images are read side by side."""
        if self._dedupe:
            return 1
        return self.source.at_once if self.take is None else min(self.source.at_once, 1 + self.take // 5000)

    def check(self) -> None:
        """As `Source.check`; the condition is tried on the first samples, where these alone can be read."""
        self.source.check()
        if self._condition is not None and self.source.sections() is not None:
            self._condition.check(islice(_with_fields(self.source.samples()), _LOOKED_AT))

    def samples(self) -> Iterator[Found]:
        """As `Source.samples`, without those that `dedupe` leaves out."""
        found = self.source.samples()
        if self._condition is not None and self.source.sections() is None:
            found, begin = _begun(found)
            self._condition.check(_with_fields(begin))
        return self._chosen(found)

    def sections(self) -> Iterator[Section] | None:
        """As `Source.sections`."""
        return self.source.sections()

    def in_section(self, section: Section) -> Iterator[Found]:
        """As `Source.in_section`."""
        return self._chosen(self.source.in_section(section))

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        return self.source.read_image(ref)

    @property
    def content(self) -> Callable[[Found], bytes] | None:
        """What tells samples apart for `dedupe`: 16 bytes, or none where the image can't be read. None: not needed."""
        return self._content if self._dedupe else None

    def _content(self, found: Found) -> bytes:
        if isinstance(found, Absent) or found.fault is not None:
            return b""
        try:
            digest = hashlib.blake2b(self.read_image(found.image), digest_size=16)
        except (ImageMissingError, ImageUnreadableError):  # a reject of the build's
            return b""
        if self._dedupe == "image+text":
            texts = [text.content for text in found.texts]
            digest.update(json.dumps(texts).encode())
        return digest.digest()

    def _chosen(self, found: Iterator[Found]) -> Iterator[Found]:
        left = self.take if self._dedupe is None else None
        if (files := self._files) is not None:
            found = (each if _is_in(files, each) else OTHER_FILE for each in found)
        for each in self._meeting(found) if self._condition is not None else found:
            if isinstance(each, Absent):
                yield each
            elif self._share < 1 and _chance(each.key or each.id) >= self._share:
                yield _OTHER_SAMPLE
            else:
                yield self._named(each)
                if left is not None and not (left := left - 1):
                    return

    def _named(self, sample: SourceSample) -> SourceSample:
        images = len(sample.images)
        if self._max_images is not None and images > self._max_images:
            message = f"{quoted(sample.id)} has {images} images, and limits.max_images is {self._max_images}"
            return replace(faulty(sample.id, "too-many-images", message), record=sample.record)
        if not self._name:
            return sample
        named = (image if isinstance(image, Fault) else replace(image, source=self._name) for image in sample.images)
        return replace(sample, images=tuple(named))

    def _meeting(self, found: Iterator[Found]) -> Iterator[Found]:
        """What meets the condition, looked at in batches that grow. Faults of no sample (a tar's rest) stay."""
        assert self._condition is not None
        rows = 8
        while batch := list(islice(found, rows)):
            rows = min(2 * rows, _ROWS)
            samples = list(_with_fields(batch))
            holds = iter(self._condition.holds(samples))
            for each in batch:
                yield each if not _has_fields(each) or next(holds) else _OTHER_WHERE


@lru_cache(maxsize=16)
def columns_of(where: str) -> tuple[str, ...]:
    """The fields that a condition names; none where there is no condition.

    Raises:
        ConfigError: it isn't one.
    """
    if not where.strip():
        return ()
    with sandbox() as base:
        try:
            found = check_expression(base, where)
            unstable = {name for (name,) in base.execute(_UNSTABLE).fetchall()} & found.functions
        except (duckdb.Error, InputError) as error:
            raise ConfigError(f"source.where: the condition can't be used: {error}") from error
    if unstable or found.stars:
        what = f"{min(unstable)!r} gives another answer each time" if unstable else "it must name its columns"
        raise ConfigError(f"source.where: the condition can't be used: {what}")
    return found.columns


def _is_in(files: FileChoice, found: Found) -> bool:
    return isinstance(found, Absent) or not found.image.path or files.has(found.image.path)


def _has_fields(found: Found) -> bool:
    return isinstance(found, SourceSample) and (found.fault is None or bool(found.record))


def _with_fields(found: Iterable[Found]) -> Iterator[SourceSample]:
    return (each for each in found if isinstance(each, SourceSample) and _has_fields(each))


def _begun(found: Iterator[Found]) -> tuple[Iterator[Found], list[Found]]:
    begin = list(islice(found, _LOOKED_AT))
    return chain(begin, found), begin


def _chance(name: str) -> float:
    """A number in [0, 1) that a name always has."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, person=b"patchmint sample").digest()
    return int.from_bytes(digest) / 2**64
