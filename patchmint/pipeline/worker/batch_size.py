"""How many images a worker's models take at once, where the config leaves it open."""

from __future__ import annotations

import time

import numpy as np
import torch

from patchmint.annotate.models import AnnotationModels, cpu_batch_size
from patchmint.compute.memory import Trial, find_batch_size, ran_out
from patchmint.config.build import LocalRunner, RayRunner
from patchmint.types import Text

_SHARE = 0.8
"""Of the device's free memory. Boxes can't be foreseen; what is left over is for them."""
_LARGEST = (800, 1333)
"""As large as Grounding DINO makes any image, in pixels (height, width)."""


def choose_batch_size(models: AnnotationModels, runner: LocalRunner | RayRunner, device: str) -> int:
    """The configured size; else on a CPU one by the size of the models' inputs, on a GPU one that is tried out.

    Args:
        models: on the device.
        runner: the settings.
        device: "cpu", "cuda" or "cuda:N".
    """
    if runner.batch_size is not None:
        return runner.batch_size
    if not device.startswith("cuda"):
        return cpu_batch_size(models)
    free, _ = torch.cuda.mem_get_info(device)
    found = find_batch_size(lambda images: _tried(models, images, device), int(free * _SHARE / _sharing(runner)))
    torch.cuda.empty_cache()
    return found


def _sharing(runner: LocalRunner | RayRunner) -> int:
    """How many workers have a GPU between them."""
    if isinstance(runner, RayRunner):
        return round(1 / runner.num_gpus) if 0 < runner.num_gpus < 1 else 1
    spread = torch.cuda.device_count() if runner.device in ("auto", "cuda") else 1
    return -(-runner.workers // max(1, spread))


def _tried(models: AnnotationModels, images: int, device: str) -> Trial | None:
    noise = np.random.default_rng(0).integers(0, 255, (*_LARGEST, 3), dtype=np.uint8)
    batch, texts = [noise] * images, [[Text("a thing")]] * images
    inputs = [models.prepare(noise)] * images  # in a build that is done ahead
    try:
        models.ask(batch, texts, inputs)  # the first time is slower: kernels are chosen, memory is taken
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.memory_allocated(device), time.perf_counter()
        models.ask(batch, texts, inputs)
        torch.cuda.synchronize(device)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None
    finally:
        torch.cuda.empty_cache()
    return Trial(time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - before)
