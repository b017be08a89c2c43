"""The demo: scenes with known truth, their shards judged by it. And which scenes are for what, by their seeds.

Models are judged by scenes that they never saw.
"""

TRAINING_SEED = 0
"""Scenes that models are trained on."""

HELD_OUT_SEED = 1_000_001
"""Scenes that training is judged by while it runs."""

FRESH_SEED = 7_000_003
"""Scenes of the tables in docs/quality.md (and the seeds that follow); looked at when training is over."""

TUNING_SEED = 7_500_003
"""Scenes by which settings of finished models are chosen."""

DEMO_SEED = 7_100_003
"""Scenes of `patchmint demo`."""
