"""Codebooks: which code fits a latent vector best, and which vector a code stands for.

By every rule the code has the highest score of one linear map, so one bounded search serves all:

- nearest (upstream's `VectorQuantizer`): |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), and |z|^2 is the same for every code,
  so the nearest entry has the highest `z.e - |e|^2 / 2`.
- dot (IBQ's `IndexPropagationQuantize`): the highest `z.e`.
- cosine (LlamaGen's and Janus's `VectorQuantizer` with `l2_norm`): the highest `z.e / |e|`; |z| changes no rank.
- logit (upstream's `GumbelQuantize`, without the noise it adds even in eval mode): the highest `w.z + b`.

The module and parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from patchmint.config.annotator import Rule

MAX_SCORES = 1 << 22
"""Scores (float32) held at a time by `best_codes`: 16 MiB."""


def best_codes(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Find the row of a linear map that scores highest for each vector.

    Vectors are worked on in chunks: at most `MAX_SCORES` scores exist at a time (or one vector's, if that is more),
    instead of N x K, and differences N x K x D never do. Everything is float32, whatever autocast says.

    The result is right to rounding: a score's error is a few float32 epsilons times |z| |e| (+ |e|^2), so another row
    than the best is only chosen where both score the same to within that. For distances it is no worse than upstream's,
    which also adds |z|^2 and so rounds at that size.

    Args:
        vectors: float (N, D).
        weight: float (K, D).
        bias: float (K,).

    Returns:
        int64 (N,), row of `weight`; the lowest such row on a tie (`torch.argmax`).
    """
    step = max(1, MAX_SCORES // len(weight))
    with torch.autocast(vectors.device.type, enabled=False):
        columns, bias = weight.float().t(), bias.float()
        best = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        for start in range(0, len(vectors), step):
            chunk = vectors[start : start + step].float()
            best[start : start + step] = torch.addmm(bias, chunk, columns).argmax(dim=1)
        return best


class Codebook(nn.Module, ABC):
    """A codebook of K entries of D numbers."""

    @abstractmethod
    def scorer(self) -> tuple[Tensor, Tensor]:
        """Weight (K, D) and bias (K,) of the linear map whose highest score is the code."""

    @abstractmethod
    def entries(self) -> Tensor:
        """Float (K, D), the vectors that the codes stand for."""

    def codes(self, latents: Tensor, among: Tensor | None = None) -> Tensor:
        """Choose a code for each position. Deterministic.

        Args:
            latents: float (B, D, rows, cols).
            among: int64 (U,), codes to choose from; None = all.

        Returns:
            int64 (B, rows, cols), 0..K-1.
        """
        batch, depth, rows, cols = latents.shape
        weight, bias = self.scorer()
        if among is not None:
            weight, bias = weight[among], bias[among]
        best = best_codes(latents.permute(0, 2, 3, 1).reshape(-1, depth), weight, bias)
        if among is not None:
            best = among[best]
        return best.reshape(batch, rows, cols)

    def vectors(self, codes: Tensor) -> Tensor:
        """Look codes up: int64 (B, rows, cols) -> float (B, D, rows, cols)."""
        # Contiguous, as upstream's: convolutions round otherwise in another memory layout.
        return nn.functional.embedding(codes, self.entries()).permute(0, 3, 1, 2).contiguous()


class EntriesCodebook(Codebook):
    """The code is chosen by its entry, by the rule nearest, dot or cosine."""

    def __init__(self, n_embed: int, embed_dim: int, rule: Rule = "nearest") -> None:
        super().__init__()
        self.embedding = _embedding(n_embed, embed_dim)
        self.rule = rule

    def scorer(self) -> tuple[Tensor, Tensor]:
        """The entries, and -|e|^2 / 2 for the rule nearest, else 0, in float32."""
        entries = self.entries().float()
        return entries, entries.square().sum(dim=1) / -2 if self.rule == "nearest" else entries.new_zeros(len(entries))

    def entries(self) -> Tensor:
        """Float (K, D); of length 1 for the rule cosine."""
        return nn.functional.normalize(self.embedding.weight) if self.rule == "cosine" else self.embedding.weight


class LogitCodebook(Codebook):
    """The code has the highest logit of a learnt 1 x 1 convolution (upstream's `GumbelQuantize`, without noise)."""

    def __init__(self, n_embed: int, embed_dim: int, z_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(z_channels, n_embed, kernel_size=1)
        self.embed = _embedding(n_embed, embed_dim)

    def scorer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of `proj`, read as a linear map."""
        bias = self.proj.bias
        if bias is None:
            raise RuntimeError("quantize.proj lost its bias")
        return self.proj.weight.flatten(1), bias

    def entries(self) -> Tensor:
        """Float (K, D)."""
        return self.embed.weight


def _embedding(n_embed: int, embed_dim: int) -> nn.Embedding:
    """Random as `VectorQuantizer` starts (taming/modules/vqvae/quantize.py); matters for untrained models only.

    `nn.Embedding` itself draws normals first, for which torch imports its compiler (4 s) on the meta device.
    """
    entries = nn.init.uniform_(torch.empty(n_embed, embed_dim), -1.0 / n_embed, 1.0 / n_embed)
    return nn.Embedding(n_embed, embed_dim, _weight=entries)
