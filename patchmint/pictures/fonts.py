"""Fonts of this machine, as fontconfig knows them; and the package that would bring one for a script."""

from __future__ import annotations

import subprocess
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

_TIMEOUT_S = 20
_EAST_ASIAN = frozenset({"CJK", "KANGXI", "HIRAGANA", "KATAKANA", "BOPOMOFO", "HANGUL", "FULLWIDTH", "IDEOGRAPHIC"})


@dataclass(frozen=True)
class SystemFont:
    """A font file.

    Attributes:
        path: of the file.
        index: of the face in it.
        starts, ends: of the code points that it has, in ascending ranges, the ends included.
    """

    path: str
    index: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def has(self, character: str) -> bool:
        """Whether it has a glyph for this character."""
        place = bisect_right(self.starts, ord(character)) - 1
        return place >= 0 and ord(character) <= self.ends[place]


@lru_cache(maxsize=1)
def system_fonts() -> tuple[SystemFont, ...]:
    """Fonts that together have every character some font here has, sans-serif ones first; none without fontconfig."""
    command = ["fc-match", "--sort", "--format", "%{file}\t%{index}\t%{charset}\n", "sans:scalable=true"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    fonts = []
    for path, index, charset in (line.split("\t") for line in told.splitlines() if line.count("\t") == 2):
        ranges = [part.partition("-")[::2] for part in charset.split()]
        starts = tuple(int(start, 16) for start, _ in ranges)
        # the upper half of the index names an instance of a variable font
        fonts.append(
            SystemFont(path, int(index) & 0xFFFF, starts, tuple(int(end or start, 16) for start, end in ranges))
        )
    return tuple(fonts)


def lacking(character: str) -> tuple[str, str]:
    """Script of a character that no font here has, and the Debian package that has one."""
    script = unicodedata.name(character, "").partition(" ")[0]
    if unicodedata.category(character) in ("So", "Sk") and script not in _EAST_ASIAN:
        return "symbols", "fonts-symbola"
    if script in _EAST_ASIAN:
        return script if script == "CJK" else script.capitalize(), "fonts-noto-cjk"
    return script.capitalize() or "unassigned characters", "fonts-noto-core"
