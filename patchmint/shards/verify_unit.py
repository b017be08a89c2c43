"""One unit of a data set: its record, the files that the record names, and what is in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from patchmint.errors import NotFoundError, ShardError, StorageError
from patchmint.samples import NO_NUMBER
from patchmint.shards.checks import Finding, Findings
from patchmint.shards.commit import read_record
from patchmint.shards.layout import Layout
from patchmint.shards.paths import canonical_paths, record_path
from patchmint.shards.records import CommitRecord, FileRecord, mean_share
from patchmint.shards.rejects import PICTURES_SCHEMA
from patchmint.shards.rejects import SCHEMA as REJECTS
from patchmint.shards.sidecar import SCHEMA as SIDECAR
from patchmint.shards.sidecar import SCHEMA_1, columns_among, is_of_version_1, schema_for
from patchmint.shards.verify_tar import Base, Decode, check_tar
from patchmint.storage import Storage

Rows = Iterator[dict[str, Any]]

_ROWS = 1000


@dataclass
class UnitReport:
    """What was found about one unit.

    Attributes:
        tar: its shard.
        findings: in order.
        record: the unit's; None without one that can be read.
        keys: of the samples in its tar, as hashes.
    """

    tar: str
    findings: list[Finding] = field(default_factory=list)
    record: CommitRecord | None = None
    keys: list[int] = field(default_factory=list)


def check_unit(
    storage: Storage,
    unit: int,
    planned: int,
    digests: Sequence[str],
    present: Container[str],
    *,
    layout: Layout | None,
    decode: Decode | None,
    base: Base | None = None,
) -> UnitReport:
    """Check a unit.

    Args:
        storage: the data set.
        unit: its id.
        planned: samples that the plan gives it.
        digests: of the plan and its retries.
        present: all files of the data set.
        layout: what every sample has; None where there is no manifest.
        decode: decodes each image; None: images aren't looked into.
        base: of a column.
    """
    report = UnitReport(canonical_paths(unit)[-1])
    found = Findings(record_path(unit))
    record = report.record = _read(storage, unit, found)
    if record is None:
        report.findings = found.to_list()
        return report
    rejects, sidecar, report.tar = record.paths
    found.extend(_check_record(record, planned, digests))
    missing = [path for path in record.files if path not in present]
    for path in missing:
        message = "isn't there; if no build is running, run the build's command again: it publishes what it finds"
        found.add("file-missing", f"{path}, which the record names, {message}")
    report.findings += found.to_list()
    files = {path: file for path, file in record.files.items() if path not in missing}
    if rejects in files:
        report.findings += _check_rejects(storage, rejects, files[rejects], record)
    rows: Rows | None = None
    if sidecar in files:
        rows, findings = _check_sidecar(storage, sidecar, files[sidecar], record, layout)
        report.findings += findings
    if report.tar in files:
        checked = check_tar(storage, report.tar, layout=layout, rows=rows, decode=decode, base=base, unit=unit)
        found = Findings(report.tar)
        found.extend(_check_sum(files[report.tar], checked.size, checked.sha256))
        if checked.samples != record.written:
            found.add("counts", f"the record says {record.written} samples, the tar has {checked.samples}")
        report.findings += found.to_list() + checked.findings
        report.keys = checked.keys
    return report


def _read(storage: Storage, unit: int, found: Findings) -> CommitRecord | None:
    try:
        return read_record(storage, unit)
    except NotFoundError:
        found.add("record-missing", "the unit has no record: it isn't built; run the build's command again")
    except ShardError as error:
        found.add("record-form", str(error))
    except StorageError as error:
        found.add("file-unreadable", str(error))
    return None


def _check_record(record: CommitRecord, planned: int, digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    rejects, sidecar, tar = record.paths
    if record.plan_digest not in digests:
        yield "plan-digest", "the record is of another plan than the one that is here; build into an empty folder"
    if record.planned != planned:
        yield "counts", f"the plan gives the unit {planned} samples, the record says {record.planned}"
    if not record.written and (record.texts or record.label_share is not None):
        yield "counts", f"the record says {_texts(record.texts, record.label_share)}, but no sample was written"
    dropped = record.images.dropped if record.images is not None else 0
    wanted = ({sidecar, tar} if record.written else set()) | ({rejects} if record.rejects or dropped else set())
    if wanted != record.files.keys():
        yield "record-form", f"the record names {sorted(record.files)}, its counts ask for {sorted(wanted)}"


def _check_sum(file: FileRecord, size: int, sha256: str) -> Iterator[tuple[str, str]]:
    if size != file.size:
        yield "file-size", f"the file has {size} bytes, its record says {file.size}; delete the record and build again"
    elif sha256 != file.sha256:
        yield "file-sha256", "the bytes aren't those that were written; delete the unit's record and build again"


def _check_sidecar(
    storage: Storage, path: str, file: FileRecord, record: CommitRecord, layout: Layout | None
) -> tuple[Rows | None, list[Finding]]:
    found = Findings(path)
    schemas = None if layout is None else [schema_for(layout)]
    parquet = _open(storage, path, file, schemas, found)
    if parquet is None:
        return None, found.to_list()
    if parquet.metadata.num_rows != record.written:
        message = f"the record says {record.written} samples, the sidecar has {parquet.metadata.num_rows} rows"
        found.add("counts", message)
    found.extend(_check_texts(parquet, record))
    return _rows(parquet, path), found.to_list()


def _check_texts(parquet: pq.ParquetFile, record: CommitRecord) -> Iterator[tuple[str, str]]:
    documents = "images" in parquet.schema_arrow.names
    labelled = "texts" in parquet.schema_arrow.names  # not in a column without labels
    wanted = ["texts", "label_shares"] * labelled + ["images"] * documents
    try:
        columns = parquet.read(columns=wanted, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        yield "table-form", f"its columns can't be read: {error}"
        return
    held: tuple[int, float | None] = 0, None
    if labelled:
        texts, shares = (pc.list_flatten(columns[name]) for name in ("texts", "label_shares"))
        held = len(texts), mean_share(shares.to_pylist())
    if held != (record.texts, record.label_share):
        said = _texts(record.texts, record.label_share)
        yield "counts", f"the record says {said}, the sidecar has {_texts(*held)}"
    if documents != (record.images is not None):
        yield "counts", f"the record says {record.images}, the samples are {'documents' if documents else 'pictures'}"
    elif record.images is not None and record.written:
        images = (pc.sum(columns["images"]).as_py(), pc.max(columns["images"]).as_py())
        if images != (record.images.written, record.images.most):
            message = f"the sidecar has {images[0]} images, at most {images[1]} a document, the record says"
            yield "counts", f"{message} {record.images.written} and {record.images.most}"


def _texts(count: int, label_share: float | None) -> str:
    return f"{count} texts and {'no labels' if label_share is None else f'a mean label share of {label_share}'}"


def _check_rejects(storage: Storage, path: str, file: FileRecord, record: CommitRecord) -> list[Finding]:
    found = Findings(path)
    parquet = _open(storage, path, file, [PICTURES_SCHEMA, REJECTS], found)
    if parquet is not None:
        try:
            rows = [(row["reason"], row.get("image", NO_NUMBER) != NO_NUMBER) for row in _rows(parquet, path)]
            reasons = Counter(reason for reason, is_image in rows if not is_image)
            if reasons != Counter(record.rejects):
                found.add("counts", f"the record says rejects {record.rejects}, the table has {dict(reasons)}")
            dropped = sum(is_image for _, is_image in rows)
            if dropped != (said := record.images.dropped if record.images is not None else 0):
                found.add("counts", f"the record says {said} dropped images, the table has {dropped}")
        except ShardError as error:
            found.add("table-form", str(error))
    return found.to_list()


def _open(
    storage: Storage, path: str, file: FileRecord, schemas: Sequence[pa.Schema] | None, found: Findings
) -> pq.ParquetFile | None:
    """Hold a table against its record and the schemas it may have; these are small, so they are read whole.

    None: those of any sidecar.
    """
    try:
        data = storage.read(path)
        found.extend(_check_sum(file, len(data), hashlib.sha256(data).hexdigest()))
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except StorageError as error:
        found.add("file-unreadable", str(error))
        return None
    except (pa.ArrowException, OSError) as error:
        found.add("table-form", f"it is no Parquet file that can be read: {error}")
        return None
    if schemas is None:
        schemas = [columns_among(parquet.schema_arrow.names)]
    if SIDECAR in schemas and is_of_version_1(parquet):
        schemas = [SCHEMA_1]
    columns = parquet.schema_arrow.remove_metadata()
    if not any(columns.equals(schema.remove_metadata()) for schema in schemas):
        found.add("table-form", "its columns aren't those of the format (docs/format.md)")
        return None
    return parquet


def _rows(parquet: pq.ParquetFile, path: str) -> Rows:
    try:
        for batch in parquet.iter_batches(_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"the rows of {path} can't be read: {error}") from error
