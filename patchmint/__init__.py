"""patchmint: patch-level selector labels and discrete visual tokens for multimodal training data.

Everything public is loaded on first use, so that `import patchmint` is quick and needs neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchmint.version import __version__

if TYPE_CHECKING:
    from patchmint.api import Annotation, Annotator, DemoWarning, Phrase, UntrainedWarning
    from patchmint.errors import PatchmintError
    from patchmint.geometry import PatchGrid, grid_preset
    from patchmint.types import Text

_HOMES = {
    "Annotation": "patchmint.api",
    "Annotator": "patchmint.api",
    "DemoWarning": "patchmint.api",
    "PatchGrid": "patchmint.geometry",
    "PatchmintError": "patchmint.errors",
    "Phrase": "patchmint.api",
    "Text": "patchmint.types",
    "UntrainedWarning": "patchmint.api",
    "grid_preset": "patchmint.geometry",
}

__all__ = [
    "Annotation",
    "Annotator",
    "DemoWarning",
    "PatchGrid",
    "PatchmintError",
    "Phrase",
    "Text",
    "UntrainedWarning",
    "__version__",
    "grid_preset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchmint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
