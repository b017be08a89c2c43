"""What an OWLv2 is built from, and the words that it reads. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from patchmint.labelers.grounding_dino import arch as dino
from patchmint.weights.architecture import Shaped
from patchmint.weights.folder import buildable, described
from patchmint.weights.words import clip_words


@dataclass(frozen=True)
class Owlv2Arch:
    """What an OWLv2 is built from, as transformers describes it; what isn't said is as in `Owlv2Config`.

    Attributes:
        config: of `Owlv2Config`.
    """

    config: Mapping[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return int(self._part("vision").get("image_size", 768))

    @property
    def working(self) -> int:
        """Numbers in the largest tensor that runs through it for one image."""
        vision = self._part("vision")
        return (self.image_size // int(vision.get("patch_size", 16))) ** 2 * int(vision.get("intermediate_size", 3072))

    def words(self, path: Path) -> Tokenizer:
        """Its text tokenizer, from a file; see `clip_words`."""
        text = self._part("text")
        return clip_words(path, tokens=text.get("max_position_embeddings", 16), known=text.get("vocab_size", 49408))

    def _part(self, name: str) -> Mapping[str, Any]:
        return self.config.get(f"{name}_config") or {}


def infer_detector(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> dino.GroundingDinoArch | Owlv2Arch:
    """Tell which detector a checkpoint holds.

    Raises:
        WeightsMismatchError: none that patchmint knows.
    """
    config = described(metadata)
    if config.get("model_type") != "owlv2":
        return dino.infer_arch(tensors, metadata)
    return buildable(Owlv2Arch(config), "OWLv2", lambda arch: arch.image_size > 0 and arch.working > 0)
