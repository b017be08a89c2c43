"""The pixels that the real processors produce: a mark planted in the image turns up in the cell that geometry says.

Runs with transformers 5 (torchvision processors, with `...Pil` beside them) and 4.57 (Pillow's, with `...Fast` beside).
"""

import math
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from skimage import data

from patchmint.geometry import Fit, PatchGrid, fit_image, grid_preset, processing

PILLOW, TORCHVISION = ("Pil", "") if int(transformers.__version__.split(".")[0]) >= 5 else ("", "Fast")

# LlavaNextImageProcessor's pinpoints are (height, width), LLaVA's own (width, height). In transformers' order another
# canvas comes first on ties, which are images within 336 x 336: LLaVA gives them two tiles one above the other,
# transformers two side by side.
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
TRANSFORMERS_ANYRES = PatchGrid(24, 24, 14, Fit.ANYRES, canvases=tuple((h, w) for h, w in PINPOINTS))

GRIDS = {
    "clip": grid_preset("llava-1.5-pretrain"),
    "llava": grid_preset("llava-1.5-finetune"),
    "siglip": grid_preset("siglip-so400m-384"),
    "llava-next": TRANSFORMERS_ANYRES,
    "seed": grid_preset("seed-224"),
}


@cache
def processor(name, suffix):
    """A published processor without its last two steps, so that it gives levels 0..255."""
    clip = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    kind, settings = {
        "clip": ("CLIP", clip),
        "llava": ("CLIP", clip),
        "siglip": ("Siglip", {"size": {"height": 384, "width": 384}, "resample": 3}),
        "llava-next": ("LlavaNext", {"image_grid_pinpoints": PINPOINTS, **clip}),
        "seed": ("Siglip", {"size": {"height": 224, "width": 224}, "resample": 3}),
    }[name]
    return getattr(transformers, f"{kind}ImageProcessor{suffix}")(do_rescale=False, do_normalize=False, **settings)


def expand2square(image):
    """Reference for LLaVA's `expand2square` (`mm_utils.py`) with the fill it is called with."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(mean * 255) for mean in (0.48145466, 0.4578275, 0.40821073)]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def process(name, suffix, image):
    """What the encoder gets: int (views, height, width, 3)."""
    source = expand2square(image) if name == "llava" else image
    arguments = {"input_data_format": "channels_last"} if min(image.shape[:2]) <= 3 else {}
    pixels = np.asarray(processor(name, suffix)([source], return_tensors="pt", **arguments)["pixel_values"][0])
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    return np.round(pixels).astype(int).transpose(0, 2, 3, 1)


def centroid(weights):
    """(x, y) of the middle of a mark, continuous."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    total = weights.sum()
    return float(((x + 0.5) * weights).sum() / total), float(((y + 0.5) * weights).sum() / total)


MARKED_SIZES = [(427, 640), (481, 333), (77, 53), (1201, 901), (80, 1600), (1600, 80)]


@pytest.mark.parametrize("suffix", [PILLOW, TORCHVISION], ids=["pillow", "torchvision"])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("size", MARKED_SIZES, ids=str)
def test_a_planted_mark_is_found_in_its_cell(name, suffix, size):
    grid = GRIDS[name]
    placement = grid.place(size)
    rng = np.random.default_rng(size[0])
    ground = np.full((*size, 3), 60, dtype=np.uint8)
    before = process(name, suffix, ground)
    assert len(before) == len(placement.views)
    # A mark of 2 input pixels or more, whatever the scale: original pixels in an input pixel, at the coarsest.
    half_y = math.ceil(max(size[0] / (view.y.to_input(size[0]) - view.y.to_input(0)) for view in placement.views))
    half_x = math.ceil(max(size[1] / (view.x.to_input(size[1]) - view.x.to_input(0)) for view in placement.views))
    whole = in_cell = 0
    for _ in range(4):
        # In the middle of a cell, so that most of the mark stays in it, but not at the edge of the image.
        row, col = rng.choice(np.argwhere(placement.inside > 0)).tolist()
        x0, y0, x1, y1 = placement.cell_box(row, col)
        x = min(max(round((x0 + x1) / 2), 2 * half_x), size[1] - 2 * half_x)
        y = min(max(round((y0 + y1) / 2), 2 * half_y), size[0] - 2 * half_y)
        marked = ground.copy()
        marked[y - half_y : y + half_y, x - half_x : x + half_x] = 200
        change = (process(name, suffix, marked) - before).sum(axis=-1)
        for index, view in enumerate(placement.views):
            middle = view.x.to_input(x), view.y.to_input(y)
            # How far from its middle the mark and the filter's smear can reach, in input pixels.
            axes = ((view.x, half_x), (view.y, half_y))
            reach = [(half + 2) * (axis.to_input(1) - axis.to_input(0)) + 3 for axis, half in axes]
            sides = (grid.input_size[1], grid.input_size[0])
            row, col = (math.floor(at / grid.patch_px) for at in reversed(middle))
            cell = (row, col) if 0 <= row < grid.rows and 0 <= col < grid.cols else None
            if any(at < -far or at > side + far for at, far, side in zip(middle, reach, sides, strict=True)):
                assert not change[index].any()
                assert cell is None
            elif all(far <= at <= side - far for at, far, side in zip(middle, reach, sides, strict=True)):
                whole += 1
                assert centroid(change[index]) == pytest.approx(middle, abs=0.25)
                if cell is not None and all(4 <= at % grid.patch_px <= grid.patch_px - 4 for at in middle):
                    in_cell += 1
                    assert brightest_cell(change[index], grid) == cell
    assert whole >= 1
    assert in_cell >= 1


