"""The model: a small Llama that reads words, codes and slots, MaVEn's patch selector, LLaVA's projector."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from patchmint.training import (
    Codebook,
    ConversationTemplate,
    ImageTokens,
    PatchSelector,
    Projector,
    SequenceBuilder,
    StageBatch,
    StageDataset,
    StageImage,
    extend_tokenizer,
    fill_slots,
    gather_kept,
    grid_tokens,
    keep_patches,
    kept_count,
    resize_embeddings,
)

WIDTH, LAYERS, HEADS, INNER, SELECTOR = 96, 3, 4, 256, 128
SPECIAL = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
TEMPLATE = ConversationTemplate(human="Q ", after_human=" ", gpt="A ")
KEEP = 0.25
Mode = Literal["words", "discrete", "continuous", "hybrid"]
# What stands for a picture: its text, its codes, kept patches, or both of these.
MODES: tuple[Mode, ...] = ("discrete", "continuous", "hybrid")


class Way(NamedTuple):
    """How pictures are shown to the language model; the share of their patches that is kept, by score or by chance."""

    mode: Mode
    ratio: float = KEEP
    by_chance: bool = False

    @property
    def has_patches(self) -> bool:
        """Whether patches are among what stands for a picture."""
        return self.mode in ("continuous", "hybrid")


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, of those that occur in texts."""
    splitter = pre_tokenizers.Whitespace()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    numbers = {word: number for number, word in enumerate([*SPECIAL.values(), *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(numbers, SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


class Maven(nn.Module):
    """Everything that is trained, and how it is put together.

    Attributes:
        llm: the language model.
        reader: what it was when the selector was trained, for the selector's state. In stage 4 the language model
            changes; under a selector that doesn't, its state would come to mean something else.
    """

    def __init__(self, texts: Iterable[str], data: Path, seed: int) -> None:
        """For texts of these words, and for data sets with codes and features as this one's."""
        super().__init__()
        torch.manual_seed(seed)
        self.layout = StageDataset(data, include=()).layouts[0]
        self.tokenizer = word_tokenizer([*texts, TEMPLATE.human, TEMPLATE.gpt])
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.llm = LlamaForCausalLM(config)
        self.vocabulary = extend_tokenizer(self.tokenizer, Codebook.of(data))
        self.builder = SequenceBuilder(self.tokenizer, self.vocabulary, template=TEMPLATE)
        channels = self.layout.features.channels
        self.selector = PatchSelector(channels, WIDTH, hidden=SELECTOR)
        self.projector = Projector(channels, WIDTH)
        self.reader: nn.Module | None = None

    def extend(self) -> None:
        """Give the language model a row for each code, and keep it as the selector's reader.

        After it has learnt its words: the new rows take their spread.
        """
        resize_embeddings(self.llm, self.vocabulary)
        self.reader = deepcopy(self.llm).requires_grad_(requires_grad=False)

    def image(self, image: StageImage, way: Way) -> ImageTokens:
        """What stands for an image in a sequence."""
        codes = None if way.mode == "continuous" else image.codes
        return ImageTokens(codes, kept_count(image.feature_mask.sum(), way.ratio) if way.has_patches else 0)

    def patches(self, batch: StageBatch) -> Tensor:
        """Features of the images' patches (N, patches, channels)."""
        return grid_tokens(batch.features, self.layout).flatten(1, 2).float()

    @torch.no_grad()
    def states(self, batch: StageBatch) -> Tensor:
        """Each image's global state (N, WIDTH), from sequences `state0`, `state1`, ... for those of a sample."""
        found = []
        for asked in (each for name, each in batch.sequences.items() if "state" in name):
            read = self.reader.model(asked.input_ids, attention_mask=asked.attention_mask).last_hidden_state
            found.append(read[torch.arange(len(read)), asked.state_positions])
        return torch.stack(found, dim=1)[torch.arange(len(found)) < batch.image_offsets.diff()[:, None]]

    def tokens(self, batch: StageBatch, way: Way) -> Tensor:
        """Continuous tokens of images (N, K, WIDTH): the patches that the selector keeps, or that chance does."""
        patches = self.patches(batch)
        with torch.no_grad():
            scores = torch.rand(patches.shape[:2]) if way.by_chance else self.selector(patches, self.states(batch))
        kept = keep_patches(scores, way.ratio, batch.feature_mask.flatten(1))
        return self.projector(gather_kept(patches, kept).patches)

    def embeddings(self, batch: StageBatch, name: str, way: Way) -> Tensor:
        """Embeddings of the sequences of a name, with continuous tokens in their slots."""
        sequences = batch.sequences[name]
        embeddings = self.llm.get_input_embeddings()(sequences.input_ids)
        if not way.has_patches:
            return embeddings
        return fill_slots(embeddings, sequences.image_positions, self.tokens(batch, way))

    def loss(self, batch: StageBatch, way: Way) -> Tensor:
        """Cross entropy of the answers."""
        talk, embeddings = batch.sequences["talk"], self.embeddings(batch, "talk", way)
        return self.llm(inputs_embeds=embeddings, attention_mask=talk.attention_mask, labels=talk.labels).loss
