"""Masks of instances: the interface that patch labels need, and binary masks as COCO run-length encodings.

An RLE counts pixels in column-major order, in runs that take turns: background first, then mask, and so on. Counts are
compressed to printable bytes; the format is that of `pycocotools` (cocoapi, `common/maskApi.c`: `rleToString`,
`rleFrString`): six bits a character, five of data and one that says whether more follow; from the fourth run on, the
difference to the run before the last.

`pycocotools` is C that trusts its input: counts that don't add up make it read or write outside its buffers. So runs
are decoded and checked here first, for every mask that comes from outside this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from patchmint.errors import InputError, PluginError
from patchmint.geometry.coverage import coverage_share
from patchmint.geometry.placement import Floats, Placement
from patchmint.types import Box, Rle, Size

MAX_MASK_PIXELS = 2**28
"""Masks of more pixels are refused: a few bytes of RLE can claim any size, and decoding takes a byte a pixel (union
four). Pictures are held to fewer pixels than these 268 million."""

_MAX_LENGTH = 2**22
"""Of polygons' sides together, in pixels: pycocotools takes 80 bytes for each."""

_MAX_CHARACTERS = 6
"""Characters of one compressed count: 30 bits, enough for `MAX_MASK_PIXELS`, and no shift overflows in C."""


class Masks(Protocol):
    """The masks of one image's instances, in whatever form they came.

    Patch labels need to know how much of each cell they cover, and mostly nothing else; a segmenter may be able to tell
    without ever making a mask of the image's size. `RleMasks` holds ordinary masks.
    """

    def __len__(self) -> int: ...

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks: `placement.shape`, 0..1.

        Exactly 0 where they don't overlap the cell; what of a cell lies outside the image counts as not covered.
        """
        ...

    def rles(self) -> tuple[Rle, ...]:
        """All masks as COCO RLE, of one size; they cover the image's whole extent."""
        ...


class RleMasks:
    """A `Masks` of COCO RLEs. Their size may be smaller than the image's: they cover its whole extent.

    Raises:
        PluginError: the masks differ in size.
    """

    def __init__(self, rles: Sequence[Rle]) -> None:
        if len({tuple(rle["size"]) for rle in rles}) > 1:
            raise PluginError("the masks of one image have several sizes; they must have one")
        self._rles = tuple(rles)

    def __len__(self) -> int:
        return len(self._rles)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `Masks`."""
        if len(members) == 0:
            return np.zeros(placement.shape)
        return coverage_share(decode_mask(union([self._rles[member] for member in members])), placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        return self._rles


@dataclass(frozen=True)
class ChosenMasks:
    """A `Masks` of some of another's, each as often as it is named.

    Attributes:
        masks: the others.
        chosen: their numbers.
    """

    masks: Masks
    chosen: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    def coverage(self, members: Sequence[int], placement: Placement) -> Floats:
        """Share of each cell's area under the union of some of the masks; see `Masks`."""
        return self.masks.coverage(sorted({self.chosen[member] for member in members}), placement)

    def rles(self) -> tuple[Rle, ...]:
        """All masks."""
        rles = self.masks.rles()
        return tuple(rles[number] for number in self.chosen)


