"""A language model's embeddings, grown to the vocabulary of text and images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from patchmint.errors import ConfigError
from patchmint.training.vocabulary import VisualVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEED = 0


def resize_embeddings(
    model: PreTrainedModel, vocabulary: VisualVocabulary, *, pad_to_multiple_of: int | None = None
) -> None:
    """Give a language model a row for every id, in its input and output embeddings, in place.

    New rows start near the mean of the old ones (transformers' `mean_resizing`), the same on every call and every
    rank, whatever the state of torch's random numbers, which stays as it is. Rows that are there keep their values,
    those beyond the tokenizer (padding) too: visual ids take them first. A model with enough rows is unchanged, so this
    may be called again after training.

    Args:
        model: of transformers.
        vocabulary: from `extend_tokenizer`.
        pad_to_multiple_of: makes the number of rows a multiple of this, for speed.

    Raises:
        ConfigError: the model has fewer rows than the tokenizer had tokens of text, so the two don't belong together;
            or the multiple is no positive integer.
    """
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ConfigError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}")
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows < vocabulary.text_size:
        raise ConfigError(
            f"the model's embeddings have {rows} rows, but its tokenizer had {vocabulary.text_size} tokens of text "
            "before it was extended; use the tokenizer that belongs to the model"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(_SEED)
        model.resize_token_embeddings(max(rows, vocabulary.size), pad_to_multiple_of=pad_to_multiple_of)
