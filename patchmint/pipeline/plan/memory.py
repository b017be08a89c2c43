"""How much memory a build's processes take: a model, fitted to peaks that `--profile` told (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path

from patchmint.config import UNTRAINED
from patchmint.config.build import (
    BATCHES_AHEAD,
    CPU_BATCH_SIZES,
    CPU_INPUT_BYTES,
    MOST_BYTES_AHEAD,
    MOST_BYTES_OF_A_BATCH,
    MOST_BYTES_WAITING,
    BuildConfig,
    LocalRunner,
)
from patchmint.config.grids import resolve_grid
from patchmint.errors import InputError
from patchmint.features.arch import infer_arch
from patchmint.features.plan import encoder_arch
from patchmint.features.towers import TowerArch, own_tensors
from patchmint.geometry import Grid, NativeGrid, PatchGrid
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.owlv2.arch import Owlv2Arch, infer_detector
from patchmint.labelers.sam import arch as sam
from patchmint.plugins import is_outside
from patchmint.tokenizers.build import input_pixels, tokenizer_arch
from patchmint.tokenizers.emu3.arch import Emu3Arch
from patchmint.types import Size
from patchmint.weights.container import read_header
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate, read_arch

_MB = 10**6
_FLOAT = 4

_DRIVER = 165 * _MB
_LIBRARIES = 640 * _MB
"""Of any worker: torch and pyarrow, mapped files included. Measured with torch for CUDA, on a CPU."""
_OF_SECTION = {"labels": 230 * _MB, "tokens": 40 * _MB, "features": 320 * _MB}
"""What else is imported for one; the largest counts, for they share transformers."""
_SHARED = 380 * _MB
"""Of the libraries, mapped files that all workers of a machine have in common."""
_KEPT = {"labels": 150 * _MB, "tokens": 20 * _MB, "features": 40 * _MB}
"""What a worker keeps on a CPU: up to 512 compiled products, which boxes and texts of any number need, and free blocks
between those in use."""

_USUAL_SIZE = (480, 640)
_LARGEST_GPU_BATCH = 64

_PIXELS_AT_ONCE = 2**20
_POSITIONS_AT_ONCE = 2**14
_MASKER_NUMBERS = 2**22
_MOST_BOXES = 64
_TOKENIZER_IMAGES = 2
_ENCODER_VIEWS = 8
_ENCODER_PATCHES = 2**14
# What the models take at once on a CPU, whatever the batch.
_TENSORS = 10
"""Alive at a time in a backbone, as large as the one that runs through it."""
_TOKENIZER_TENSORS = 9

_REDUCED = 0.46
"""Of SAM ViT-B's weights: what storing them for products in bfloat16 saves."""

_MODEL_BYTES = {
    "vqgan-imagenet-f16-1024": 288_566_796,
    "vqgan-imagenet-f16-16384": 304_295_436,
    "vqgan-gumbel-f8-8192": 275_983_884,
    "llamagen-vq-ds16-c2i": 287_533_612,
    "llamagen-vq-ds16-t2i": 287_533_612,
    "llamagen-vq-ds8-c2i": 280_439_340,
    "ibq-1024": 428_199_436,
    "ibq-8192": 435_539_468,
    "ibq-16384": 443_928_076,
    "ibq-262144": 695_586_316,
    "clip-vit-l-14-336": 1_214_029_824,
    "siglip-so400m-384": 1_712_902_400,
}
"""Published files that hold more than the model: losses, an optimizer's state, a text encoder. Of all others the file's
size is the model's."""


@dataclass(frozen=True)
class Memory:
    """Resident memory at its peak, in bytes; estimated.

    Attributes:
        libraries: of a worker, what its imports take.
        weights: its models, as they are loaded on a CPU.
        models: what the models compute with on a CPU, for the largest batch, beyond the room that weights leave when
            they are stored in bfloat16; 0 where the models run on a GPU.
        images: decoded images that wait, at most.
        kept: compiled products and free memory that the process keeps.
        worker: all of it, or what it takes to load the models if that is more.
        driver: the process that plans.
        workers: how many workers there are at most.
        total: all processes; what workers of the `local` runner share is counted once.
        on_gpu: whether the models run on a GPU. What they take there is not estimated.
        unknown: plug-ins: of these nothing but the size of a checkpoint is known, and counted.
    """

    libraries: int
    weights: int
    models: int
    images: int
    kept: int
    worker: int
    driver: int
    workers: int
    total: int
    on_gpu: bool
    unknown: tuple[str, ...]


