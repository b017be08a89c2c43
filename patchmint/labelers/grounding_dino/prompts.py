"""From texts to prompts of at most 256 tokens that know which characters each token stands for.

A prompt is what Grounding DINO reads at once: `[CLS] ... . ... . [SEP]`. Its text encoder lets a token see its own
sub-sentence only (the tokens up to and including the next "." or "?"), with positions counted from that sub-sentence's
start (upstream `bertwarper.py`, `generate_masks_with_special_tokens_and_transfer_map`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from patchmint.errors import WeightsCorruptError, WeightsMismatchError
from patchmint.labelers.grounding_dino.arch import MAX_TEXT_TOKENS, GroundingDinoArch
from patchmint.labelers.phrases import phrase_spans
from patchmint.types import Span, Text

_ROOM = MAX_TEXT_TOKENS - 3
# What is left of a prompt for the text: [CLS], the closing "." and [SEP] always stand.

_SOFT_BORDERS = frozenset(",;:!")
_GLUE = frozenset("-'’/&")
# Between two letters or digits these join words; BERT's pre-tokenizer splits at all punctuation.

_REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?")


@dataclass(frozen=True)
class Token:
    """A piece of text.

    Attributes:
        id: its number in the vocabulary.
        span: characters it stands for, in the text as the user gave it.
        word: which word it belongs to, counted over the text; "t-shirt" and "o'clock" are one.
        readable: whether it can name anything: known to the vocabulary, and not punctuation.
    """

    id: int
    span: Span
    word: int
    readable: bool


@dataclass(frozen=True)
class Prompt:
    """What the model reads at once.

    Attributes:
        ids: int64 (n,), `[CLS]`, text, `[SEP]`; n <= 256.
        positions: int64 (n,), counted from the start of each sub-sentence.
        sees: bool (n, n), which token may look at which.
        tokens: the text's tokens; token i stands at `ids[places[i]]`.
        places: int64 (len(tokens),).
        phrases: spans that were asked for, empty in `caption` mode.
        phrase_of: int64 (len(tokens),), index into `phrases`, -1 in `caption` mode.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    sees: npt.NDArray[np.bool_]
    tokens: tuple[Token, ...]
    places: npt.NDArray[np.int64]
    phrases: tuple[Span, ...]
    phrase_of: npt.NDArray[np.int64]


