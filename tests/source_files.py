"""Helpers of the tests of sources."""

import io
import shutil
from pathlib import Path

import skimage.data
from PIL import Image
from pydantic import TypeAdapter

from patchmint.config.sources import SourceConfig
from patchmint.pipeline.sources import open_source

FIXTURES = Path(__file__).with_name("sources")


def source(kind, uri, **settings):
    adapter = TypeAdapter(SourceConfig)
    return open_source(adapter.validate_python({"kind": kind, "uri": str(uri), **settings}))


def fixture(name, target):
    shutil.copytree(FIXTURES / name, target / name)
    return target / name


def image_bytes(name="astronaut", kind="JPEG"):
    """A photograph of scikit-image, made small."""
    file = io.BytesIO()
    Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((64, 64)).save(file, kind)
    return file.getvalue()


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def texts(sample):
    return [text.content for text in sample.texts]


def faults(samples):
    """Reason by id of the samples with faults."""
    return {sample.id: sample.fault.reason for sample in samples if sample.fault is not None}
