"""Text on pictures: hostile captions become short, drawable lines.

Words are drawn in the font that Pillow brings along (Aileron, which knows ASCII and a little more) or, where it lacks a
letter, in the first of this machine's fonts that has all of them, shaped and in the right order by Raqm where Pillow
has it. What no font has is drawn as its code point, such as [U+4E2D]; `Lettering.note` then says what to install.
Control, format and bidirectional characters are never drawn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import ImageDraw, ImageFont, features

from patchmint.pictures.fonts import lacking, system_fonts

Colour = tuple[int, int, int]

_SPACE = 1.5
# The font's own space is so narrow that words next to a highlighted one run together.
_CHIP = 3
# Room on either side of a highlighted run, so that it covers nothing of its neighbours.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me"})
_MAX_MARKS = 3
# Marks on one letter; more would pile up over other lines.
_MAX_LAID_OUT = 4000
# Characters looked at for a paragraph or a label; more than its lines can ever show.
_TURNED = str.maketrans("()[]{}<>«»", ")(][}{><»«")
_SHAPES = features.check("raqm")
_STRONG = ("L", "R", "AL")
_SYSTEM = 1
# Number of the first of the machine's fonts; 0 is Pillow's own.


@dataclass(frozen=True)
class Glyph:
    """What is drawn for one character of a text.

    Attributes:
        letters: none, one or several.
        highlight: its background.
        font: number of the font that has them.
    """

    letters: str
    highlight: Colour | None = None
    font: int = 0


Line = list[Glyph]


class Lettering:
    """Fonts at one size, with what layout needs. Not shared: FreeType fonts aren't safe across threads."""

    def __init__(self, size: int) -> None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this build of Pillow has no FreeType; install Pillow from its wheel")
        self.font = font
        ascent, descent = self.font.getmetrics()
        self.line_height = ascent + descent + max(size // 6, 2)
        self._size, self._ascent = size, ascent
        self._lacks = self._picture("\uffff")  # never a character, so in no font
        self._fonts: dict[int, ImageFont.FreeTypeFont | None] = {0: font}
        self._known: dict[str, bool] = {}
        self._widths: dict[tuple[int, str], float] = {}
        self._missing: dict[str, str] = {}

    @property
    def note(self) -> str:
        """Which scripts had no font so far, and what brings one; empty where nothing was missing."""
        if not self._missing:
            return ""
        packages = ", ".join(sorted(set(self._missing.values())) if system_fonts() else ["fontconfig", "fonts-noto"])
        return f"[U+...] = no font here for {', '.join(sorted(self._missing))}: install {packages}"

    def clean(self, text: str) -> str:
        """A text on one line, of drawable letters only."""
        return "".join(glyph.letters for glyph in self._glyphs(text))

    def width(self, text: str) -> float:
        """Width in pixels of letters that `clean` has passed."""
        return self._line_width(self._glyphs(text))

    def shorten(self, text: str, width: float, tail: str = "") -> str:
        """Clean a text and cut it with an ellipsis, so that with `tail` it is at most `width` wide."""
        letters = self.clean(text).strip()
        if len(text) <= _MAX_LAID_OUT and self.width(letters + tail) <= width:
            return letters + tail
        room = width - self.width("…" + tail)
        kept = ""
        for glyph in self._glyphs(letters):
            room -= self._advance(glyph)
            if room < 0:
                break
            kept += glyph.letters
        while kept and self.width(kept.rstrip() + "…" + tail) > width:
            kept = kept[:-1]
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
        glyphs = self._glyphs(text, highlights)
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
        for highlight, group in groupby(_in_visual_order(line), key=lambda run: run[1][0].highlight):
            runs = list(group)
            ink = colour if highlight is None else ink_on(highlight)
            if highlight is not None:
                end = x + sum(self._run_width(run) for _, run in runs) + 2 * _CHIP
                canvas.rounded_rectangle((x + 1, y - 1, end - 2, y + self.line_height - 3), 3, fill=highlight)
                x += _CHIP
            for level, run in runs:
                self._draw_run(canvas, x, y, run, ink, rightwards=level % 2 == 0)
                x += self._run_width(run)
            x += _CHIP if highlight is not None else 0

    def text(self, canvas: ImageDraw.ImageDraw, x: float, y: float, letters: str, colour: Colour) -> None:
        """Draw letters that `clean` has passed, as wide as `width` says."""
        self.draw(canvas, x, y, self._glyphs(letters), colour)

    def _draw_run(
        self, canvas: ImageDraw.ImageDraw, x: float, y: float, run: Line, ink: Colour, *, rightwards: bool
    ) -> None:
        font, letters = self._face(run[0].font), _letters(run)
        shaped = run[0].font > 0 and _SHAPES
        if not rightwards and not shaped:  # Pillow lays its own font out letter by letter
            letters = letters[::-1].translate(_TURNED)
        if run[0].font:  # as a whole: its letters may join, and its marks lie on them
            direction = ("ltr" if rightwards else "rtl") if shaped else None
            canvas.text((x, y + self._ascent), letters, font=font, fill=ink, anchor="ls", direction=direction)
            return
        for letter in letters:
            canvas.text((x, y), letter, font=font, fill=ink)
            x += self._advance(Glyph(letter))

    def _run_width(self, run: Line) -> float:
        if not run[0].font:
            return sum(map(self._advance, run))
        return self._length(run[0].font, _letters(run))

    def _line_width(self, line: Line) -> float:
        chips = sum(highlight is not None for highlight, _ in groupby(line, key=lambda glyph: glyph.highlight))
        return sum(map(self._run_width, _runs(line))) + 2 * _CHIP * chips

    def _line_end(self, glyphs: Sequence[Glyph], start: int, width: float) -> int:
        """Where the line that begins at `start` ends: after the last space that fits, else inside the word."""
        room = width
        after_space = start
        before: Colour | None = None
        for index in range(start, len(glyphs)):
            glyph = glyphs[index]
            room -= self._advance(glyph) + 2 * _CHIP * (glyph.highlight not in (None, before))
            before = glyph.highlight
            if glyph.letters == " ":
                after_space = index + 1
            elif room < 0:
                return after_space if after_space > start else max(index, start + 1)
        return len(glyphs)

    def _with_ellipsis(self, line: Line, left: int, width: float) -> Line:
        kept = list(line)
        while True:
            tail = [Glyph(letter) for letter in f"… (+{left:,} characters)"]
            if not kept or self._line_width([*kept, *tail]) <= width:
                return [*kept, *tail]
            kept.pop()
            left += 1

    def _advance(self, glyph: Glyph) -> float:
        if not glyph.font:
            return sum(self._length(0, letter) * (_SPACE if letter == " " else 1) for letter in glyph.letters)
        return self._length(glyph.font, glyph.letters)

    def _length(self, font: int, letters: str) -> float:
        if (font, letters) not in self._widths:
            self._widths[font, letters] = self._face(font).getlength(letters)
        return self._widths[font, letters]

    def _glyphs(self, text: str, highlights: Sequence[Colour | None] = ()) -> Line:
        """One a character, in order."""
        text = text[:_MAX_LAID_OUT]
        glyphs: Line = []
        for blank, group in groupby(text, key=str.isspace):
            word = "".join(group)
            fonts = [0] * len(word) if blank else self._fonts_of(word)
            marks = 0
            for character, font in zip(word, fonts, strict=True):
                is_mark = unicodedata.category(character) in _MARKS
                marks = marks + 1 if is_mark else 0
                letters = " " if blank else "" if marks > _MAX_MARKS else self._drawn_as(character, font, is_mark)
                place = len(glyphs)
                glyphs.append(Glyph(letters, highlights[place] if place < len(highlights) else None, max(font, 0)))
        return glyphs

    def _fonts_of(self, word: str) -> list[int]:
        """The font of each character: of the whole word if one has it all; -1 where none has the character."""
        visible = {character for character in word if unicodedata.category(character) not in _INVISIBLE}
        whole = next((font for font in self._numbers() if all(self._has(font, one) for one in visible)), None)
        if whole is not None:
            return [whole] * len(word)
        found: list[int] = []
        for character in word:
            if unicodedata.category(character) in _MARKS and found:
                found.append(found[-1] if found[-1] > 0 and self._has(found[-1], character) else -1)
            else:
                found.append(next((font for font in self._numbers() if self._has(font, character)), -1))
        return found

    def _drawn_as(self, character: str, font: int, is_mark: bool) -> str:
        if unicodedata.category(character) in _INVISIBLE:
            return ""
        if font >= 0:
            return character
        if known := [part for part in unicodedata.normalize("NFKD", character) if self._has(0, part)]:
            return "".join(known)
        if is_mark:
            return ""
        script, package = lacking(character)
        self._missing[script] = package
        return f"[U+{ord(character):04X}]"

    def _numbers(self) -> Iterable[int]:
        return range(_SYSTEM + len(system_fonts()))

    def _has(self, font: int, character: str) -> bool:
        if font:
            return system_fonts()[font - _SYSTEM].has(character) and self._loaded(font) is not None
        if character not in self._known:
            self._known[character] = self._picture(character) != self._lacks
        return self._known[character]

    def _loaded(self, number: int) -> ImageFont.FreeTypeFont | None:
        """A font; None where it can't be drawn at this size, as those of coloured bitmaps."""
        if number not in self._fonts:
            found = system_fonts()[number - _SYSTEM]
            try:
                self._fonts[number] = ImageFont.truetype(found.path, self._size, index=found.index)
            except (OSError, ValueError):
                self._fonts[number] = None
        return self._fonts[number]

    def _face(self, number: int) -> ImageFont.FreeTypeFont:
        return self._loaded(number) or self.font

    def _picture(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(character)
        return mask.size, bytes(mask)


def _letters(run: Iterable[Glyph]) -> str:
    return "".join(glyph.letters for glyph in run)


def _runs(line: Line) -> Iterator[Line]:
    """Stretches of one font, highlight and kind (words or spaces)."""
    for _, run in groupby(line, key=lambda glyph: (glyph.font, glyph.highlight, glyph.letters == " ")):
        yield list(run)


def _in_visual_order(line: Line) -> list[tuple[int, Line]]:
    """Runs from left to right, with their levels: Unicode's UAX 9 for texts without formatting characters."""
    shown = [glyph for glyph in line if glyph.letters]
    levels = _levels([unicodedata.bidirectional(glyph.letters[0]) for glyph in shown])
    runs: list[tuple[int, Line]] = []
    for level, group in groupby(zip(levels, shown, strict=True), key=lambda pair: pair[0]):
        runs += [(level, run) for run in _runs([glyph for _, glyph in group])]
    for level in range(max(levels, default=0), 0, -1):
        ordered: list[tuple[int, Line]] = []
        for deep, same in groupby(runs, key=lambda run: run[0] >= level):
            ordered += list(same)[:: -1 if deep else 1]
        runs = ordered
    return runs


def _levels(kinds: Sequence[str]) -> list[int]:
    """Embedding level of each character: even = left to right. What has no side takes that of both its neighbours."""
    base = next((int(kind != "L") for kind in kinds if kind in _STRONG), 0)
    joined = list(zip(["", *kinds], kinds, [*kinds[1:], ""], strict=False))
    kinds = ["EN" if kind == "CS" and one == other == "EN" else kind for one, kind, other in joined]  # 0.87
    before, side = [], base
    for kind in kinds:
        side = int(kind != "L") if kind in _STRONG else side
        before.append(side)
    # a number in a text from right to left counts as of it to what stands beside it
    sided = [kind in (*_STRONG, "EN", "AN") for kind in kinds]
    after, side = [base] * len(kinds), base
    for place in range(len(kinds) - 1, -1, -1):
        side = before[place] if sided[place] else side
        after[place] = side
    levels = []
    for kind, left, right in zip(kinds, before, after, strict=True):
        if kind in ("EN", "AN"):
            levels.append(2 if left or base else 0)
        else:
            levels.append((left or 2 * base) if left == right else base)
    return levels


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever stands out more (luminance as in ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)