class Vocabulary:
    """BERT's lower-casing WordPiece tokenizer, without its habit of reading "[SEP]" in a caption as a command.

    Built on Hugging Face's `tokenizers` and not on transformers' classes: those differ between versions 4 and 5, where
    `BertTokenizerFast(vocab_file=...)` ignores the file without a word.
    """

    def __init__(self, pieces: Mapping[str, int]) -> None:
        missing = [piece for piece in _REQUIRED if piece not in pieces]
        if missing:
            raise WeightsCorruptError(
                f"the vocabulary lacks {', '.join(missing)}: it isn't a BERT text encoder's vocabulary; "
                "get the right one with: patchmint models pull bert-base-uncased-vocab"
            )
        self.size = len(pieces)
        self.pad, self.unknown, self.cls, self.sep, self.stop, self.question = (pieces[piece] for piece in _REQUIRED)
        self._tokenizer = Tokenizer(
            WordPiece(dict(pieces), unk_token="[UNK]", max_input_chars_per_word=100)  # noqa: S106
        )
        self._tokenizer.normalizer = BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read a `vocab.txt`, where a piece's number is its line's, or the vocabulary in a `tokenizer.json`.

        Raises:
            WeightsCorruptError: it isn't UTF-8 text, or no BERT vocabulary.
        """
        if path.suffix == ".json":
            try:
                model = json.loads(path.read_bytes())["model"]
                return cls({str(piece): int(number) for piece, number in model["vocab"].items()})
            except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
                raise WeightsCorruptError(f"{path} holds no BERT vocabulary; give a vocab.txt") from error
        try:
            # not splitlines(), which would also cut at U+2028 and shift every later number
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise WeightsCorruptError(f"{path} isn't a vocabulary: it isn't UTF-8 text") from error
        pieces = {piece: number for number, piece in enumerate(lines)}
        if len(pieces) != len(lines):
            raise WeightsCorruptError(f"{path} isn't a vocabulary: it holds {len(lines) - len(pieces)} pieces twice")
        return cls(pieces)

    @classmethod
    def of_characters(cls, size: int) -> Vocabulary:
        """A vocabulary that reads any ASCII text: single characters. For untrained models.

        Args:
            size: how many pieces; those that no text has fill it up.
        """
        characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters if c.isalnum())]
        pieces += [f"[unused{number}]" for number in range(size - len(pieces))]
        return cls({piece: number for number, piece in enumerate(pieces)})

    def check_fits(self, arch: GroundingDinoArch) -> None:
        """Check that a detector can have been trained with this vocabulary.

        Raises:
            WeightsMismatchError: its embedding table has another size.
        """
        if self.size != arch.text_vocabulary:
            raise WeightsMismatchError(
                f"the vocabulary has {self.size} pieces, the model's embedding {arch.text_vocabulary}; "
                "give the vocabulary that the model was trained with"
            )

    def tokenize(self, content: str) -> list[Token]:
        """Cut a text into tokens, with the characters each stands for."""
        encoding = self._tokenizer.encode(content, add_special_tokens=False)
        tokens: list[Token] = []
        last_piece: int | None = None
        for number, (start, end), piece in zip(encoding.ids, encoding.offsets, encoding.word_ids, strict=True):
            if tokens and (piece == last_piece or _joined(content, start)):
                word = tokens[-1].word
            else:
                word = tokens[-1].word + 1 if tokens else 0
            last_piece = piece
            readable = number != self.unknown and any(c.isalnum() for c in content[start:end])
            tokens.append(Token(number, (start, end), word, readable))
        return tokens


def _joined(content: str, border: int) -> bool:
    """Whether the characters before and after a border belong to one word, joined by a hyphen or the like."""
    for glue in (border - 1, border):
        inside = 0 < glue < len(content) - 1
        if inside and content[glue] in _GLUE and content[glue - 1].isalnum() and content[glue + 1].isalnum():
            return True
    return False


def caption_prompts(text: Text, vocabulary: Vocabulary) -> list[Prompt]:
    """Make prompts of a whole text; several where it has too many tokens for one.

    A long text is cut after a "." or "?", where that makes no difference to its encoding; failing that after a comma or
    the like, failing that between words; never inside a word, and nothing is left out.

    Returns:
        No prompt at all where the text holds nothing that the vocabulary can read.
    """
    tokens = vocabulary.tokenize(text.content)
    borders = {vocabulary.stop, vocabulary.question}
    pieces = []
    start = 0
    while start < len(tokens):
        end = len(tokens)
        if end - start > _ROOM:
            end = _cut(tokens, start, start + _ROOM, borders, text.content)
        pieces.append([(token, -1) for token in tokens[start:end]])
        start = end
    return [_assemble(piece, (), vocabulary) for piece in pieces if any(token.readable for token, _ in piece)]


def phrase_prompts(text: Text, vocabulary: Vocabulary) -> list[Prompt]:
    """Make prompts of a text's phrases, each a sub-sentence of its own; as many prompts as the tokens need.

    Where the text names no phrases, those between its "." are taken, which is how a list is written for Grounding DINO;
    a "." with no space after it ("3.5 mm") ends none. A stop inside a phrase doesn't cut it, one at its end is dropped.
    """
    prompts = []
    piece: list[tuple[Token, int]] = []
    phrases: list[Span] = []
    for span in phrase_spans(text):
        tokens = [
            Token(t.id, (t.span[0] + span[0], t.span[1] + span[0]), t.word, t.readable)
            for t in vocabulary.tokenize(text.content[span[0] : span[1]])
        ]
        while tokens and tokens[-1].id in (vocabulary.stop, vocabulary.question):
            tokens.pop()
        while any(token.readable for token in tokens):
            if piece and len(piece) + len(tokens) + 1 > _ROOM:
                prompts.append(_assemble(piece, tuple(phrases), vocabulary))
                piece, phrases = [], []
            end = len(tokens) if len(tokens) <= _ROOM else _cut(tokens, 0, _ROOM, set(), text.content)
            if piece:  # the "." between two phrases; it stands for no characters
                piece.append((Token(vocabulary.stop, (0, 0), -1, readable=False), -1))
            piece += [(token, len(phrases)) for token in tokens[:end]]
            phrases.append(span)
            tokens = tokens[end:]
    if piece:
        prompts.append(_assemble(piece, tuple(phrases), vocabulary))
    return prompts


def _cut(tokens: Sequence[Token], start: int, limit: int, borders: set[int], content: str) -> int:
    """Find the last good place to cut `tokens[start:]` at or before `limit`."""
    soft = hard = None
    for end in range(limit, start, -1):
        token = tokens[end - 1]
        if token.id in borders:
            return end
        if soft is None and content[token.span[0] : token.span[1]] in _SOFT_BORDERS:
            soft = end
        if hard is None and tokens[end].word != token.word:
            hard = end
    return soft or hard or limit


def _assemble(piece: Sequence[tuple[Token, int]], phrases: tuple[Span, ...], vocabulary: Vocabulary) -> Prompt:
    tokens = [token for token, _ in piece]
    ids = [vocabulary.cls, *(token.id for token in tokens)]
    if ids[-1] != vocabulary.stop:
        ids.append(vocabulary.stop)
    ids.append(vocabulary.sep)

    sees = np.eye(len(ids), dtype=np.bool_)
    positions = np.zeros(len(ids), dtype=np.int64)
    start = 1
    closing = len(ids) - 2
    for place in range(1, closing + 1):
        inside_phrase = place <= len(piece) and piece[place - 1][1] >= 0
        if place == closing or (ids[place] in (vocabulary.stop, vocabulary.question) and not inside_phrase):
            sees[start : place + 1, start : place + 1] = True
            positions[start : place + 1] = np.arange(place + 1 - start)
            start = place + 1
    return Prompt(
        ids=np.array(ids, dtype=np.int64),
        positions=positions,
        sees=sees,
        tokens=tuple(tokens),
        places=np.arange(1, len(tokens) + 1),
        phrases=phrases,
        phrase_of=np.array([phrase for _, phrase in piece], dtype=np.int64),
    )
