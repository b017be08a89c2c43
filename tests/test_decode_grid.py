"""From image files of every kind to patches: a mark in the picture is in the cell where the real processor shows it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import CLIPImageProcessor

from patchmint.geometry import fit_image, grid_preset
from patchmint.images.decode import decode_image

HEIGHT, WIDTH, MARK = 301, 447, 12
TOP, LEFT = 40, 233  # of the mark, in the picture as people see it; inside the centre crop too


def marked():
    """Dark, with one bright square."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    pixels[TOP : TOP + MARK, LEFT : LEFT + MARK] = 235
    return Image.fromarray(pixels)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation):
    """A JPEG that stores the picture turned, and says so."""
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, 1)
    exif = Image.Exif()
    exif[0x0112] = undo
    upright = marked()
    upright.info["exif"] = exif.tobytes()
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(upright, "PNG", exif=exif.tobytes()))))
    exif[0x0112] = orientation
    return saved(turned, "JPEG", quality=95, exif=exif.tobytes())


def sixteen_bit():
    grey = np.asarray(marked().convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG")


def with_alpha():
    image = marked()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return saved(image, "PNG")


FILES = {
    **{f"exif-{orientation}": (lambda o=orientation: rotated(o)) for orientation in range(1, 9)},
    "palette": lambda: saved(marked().quantize(8), "PNG"),
    "16-bit": sixteen_bit,
    "cmyk": lambda: saved(marked().convert("CMYK"), "JPEG", quality=95),
    "alpha": with_alpha,
    "grey": lambda: saved(marked().convert("L"), "WEBP", lossless=True),
    "1-bit": lambda: saved(marked().convert("1", dither=Image.Dither.NONE), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("grid", ["llava-1.5-pretrain", "llava-1.5-finetune", "siglip-so400m-384", "seed-224"])
def test_the_mark_is_in_its_cell(kind, grid):
    decoded = decode_image(FILES[kind]())
    assert decoded.size == (HEIGHT, WIDTH)
    placement = grid_preset(grid).place(decoded.size)
    (pixels,) = fit_image(decoded.pixels, grid_preset(grid))
    bright = np.argwhere(pixels.mean(axis=2) > 130)
    assert len(bright)
    row, col = (bright.mean(axis=0) + 0.5) / placement.patch_px
    left, top, right, bottom = placement.cell_box(int(row), int(col))
    assert left <= LEFT + MARK / 2 < right
    assert top <= TOP + MARK / 2 < bottom


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "16-bit"])
def test_pixels_are_what_a_consumer_gives_its_processor(kind):
    """LLaVA's and transformers' way: open, turn upright, convert, crop. (16-bit they would clip to white.)"""
    data = FILES[kind]()
    with Image.open(io.BytesIO(data)) as image:
        consumer = ImageOps.exif_transpose(image).convert("RGB")
    processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    theirs = processor(consumer, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    (ours,) = fit_image(decode_image(data).pixels, grid_preset("llava-1.5-pretrain"))
    assert np.abs(ours.astype(int) - theirs.transpose(1, 2, 0)).max() <= 2  # torchvision's filter rounds otherwise
