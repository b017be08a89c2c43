"""Text on pictures, in the one font that Pillow brings along: hostile captions become short, drawable lines.

That font (Aileron) knows ASCII and a little more. Letters with marks lose the marks, ligatures and full-width forms
become plain letters; what is still missing (other scripts, emoji) is drawn as an empty box, a box a character. Control,
format and bidirectional characters are never drawn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]

_MISSING = "□"
_SPACE = 1.5
# The font's own space is so narrow that words next to a highlighted one run together.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Mn", "Me", "Zl", "Zp"})
_MAX_LAID_OUT = 4000
# Characters looked at for a paragraph or a label; more than its lines can ever show.


@dataclass(frozen=True)
class Glyph:
    """What is drawn for one character of a text: none, one or several letters, and how they are highlighted."""

    letters: str
    highlight: Colour | None = None


Line = list[Glyph]


class Lettering:
    """A font at one size, with what layout needs. Not shared: FreeType fonts aren't safe across threads."""

    def __init__(self, size: int) -> None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this build of Pillow has no FreeType; install Pillow from its wheel")
        self.font = font
        ascent, descent = self.font.getmetrics()
        self.line_height = ascent + descent + max(size // 6, 2)
        self.used_missing = False
        self._lacks = self._picture("\uffff")  # never a character, so in no font
        self._letters: dict[str, str] = {}
        self._widths: dict[str, float] = {}

    def clean(self, text: str) -> str:
        """A text on one line, of drawable letters only."""
        return "".join(self._drawn_as(character) for character in text[:_MAX_LAID_OUT])

    def width(self, text: str) -> float:
        """Width in pixels of letters that `clean` has passed."""
        return sum(self._advance(letter) for letter in text)

    def shorten(self, text: str, width: float, tail: str = "") -> str:
        """Clean a text and cut it with an ellipsis, so that with `tail` it is at most `width` wide."""
        letters = self.clean(text).strip()
        if len(text) <= _MAX_LAID_OUT and self.width(letters + tail) <= width:
            return letters + tail
        room = width - self.width("…" + tail)
        kept = ""
        for letter in letters:
            room -= self._advance(letter)
            if room < 0:
                break
            kept += letter
        return kept.rstrip() + "…" + tail

    def wrap(self, text: str, width: float, max_lines: int, highlights: Sequence[Colour | None] = ()) -> list[Line]:
        """Break a text into lines.

        Args:
            text: as the user gave it, of any length.
            width: of a line in pixels.
            max_lines: what is over is cut, and the last line says how many characters are missing.
            highlights: for each character of the text its background; shorter or empty = none.

        Returns:
            At most `max_lines` lines.
        """
        glyphs = [
            Glyph(self._drawn_as(character), highlights[index] if index < len(highlights) else None)
            for index, character in enumerate(text[:_MAX_LAID_OUT])
        ]
        lines: list[Line] = []
        start = 0
        while start < len(glyphs) and len(lines) < max_lines:
            end = self._line_end(glyphs, start, width)
            lines.append(glyphs[start:end])
            start = end
        left = len(text) - start
        if left > 0 and lines:
            lines[-1] = self._with_ellipsis(lines[-1], left, width)
        return lines

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, y: float, line: Line, colour: Colour) -> None:
        """Draw a line; highlighted runs as chips with black or white letters, whichever reads better."""
        for highlight, glyphs in groupby(line, key=lambda glyph: glyph.highlight):
            letters = "".join(glyph.letters for glyph in glyphs)
            end = x + self.width(letters)
            if highlight is not None:
                canvas.rounded_rectangle((x - 2, y - 1, end + 1, y + self.line_height - 3), 3, fill=highlight)
            self.text(canvas, x, y, letters, colour if highlight is None else ink_on(highlight))
            x = end

    def text(self, canvas: ImageDraw.ImageDraw, x: float, y: float, letters: str, colour: Colour) -> None:
        """Draw letters that `clean` has passed, each where `width` expects it."""
        for letter in letters:
            canvas.text((x, y), letter, font=self.font, fill=colour)
            x += self._advance(letter)

    def _line_end(self, glyphs: Sequence[Glyph], start: int, width: float) -> int:
        """Where the line that begins at `start` ends: after the last space that fits, else inside the word."""
        room = width
        after_space = start
        for index in range(start, len(glyphs)):
            room -= self.width(glyphs[index].letters)
            if glyphs[index].letters == " ":
                after_space = index + 1
            elif room < 0:
                return after_space if after_space > start else max(index, start + 1)
        return len(glyphs)

    def _with_ellipsis(self, line: Line, left: int, width: float) -> Line:
        kept = list(line)
        while True:
            tail = f"… (+{left:,} characters)"
            if not kept or self.width("".join(glyph.letters for glyph in kept) + tail) <= width:
                return [*kept, *(Glyph(letter) for letter in tail)]
            kept.pop()
            left += 1

    def _advance(self, letter: str) -> float:
        if letter not in self._widths:
            self._widths[letter] = self.font.getlength(letter) * (_SPACE if letter == " " else 1)
        return self._widths[letter]

    def _drawn_as(self, character: str) -> str:
        if character not in self._letters:
            self._letters[character] = "".join(self._substitutes(character))
        letters = self._letters[character]
        self.used_missing |= letters == _MISSING
        return letters

    def _substitutes(self, character: str) -> Iterator[str]:
        if character.isspace():
            yield " "
        elif unicodedata.category(character) not in _INVISIBLE:
            known = [part for part in unicodedata.normalize("NFKD", character) if self._knows(part)]
            yield from [character] if self._knows(character) else known or [_MISSING]

    def _knows(self, character: str) -> bool:
        return self._picture(character) != self._lacks

    def _picture(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(character)
        return mask.size, bytes(mask)


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever stands out more (luminance as in ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)
