"""The Python API: one image and its texts in, labels, codes and a picture out."""

from patchmint.api.annotation import Annotation
from patchmint.api.annotator import Annotator
from patchmint.errors import DemoWarning, UntrainedWarning
from patchmint.types import Phrase

__all__ = ["Annotation", "Annotator", "DemoWarning", "Phrase", "UntrainedWarning"]
