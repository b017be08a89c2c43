"""Data as classic scripts: a page opened from a file may load scripts and pictures, and fetch nothing."""

from __future__ import annotations

import base64
import json

import numpy as np
import numpy.typing as npt

_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
# No text can end the script, open a comment in it or break a line of it, wherever a browser or a person puts it.


def script(name: str, document: object) -> bytes:
    """A document as a script that hands it to the page.

    Args:
        name: under which the page asks for it: its path without the ending.
        document: JSON values, whatever their texts hold.
    """
    name, text = (json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in (name, document))
    return f"patchmint.receive({name},{text});\n".translate(_ESCAPES).encode("utf-8", "replace")


def packed(array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> str:
    """Numbers in row-major order, little-endian, as base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")
