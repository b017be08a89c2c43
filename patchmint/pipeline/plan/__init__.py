"""The plan: which samples go into which shard, written down once and read by every worker."""

from patchmint.pipeline.plan.estimate import DryRun, estimate
from patchmint.pipeline.plan.make import make_plan, make_retry_plan
from patchmint.pipeline.plan.models import check_models, library_versions, record_models

__all__ = [
    "DryRun",
    "check_models",
    "estimate",
    "library_versions",
    "make_plan",
    "make_retry_plan",
    "record_models",
]
