"""Bytes of image files -> upright RGB."""
