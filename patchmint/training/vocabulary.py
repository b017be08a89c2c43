"""One vocabulary of text and images: which id of the language model means which code of the image tokenizer.

Ids 0..N_text-1 are the text tokenizer's own. Code c is id N_text + c (MaVEn, arXiv 2408.12321); of several codebooks,
each one's ids follow those of the one before. Then come the marks of an image's begin and end, and `<EOS>` where the
tokenizer has no such token of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken

from patchmint.config.annotator import role_of
from patchmint.errors import ConfigError, InputError, ShardError
from patchmint.shards.endings import VQGAN, tokenizer_name
from patchmint.shards.manifest import Manifest, read_manifest
from patchmint.storage import open_storage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EOS = "<EOS>"
"""Added where the tokenizer has no token of its own that ends a text."""

_DIGEST_CHARACTERS = 12
_MARKS = 2
_VISUAL = re.compile(r"<\|(?:code-[0-9]+|image-(?:begin|end)-(?P<digest>[0-9a-f]+))\|>")
_NAMED_IN_ERRORS = 3
_SEED = 0


@dataclass(frozen=True)
class Codebook:
    """Whose codes these are. Codes of two unlike codebooks mean different things and never share ids.

    Attributes:
        member: the tokenizer's name, which is that of the shards' member too.
        codebook_sizes: number of codes in each codebook.
        preprocessing: how pixels were prepared.
        fingerprint: of the model: the SHA-256 of its file, or its name where it has none.
        rule: how codes were chosen, as in `dataset.json`; one file gives other codes by another rule.

    Raises:
        ConfigError: there is no codebook, or one without a code.
    """

    member: str
    codebook_sizes: tuple[int, ...]
    preprocessing: str
    fingerprint: str
    rule: str = ""

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ConfigError(f"codebook sizes must be positive and at least one, not {self.codebook_sizes}")

    @classmethod
    def of(cls, data: str | os.PathLike[str] | Manifest, codes: str | None = None) -> Codebook:
        """The codebook of a data set's codes.

        Args:
            data: folder or URI of the data set, or its manifest.
            codes: of which of its tokenizers; None: the first.

        Raises:
            ConfigError: the data set has no such codes.
            ShardError: the manifest doesn't say which model made them, or there is none.
            StorageError: it can't be read.
        """
        manifest = data if isinstance(data, Manifest) else read_manifest(open_storage(data))
        named = {each.name: each for each in manifest.layout.all_tokens}
        tokens = manifest.layout.tokens if codes is None else named.get(codes)
        if tokens is None:
            has = f"has no codes {codes!r} (its codes: {', '.join(named)})" if named else "has no codes"
            raise ConfigError(f"the data set {has}; add them with `patchmint extend`, or build with `tokens` set")
        tokenizer, remap = (role_of(kind, tokenizer_name(tokens.member)) for kind in ("tokenizer", "remap"))
        if tokenizer not in manifest.models:
            raise ShardError("dataset.json has codes but names no tokenizer; run the build's command again")
        # A list of used codes gives the same numbers other meanings.
        models = [manifest.models[role] for role in (tokenizer, remap) if role in manifest.models]
        fingerprint = "+".join(model.sha256 or model.name for model in models)
        # One of several means the same as if it were the only one: those that have a rule are known by their file.
        member = VQGAN if tokens.rule and tokenizer_name(tokens.member) else tokens.name
        return cls(member, tokens.codebook_sizes, tokens.preprocessing, fingerprint, tokens.rule)

    @property
    def size(self) -> int:
        """Number of codes of all codebooks."""
        return sum(self.codebook_sizes)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify it."""
        parts = [self.member, list(self.codebook_sizes), self.preprocessing, self.fingerprint]
        # taming's own rule adds nothing, so that tokenizers stay extended whose data set doesn't tell a rule
        parts += [self.rule] if self.rule not in ("", "nearest") else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGEST_CHARACTERS]


