"""Which scenes are for what: models are judged by scenes that they never saw. Without torch."""

from __future__ import annotations

TRAINING = 0
"""Scenes that models are trained on."""

HELD_OUT = 1_000_001
"""Scenes that training is judged by while it runs."""

FRESH = 7_000_003
"""Scenes of the tables in docs/quality.md (and the seeds that follow); looked at when training is over."""

DEMO = 7_100_003
"""Scenes of `patchmint demo`."""
