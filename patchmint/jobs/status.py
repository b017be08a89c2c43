"""How a build stands, read from its output: also while another machine builds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from patchmint.datasets.ledger import Tally
from patchmint.errors import BuildError
from patchmint.pipeline.driver.runs import read_run
from patchmint.shards.lease import LeaseRecord, read_lease, silence
from patchmint.shards.records import ImageCounts
from patchmint.storage import open_storage
from patchmint.storage.hub import is_on_hub, staging_folder


@dataclass(frozen=True)
class BuildStatus:
    """How a build stands.

    Attributes:
        uri: the output.
        state: planning, building, stopped, finished; "stopped?" if a driver elsewhere gives no sign of life.
        units, units_done: of the plan and its retries.
        planned, written, rejected, left: samples; planned = written + rejected + left.
        in_work: of those left, the ones that are annotated, in units that aren't finished.
        rejects: by reason.
        absent: what of the source is no sample, or wasn't chosen, by reason; no part of `planned`.
        images: of documents, in units that are done: planned, written, dropped; the rest are of rejected documents.
            None where samples are pictures.
        rate: samples a second of the run that is at work now; 0 if none is.
        seconds_left: at that rate; -1 if not known.
        beat_age: seconds since the driver's last sign of life, which it gives every 5 s; -1 without a driver.
        result_age: seconds since a sample was last seen to be annotated or rejected; -1 without a driver, or before.
        driver: who is at work now: host, pid, run; empty if nobody.
        last_run: the record of the run at work, or of the last one.
    """

    uri: str
    state: str
    units: int
    units_done: int
    planned: int
    written: int
    rejected: int
    left: int
    in_work: int
    rejects: dict[str, int]
    absent: dict[str, int]
    rate: float
    seconds_left: float
    beat_age: float
    result_age: float
    images: ImageCounts | None = None
    driver: dict[str, Any] = field(default_factory=dict)
    last_run: dict[str, Any] = field(default_factory=dict)


def status(uri: str) -> BuildStatus:
    """Read how a build stands.

    Args:
        uri: the output folder, `s3://...` as well; of `hf://...` the folder in which it is built on this machine.

    Raises:
        BuildError: there is no build.
        StorageError, ShardError: it can't be read, or a record is damaged.
    """
    storage = open_storage(staging_folder(uri) if is_on_hub(uri) else uri)
    tally, lease = Tally.read(storage), read_lease(storage)
    if not tally.units and lease is None:
        raise BuildError(f"{uri} holds no build: there is no plan.parquet; `patchmint build CONFIG.yaml` makes one")
    left = tally.left
    runs = sorted(entry.path for entry in storage.list("runs/"))
    run_id = lease.run if lease else runs[-1].removeprefix("runs/").removesuffix(".json") if runs else ""
    run = read_run(storage, run_id) or {}
    silent = silence(storage, lease) if lease else None
    at_work = silent is not None and not silent.is_long
    rate = float(run.get("rate", 0.0)) if at_work else 0.0
    done = int((run.get("progress") or {}).get("samples", 0))
    # units that were finished since the record was written are in the ledger already
    in_work = max(0, min(left, int(run.get("through", 0)) - done)) if at_work else 0
    return BuildStatus(
        uri=uri,
        state="stopped?"
        if silent and silent.is_long
        else _state(run, at_work=at_work, finished=not left and storage.exists("dataset.json")),
        units=tally.units,
        units_done=tally.units_done,
        planned=tally.planned,
        written=tally.written,
        rejected=sum(tally.rejects.values()),
        left=left,
        in_work=in_work,
        rejects=dict(tally.rejects),
        absent=dict(tally.absent),
        images=tally.images,
        rate=rate,
        seconds_left=round((left - in_work) / rate, 1) if rate else -1.0,
        beat_age=round(silent.seconds, 1) if silent else -1.0,
        result_age=_result_age(run, lease, silent.seconds) if lease and silent else -1.0,
        driver={"run": lease.run, "host": lease.host, "pid": lease.pid} if lease else {},
        last_run=run,
    )


def _state(run: dict[str, Any], *, at_work: bool, finished: bool) -> str:
    if at_work:
        return "planning" if run.get("state") == "planning" else "building"
    return "finished" if finished else "stopped"


def _result_age(run: dict[str, Any], lease: LeaseRecord, beat_age: float) -> float:
    """By the driver's clock alone, up to its last beat."""
    with suppress(KeyError, TypeError, ValueError):
        until_beat = (lease.at - datetime.fromisoformat(run["advanced"])).total_seconds()
        return round(max(0.0, until_beat) + beat_age, 1)
    return -1.0