def encode_masks(masks: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> tuple[Rle, ...]:
    """Encode binary masks, one at a time, so that memory beyond the input stays at one mask.

    Args:
        masks: (N, H, W), bool or uint8; anything but 0 is mask. Column-major masks (`array.transpose(0, 2, 1)` of a
            contiguous (N, W, H)) are encoded without a copy.

    Returns:
        One RLE a mask, in order; none for N = 0.

    Raises:
        InputError: wrong number of axes, another dtype, or an empty or oversized mask.
    """
    if masks.ndim != 3 or masks.dtype not in (np.bool_, np.uint8):
        raise InputError(f"masks must be bool or uint8 with axes (N, H, W); got {masks.dtype} of shape {masks.shape}")
    if len(masks) == 0:
        return ()
    height, width = _checked_size(masks.shape[1:])
    rles: list[Rle] = []
    for mask in masks:
        # pycocotools starts a new run at every change of value, so 255 next to 1 would count as a change.
        binary = mask if mask.dtype == np.bool_ else mask != 0
        encoded = coco_mask.encode(np.asfortranarray(binary.view(np.uint8)))
        rles.append(Rle(size=[height, width], counts=bytes(encoded["counts"])))
    return tuple(rles)


def decode_mask(rle: Rle) -> npt.NDArray[np.uint8]:
    """Decode a mask to uint8 (H, W), 0 or 1; column-major in memory.

    Raises:
        InputError: the RLE is malformed.
    """
    runs = _checked_runs(rle)
    height, width = rle["size"]
    # pycocotools' own decode warns under NumPy 2 (its arrays lack the `copy` keyword).
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def union(rles: Sequence[Rle]) -> Rle:
    """Pixels that any of the masks covers.

    Args:
        rles: at least one, of one size.

    Raises:
        InputError: there is none, one is malformed, or sizes differ.
    """
    if not rles:
        raise InputError("there are no masks to take the union of; give at least one")
    height, width = _checked_size(rles[0]["size"])
    sound = []
    for rle in rles:
        if list(rle["size"]) != [height, width]:
            raise InputError(
                f"a mask of size {tuple(rle['size'])} can't join a union of size {(height, width)}; "
                "bring all masks of an image to one size first"
            )
        # pycocotools' merge stops at an empty run, unless it is the first.
        sound.append(rle if _checked_runs(rle)[1:].all() else encode_masks(decode_mask(rle)[None])[0])
    merged = coco_mask.merge(sound)
    return Rle(size=[height, width], counts=bytes(merged["counts"]))


def area(rle: Rle) -> int:
    """Number of pixels in the mask.

    Raises:
        InputError: the RLE is malformed.
    """
    return int(_checked_runs(rle)[1::2].sum())


def bounding_box(rle: Rle) -> npt.NDArray[np.float32]:
    """Smallest box around the mask: float32 (4,), XYXY in pixels of the mask, right and bottom exclusive.

    An empty mask gives all zeros.

    Raises:
        InputError: the RLE is malformed.
    """
    runs = _checked_runs(rle)
    height = rle["size"][0]
    ends = np.cumsum(runs)
    filled = np.flatnonzero(runs[1::2])
    if not len(filled):
        return np.zeros(4, dtype=np.float32)
    first_x, first_y = np.divmod(ends[0::2][filled], height)
    last_x, last_y = np.divmod(ends[1::2][filled] - 1, height)
    if np.any(first_x != last_x):  # such a run reaches the bottom of one column and the top of the next
        top, bottom = 0, height
    else:
        top, bottom = first_y.min(), last_y.max() + 1
    return np.array([first_x[0], top, last_x[-1] + 1, bottom], dtype=np.float32)


def box_of(rle: Rle) -> Box:
    """`bounding_box` as plain numbers."""
    left, top, right, bottom = bounding_box(rle).tolist()
    return left, top, right, bottom


def fill_boxes(boxes: npt.ArrayLike, size: Size) -> npt.NDArray[np.uint8]:
    """A mask of boxes: the pixels whose centres lie in any of them, and at least one of each.

    Args:
        boxes: (N, 4), XYXY in the image.
        size: (height, width) of the image.

    Returns:
        uint8 (H, W), 0 or 1.
    """
    height, width = size
    filled = np.zeros(size, np.uint8)
    for left, top, right, bottom in np.ceil(np.asarray(boxes) - 0.5).astype(int).tolist():
        x, y = min(left, width - 1), min(top, height - 1)
        filled[y : max(bottom, y + 1), x : max(right, x + 1)] = 1
    return filled


def to_coco(rle: Rle) -> dict[str, Any]:
    """The mask as it stands in a COCO JSON file: `{"size": [height, width], "counts": str}`."""
    return {"size": [int(rle["size"][0]), int(rle["size"][1])], "counts": rle["counts"].decode("ascii")}


def from_coco(segmentation: object, size: Size | None = None) -> Rle:
    """Read a mask of a COCO JSON file, as `pycocotools.coco.COCO.annToRLE` does.

    Args:
        segmentation: an RLE with compressed counts, str or bytes, or with a list of runs; or a list of polygons, each
            x, y, x, y, ... Polygons of fewer than three corners have no area.
        size: (height, width) of the image, which polygons don't tell; None = they aren't read.

    Raises:
        InputError: it is something else, runs are negative or don't add up to the size, or the mask is oversized.
    """
    if isinstance(segmentation, list) and size is not None:
        return _filled(segmentation, _checked_size(size))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise InputError(f"a mask must be a COCO RLE, a mapping with size and counts, not {segmentation!r:.80}")
    height, width = _checked_size(segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = _encode_counts(counts, height, width)
    rle = Rle(size=[height, width], counts=counts.encode(errors="surrogatepass") if isinstance(counts, str) else counts)
    _checked_runs(rle)
    return rle


def _filled(polygons: Sequence[Any], size: Size) -> Rle:
    """The union of polygons."""
    height, width = size
    sound, length = [], 0.0
    for polygon in polygons:
        try:
            corners = np.array(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"a polygon must be a list of x, y, x, y, ..., not {polygon!r:.80}") from error
        length += float(np.abs(corners - np.roll(corners, 1, axis=0)).sum())
        if not (np.isfinite(corners).all() and length <= _MAX_LENGTH and np.abs(corners).max(initial=0) <= _MAX_LENGTH):
            raise InputError(f"a polygon reaches far out of any image: {polygon!r:.80}")
        if len(corners) > 2:
            sound.append(corners.reshape(-1).tolist())
    if not sound:
        raise InputError("a mask's polygons have fewer than three corners each, or there are none")
    rles = coco_mask.frPyObjects(sound, height, width)
    return union([Rle(size=[height, width], counts=bytes(rle["counts"])) for rle in rles])


def _encode_counts(runs: list[Any], height: int, width: int) -> bytes:
    """A list of runs, compressed."""
    if not all(_is_integer(run) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise InputError(f"the RLE's {len(runs)} runs must be whole numbers that add up to {height} x {width} pixels")
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"])


def _checked_size(size: object) -> Size:
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_integer(side) for side in size):
        raise InputError(f"a mask's size must be two whole numbers (height, width), not {size!r:.80}")
    height, width = int(size[0]), int(size[1])
    if height < 1 or width < 1 or height * width > MAX_MASK_PIXELS:
        raise InputError(f"a mask of {height} x {width} pixels is empty or over the limit of {MAX_MASK_PIXELS} pixels")
    return height, width


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _checked_runs(rle: Rle) -> npt.NDArray[np.int64]:
    """Run lengths of an RLE whose every part has been checked."""
    height, width = _checked_size(rle["size"])
    runs = _decode_counts(rle["counts"])
    # More runs than pixels (empty ones, then) overflow the buffer that pycocotools' merge allocates.
    if runs.sum() != height * width or (runs < 0).any() or len(runs) > height * width + 1:
        raise InputError(
            f"the RLE's {len(runs)} runs are damaged: they must not be negative and must add up to "
            f"{height} x {width} = {height * width} pixels, not {runs.sum()}"
        )
    return runs


def _decode_counts(counts: object) -> npt.NDArray[np.int64]:
    """Run lengths of compressed counts; only their form is checked, not their sum or sign."""
    if isinstance(counts, str):
        counts = counts.encode("utf-8", errors="surrogatepass")
    if not isinstance(counts, bytes):
        raise InputError(f"RLE counts must be compressed, a str or bytes, not {type(counts).__name__}")
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise InputError("compressed RLE counts must be characters '0' to 'o', and at least one; these are damaged")
    ends = np.flatnonzero(codes < 32)  # bit 5 says that more characters follow
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts[: len(ends)] + 1
    if not len(ends) or ends[-1] != len(codes) - 1 or lengths.max() > _MAX_CHARACTERS:
        raise InputError("compressed RLE counts are cut short or hold a number too large; the annotation is damaged")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs: npt.NDArray[np.int64] = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    # From the fourth on, a count is the difference to the one before the last.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
