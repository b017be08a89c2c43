"""Bytes of image files -> upright RGB."""

from typing import Literal

FileFormat = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff", "avif"]
"""What is read."""

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif"})
"""How files of the formats that are read are called, in lower case."""
