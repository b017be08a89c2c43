"""Samples -> keys, units, plan.parquet: deterministic, flat in memory."""
