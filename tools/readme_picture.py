"""Draws README's picture with the demo models: a scene, its labelled patches, its codes, the image decoded from them.

Usage: python -m tools.readme_picture docs/images/overview.webp
"""

from __future__ import annotations

import colorsys
import sys
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from patchmint import Annotator
from patchmint.demo import DEMO_SEED
from patchmint.demo.scenes import make_scene
from patchmint.interfaces import Tokens
from patchmint.pictures.overlay import shade_patches
from patchmint.pictures.text import Lettering
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import RgbImage

SCENE = 56
SIDE = 384
GAP = 12
TEXT = "a triangle and two crosses"
GREY = (128, 128, 128)
"""Of the captions: can be read on white and on black."""


def panels() -> list[tuple[RgbImage, str]]:
    """Each panel, (SIDE, SIDE, 3), with its caption."""
    image = make_scene(DEMO_SEED, SCENE, size=(SIDE, SIDE)).image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annotator = Annotator.from_preset("demo", precision="float32")
    annotation = annotator.annotate(image, TEXT)
    kept, strength = annotation.selector[0] > 0, annotation.coverage[0].astype(np.float32) / 255
    codes, tokens = annotation.codes, annotator.config.tokenizers[""]
    decoded = build_tokenizer(annotator.config.models, tokens, "cpu").decode([Tokens(codes[..., None])])[0]
    return [
        (image, "image"),
        (shade_patches(image, annotation.placement, kept, strength), f"patches: {TEXT}"),
        (_coloured(codes), f"visual tokens, {codes.shape[0]} x {codes.shape[1]}"),
        (np.asarray(Image.fromarray(decoded).resize((SIDE, SIDE))), "image decoded from the tokens"),
    ]


def _coloured(codes: npt.NDArray[np.int32]) -> RgbImage:
    """A colour for each code: hues a golden angle apart."""
    colours = [colorsys.hsv_to_rgb(code * 0.618 % 1, 0.55, 0.45 + code * 0.37 % 0.5) for code in range(codes.max() + 1)]
    cells = (np.array(colours)[codes] * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def main() -> None:
    """Write the picture to the path given."""
    drawn = panels()
    lettering = Lettering(22)
    size = (len(drawn) * (SIDE + GAP) - GAP, SIDE + lettering.line_height + 9)
    sheet = Image.new("RGBA", size, (*GREY, 0))
    canvas = ImageDraw.Draw(sheet)
    for index, (panel, caption) in enumerate(drawn):
        x = index * (SIDE + GAP)
        sheet.paste(Image.fromarray(panel), (x, 0))
        lettering.text(canvas, x, SIDE + 6, lettering.shorten(caption, SIDE), GREY)
    sheet.save(sys.argv[1], quality=90)


if __name__ == "__main__":
    main()
