"""Counters for Ray's dashboard and Prometheus: Ray exports them as `ray_patchmint_...` on each node's metrics port."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from patchmint.pipeline.driver.supervise import Progress
from patchmint.pipeline.orders import UnitResult


class Metrics:
    """The driver's counters; they count finished units, so a unit tried twice counts once."""

    def __init__(self) -> None:
        self._samples = Counter("patchmint_samples_written", "Samples written into shards.")
        self._rejects = Counter("patchmint_samples_rejected", "Samples rejected.", tag_keys=("reason",))
        self._units = Counter("patchmint_units", "Units finished.")
        self._bytes = Counter("patchmint_bytes_written", "Bytes of shards written.")
        self._stages = Counter("patchmint_stage_seconds", "Seconds of all workers, by stage.", tag_keys=("stage",))
        self._queue = Counter("patchmint_queue_wait_seconds", "Seconds that workers waited for a unit.")
        self._deaths = Counter("patchmint_worker_deaths", "Workers that died and were replaced.")
        self._workers = Gauge("patchmint_workers", "Workers that are ready.")
        self._seen_queue = 0.0
        self._seen_deaths = 0

    def update(self, progress: Progress, result: UnitResult | None) -> None:
        """Take over what has happened since the last call."""
        # Ray shows a driver's last values for a while after it has ended
        self._workers.set(0 if progress.done == progress.units else progress.workers)
        if progress.queue_wait > self._seen_queue:
            self._queue.inc(progress.queue_wait - self._seen_queue)
            self._seen_queue = progress.queue_wait
        if progress.deaths > self._seen_deaths:
            self._deaths.inc(progress.deaths - self._seen_deaths)
            self._seen_deaths = progress.deaths
        if result is None:
            return
        counts = [(self._samples, result.written), (self._bytes, result.bytes), (self._units, 1)]
        for counter, count in counts:
            if count:
                counter.inc(count)
        for reason, count in result.rejects.items():
            self._rejects.inc(count, tags={"reason": reason})
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._stages.inc(seconds, tags={"stage": stage})