def estimate_memory(config: BuildConfig, sizes: Sequence[Size], samples: int) -> Memory:
    """Foresee the memory of a build from its settings, and from what files say of themselves.

    Args:
        config: the build.
        sizes: (height, width) of some of its images.
        samples: in its largest unit.

    Raises:
        WeightsError: a file of your own can't be read.
    """
    used, on_gpu = config.models_used, runs_on_gpu(config)
    outside = {role for role, name in used.items() if is_outside(role, name)}
    sections = [name for name in _KEPT if getattr(config, name) is not None]
    given = config.models.plugins
    own = [given[used[role]].checkpoint for role in outside if used[role] in given]
    weights = [weights_of(role, name) for role, name in used.items() if role not in outside]
    weights += [locate(checkpoint).stat().st_size for checkpoint in own if checkpoint is not None]
    batch = batch_size(config) or _LARGEST_GPU_BATCH
    seen = sizes or [_USUAL_SIZE]
    largest = max(seen, key=prod)
    libraries = _LIBRARIES + max(_OF_SECTION[name] for name in sections)
    working = sum(_working(config, role, min(batch, samples), largest) for role in used.keys() - outside)
    models = 0 if on_gpu else max(0, working - round(_room(config, outside)))
    images = _waiting(config, seen, batch, samples)
    kept = 0 if on_gpu else sum(_KEPT[name] for name in sections)
    # read into a model that is there already; a GPU's are gone from here once they are loaded
    loading = max((2 * own + (0 if on_gpu else before) for before, own in _with_sums(weights)), default=0)
    worker = libraries + max(loading, (0 if on_gpu else sum(weights)) + models + images + kept)
    if isinstance(config.runner, LocalRunner):
        workers, shared = config.runner.workers, _SHARED
    else:
        workers, shared = config.runner.max_actors, 0
    return Memory(
        libraries=libraries,
        weights=sum(weights),
        models=models,
        images=images,
        kept=kept,
        worker=worker,
        driver=_DRIVER,
        workers=workers,
        total=_DRIVER + workers * worker - (workers - 1) * shared,
        on_gpu=on_gpu,
        unknown=tuple(used[role] for role in used if role in outside),
    )


def _with_sums(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *accumulate(sizes)], sizes, strict=False))


def runs_on_gpu(config: BuildConfig) -> bool:
    """Whether workers will use a GPU, as far as can be told without torch."""
    if not isinstance(config.runner, LocalRunner):
        return config.runner.num_gpus > 0
    if config.runner.device == "auto":
        return any(Path("/dev").glob("nvidia[0-9]*"))
    return config.runner.device != "cpu"


