"""A data set with everything that the gallery must show, hostile texts included, and a wide one made quickly."""

import io
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from inspect_data import texted
from PIL import Image
from shard_data import configure, make_dataset, make_sample

from patchmint.geometry.rle import encode_masks, fill_boxes
from patchmint.inspection.gallery.server import GalleryServer
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.schema import ImageDocument, PhraseDocument

CELLS = 8
LAYOUT = Layout(
    grid=GridLayout(rows=CELLS, cols=CELLS, patch_px=14, fit="crop"),
    min_coverage=0.0,
    tokens=TokensLayout(member="vqgan", grid=(8, 8), codebook_sizes=(512,), preprocessing="pad-128-bicubic"),
    notice="demo models: <b>only</b> shapes",
)
GRID = {"rows": CELLS, "cols": CELLS, "patch_px": 14, "fit": "crop"}
SIZE = HEIGHT, WIDTH = 160, 240
"""Of every image: `crop` leaves a sixth of it out on the left, and on the right."""

HOSTILE = (
    "<img src=x onerror=alert(1)> a red fish",
    "</script><script>alert(2)</script> & <!-- a blue bird",
    "قطة حمراء على أريكة زرقاء",
    "a \U0001f408 cat " + "very long text. " * 3200,
    "line\u2028separator\u2029and \\u003c \" ' `${alert(3)}`",
)
MODELS = ("detector", "vocabulary", "masker", "tokenizer")
DEMO = {
    "models": {role: f"demo-{role}" for role in MODELS},
    "labels": {"min_coverage": 0.0},
    "tokens": {"size": 128, "fit": "pad"},
}
UNTRAINED = DEMO | {"models": dict.fromkeys(MODELS, "untrained-tiny"), "tokens": {"size": 64, "fit": "pad"}}
"""Quicker; the codes below are theirs and the demo models' alike."""


def photo(ordinal):
    rng = np.random.default_rng(ordinal)
    pixels = np.full((HEIGHT, WIDTH, 3), rng.integers(90, 220, 3), np.uint8)
    pixels[40:100, 60:130] = rng.integers(0, 255, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def gallery_sample(ordinal):
    """Two texts, the first of them hostile in the first samples; two phrases of the first text with boxes."""
    rng = np.random.default_rng(1000 + ordinal)
    first = HOSTILE[ordinal] if ordinal < len(HOSTILE) else f"scene {ordinal} of a park with a dog"
    coverage = np.where(rng.random((2, CELLS, CELLS)) < 0.3, rng.integers(1, 256, (2, CELLS, CELLS)), 0).astype(
        np.uint8
    )
    words = [
        PhraseDocument(text=first[start:end], text_index=0, start=start, end=end, box=box, score=score)
        for start, end, box, score in (
            (2, 5, (60.0, 40.0, 130.0, 100.0), round(0.2 + ordinal % 70 / 100, 4)),
            (6, 9, (100.5, 20.25, 190.0, 150.0), 0.1234),
        )
    ]
    return replace(
        texted(make_sample(ordinal, layout=LAYOUT), first, f"second text {ordinal}", conversation=()),
        data=photo(ordinal),
        image=ImageDocument(width=WIDTH, height=HEIGHT, format="jpeg", mode="RGB", orientation=1),
        phrases=tuple(words) if ordinal % 5 else (),
        selector=(coverage > 0).astype(np.uint8),
        coverage=coverage,
        codes=rng.integers(0, 64, (8, 8, 1)),
    )


def gallery_dataset(folder, samples=60, **config):
    """Two shards of `gallery_sample`."""
    half = samples // 2 + 1
    units = [[gallery_sample(n) for n in range(half)], [gallery_sample(n) for n in range(half, samples)]]
    return configure(make_dataset(folder, units, layout=LAYOUT), grid=GRID, **config)


def editable_dataset(folder, samples, **config):
    """One shard of samples with instances, whose boxes are their masks."""
    masks = [tuple(encode_masks(fill_boxes([each.box], SIZE)[None])[0] for each in one.phrases) for one in samples]
    unit = [replace(one, masks=own) for one, own in zip(samples, masks, strict=True)]
    layout = LAYOUT.model_copy(update={"instances": True})
    return configure(make_dataset(folder, [unit], layout=layout), grid=GRID, **config)


def payload(script):
    """What a data file hands to the page."""
    text = script.decode()
    assert text.startswith("patchmint.receive(")
    assert text.endswith(");\n")
    return json.loads("[" + text.removeprefix("patchmint.receive(").removesuffix(");\n") + "]")[1]


@contextmanager
def served(site, editing=None):
    """A server of this gallery, which ends with the block."""
    with GalleryServer(site, editing=editing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
