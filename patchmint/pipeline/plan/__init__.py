"""The plan: which samples go into which shard, written down once and read by every worker."""

from patchmint.pipeline.plan.estimate import DryRun, LookedAt, Sampled, estimate
from patchmint.pipeline.plan.make import discard_plan, is_whole, make_plan, make_retry_plan, sweep_unplanned
from patchmint.pipeline.plan.models import check_models, library_versions, record_models
from patchmint.pipeline.plan.reading import reading, to_batches

__all__ = [
    "DryRun",
    "LookedAt",
    "Sampled",
    "check_models",
    "discard_plan",
    "estimate",
    "is_whole",
    "library_versions",
    "make_plan",
    "make_retry_plan",
    "reading",
    "record_models",
    "sweep_unplanned",
    "to_batches",
]
