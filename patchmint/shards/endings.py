"""What a sample may be called, and what its members may be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_NAME_BYTES = 100
MAX_KEY_LENGTH = 80
"""With the longest member's ending a name still fits the 100 bytes of a USTAR header."""

VALID_KEY = re.compile(rf"[a-z0-9_-]{{1,{MAX_KEY_LENGTH}}}", re.ASCII)
"""Keys, by `fullmatch`. No dot (readers cut names at the first one), no capitals (some file systems fold them)."""

MAX_MEMBER_LENGTH = 15
"""Characters of the name of an outside tokenizer's member."""

IMAGE = "jpg"
DOCUMENT = "json"
CAPTION = "txt"
SELECTOR = "selector.npy"
COVERAGE = "coverage.npy"
INSTANCES = "instances.json"
FEATURES = "features.npy"

VQGAN = "vqgan"
"""Name of the tokens' member where VQGAN made them: `KEY.vqgan.npy`."""

_OF_SEVERAL = "codes."

MAX_IMAGES = 999
"""Images of a document."""

MAX_DOCUMENT_KEY = MAX_KEY_LENGTH - len("999.")
"""Characters of a document's key: the endings of its images' members begin with their numbers."""


def on_grid(ending: str, grid: str) -> str:
    """Ending of labels on a further grid: "selector.qwen3-vl.npy"."""
    return f"{ending.removesuffix('.npy')}.{grid}.npy"


def numbered(image: int, ending: str) -> str:
    """Ending of a member that belongs to one image of a document."""
    return f"{image}.{ending}"


def unnumbered(ending: str) -> str:
    """An ending without the number of an image."""
    number, dot, rest = ending.partition(".")
    return rest if dot and number.isdecimal() else ending


def sample_endings(made: Sequence[str], images: int, *, documents: bool) -> tuple[str, ...]:
    """Endings of a sample's members, in the order in which they are written.

    Args:
        made: endings of what was made of each image.
        images: how many the sample has.
        documents: of a document: "0.jpg", "1.jpg", ..., "json", "txt", "0.selector.npy", "1.selector.npy", ...
    """
    if not documents:
        return (IMAGE, DOCUMENT, CAPTION, *made)
    numbers = range(images)
    of_images = (numbered(image, ending) for ending in made for image in numbers)
    return (*(numbered(image, IMAGE) for image in numbers), DOCUMENT, CAPTION, *of_images)


def longest_key(arrays: Sequence[str], *, documents: bool) -> int:
    """Characters that a key may have; fewer than usual with labels on further grids, whose endings are long.

    Args:
        arrays: endings of what is made of each image.
        documents: whether endings begin with an image's number.
    """
    usual, number = (MAX_DOCUMENT_KEY, len("999.")) if documents else (MAX_KEY_LENGTH, 0)
    return min(usual, _NAME_BYTES - len(".") - number - max(map(len, arrays), default=0))


def codes_member(name: str) -> str:
    """Name of the codes' member of one of several tokenizers: `KEY.codes.NAME.npy`."""
    return _OF_SEVERAL + name


def tokenizer_name(member: str) -> str:
    """The tokenizer's name, where it is one of several; else empty."""
    return member.partition(_OF_SEVERAL)[2]


def told_tokens(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What JSON says of the codes of each tokenizer: KEY.json, a column's, or the manifest's layout."""
    first = told.get("tokens")
    return [first, *told.get("further_tokens", ())] if first and first["member"] else []


_TAKEN = frozenset({"selector", "coverage", "features", "codes", VQGAN})


def token_member(tokenizer: str) -> str:
    """Name of the tokens' member for an outside tokenizer: its name in lower case, without dots, not too long."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", tokenizer.lower())[:MAX_MEMBER_LENGTH].strip("-_")
    return "tokens" if not slug or slug in _TAKEN else slug
