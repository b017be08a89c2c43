"""patchmint: patch-level selector labels and discrete visual tokens for multimodal training data.

Everything public is loaded on first use, so that `import patchmint` is quick and needs neither torch nor ray.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchmint.version import __version__

if TYPE_CHECKING:
    from patchmint.api import Annotation, Annotator, DocumentAnnotation
    from patchmint.errors import DemoWarning, PatchmintError, UntrainedWarning
    from patchmint.geometry import PatchGrid, grid_preset
    from patchmint.pipeline.driver.build import BuildReport
    from patchmint.pipeline.driver.contracts import Reporter
    from patchmint.pipeline.run import build
    from patchmint.types import Instance, Phrase, Text

_HOMES = {
    "Annotation": "patchmint.api",
    "Annotator": "patchmint.api",
    "BuildReport": "patchmint.pipeline.driver.build",
    "DemoWarning": "patchmint.errors",
    "DocumentAnnotation": "patchmint.api",
    "PatchGrid": "patchmint.geometry",
    "PatchmintError": "patchmint.errors",
    "Instance": "patchmint.types",
    "Phrase": "patchmint.types",
    "Reporter": "patchmint.pipeline.driver.contracts",
    "Text": "patchmint.types",
    "UntrainedWarning": "patchmint.errors",
    "build": "patchmint.pipeline.run",
    "grid_preset": "patchmint.geometry",
}

__all__ = [
    "Annotation",
    "Annotator",
    "BuildReport",
    "DemoWarning",
    "DocumentAnnotation",
    "Instance",
    "PatchGrid",
    "PatchmintError",
    "Phrase",
    "Reporter",
    "Text",
    "UntrainedWarning",
    "__version__",
    "build",
    "grid_preset",
]


def _have_home() -> None:
    """Without HOME and an entry in /etc/passwd it is "/", as in containers: libraries stop where they find none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


_have_home()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchmint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
