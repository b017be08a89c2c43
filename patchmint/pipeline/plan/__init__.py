"""The plan: which samples go into which shard, written down once and read by every worker."""

from __future__ import annotations

from patchmint.pipeline.plan.estimate import DryRun, estimate
from patchmint.pipeline.plan.index import Plan, Unit, load_plan, load_plans
from patchmint.pipeline.plan.make import make_plan, make_retry_plan
from patchmint.pipeline.plan.models import ModelRecord, check_models, library_versions, record_models
from patchmint.pipeline.plan.parts import read_unit

__all__ = [
    "DryRun",
    "ModelRecord",
    "Plan",
    "Unit",
    "check_models",
    "estimate",
    "library_versions",
    "load_plan",
    "load_plans",
    "make_plan",
    "make_retry_plan",
    "read_unit",
    "record_models",
]
