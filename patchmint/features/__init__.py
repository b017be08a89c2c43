"""Continuous features of vision encoders."""
