"""Names of the visual tokens in a tokenizer's vocabulary, and how one tells whom a tokenizer was extended for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from patchmint.errors import ConfigError

_VISUAL = re.compile(r"<\|(?:code-[0-9]+|image-(?:begin|end)-(?P<digest>[0-9a-f]+))\|>")
_NAMED_IN_ERRORS = 3


def visual_tokens(digest: str, codes: int) -> list[str]:
    """The visual tokens in the order of their ids: codes, then the marks of an image's begin and end.

    Args:
        digest: the codebook's. Only the marks bear it: that suffices to tell codebooks apart.
        codes: number of codes of all codebooks.
    """
    return [*(f"<|code-{code}|>" for code in range(codes)), *(f"<|image-{end}-{digest}|>" for end in ("begin", "end"))]


def find_first_visual(tokens: Mapping[str, int], digest: str, codes: int) -> int | None:
    """Where a tokenizer's visual tokens begin; None where it has none.

    Args:
        tokens: the tokenizer's whole vocabulary, ids by token.
        digest: the codebook's.
        codes: number of codes of all codebooks.

    Raises:
        ConfigError: it has visual tokens that aren't this codebook's, not all of them, or not one after another.
    """
    found = {token: match for token in tokens if token.startswith("<|") and (match := _VISUAL.fullmatch(token))}
    if not found:
        return None
    others = sorted({match["digest"] for match in found.values() if match["digest"]} - {digest})
    if others:
        raise ConfigError(
            f"the tokenizer was extended for codebook {' and '.join(others)}, but the codes are of codebook {digest}; "
            "use the data set and the tokenizer that belong together, or extend the original tokenizer anew"
        )
    expected = visual_tokens(digest, codes)
    _check_same(found, expected, digest)
    first = tokens[expected[0]]
    for position, token in enumerate(expected):
        if tokens[token] != first + position:
            raise ConfigError(
                f"the tokenizer's visual tokens are out of order: {token} has id {tokens[token]}, not "
                f"{first + position}; extend the original tokenizer anew"
            )
    return first


def _check_same(found: Iterable[str], expected: list[str], digest: str) -> None:
    present, wanted = set(found), set(expected)
    missing = [token for token in expected if token not in present]
    if missing:
        raise ConfigError(
            f"the tokenizer is only partly extended for codebook {digest}: {len(missing)} of {len(expected)} visual "
            f"tokens are missing ({_some(missing)}); extend the original tokenizer anew"
        )
    if present != wanted:
        raise ConfigError(
            f"the tokenizer has visual tokens that codebook {digest} lacks ({_some(sorted(present - wanted))}); extend "
            "the original tokenizer anew"
        )


def _some(tokens: list[str]) -> str:
    more = ", ..." if len(tokens) > _NAMED_IN_ERRORS else ""
    return ", ".join(tokens[:_NAMED_IN_ERRORS]) + more
