"""Helpers of the tests of sources."""

import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from pydantic import TypeAdapter

from patchmint.config.sources import SourceConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.sources import open_source
from patchmint.samples import PART, Absent, SourceSample
from patchmint.types import Instance


def drawn(*boxes, span=None):
    """Instances that have these boxes."""
    return tuple(Instance(tuple(map(float, box)), span) for box in boxes)


FIXTURES = Path(__file__).with_name("sources")


def source(kind, uri, masks=False, **settings):
    config = TypeAdapter(SourceConfig).validate_python({"kind": kind, "uri": str(uri), **settings})
    return open_source(config, masks=masks)


def samples_of(opened):
    return [found for found in opened.samples() if isinstance(found, SourceSample)]


def read(kind, uri, **settings):
    return samples_of(source(kind, uri, **settings))


def absent(kind, uri, **settings):
    """How often each reason of something absent comes."""
    found = source(kind, uri, **settings).samples()
    return Counter(each.reason for each in found if isinstance(each, Absent))


def refused(message, kind, uri, **settings):
    """Reading the source is an error of the settings that says this; the error."""
    with pytest.raises(ConfigError, match=message) as caught:
        read(kind, uri, **settings)
    return caught.value


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
    """Ids of the samples with faults, by reason; those of single texts are told by their ids."""
    found = {}
    for sample in samples:
        if isinstance(sample, SourceSample) and sample.fault is not None:
            assert sample.fault.reason.startswith(PART) == ("#fault-" in sample.id)
            found.setdefault(sample.fault.reason.removeprefix(PART), set()).add(sample.id)
    return found


def good(samples):
    """Texts of each sample without a fault."""
    return [texts(sample) for sample in samples if isinstance(sample, SourceSample) and sample.fault is None]