def batch_size(config: BuildConfig) -> int | None:
    """Images that the models take at once; None = found by the workers, where they run on a GPU."""
    if config.runner.batch_size is not None or runs_on_gpu(config):
        return config.runner.batch_size
    least, most = CPU_BATCH_SIZES
    taken = _inputs(config, _USUAL_SIZE)
    return max(least, min(most, CPU_INPUT_BYTES // taken)) if taken else least


def _room(config: BuildConfig, outside: Set[str]) -> float:
    """Bytes that detector and masker leave free once their weights for products are in bfloat16."""
    if config.precision != "bfloat16" and not (config.precision == "auto" and _cpu_has_bfloat16()):
        return 0.0
    roles = config.models_used.keys() & {"detector", "masker"} - outside
    return _REDUCED * sum(weights_of(role, config.models_used[role]) for role in roles)


def _cpu_has_bfloat16() -> bool:
    """As `compute.devices` learns from torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_tile"))


def weights_of(role: str, name: str) -> int:
    """Bytes of a model's weights in float32, also of one that has to be pulled yet; 0 for vocabularies and tiny ones.

    Raises:
        WeightsError: a file of your own can't be read.
    """
    if name == UNTRAINED or role == "vocabulary":
        return 0
    if name in _MODEL_BYTES:
        return _MODEL_BYTES[name]
    if name in CHECKPOINTS and not CHECKPOINTS[name].bundled:
        return CHECKPOINTS[name].size or 0
    header = read_header(locate(name))
    tensors = header.tensors
    if role == "vit":
        arch = infer_arch(tensors, header.metadata)
        others = ("text_", "visual_", "logit_")
        own = own_tensors(tensors, arch) if isinstance(arch, TowerArch) else tensors
        tensors = {key: shape for key, shape in own.items() if not key.startswith(others)}
    return _FLOAT * sum(prod(shape.shape) for key, shape in tensors.items() if not key.startswith("loss."))


def _detector(name: str) -> dino.GroundingDinoArch | Owlv2Arch:
    return {UNTRAINED: dino.TINY, **dino.OFFICIAL}.get(name) or read_arch(name, infer_detector)


def _masker(name: str) -> sam.SamArch | sam.DescribedArch:
    return {UNTRAINED: sam.TINY, **sam.OFFICIAL}.get(name) or read_arch(name, sam.infer_arch)


def _encoder_working(config: BuildConfig, batch: int, size: Size) -> int:
    grid = resolve_grid(config.grid)
    arch = encoder_arch(config.models.vit, grid)
    views = min(_ENCODER_VIEWS, batch * _views(grid, size))
    if isinstance(arch, TowerArch):
        patches = _input_pixels(grid, size) // arch.patch_px**2
        together = min(views * patches, max(_ENCODER_PATCHES, patches))
    else:
        together = views * arch.side**2
    return _FLOAT * together * (6 * arch.hidden + 2 * arch.mlp)


def _views(grid: Grid, size: Size) -> int:
    return len(grid.place(size).views) if isinstance(grid, PatchGrid) else 1


def _input_pixels(grid: Grid, size: Size) -> int:
    """Pixels of a view; 0 where the image can't be placed, or no encoder takes the grid."""
    if isinstance(grid, PatchGrid):
        return prod(grid.input_size)
    try:
        return prod(grid.input_size(size)) if isinstance(grid, NativeGrid) else 0
    except InputError:  # so long and narrow that it will be rejected
        return 0


def _working(config: BuildConfig, role: str, batch: int, size: Size) -> int:
    """Bytes that a model computes with on a CPU, for a batch of images of one size."""
    name = config.models_used[role]
    if role == "detector":
        return _detector_working(_detector(name), batch, size)
    if role == "segmenter":
        return _TENSORS * _FLOAT * read_arch(name, sam.infer_sam3).working
    if role == "masker":
        shape = _masker(name)
        positions = (shape.image_size // shape.patch_size) ** 2
        boxes = min(_MASKER_NUMBERS, _MOST_BOXES * positions * shape.out_chans)
        return _TENSORS * _FLOAT * max(boxes, positions * shape.embed_dim)
    kind, _, of_several = role.partition(".")
    if kind == "tokenizer":
        tokens = config.tokenizers[of_several]
        arch = tokenizer_arch(name, tokens.rule)
        images = 1 if isinstance(arch, Emu3Arch) else min(batch, _TOKENIZER_IMAGES)
        return _TOKENIZER_TENSORS * _FLOAT * images * arch.ch * input_pixels(arch, tokens, size)
    if role == "vit":
        return _encoder_working(config, batch, size)
    return 0


def _detector_working(arch: dino.GroundingDinoArch | Owlv2Arch, batch: int, size: Size) -> int:
    if isinstance(arch, Owlv2Arch):
        return _TENSORS * _FLOAT * arch.working
    pixels = prod(dino.detector_size(size, arch.short_side, arch.long_side))
    together = max(1, min(batch, _PIXELS_AT_ONCE // pixels))
    strides = [4 << stage for stage in arch.backbone_stages]
    strides += [strides[-1] << extra for extra in range(1, arch.levels - len(strides) + 1)]
    positions = sum(-(-pixels // stride**2) for stride in strides)
    canvas = min(max(_POSITIONS_AT_ONCE, positions), batch * positions)
    numbers = _TENSORS * (together * pixels // 16 * arch.swin_dim + canvas * dino.HIDDEN_DIM)
    return _FLOAT * (numbers + batch * positions * dino.HIDDEN_DIM)


def _waiting(config: BuildConfig, sizes: Sequence[Size], batch: int, samples: int) -> int:
    """Bytes of images that are decoded ahead, wait for their batch, are in work and being written, at most."""
    each = [3 * prod(size) + _inputs(config, size) for size in sizes]
    mean = sum(each) / len(each)
    ahead, waiting = 2 * batch * mean, BATCHES_AHEAD * batch * mean
    bounded = min(ahead, MOST_BYTES_AHEAD) + min(waiting, MOST_BYTES_WAITING) + min(batch * mean, MOST_BYTES_OF_A_BATCH)
    # while one is decoded, its pixels are there twice
    return round(min(bounded, samples * mean) + 2 * max(each))


def _inputs(config: BuildConfig, size: Size) -> int:
    """Bytes of what the models have made of an image of this size ahead."""
    used = {role: name for role, name in config.models_used.items() if not is_outside(role, name)}
    total = 0
    if "detector" in used:
        arch = _detector(used["detector"])
        if isinstance(arch, Owlv2Arch):
            total += _FLOAT * arch.image_size**2
        else:
            total += prod(dino.detector_size(size, arch.short_side, arch.long_side))
    if "masker" in used:
        masker = _masker(used["masker"])
        squashed = isinstance(masker, sam.DescribedArch) and masker.squashes
        total += round(masker.image_size**2 * (1 if squashed else min(size) / max(size)))
    if "segmenter" in used:
        total += read_arch(used["segmenter"], sam.infer_sam3).image_size ** 2
    for tokens in config.tokenizers.values():
        name = tokens.tokenizer or ""
        if not is_outside("tokenizer", name):
            total += input_pixels(tokenizer_arch(name, tokens.rule), tokens, size)
    if "vit" in used:
        grid = resolve_grid(config.grid)
        total += _input_pixels(grid, size) * _views(grid, size)
    return 3 * total
