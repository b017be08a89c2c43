"""How a build stands, read from its output: also while another machine builds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from patchmint.errors import BuildError
from patchmint.pipeline.plan import load_plans
from patchmint.pipeline.runs import read_run
from patchmint.pipeline.totals import total_rejects
from patchmint.shards.commit import committed_units, read_records
from patchmint.shards.lease import read_lease
from patchmint.storage import open_storage


@dataclass(frozen=True)
class BuildStatus:
    """How a build stands.

    Attributes:
        uri: the output.
        state: planned, building, stopped, finished.
        units, units_done: of the plan and its retries.
        planned, written, rejected, left: samples; planned = written + rejected + left.
        rejects: by reason.
        rate: samples a second of the run that is at work now; 0 if none is.
        seconds_left: at that rate; -1 if not known.
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
    rejects: dict[str, int]
    rate: float
    seconds_left: float
    driver: dict[str, Any] = field(default_factory=dict)
    last_run: dict[str, Any] = field(default_factory=dict)


def status(uri: str) -> BuildStatus:
    """Read how a build stands.

    Args:
        uri: the output folder, `s3://...` as well.

    Raises:
        BuildError: there is no build.
        StorageError, ShardError: it can't be read, or a record is damaged.
    """
    storage = open_storage(uri)
    plans = load_plans(storage)
    if not plans:
        raise BuildError(f"{uri} holds no build: there is no plan.parquet; `patchmint build CONFIG.yaml` makes one")
    units = [unit for plan in plans for unit in plan.units]
    done = committed_units(storage)
    records = read_records(storage, sorted(done))
    rejects = total_rejects(storage, plans, records)
    written = sum(record.written for record in records)
    left = sum(unit.samples for unit in units if unit.id not in done)
    lease = read_lease(storage)
    runs = sorted(entry.path for entry in storage.list("runs/"))
    run_id = lease.run if lease else runs[-1].removeprefix("runs/").removesuffix(".json") if runs else ""
    run = read_run(storage, run_id) or {}
    rate = float(run.get("rate", 0.0)) if lease else 0.0
    finished = storage.exists("dataset.json") and not left
    return BuildStatus(
        uri=uri,
        state="building" if lease else "finished" if finished else str(run.get("state") or "planned"),
        units=len(units),
        units_done=len(done & {unit.id for unit in units}),
        planned=plans[0].total,
        written=written,
        rejected=rejects.total(),
        left=left,
        rejects=dict(rejects),
        rate=rate,
        seconds_left=round(left / rate, 1) if rate else -1.0,
        driver={"run": lease.run, "host": lease.host, "pid": lease.pid} if lease else {},
        last_run=run,
    )
