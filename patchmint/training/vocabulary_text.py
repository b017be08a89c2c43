"""Texts -> ids, such that no text can pass for an image or for the end of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from patchmint.errors import TextError
from patchmint.training.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Encodes texts that strangers wrote.

    A text that contains the literal of a visual token, of a mark or of any special token of the tokenizer (`</s>`) is
    encoded as the characters that it consists of, never as that token.

    Attributes:
        prefix: ids that the tokenizer puts before a text (BOS); empty where it puts none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: VisualVocabulary) -> None:
        self._tokenizer = tokenizer
        # The unknown token stands for characters, so texts may have it.
        special = {*tokenizer.all_special_ids, *range(vocabulary.text_size, vocabulary.end_id + 1)}
        self._reserved = frozenset((special - {tokenizer.unk_token_id}) | {vocabulary.eos_id})
        self.prefix: list[int] = _prefix(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS.

        Raises:
            TextError: it is no valid Unicode, or can't be encoded without a special token.
        """
        ids = self._plain(text)
        if self._reserved.isdisjoint(ids):
            return ids
        # Unigram models know their special tokens as words, so `split_special_tokens` doesn't split those.
        split = [piece for token in ids for piece in (self._broken(token) if token in self._reserved else [token])]
        if not self._reserved.isdisjoint(split):
            raise TextError(f"the text {text[:80]!r} can't be encoded without the tokenizer's special tokens; drop it")
        return split

    def _broken(self, token: int) -> list[int]:
        literal = str(self._tokenizer.convert_ids_to_tokens(token))
        return self._plain(literal[:1]) + self._plain(literal[1:])

    def _plain(self, text: str) -> list[int]:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        except (TypeError, ValueError) as error:
            raise TextError(f"the text {text!r:.80} can't be encoded: {error}; texts are valid Unicode") from error
        return cast(list[int], ids)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    return ids[: mask.index(0)] if 0 in mask else []
