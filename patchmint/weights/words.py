"""CLIP's text tokenizer, from the files of a model's folder. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from patchmint.errors import WeightsMismatchError


def clip_words(path: Path, *, tokens: int, known: int) -> Tokenizer:
    """Read the text tokenizer of a model with CLIP's text encoder. It pads to the longest of a batch.

    Args:
        path: a `tokenizer.json`, or a `vocab.json` that has a `merges.txt` beside it.
        tokens: the most that the model reads of a text; the rest is cut off.
        known: how many different ones the model knows.

    Raises:
        WeightsMismatchError: it is none, or has more tokens than the model knows.
    """
    try:
        if path.name == "vocab.json":
            from transformers import CLIPTokenizerFast  # takes seconds to import

            words: Tokenizer = CLIPTokenizerFast.from_pretrained(path.parent).backend_tokenizer
        else:
            words = Tokenizer.from_file(str(path))
    except Exception as error:  # of Rust, without a class of its own
        raise WeightsMismatchError(f"{path} is no text tokenizer of CLIP: {error}") from error
    if words.get_vocab_size() > known:
        raise WeightsMismatchError(
            f"{path} has {words.get_vocab_size()} tokens, the model's text encoder reads {known}"
        )
    words.enable_truncation(tokens)
    words.enable_padding(pad_id=0)  # any would do: nothing attends to it
    return words


def ids_of(words: Tokenizer, phrases: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Read phrases, each filled up to the longest of them.

    Args:
        words: from `clip_words`.
        phrases: any number of them.

    Returns:
        The ids of their tokens (N, T), and 1 where these are a phrase's own (N, T), else 0.
    """
    read = words.encode_batch(list(phrases))
    shape = (len(read), len(read[0].ids) if read else 0)
    ids = np.array([each.ids for each in read], np.int64).reshape(shape)
    return ids, np.array([each.attention_mask for each in read], np.int64).reshape(shape)