def brightest_cell(change, grid):
    seen = change[: grid.rows * grid.patch_px, : grid.cols * grid.patch_px]
    cells = seen.reshape(grid.rows, grid.patch_px, grid.cols, grid.patch_px).sum(axis=(1, 3))
    row, col = np.unravel_index(cells.argmax(), cells.shape)
    return int(row), int(col)


def photographs():
    # scikit-learn's photographs without the seconds of its import
    (sklearn,) = find_spec("sklearn").submodule_search_locations
    china, flower = (
        np.array(Image.open(Path(sklearn, "datasets", "images", f"{name}.jpg"))) for name in ("china", "flower")
    )
    coffee = data.coffee()
    return {
        "astronaut": data.astronaut(),
        "coffee": coffee,
        "chelsea": data.chelsea(),
        "rocket": data.rocket(),
        "china": china,
        "flower": flower,
        "odd": coffee[7:374, 11:412],
        "small": flower[100:177, 200:253],
        "panorama": coffee[100:130],
        "tower": coffee[:, 300:320],
        "large": np.array(Image.fromarray(china).resize((1601, 1203))),
        "square": coffee[:336, :336],
        "little square": coffee[100:200, 100:200],
        "column": coffee[:100, 300:301],
        "row": coffee[200:201, :100],
        "two": coffee[200:202, 100:103],
        "pixel": coffee[200:201, 300:301],
    }


PHOTOGRAPHS = {name: np.ascontiguousarray(image) for name, image in photographs().items()}


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("name", GRIDS)
def test_pixels_are_those_of_the_published_processors(name, photograph):
    image = PHOTOGRAPHS[photograph]
    theirs = process(name, PILLOW, image)
    ours = np.stack(fit_image(image, GRIDS[name]))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "odd", "small", "large"])
@pytest.mark.parametrize("name", GRIDS)
def test_pixels_are_close_to_torchvision(name, photograph):
    """Its bicubic filter rounds differently: 1 level here and there, 2 in a few values of a million."""
    image = PHOTOGRAPHS[photograph]
    difference = np.abs(process(name, TORCHVISION, image) - np.stack(fit_image(image, GRIDS[name])))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 2e-5
    assert difference.mean() < 0.01


def test_anyres_is_llavas_own_where_transformers_differs():
    """LLaVA's `process_anyres_image` step by step, on an image within 336 x 336."""
    image = np.ascontiguousarray(data.coffee()[:201, :297])
    ours = fit_image(image, grid_preset("llava-1.6"))
    picture = Image.fromarray(image)
    board = Image.new("RGB", (336, 672), (0, 0, 0))
    board.paste(picture.resize((336, 228)), (0, (672 - 228) // 2))
    expected = [picture.resize((336, 336)), board.crop((0, 0, 336, 336)), board.crop((0, 336, 336, 672))]
    assert len(ours) == 3
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(theirs))
    assert TRANSFORMERS_ANYRES.anyres_canvas((201, 297))[0] == (336, 672)


@pytest.mark.parametrize("name", ["clip", "llava"])
@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "china", "flower", "odd", "panorama", "tower", "large"])
def test_large_images_are_fitted_without_the_large_image_between(name, photograph, monkeypatch):
    image = PHOTOGRAPHS[photograph]
    plain = fit_image(image, GRIDS[name])[0].astype(int)
    monkeypatch.setattr(processing, "_MAX_INTERMEDIATE_PX", 0)
    difference = np.abs(fit_image(image, GRIDS[name])[0] - plain)
    if name == "llava" and image.shape[0] > image.shape[1]:
        assert difference.max() <= 6
        assert (difference > 0).mean() < 0.01
    else:
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


MEMORY_PROBE = """
import resource, sys
import numpy as np
from patchmint.geometry import fit_image, grid_preset
fit_image(np.zeros((50, 50, 3), np.uint8), grid_preset("seed-224"))
image = np.full((int(sys.argv[2]), int(sys.argv[3]), 3), 200, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit_image(image, grid_preset(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("preset", ["llava-1.5-pretrain", "llava-1.5-finetune", "llava-1.6"])
@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)], ids=str)
def test_a_line_of_a_million_pixels_takes_little_memory(preset, size):
    """In a process of its own, for its own peak. Padded as published it would take 3 TB, cropped 0.3 TB."""
    command = [sys.executable, "-c", MEMORY_PROBE, preset, *map(str, size)]
    megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(megabytes) < 120
