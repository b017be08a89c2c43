"""Helpers of the tests of sources."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import skimage.data
from PIL import Image
from pydantic import TypeAdapter

from patchmint.config.sources import SourceConfig
from patchmint.pipeline.sources import Source, open_source
from patchmint.samples import SourceSample

FIXTURES = Path(__file__).with_name("sources")


def source(kind: str, uri: Path | str, **settings: Any) -> Source:
    adapter: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
    return open_source(adapter.validate_python({"kind": kind, "uri": str(uri), **settings}))


def fixture(name: str, target: Path) -> Path:
    shutil.copytree(FIXTURES / name, target / name)
    return target / name


def image_bytes(name: str = "astronaut", kind: str = "JPEG") -> bytes:
    """A photograph of scikit-image, made small."""
    file = io.BytesIO()
    Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((64, 64)).save(file, kind)
    return file.getvalue()


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def texts(sample: SourceSample) -> list[str]:
    return [text.content for text in sample.texts]


def faults(samples: list[SourceSample]) -> dict[str, str]:
    """Reason by id of the samples with faults."""
    return {sample.id: sample.fault.reason for sample in samples if sample.fault is not None}
