"""What SAM's decoder said of one picture's boxes: masks that need not be made to be measured.

Three frames: the picture; the *input*, the picture scaled so that its longest side is the model's `image_size`, set in
the top left corner of a square and padded; and the *low-res logits* that the decoder gives, which cover the whole
square, padding included. SAM 2 squashes the picture into the square: then logits cover the picture, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.coverage_logits import coverage_from_logits
from patchmint.geometry.placement import Floats, Placement
from patchmint.geometry.rle import Masks, RleMasks, encode_masks
from patchmint.types import RgbImage, Rle, Size

MaskCoverage = Literal["exact", "fast"]

_PIXELS_AT_ONCE = 2**24
# Mask pixels scaled up together: 64 MiB of float32, so that memory stays level on large pictures.


@dataclass(frozen=True, eq=False)
class SamMasks:
    """A `Masks` of low-res logits.

    Attributes:
        logits: float32 (N, n, n), over the model's whole square input; positive = mask (upstream's threshold is 0).
        size: (height, width) of the picture.
        image_size: side of the model's input in pixels; None = the picture was squashed into it.
        mode: how coverage is taken, both times without masks at the picture's size. "exact" = the same number as from
            upstream's mask. "fast" = each logit counts as the pixels it stands for; a cell that an outline only grazes
            may flip (docs/quality.md).
    """

    logits: npt.NDArray[np.float32]
    size: Size
    image_size: int | None
    mode: MaskCoverage

    def __len__(self) -> int:
        return len(self.logits)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `patchmint.geometry.rle.Masks`."""
        if len(members) == 0:
            return np.zeros(placement.shape)
        logits = self.logits[np.asarray(members)]
        if self.mode == "exact":
            side, used = _frame(logits.shape[-1], self.size, self.image_size)
            return coverage_from_logits(logits, placement, input_side=side, used=used)
        return _coarse_coverage(logits.max(axis=0) > 0, placement, self.size, self.image_size)

    def rles(self) -> tuple[Rle, ...]:
        """All masks at the picture's size, pixel by pixel upstream's. Made chunk by chunk, so memory stays level."""
        if not len(self):
            return ()
        side, _ = _frame(self.logits.shape[-1], self.size, self.image_size)
        at_once = max(1, _PIXELS_AT_ONCE // max(self.size[0] * self.size[1], side**2))
        rles: list[Rle] = []
        for part in torch.split(torch.from_numpy(self.logits), at_once):
            # Column-major, as COCO RLE runs: the encoder then needs no copy.
            turned = self._filled(part).transpose(1, 2).contiguous().numpy()
            rles.extend(encode_masks(turned.transpose(0, 2, 1)))
        return tuple(rles)

    @torch.inference_mode()
    def _filled(self, logits: Tensor) -> Tensor:
        """Masks (M, height, width) of logits (M, n, n), scaled as upstream does (`sam.py`, `postprocess_masks`)."""
        side, used = _frame(logits.shape[-1], self.size, self.image_size)
        square = functional.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
        picture = functional.interpolate(
            square[..., : used[0], : used[1]], self.size, mode="bilinear", align_corners=False
        )
        return picture[:, 0] > 0


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """A `Masks` of a picture with many boxes, in "fast" mode: the answers of `SamMasks` in a thirtieth of its memory.

    Attributes:
        made: the masks at the picture's size.
        packed: uint8 (N, n, n / 8), a bit for each logit: whether it is positive.
        size, image_size: as of `SamMasks`.
    """

    made: tuple[Rle, ...]
    packed: npt.NDArray[np.uint8]
    size: Size
    image_size: int | None

    def __len__(self) -> int:
        return len(self.made)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `patchmint.geometry.rle.Masks`."""
        if len(members) == 0:
            return np.zeros(placement.shape)
        union = np.bitwise_or.reduce(self.packed[np.asarray(members)], axis=0)
        positive = np.unpackbits(union, axis=-1, count=len(union)).view(np.bool_)
        return _coarse_coverage(positive, placement, self.size, self.image_size)

    def rles(self) -> tuple[Rle, ...]:
        """All masks at the picture's size."""
        return self.made


_Compact = tuple[list[Rle], npt.NDArray[np.uint8]]
# Masks at the picture's size, and the packed bits of their logits where they are needed.


class LaterMasks:
    """A `Masks` that a thread is still at; whoever asks it something waits."""

    def __init__(self, count: int, made: Callable[[], Masks]) -> None:
        self._count = count
        self._made = made

    def __len__(self) -> int:
        return self._count

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `patchmint.geometry.rle.Masks`."""
        return self._now.coverage(members, placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks at the picture's size."""
        return self._now.rles()

    @cached_property
    def _now(self) -> Masks:
        return self._made()


class Behind:
    """A thread for what no model should wait for, one thing after another. Few wait, so that memory stays level."""

    def __init__(self, most: int) -> None:
        """Let so many wait at most, the one in work included: who brings one more waits, too."""
        self._free = threading.BoundedSemaphore(most)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def begin(self, function: Callable[..., _Compact], *arguments: object) -> Future[_Compact]:
        """Have it done."""
        self._free.acquire()
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(lambda _: self._free.release())
        return future


class MaskCollector:
    """Takes one picture's logits as they are decoded, and keeps no more than `held` masks' logits of them.

    They are the quickest to measure, but take 256 kB a mask. Where there are more, each part becomes runs of pixels
    (and bits), which give the same coverage: at once, or in the thread of `behind`.
    """

    def __init__(
        self,
        size: Size,
        image_size: int | None,
        mode: MaskCoverage,
        *,
        held: int,
        behind: Behind | None = None,
    ) -> None:
        """See `SamMasks`; `behind` = None: nothing is done in another thread."""
        self._size, self._image_size, self._mode = size, image_size, mode
        self._count, self._held = 0, held
        self._behind = behind
        self._logits: list[npt.NDArray[np.float32]] = []
        self._parts: list[_Compact | Future[_Compact]] = []

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Take the next masks' logits (M, n, n); of one chunk."""
        self._count += len(logits)
        self._logits.append(logits)
        if self._count <= self._held:
            return
        for part in self._logits:
            if self._behind is None:
                self._parts.append(self._made_compact(part))
            else:
                self._parts.append(self._behind.begin(self._made_compact, part))
        self._logits = []

    def masks(self) -> Masks:
        """All that were added."""
        if self._count > self._held:
            return self._joined() if self._behind is None else LaterMasks(self._count, self._joined)
        logits = np.concatenate(self._logits) if self._logits else np.zeros((0, 1, 1), dtype=np.float32)
        return SamMasks(logits, self._size, self._image_size, self._mode)

    def _made_compact(self, logits: npt.NDArray[np.float32]) -> _Compact:
        rles = SamMasks(logits, self._size, self._image_size, self._mode).rles()
        return list(rles), np.packbits((logits if self._mode == "fast" else logits[:0]) > 0, axis=-1)

    def _joined(self) -> Masks:
        made = [part.result() if isinstance(part, Future) else part for part in self._parts]
        rles = tuple(rle for part, _ in made for rle in part)
        if self._mode == "exact":
            return RleMasks(rles)
        return PackedMasks(rles, np.concatenate([packed for _, packed in made]), self._size, self._image_size)


def _frame(n: int, size: Size, image_size: int | None) -> tuple[int, Size]:
    """Side of the square to which n x n logits are scaled first, and what of it, (height, width), is the picture."""
    return (n, (n, n)) if image_size is None else (image_size, input_size(size, image_size))


def _coarse_coverage(
    positive: npt.NDArray[np.bool_], placement: Placement, size: Size, image_size: int | None
) -> Floats:
    """Coverage where each logit (n, n) counts as the pixels that it stands for."""
    side, used = _frame(len(positive), size, image_size)
    scale = len(positive) / side
    return coverage_share(positive, placement, extent=(used[0] * scale, used[1] * scale))


def input_size(size: Size, image_size: int) -> Size:
    """(height, width) of a picture of `size` in the input.

    As upstream's `ResizeLongestSide.get_preprocess_shape`, but a side that would round to 0 becomes 1, so that pictures
    over 2 * `image_size` : 1 work (upstream fails on them).
    """
    scale = image_size * 1.0 / max(size)
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def resize(image: RgbImage, size: Size) -> RgbImage:
    """Scale a picture to (height, width), with PIL's bilinear filter, which widens when it shrinks.

    To `input_size` the same pixels as upstream's `ResizeLongestSide.apply_image`, which gets there through torchvision.
    """
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def scale_boxes(boxes: npt.NDArray[np.float32], size: Size, target: Size) -> npt.NDArray[np.float32]:
    """Carry boxes (N, 4), XYXY, from a picture of `size` to its `target` size in the input, each axis by itself.

    In float64 and then rounded, as upstream's `SamPredictor.predict`.
    """
    across, down = target[1] / size[1], target[0] / size[0]
    return (boxes.astype(np.float64) * (across, down, across, down)).astype(np.float32)
