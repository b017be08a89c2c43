"""Models that cost nothing, for tests of everything around models. On PYTHONPATH they are as good as installed.

What a text says makes things happen: "KILL" ends the process, "HANG" takes an hour, "CROWD" runs out of memory in a
batch of more than two, "ALONE" even alone, "WRONG" meets a mistake in the model. Environment variables: STAND_IN_SLEEP
= seconds an image; STAND_IN_WORK = seconds of CPU time an image; STAND_IN_FAULT = a module to import on loading, which
breaks things in the worker (see faults.py).
"""

import importlib
import os
import signal
import time

import numpy as np
import torch

from patchmint import PatchGrid
from patchmint.geometry import RleMasks
from patchmint.geometry.native import NativeGrid, native_name
from patchmint.geometry.rle import encode_masks
from patchmint.interfaces import Instances, TokenizerSpec, Tokens

if os.environ.get("STAND_IN_FAULT"):
    importlib.import_module(os.environ["STAND_IN_FAULT"])


class Boxes:
    """For each text one box, whose place depends on the image's brightness."""

    def __init__(self, device):
        self.device = device

    def segment(self, images, texts):
        said = [text.content for image_texts in texts for text in image_texts]
        if any("KILL" in text for text in said):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("WRONG" in text for text in said):
            raise IndexError("index 3 is out of bounds")
        if any("HANG" in text for text in said):
            time.sleep(3600)
        if any("ALONE" in text for text in said) or (any("CROWD" in text for text in said) and len(images) > 2):
            raise torch.OutOfMemoryError("CUDA out of memory (a stand-in's)")
        for _ in images:
            _spend()
        return [_instances(image, image_texts) for image, image_texts in zip(images, texts, strict=True)]


class Levels:
    """16 x 16 codes: brightness on a coarse grid."""

    spec = TokenizerSpec("stand-in", (16, 16), (256,), PatchGrid(16, 16, 16, "squash"), "mean-16")

    def __init__(self, device):
        self.device = device

    def tokenize(self, images):
        return [Tokens(_levels(image)) for image in images]

    def decode(self, tokens):
        raise NotImplementedError


class NativeLevels(Levels):
    """Brightness on a grid that depends on the image."""

    _cells = NativeGrid(8, 1, 8, "smart", 64 * 8, 64 * 64)
    spec = TokenizerSpec("stand-in-native", (0, 0), (256,), _cells, native_name(_cells), rule="brightness")

    def tokenize(self, images):
        return [Tokens(_levels(image, *self.spec.grid_on(image.shape[:2]))) for image in images]


def _levels(image, height=16, width=16):
    rows = np.linspace(0, image.shape[0] - 1, height).astype(int)
    cols = np.linspace(0, image.shape[1] - 1, width).astype(int)
    return image[rows][:, cols, 1].astype(np.int32)[..., None]


def _instances(image, texts):
    height, width = image.shape[:2]
    n = len(texts)
    edge = 1 + int(image[height // 2, width // 2, 0]) % max(1, min(height, width) // 2)
    box = np.array([0, 0, width - edge // 2, height - edge // 2], np.float32)
    mask = np.zeros((height, width), bool)
    mask[: int(box[3]), : int(box[2])] = True
    return Instances(
        image_size=(height, width),
        masks=RleMasks(encode_masks(np.stack([mask] * n))),
        text_index=np.arange(n),
        scores=np.full(n, 0.5, np.float32),
        boxes=np.stack([box] * n),
        spans=np.array([(0, len(text.content)) for text in texts]),
    )


def _spend():
    if os.environ.get("STAND_IN_SLEEP"):
        time.sleep(float(os.environ["STAND_IN_SLEEP"]))
    if os.environ.get("STAND_IN_WORK"):
        end = time.thread_time() + float(os.environ["STAND_IN_WORK"])
        while time.thread_time() < end:
            pass
