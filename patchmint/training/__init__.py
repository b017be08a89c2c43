"""What training stages read: data sets, batches, one vocabulary of text and images, sequences, and a patch selector.

Public names are loaded on first use, so that importing this needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchmint.training.dataset import StageDataset
    from patchmint.training.fields import StageImage, StageSample
    from patchmint.training.loader import StageBatch, StageLoader, collate
    from patchmint.training.selector import PatchSelector, auc, keep_patches, recall_at_keep, selector_loss
    from patchmint.training.sequences import ConversationTemplate, SequenceBuilder, TokenSequence
    from patchmint.training.vocabulary import Codebook, VisualVocabulary, extend_tokenizer, resize_embeddings
    from patchmint.training.webdataset import SampleDecoder, shard_urls

_HOMES = {
    "Codebook": "vocabulary",
    "ConversationTemplate": "sequences",
    "PatchSelector": "selector",
    "SampleDecoder": "webdataset",
    "SequenceBuilder": "sequences",
    "StageBatch": "loader",
    "StageDataset": "dataset",
    "StageImage": "fields",
    "StageLoader": "loader",
    "StageSample": "fields",
    "TokenSequence": "sequences",
    "VisualVocabulary": "vocabulary",
    "auc": "selector",
    "collate": "loader",
    "extend_tokenizer": "vocabulary",
    "keep_patches": "selector",
    "recall_at_keep": "selector",
    "resize_embeddings": "vocabulary",
    "selector_loss": "selector",
    "shard_urls": "webdataset",
}

__all__ = [
    "Codebook",
    "ConversationTemplate",
    "PatchSelector",
    "SampleDecoder",
    "SequenceBuilder",
    "StageBatch",
    "StageDataset",
    "StageImage",
    "StageLoader",
    "StageSample",
    "TokenSequence",
    "VisualVocabulary",
    "auc",
    "collate",
    "extend_tokenizer",
    "keep_patches",
    "recall_at_keep",
    "resize_embeddings",
    "selector_loss",
    "shard_urls",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchmint.training' has no attribute {name!r}")
    return getattr(import_module(f"patchmint.training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
