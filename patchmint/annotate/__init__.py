"""Decoded images and texts -> labels, codes, features."""
