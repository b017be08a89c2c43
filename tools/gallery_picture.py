"""Takes README's picture of the gallery: a few demo scenes in a real Chromium.

Usage: PYTHONPATH=tests python -m tools.gallery_picture docs/images/gallery.webp
"""

from __future__ import annotations

import io
import sys

from browser import chromium, watched_page
from PIL import Image

from tools.docs_site import ROOT, build_gallery

# so large that a row of cards ends with it; nothing is caught in the middle of a movement
_WINDOW = {"viewport": {"width": 1280, "height": 684}, "reduced_motion": "reduce"}


def main() -> None:
    """Write the picture to the path given."""
    url = (build_gallery(ROOT / "out" / "docs") / "index.html").as_uri()
    with (
        chromium() as browser,
        watched_page(browser, url.removesuffix("index.html"), **_WINDOW) as (page, _),
    ):
        page.goto(f"{url}#sort=share-")
        page.locator("#filters summary").click()
        page.wait_for_function("[...document.images].every(image => image.complete)")
        shot = page.screenshot()
    Image.open(io.BytesIO(shot)).convert("RGB").save(sys.argv[1], quality=90)


if __name__ == "__main__":
    main()
