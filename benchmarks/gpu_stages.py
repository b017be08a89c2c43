"""The models' stages for `gpu.py`, each by itself: how many a second, how much arithmetic, how much memory."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gpu_transformers as theirs
import numpy as np
import torch
from gpu_flops import PHOTOGRAPH, decoder_flops, detector_flops, sam_flops, vit_flops, vqgan_flops
from reference_data import CAPTIONS, write_vocabulary

from patchmint.compute.compiled import ran
from patchmint.compute.devices import computing_in, reduced_copy, resolve_precision
from patchmint.features import arch as vit_arch
from patchmint.features.model import untrained_vit
from patchmint.geometry import grid_preset
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.detector import GroundingDino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.labelers.sam.image_encoder import ImageEncoder
from patchmint.labelers.sam.mask_decoder import MaskDecoder
from patchmint.tokenizers.vqgan import arch as vqgan_arch
from patchmint.tokenizers.vqgan.model import compiled_encoder, encoder_for, untrained_vqgan
from patchmint.types import Text

Setting = Literal["auto", "float32"]
Run = Callable[[], object]

_SECONDS = 0.7
"""Of measuring one size."""
_LEAST, _MOST = 3, 50
"""Repetitions."""

_BOXES_A_PICTURE = 16

DETECTOR = "Grounding DINO"


@dataclass(frozen=True)
class Stage:
    """A part of the work whose rate is measured.

    Attributes:
        name: of the table's row; the same in all of its settings.
        make: gives, for the device, the number format and whether it is compiled (for batches of at most so many; 0 =
            not), what runs a batch of a size.
        batches: sizes that are tried.
        flops: gives the floating-point operations of one image (or box) in upstream's own forward.
        unit: what a batch is made of.
        compiles: whether there is a compiled form.
        ours: patchmint's; else transformers' classes (`gpu_transformers.py`).
    """

    name: str
    make: Callable[[torch.device, Setting, int], Callable[[int], Run]]
    batches: tuple[int, ...]
    flops: Callable[[torch.device], int]
    unit: str = "img"
    compiles: bool = True
    ours: bool = True


def measure(
    stage: Stage, device: torch.device, setting: Setting, *, batches: tuple[int, ...], compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """A row for each size of batch: its rate, and the most memory that torch has had of the device's.

    Sizes beyond the device's memory end the stage.
    """
    with _clean(device):
        at = stage.make(device, setting, max(batches) if compiled else 0)
        for batch in batches:
            row: dict[str, Any] = {
                "stage": stage.name,
                "setting": setting if stage.ours else "transformers",
                "compiled": False,
                "batch": batch,
            }
            try:
                begun, before = time.perf_counter(), ran.total()
                seconds, first = timed(at(batch), device)
                row["compiled"] = ran.total() > before  # not what was asked for, but what ran
            except torch.OutOfMemoryError:
                yield row | {"error": "out of memory"}
                return
            yield row | {
                "rate": batch / seconds,
                "unit": stage.unit,
                "first_s": first,
                "took_s": time.perf_counter() - begun,
                "peak_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0,
            }


def timed(run: Run, device: torch.device) -> tuple[float, float]:
    """Median seconds of a run, and those of the first, which chooses kernels and may compile."""
    start = time.perf_counter()
    run()
    _synchronize(device)
    first = time.perf_counter() - start
    run()
    _synchronize(device)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < _LEAST or (time.perf_counter() - begun < _SECONDS and len(taken) < _MOST):
        start = time.perf_counter()
        run()
        # A run is tens of milliseconds: what the host takes to hear of its end is lost in that.
        _synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), first


def matmul_tflops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Measured rate of a product of two square matrices of random numbers, in TFLOP/s."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    many = 10 if device.type == "cuda" else 1

    def run() -> None:
        for _ in range(many):
            torch.mm(a, b, out=out)

    return many * 2 * side**3 / timed(run, device)[0] / 1e12


def stages(tiny: bool) -> list[Stage]:
    """All of them, the most important ones first; `tiny` = models that mean nothing, for a machine without a GPU."""
    sams = {"tiny": sam_arch.TINY} if tiny else {name: sam_arch.OFFICIAL[f"sam-{name}"] for name in _SAMS}
    dino = dino_arch.TINY if tiny else dino_arch.OFFICIAL["groundingdino-swint-ogc"]
    tokenizer = vqgan_arch.TINY if tiny else vqgan_arch.OFFICIAL["vqgan-imagenet-f16-16384"]
    grid = grid_preset("llava-1.5-finetune")
    vit = vit_arch.untrained_arch(grid) if tiny else vit_arch.OFFICIAL["clip-vit-l-14-336"]
    first = next(iter(sams.values()))
    few = (1, 2)
    encoders = [
        Stage(f"SAM {name} encoder", partial(_sam_encoder, arch), few if tiny else (1, 4, 12), partial(sam_flops, arch))
        for name, arch in sams.items()
    ]
    return [
        encoders[0],
        *(
            Stage(
                f"{DETECTOR}, {texts} text{'s' if texts > 1 else ''}",
                partial(_detector, dino, texts),
                few if tiny else (1, 8, 16),
                partial(detector_flops, dino, texts),
            )
            for texts in (1, 5)
        ),
        Stage("VQGAN f16 codes", partial(_vqgan, tokenizer), few if tiny else (1, 32), partial(vqgan_flops, tokenizer)),
        Stage(
            "SAM mask decoder",
            partial(_sam_decoder, first),
            few if tiny else (1, 16, 64),
            partial(decoder_flops, first),
            unit="box",
            compiles=False,
        ),
        Stage("ViT features", partial(_vit, vit), few if tiny else (1, 8, 32), partial(vit_flops, vit), compiles=False),
        *encoders[1:],
        *_transformers(dino, first, next(iter(sams)), few if tiny else (1, 8, 16)),
    ]


def _transformers(
    dino: dino_arch.GroundingDinoArch, sam: sam_arch.SamArch, name: str, batches: tuple[int, ...]
) -> list[Stage]:
    """The contestants of the detector and of SAM: transformers' classes, in batches."""

    def detector(texts: int, device: torch.device, *_: object) -> Callable[[int], Run]:
        model = theirs.made(partial(theirs.detector_of, dino), device)
        return theirs.detect(model, dino, texts, device, PHOTOGRAPH)

    def encoder(device: torch.device, *_: object) -> Callable[[int], Run]:
        return theirs.encode(theirs.made(partial(theirs.sam_of, sam), device), sam, device)

    def decoder(device: torch.device, *_: object) -> Callable[[int], Run]:
        return theirs.decode(theirs.made(partial(theirs.sam_of, sam), device), sam, device, _BOXES_A_PICTURE)

    detectors = [
        Stage(name, partial(detector, texts), batches, partial(detector_flops, dino, texts), compiles=False, ours=False)
        for texts, name in ((1, f"{DETECTOR}, 1 text"), (5, f"{DETECTOR}, 5 texts"))
    ]
    flops = partial(sam_flops, sam), partial(decoder_flops, sam)
    chunks = tuple(_BOXES_A_PICTURE * batch for batch in batches[:2])
    return [
        *detectors,
        Stage(f"SAM {name} encoder", encoder, batches, flops[0], compiles=False, ours=False),
        Stage("SAM mask decoder", decoder, chunks, flops[1], unit="box", compiles=False, ours=False),
    ]


