"""Trains and judges the demo models that come with the package (docs/model-card.md)."""
