"""Takes README's picture of the gallery: a few demo scenes in a real Chromium.

Usage: PYTHONPATH=tests python -m tools.gallery_picture docs/images/gallery.png
"""

from __future__ import annotations

import io
import sys

from browser import chromium, watched_page
from PIL import Image

from tools.docs_site import ROOT, build_gallery


def main() -> None:
    """Write the picture to the path given."""
    url = (build_gallery(ROOT / "out" / "docs") / "index.html").as_uri()
    with (
        chromium() as browser,
        watched_page(browser, url.removesuffix("index.html"), viewport={"width": 1280, "height": 684}) as (page, _),
    ):
        page.goto(f"{url}#sort=share-")
        page.locator("#filters summary").click()
        page.wait_for_function("[...document.images].every(image => image.complete)")
        shot = page.screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