_SAMS = ("vit-h", "vit-l", "vit-b")


# ------------------------------------------------------------------------------------------------- what runs


def _sam_encoder(arch: sam_arch.SamArch, device: torch.device, setting: Setting, compiled: int) -> Callable[[int], Run]:
    dtype = resolve_precision(setting, device, cpu=torch.bfloat16, gpu=torch.bfloat16)
    encoder = ImageEncoder(_made(device, partial(sam_model.untrained, arch, seed=0)).image_encoder, dtype)
    if compiled:
        encoder.compile()

    def at(batch: int) -> Run:
        squares = torch.randn(batch, 3, arch.image_size, arch.image_size, device=device)
        return _in(dtype, device, lambda: encoder(squares))

    return at


def _sam_decoder(arch: sam_arch.SamArch, device: torch.device, setting: Setting, _: int) -> Callable[[int], Run]:
    dtype = resolve_precision(setting, device, cpu=torch.bfloat16, gpu=torch.bfloat16)
    decoder = MaskDecoder(_made(device, partial(sam_model.untrained, arch, seed=0)), dtype)
    side = arch.image_size // arch.patch_size

    def at(boxes: int) -> Run:
        pictures = -(-boxes // _BOXES_A_PICTURE)
        embeddings = torch.randn(pictures, side, side, arch.out_chans, device=device)
        corners = torch.rand(boxes, 2, 2, device=device).sort(dim=1).values.flatten(1) * arch.image_size
        owners = torch.arange(boxes, device=device) // _BOXES_A_PICTURE
        return _in(None, device, lambda: decoder(embeddings, corners, owners))

    return at


def _detector(
    arch: dino_arch.GroundingDinoArch, texts: int, device: torch.device, setting: Setting, compiled: int
) -> Callable[[int], Run]:
    dtype = resolve_precision(setting, device, cpu=torch.bfloat16, gpu=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        write_vocabulary(path)
        words = Vocabulary.from_file(path)
    vocabulary = words if arch.text_vocabulary >= words.size else Vocabulary.of_characters(arch.text_vocabulary)
    model = dino_model.untrained(arch)
    detector = GroundingDino(model, arch, vocabulary, device=str(device), precision=dtype, compiled=bool(compiled))
    generator = np.random.default_rng(0)
    asked = [Text(caption) for caption in CAPTIONS[:texts]]

    def at(batch: int) -> Run:
        pictures = list(generator.integers(0, 255, (batch, *PHOTOGRAPH, 3), dtype=np.uint8))
        resized = [detector.prepare(picture) for picture in pictures]  # in a build that is done ahead, in threads
        return lambda: detector.detect(pictures, [asked] * batch, prepared=resized)

    return at


def _vqgan(arch: vqgan_arch.VqganArch, device: torch.device, setting: Setting, compiled: int) -> Callable[[int], Run]:
    dtype = resolve_precision(setting, device, cpu=torch.float32, gpu=torch.float16)
    model = _made(device, partial(untrained_vqgan, arch, seed=0)).to(memory_format=torch.channels_last)
    encoder = encoder_for(model, dtype, device)
    encode = compiled_encoder(encoder, compiled) if compiled else encoder

    def at(batch: int) -> Run:
        pixels = torch.rand(batch, 3, arch.resolution, arch.resolution, device=device) * 2 - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)

        def run() -> object:
            with computing_in(dtype, device):
                latents = model.latents(pixels, encode)
            return model.quantize.codes(latents, None)

        return _in(None, device, run)

    return at


def _vit(arch: vit_arch.VitArch, device: torch.device, setting: Setting, _: int) -> Callable[[int], Run]:
    dtype = resolve_precision(setting, device, cpu=torch.float32, gpu=torch.float16)
    model = reduced_copy(_made(device, partial(untrained_vit, arch, seed=0)).eval(), dtype, device)

    def at(batch: int) -> Run:
        pixels = torch.randn(batch, 3, arch.image_px, arch.image_px, device=device)
        return _in(dtype, device, lambda: list(model.states(pixels, arch.layers - 1))[-1])

    return at


def _in(dtype: torch.dtype | None, device: torch.device, run: Run) -> Run:
    def within() -> object:
        with torch.inference_mode(), computing_in(dtype or torch.float32, device):
            return run()

    return within


def _made(device: torch.device, make: Callable[[], Any]) -> Any:
    """A model made where it is to run: random numbers for 600 million weights take a CPU long."""
    with torch.device(device):
        return make().to(device).eval().requires_grad_(requires_grad=False)


# ------------------------------------------------------------------------------------------------- the device


@contextmanager
def _clean(device: torch.device) -> Iterator[None]:
    gc.collect()  # the stage before may lie in a cycle
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
