"""What training reads: data sets, batches, one vocabulary, sequences of text and images, patch selector and projector.

Public names are loaded on first use, so that importing this needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchmint.samples import Part, Turn
    from patchmint.training.continuous import Kept, Projector, fill_slots, gather_kept, grid_tokens
    from patchmint.training.dataset import StageDataset
    from patchmint.training.fields import StageImage, StageSample
    from patchmint.training.loader import SequenceBatch, StageBatch, StageLoader, collate
    from patchmint.training.selector import PatchSelector, auc, keep_patches, kept_count, recall_at_keep, selector_loss
    from patchmint.training.sequences import (
        ConversationTemplate,
        ImageTokens,
        SequenceBuilder,
        TokenSequence,
    )
    from patchmint.training.vocabulary import (
        Codebook,
        VisualVocabulary,
        extend_tokenizer,
        resize_embeddings,
        train_new_rows,
    )
    from patchmint.training.webdataset import SampleDecoder, shard_urls

_HOMES = {
    "Codebook": "training.vocabulary",
    "ConversationTemplate": "training.sequences",
    "ImageTokens": "training.sequences",
    "Kept": "training.continuous",
    "Part": "samples",
    "PatchSelector": "training.selector",
    "Projector": "training.continuous",
    "SampleDecoder": "training.webdataset",
    "SequenceBatch": "training.loader",
    "SequenceBuilder": "training.sequences",
    "StageBatch": "training.loader",
    "StageDataset": "training.dataset",
    "StageImage": "training.fields",
    "StageLoader": "training.loader",
    "StageSample": "training.fields",
    "TokenSequence": "training.sequences",
    "Turn": "samples",
    "VisualVocabulary": "training.vocabulary",
    "auc": "training.selector",
    "collate": "training.loader",
    "extend_tokenizer": "training.vocabulary",
    "fill_slots": "training.continuous",
    "gather_kept": "training.continuous",
    "grid_tokens": "training.continuous",
    "keep_patches": "training.selector",
    "kept_count": "training.selector",
    "recall_at_keep": "training.selector",
    "resize_embeddings": "training.vocabulary",
    "selector_loss": "training.selector",
    "shard_urls": "training.webdataset",
    "train_new_rows": "training.vocabulary",
}

__all__ = [
    "Codebook",
    "ConversationTemplate",
    "ImageTokens",
    "Kept",
    "Part",
    "PatchSelector",
    "Projector",
    "SampleDecoder",
    "SequenceBatch",
    "SequenceBuilder",
    "StageBatch",
    "StageDataset",
    "StageImage",
    "StageLoader",
    "StageSample",
    "TokenSequence",
    "Turn",
    "VisualVocabulary",
    "auc",
    "collate",
    "extend_tokenizer",
    "fill_slots",
    "gather_kept",
    "grid_tokens",
    "keep_patches",
    "kept_count",
    "recall_at_keep",
    "resize_embeddings",
    "selector_loss",
    "shard_urls",
    "train_new_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchmint.training' has no attribute {name!r}")
    return getattr(import_module(f"patchmint.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
