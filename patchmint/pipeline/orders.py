"""What passes between the driver and its workers: small values only, never pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from patchmint.compute.stages import Timing
from patchmint.config.build import BuildConfig
from patchmint.logs import log_variables
from patchmint.shards.plan import ModelRecord, Unit
from patchmint.shards.records import ImageCounts

STAGES = ("wait", "annotate", "hold", "commit", "write")
"""By which a worker's time is told: waiting for decoded images, asking the models, waiting until the batch before is
written, committing; and, in a thread of its own, writing."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to set itself up.

    Attributes:
        config: the whole build.
        run_id: names the attempts of this run.
        plan_digest: which plan the units are of.
        models: the model files that the plan was made with; a worker refuses others.
        profile: whether results are to say where the time went.
        compiled: whether models are compiled where they run on a GPU.
        logs: variables by which it logs as the driver does.
    """

    config: BuildConfig
    run_id: str
    plan_digest: str
    models: Mapping[str, ModelRecord]
    profile: bool = False
    compiled: bool = False
    logs: Mapping[str, str] = field(default_factory=log_variables)


@dataclass(frozen=True)
class Order:
    """Something for a worker to do.

    Attributes:
        unit: which unit.
        poison: positions in the unit, from 0, of samples known to kill workers; they are rejected unseen.
        hanging: those of them at which workers hang instead.
        probe: None = build the unit; otherwise only annotate the samples at these positions and write nothing, to find
            out which of them kills its worker.
        ahead: the unit that this worker is likely to get next: it may begin to read that one while it ends this one.
    """

    unit: Unit
    poison: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()
    probe: frozenset[int] | None = None
    ahead: Unit | None = None


@dataclass(frozen=True)
class WorkerProfile:
    """Where a worker's time went since it last said so, and its memory.

    Attributes:
        host, pid: which process.
        device: cpu, cuda, cuda:N.
        peak_bytes: the most memory that it has had resident so far.
        device_peak_bytes: the most that torch has had of the GPU's; 0 on a CPU.
        timing: of its stages.
    """

    host: str
    pid: int
    device: str
    peak_bytes: int
    device_peak_bytes: int
    timing: Timing


@dataclass(frozen=True)
class UnitResult:
    """What became of an order.

    Attributes:
        unit: id of the unit.
        planned: samples in it.
        written: samples in its shard.
        rejects: number of rejects by reason.
        images: of documents; None where samples are pictures.
        bytes: size of the shard's tar.
        saved: of the planned samples, those that an earlier run had annotated.
        seconds: by stage, of `STAGES`.
        won: False if another driver had committed the unit already.
        batch_size: images that the models took at once, in the end.
        dark: images that are nearly black because nothing says which of their 16 bits are in use.
        unconfirmed: phrases that a second look didn't confirm (`labels.presence`), of samples that aren't `saved`.
        profile: None unless it was asked for.
    """

    unit: int
    planned: int
    written: int
    rejects: Mapping[str, int]
    bytes: int
    saved: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    won: bool = True
    batch_size: int = 0
    dark: int = 0
    unconfirmed: int = 0
    profile: WorkerProfile | None = None
    images: ImageCounts | None = None


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when it has loaded its models.

    Attributes:
        host: where it runs; on a Ray cluster with the beginning of the node's id.
        device: cpu, cuda, cuda:N; on a machine whose GPUs are dealt out, by its number there.
    """

    host: str
    device: str

    @property
    def place(self) -> str:
        """Host and device: what is to blame where workers die of harmless samples."""
        return f"{self.host} {self.device}"


@dataclass(frozen=True)
class Loading:
    """A worker has begun to load its models; said once a second."""

    worker: int


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its models and waits for orders."""

    worker: int
    info: WorkerInfo


@dataclass(frozen=True)
class Working:
    """How far a worker is with its unit; said once a second.

    Attributes:
        worker: which.
        unit: id of the unit.
        samples: annotated or rejected so far.
        saved: of them, those that an earlier run had annotated.
        rejects: by reason.
        doing: the stage that it is in, after those around it: "annotate/detect".
        positions: in the unit, of the samples that it is at.
        waits_for: the storage trouble that it sits out, and for how long already; "" if none. It doesn't hang then.
        images: the most that a sample at these positions has.
    """

    worker: int
    unit: int
    samples: int
    saved: int
    rejects: Mapping[str, int]
    doing: str
    positions: tuple[int, ...] = ()
    waits_for: str = ""
    images: int = 1


@dataclass(frozen=True)
class Saved:
    """A worker that was asked to stop has saved what it had annotated of its unit, and does nothing more."""

    worker: int
    samples: int


@dataclass(frozen=True)
class Done:
    """A worker has finished its order; `result` is None for a probe."""

    worker: int
    result: UnitResult | None


@dataclass(frozen=True)
class Failed:
    """A worker lives, but couldn't set itself up or do its order.

    Attributes:
        worker: which.
        transient: storage trouble, worth another try.
        message: for people; of a programming error the traceback.
        place: the fault of the worker's host: another one may do it (then `transient` is True as well).
    """

    worker: int
    transient: bool
    message: str
    place: bool = False


@dataclass(frozen=True)
class Died:
    """A worker's process is gone.

    Attributes:
        worker: which.
        innocent: its node went away, or the cluster took it back: no sample is suspected.
        message: for people.
    """

    worker: int
    innocent: bool
    message: str


Event = Loading | Ready | Working | Saved | Done | Failed | Died
