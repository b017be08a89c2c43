"""Bytes of image files -> upright RGB."""

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif"})
"""How files of the formats that are read are called, in lower case."""
