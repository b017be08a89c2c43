"""Data sets to take samples from: folders, tars, annotation files, tables."""

from __future__ import annotations

from patchmint.pipeline.sources.base import Source
from patchmint.pipeline.sources.build import open_source

__all__ = ["Source", "open_source"]
