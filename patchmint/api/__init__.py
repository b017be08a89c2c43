"""The Python API: one image and its texts in, labels, codes and a picture out."""

from patchmint.compute.threads import wait_briefly

wait_briefly()  # before torch is imported, unless the caller has done so

from patchmint.api.annotation import Annotation, DocumentAnnotation  # noqa: E402
from patchmint.api.annotator import Annotator  # noqa: E402
from patchmint.errors import DemoWarning, UntrainedWarning  # noqa: E402
from patchmint.types import Phrase  # noqa: E402

__all__ = ["Annotation", "Annotator", "DemoWarning", "DocumentAnnotation", "Phrase", "UntrainedWarning"]
