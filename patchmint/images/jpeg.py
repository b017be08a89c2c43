"""Pixels of JPEG files, by libjpeg-turbo itself, which says whether it had to make some up.

A hole in a scan, or a wrong bit, makes libjpeg warn and fill what it misses with grey. Pillow hides the warnings, and
simplejpeg doesn't. Its pixels are the same, and come a third sooner. A wrong bit after which everything can still be
read is seen by no decoder (docs/bad-input.md has numbers).
"""

from __future__ import annotations

import re

import simplejpeg

from patchmint.types import RgbImage

_DAMAGE = re.compile(r"Corrupt JPEG data(?:: (\d+) extraneous bytes before marker 0xd9)?|Premature end of JPEG")
"""Other warnings are of headers only, or of encoders' odd habits, with the picture intact."""

_MOST_SURPLUS = 2
"""Bytes after the last block that some cameras leave before the end of the image."""


def decode_jpeg(data: bytes) -> RgbImage | None:
    """Decode a JPEG file whose header is known to be sound.

    Returns:
        HWC uint8 RGB as stored. None where it can't be decoded like this, or only with a warning that says nothing
        against its pixels.

    Raises:
        ValueError: a part of the picture is missing or wrong.
    """
    try:
        pixels: RgbImage = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        found = _DAMAGE.search(str(error))
        if found and int(found[1] or _MOST_SURPLUS + 1) > _MOST_SURPLUS:
            raise ValueError(f"a part of the picture is missing or wrong: {error}") from error
        return None
    return pixels
