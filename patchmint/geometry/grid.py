"""A patch grid as a value: how an encoder cuts an image into patches, whatever the image; and published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from patchmint.errors import ConfigError, did_you_mean
from patchmint.geometry.placement import AxisMap, Placement, View
from patchmint.types import Size


class Fit(StrEnum):
    """How an image of any shape becomes the encoder's fixed input."""

    PAD = "pad"
    """Pad to a square, then resize (LLaVA 1.5 fine-tuning: `expand2square` in its `mm_utils.py`)."""
    CROP = "crop"
    """Resize the short edge, then centre crop (CLIP's processor; LLaVA 1.5 pre-training)."""
    SQUASH = "squash"
    """Resize to the input size, aspect ratio lost (SigLIP, SEED)."""
    ANYRES = "anyres"
    """The whole image squashed, then tiles of the image resized and centred on the best-fitting canvas (LLaVA-NeXT)."""


@dataclass(frozen=True)
class PatchGrid:
    """How an encoder cuts an image into patches.

    Attributes:
        rows: patch rows in one input of the encoder.
        cols: patch columns in one input of the encoder.
        patch_px: side of a patch in input pixels.
        fit: how an image becomes the encoder's input.
        input_size: (height, width) of the encoder's input in pixels; `(rows, cols) * patch_px` where not given. It may
            be larger: SigLIP SO400M reads 384 px in 27 patches of 14 px and never looks at the last 6.
        canvases: (height, width) choices of `anyres`, multiples of `input_size`, in order of preference on ties.

    Raises:
        ConfigError: a number is out of range, the fit is unknown, `crop` has an input that isn't square, or canvases
            and fit contradict each other.
    """

    rows: int
    cols: int
    patch_px: int
    fit: Fit
    input_size: Size = (0, 0)
    canvases: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.patch_px) < 1:
            raise ConfigError(
                f"a patch grid needs rows, cols and patch_px of at least 1, "
                f"not {self.rows}, {self.cols} and {self.patch_px}"
            )
        if self.fit not in set(Fit):
            raise ConfigError(f"no fit {self.fit!r}; choose one of {', '.join(Fit)}")
        object.__setattr__(self, "fit", Fit(self.fit))  # a plain string, from a config, becomes the enum
        covered = (self.rows * self.patch_px, self.cols * self.patch_px)
        if self.input_size == (0, 0):
            object.__setattr__(self, "input_size", covered)
        if self.input_size[0] < covered[0] or self.input_size[1] < covered[1]:
            raise ConfigError(f"an input of {self.input_size} pixels is smaller than its {covered} pixels of patches")
        if self.fit is Fit.CROP and self.input_size[0] != self.input_size[1]:
            raise ConfigError(f"fit crop needs a square input (CLIP defines no other), not {self.input_size}")
        if (self.fit is Fit.ANYRES) != bool(self.canvases):
            raise ConfigError("fit anyres needs a list of canvases, and no other fit takes one")
        for height, width in self.canvases:
            if height < 1 or width < 1 or height % self.input_size[0] or width % self.input_size[1]:
                raise ConfigError(f"canvas ({height}, {width}) isn't a multiple of the input size {self.input_size}")

    def place(self, image_size: Size) -> Placement:
        """Lay the grid on an image.

        Args:
            image_size: (height, width) of the original image in pixels.

        Raises:
            ConfigError: the image has no pixels.
        """
        if min(image_size) < 1:
            raise ConfigError(f"an image of size {image_size} has no pixels to lay a grid on")
        match self.fit:
            case Fit.PAD:
                views: tuple[View, ...] = (self._padded(image_size),)
            case Fit.CROP:
                views = (self._cropped(image_size),)
            case Fit.SQUASH:
                views = (self._squashed(image_size),)
            case Fit.ANYRES:
                views = (self._squashed(image_size), *self._tiles(image_size))
        return Placement(image_size=image_size, rows=self.rows, cols=self.cols, patch_px=self.patch_px, views=views)

    def _padded(self, image_size: Size) -> View:
        side = max(image_size)
        # A pixel p of the input lies at p * side / input in the padded square, which starts `before` pixels early.
        return View(
            *(
                AxisMap(side, target, (side - length) // 2 * target)
                for length, target in zip(image_size, self.input_size, strict=True)
            )
        )

    def _cropped(self, image_size: Size) -> View:
        resized = self.crop_resize(image_size)
        return View(
            *(
                AxisMap(length, new, -((new - target) // 2) * length)
                for length, new, target in zip(image_size, resized, self.input_size, strict=True)
            )
        )

    def _squashed(self, image_size: Size) -> View:
        return View(*(AxisMap(length, new, 0) for length, new in zip(image_size, self.input_size, strict=True)))

    def _tiles(self, image_size: Size) -> list[View]:
        canvas, resized = self.anyres_canvas(image_size)
        corners = [
            (top, left)
            for top in range(0, canvas[0], self.input_size[0])
            for left in range(0, canvas[1], self.input_size[1])
        ]
        return [
            View(
                *(
                    AxisMap(length, new, ((side - new) // 2 - start) * length)
                    for length, new, side, start in zip(image_size, resized, canvas, corner, strict=True)
                )
            )
            for corner in corners
        ]

    def crop_resize(self, image_size: Size) -> Size:
        """Size that `crop` resizes an image to before it crops.

        The short edge becomes the input's, the long edge is cut to an integer (transformers, `image_transforms.py`,
        `get_resize_output_image_size`).
        """
        edge = self.input_size[0]
        short, long = min(image_size), max(image_size)
        new_long = int(edge * long / short)
        return (edge, new_long) if image_size[0] <= image_size[1] else (new_long, edge)

    def anyres_canvas(self, image_size: Size) -> tuple[Size, Size]:
        """Choose the canvas of `anyres` and the size of the image on it.

        Most effective pixels first, then fewest wasted (LLaVA `mm_utils.py`: `select_best_resolution`,
        `resize_and_pad_image`).

        Returns:
            (height, width) of the canvas and of the resized image, which is centred on it.
        """
        height, width = image_size
        best: tuple[int, int] | None = None
        chosen = self.canvases[0]
        for canvas in self.canvases:
            scale = min(canvas[1] / width, canvas[0] / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            rank = (effective, -(canvas[0] * canvas[1] - effective))
            if best is None or rank > best:
                best, chosen = rank, canvas
        scale_w, scale_h = chosen[1] / width, chosen[0] / height
        if scale_w < scale_h:
            return chosen, (min(_ceil(height * scale_w), chosen[0]), chosen[1])
        return chosen, (chosen[0], min(_ceil(width * scale_h), chosen[1]))


def _ceil(value: float) -> int:
    return -int(-value // 1)


GRID_PRESETS: Mapping[str, PatchGrid] = MappingProxyType(
    {
        # LLaVA 1.5: CLIP ViT-L/14 at 336 px. Pre-training sets no aspect ratio (= CLIP's own crop), fine-tuning pads.
        "llava-1.5-pretrain": PatchGrid(24, 24, 14, Fit.CROP),
        "llava-1.5-finetune": PatchGrid(24, 24, 14, Fit.PAD),
        # LLaVA-NeXT: the grid pinpoints of llava-v1.6, there (width, height), here (height, width).
        "llava-1.6": PatchGrid(
            24,
            24,
            14,
            Fit.ANYRES,
            canvases=((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336)),
        ),
        "siglip-so400m-384": PatchGrid(27, 27, 14, Fit.SQUASH, input_size=(384, 384)),
        "seed-224": PatchGrid(16, 16, 14, Fit.SQUASH),
    }
)


def grid_preset(name: str) -> PatchGrid:
    """Look a grid up by name.

    Raises:
        ConfigError: there is no such preset; the message names one that is near.
    """
    grid = GRID_PRESETS.get(name)
    if grid is None:
        raise ConfigError(
            f"there is no grid preset {name!r}{did_you_mean(name, GRID_PRESETS)} (presets: {', '.join(GRID_PRESETS)}); "
            "a grid spelled out has rows, cols, patch_px and fit"
        )
    return grid
