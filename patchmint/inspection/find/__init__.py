"""Samples and rejects that a condition holds for."""