@dataclass(frozen=True)
class VisualVocabulary:
    """Ids of text and images.

    Attributes:
        text_size: N_text, the number of ids before the visual ones.
        codebook: whose codes the visual ids mean.
        eos_id: of the token that ends a text.
        size: number of all ids: rows that the language model's embeddings need.
    """

    text_size: int
    codebook: Codebook
    eos_id: int
    size: int

    @classmethod
    def after(cls, text_size: int, codebook: Codebook) -> VisualVocabulary:
        """The vocabulary after `text_size` ids of text, none of which ends a text: `<EOS>` comes last.

        Raises:
            ConfigError: the size is negative.
        """
        if text_size < 0:
            raise ConfigError(f"the text vocabulary can't have {text_size} tokens; give len(tokenizer)")
        eos_id = text_size + codebook.size + _MARKS
        return cls(text_size, codebook, eos_id=eos_id, size=eos_id + 1)

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, codebook: Codebook) -> VisualVocabulary:
        """The vocabulary of a tokenizer that `extend_tokenizer` extended, also after saving and loading it.

        Raises:
            ConfigError: it isn't extended, only in part, or for another codebook.
        """
        found = _read(tokenizer, codebook)
        if found is None:
            raise ConfigError(
                f"the tokenizer has no visual tokens; extend it for codebook {codebook.digest} with extend_tokenizer"
            )
        return found

    @property
    def begin_id(self) -> int:
        """Of the mark before an image's codes."""
        return self.text_size + self.codebook.size

    @property
    def end_id(self) -> int:
        """Of the mark after an image's codes."""
        return self.begin_id + 1

    def ids(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Ids of one image's codes, row-major, the codebooks of a cell one after another; without marks.

        Args:
            codes: integers (rows, cols) or (length,); with several codebooks (rows, cols, codebooks) or (length,
                codebooks).

        Returns:
            int64 (cells * codebooks,).

        Raises:
            InputError: they are no integers, of another shape, or not in the codebook.
        """
        try:
            array = np.asarray(codes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the codes are no array of integers on the CPU: {error}") from error
        if array.dtype.kind not in "iu":
            raise InputError(f"the codes are {array.dtype}, not integers; give them as the shards hold them")
        sizes = self.codebook.codebook_sizes
        several = len(sizes) > 1
        if array.ndim - several not in (1, 2) or (several and array.shape[-1] != len(sizes)) or array.size == 0:
            axis = f", each with a last axis of {len(sizes)} codebooks" if several else ""
            raise InputError(
                f"codes of shape {array.shape} are not one image's: (rows, cols) or (length,) was expected{axis}"
            )
        wrong = np.argwhere((array < 0) | (array >= np.array(sizes)))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            size = sizes[place[-1]] if several else sizes[0]
            raise InputError(
                f"code {array[place]} at {place} is outside its codebook, which has codes 0 to {size - 1}; the codes "
                f"are of another tokenizer than {self.codebook.member!r}, or are ids already"
            )
        return (array.astype(np.int64) + self._starts).reshape(-1)

    @property
    def _starts(self) -> npt.NDArray[np.int64]:
        """First id of each codebook."""
        sizes = np.array(self.codebook.codebook_sizes, np.int64)
        return self.text_size + np.cumsum(sizes) - sizes


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, codebook: Codebook) -> VisualVocabulary:
    """Add a codebook's tokens to a text tokenizer of Hugging Face, in place: code c gets id len(tokenizer) + c.

    Nothing is added to one that is extended for this codebook already. `save_pretrained` keeps what was added.

    Raises:
        ConfigError: it is extended for another codebook or only in part, or its ids have holes. It is unchanged.
    """
    found = _read(tokenizer, codebook)
    if found is not None:
        return found
    tokens = tokenizer.get_vocab()
    if max(tokens.values(), default=-1) + 1 != len(tokenizer):
        raise ConfigError(
            f"the tokenizer's ids have holes ({len(tokenizer)} tokens, largest id {max(tokens.values())}), so code c "
            "can't be id len(tokenizer) + c; use a tokenizer whose ids are 0 to len(tokenizer) - 1"
        )
    # Special, so that texts can be encoded without recognising them and decoded without showing them.
    tokenizer.add_tokens([_special(token) for token in _visual_tokens(codebook.digest, codebook.size)])
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": _special(EOS)})
    return VisualVocabulary.of_tokenizer(tokenizer, codebook)


def resize_embeddings(
    model: PreTrainedModel,
    vocabulary: VisualVocabulary,
    *,
    spread: float = 1.0,
    pad_to_multiple_of: int | None = None,
) -> None:
    """Give a language model a row for every id, in its input and output embeddings, in place.

    New rows are random, around the mean of the text's; the same on every call and every rank, whatever the state of
    torch's random numbers, which stays as it is. Rows that are there keep their values, those beyond the tokenizer
    (padding) too: visual ids take them first. A model with enough rows is unchanged, so this may be called again after
    training.

    Args:
        model: of transformers.
        vocabulary: from `extend_tokenizer`.
        spread: how far new rows of the input lie apart, in standard deviations of the text's rows. 0: all next to the
            mean (transformers' `mean_resizing`), as those of an output of its own always are, so that no code is
            likely at first; then a model that hasn't been trained on codes can hardly tell one from another.
        pad_to_multiple_of: makes the number of rows a multiple of this, for speed.

    Raises:
        ConfigError: the model has fewer rows than the tokenizer had tokens of text, so the two don't belong together;
            the multiple is no positive integer, or the spread is negative.
    """
    import torch  # not needed for anything else here

    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ConfigError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}")
    if spread < 0:
        raise ConfigError(f"spread must be 0 or more, not {spread}")
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows < vocabulary.text_size:
        raise ConfigError(
            f"the model's embeddings have {rows} rows, but its tokenizer had {vocabulary.text_size} tokens of text "
            "before it was extended; use the tokenizer that belongs to the model"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(_SEED)
        model.resize_token_embeddings(max(rows, vocabulary.size), pad_to_multiple_of=pad_to_multiple_of)
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            text = weight[: vocabulary.text_size].float()
            noise = torch.randn(weight[rows:].shape).to(weight.device)
            if spread:
                weight[rows:] = (text.mean(0) + spread * text.std(0) * noise).to(weight.dtype)


@contextmanager
def train_new_rows(model: PreTrainedModel, vocabulary: VisualVocabulary) -> Iterator[list[torch.nn.Parameter]]:
    """Let a language model learn nothing but the rows of codes and marks, in input and output (MaVEn's stage 2).

        with train_new_rows(llm, vocabulary) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0)
            ...

    Gradients of all other rows are zero, so an optimizer without weight decay leaves them bit for bit as they are. At
    the end everything learns again that did before. Not for parameters that are sharded (FSDP, ZeRO 3).

    Args:
        model: with rows for every id (`resize_embeddings`).
        vocabulary: from `extend_tokenizer`.

    Yields:
        The embeddings: the input's, and the output's if it has its own.
    """
    import torch  # not needed for anything else here

    learnt = [each for each in model.parameters() if each.requires_grad]
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings = list({id(layer.weight): layer.weight for layer in layers if layer is not None}.values())

    def of_new_rows(grad: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(grad), device=grad.device)[:, None]
        return torch.where((rows >= vocabulary.text_size) & (rows < vocabulary.size), grad, 0)

    model.requires_grad_(requires_grad=False)
    hooks = [each.requires_grad_().register_hook(of_new_rows) for each in embeddings]
    try:
        yield embeddings
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(requires_grad=False)
        for each in learnt:
            each.requires_grad_()


def _read(tokenizer: PreTrainedTokenizerBase, codebook: Codebook) -> VisualVocabulary | None:
    tokens = tokenizer.get_vocab()
    first = _find_first_visual(tokens, codebook.digest, codebook.size)
    if first is None:
        return None
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer is only partly extended: it has visual tokens but none that ends a text; set its eos_token, "
            "or extend the original tokenizer again"
        )
    return VisualVocabulary(first, codebook, eos_id=int(tokenizer.eos_token_id), size=max(tokens.values()) + 1)


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _visual_tokens(digest: str, codes: int) -> list[str]:
    """The visual tokens in the order of their ids: codes, then the marks of an image's begin and end.

    Args:
        digest: the codebook's. Only the marks bear it: that suffices to tell codebooks apart.
        codes: number of codes of all codebooks.
    """
    return [*(f"<|code-{code}|>" for code in range(codes)), *(f"<|image-{end}-{digest}|>" for end in ("begin", "end"))]


def _find_first_visual(tokens: Mapping[str, int], digest: str, codes: int) -> int | None:
    """Where a tokenizer's visual tokens begin; None where it has none.

    Args:
        tokens: the tokenizer's whole vocabulary, ids by token.
        digest: the codebook's.
        codes: number of codes of all codebooks.

    Raises:
        ConfigError: it has visual tokens that aren't this codebook's, not all of them, or not one after another.
    """
    found = {token: match for token in tokens if token.startswith("<|") and (match := _VISUAL.fullmatch(token))}
    if not found:
        return None
    others = sorted({match["digest"] for match in found.values() if match["digest"]} - {digest})
    if others:
        raise ConfigError(
            f"the tokenizer was extended for codebook {' and '.join(others)}, but the codes are of codebook {digest}; "
            "use the data set and the tokenizer that belong together, or extend the original tokenizer again"
        )
    expected = _visual_tokens(digest, codes)
    _check_same(found, expected, digest)
    first = tokens[expected[0]]
    for position, token in enumerate(expected):
        if tokens[token] != first + position:
            raise ConfigError(
                f"the tokenizer's visual tokens are out of order: {token} has id {tokens[token]}, not "
                f"{first + position}; extend the original tokenizer again"
            )
    return first


def _check_same(found: Iterable[str], expected: list[str], digest: str) -> None:
    present, wanted = set(found), set(expected)
    missing = [token for token in expected if token not in present]
    if missing:
        raise ConfigError(
            f"the tokenizer is only partly extended for codebook {digest}: {len(missing)} of {len(expected)} visual "
            f"tokens are missing ({_some(missing)}); extend the original tokenizer again"
        )
    if present != wanted:
        raise ConfigError(
            f"the tokenizer has visual tokens that codebook {digest} lacks ({_some(sorted(present - wanted))}); extend "
            "the original tokenizer again"
        )


def _some(tokens: list[str]) -> str:
    more = ", ..." if len(tokens) > _NAMED_IN_ERRORS else ""
    return ", ".join(tokens[:_NAMED_IN_ERRORS]) + more
