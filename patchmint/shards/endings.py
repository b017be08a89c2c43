"""What a sample may be called, and what its members may be called."""

from __future__ import annotations

import re

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
FEATURES = "features.npy"

VQGAN = "vqgan"
"""Name of the tokens' member where VQGAN made them: `KEY.vqgan.npy`."""

_TAKEN = frozenset({"selector", "coverage", "features", VQGAN})


def token_member(tokenizer: str) -> str:
    """Name of the tokens' member for an outside tokenizer: its name in lower case, without dots, not too long."""
    slug = re.sub(r"[^a-z0-9_-]+", "-", tokenizer.lower())[:MAX_MEMBER_LENGTH].strip("-_")
    return "tokens" if not slug or slug in _TAKEN else slug
