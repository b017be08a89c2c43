"""What a model is built from, as a dataclass that a safetensors file can hold in its metadata. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol, Self

from pydantic import TypeAdapter, ValidationError

from patchmint.errors import ConfigError, WeightsMismatchError

ARCH_METADATA_KEY = "patchmint.arch"
"""Entry of a safetensors file's metadata that describes the architecture, as JSON."""


class Shaped(Protocol):
    """A tensor, or only the shape of one: what tells architectures apart."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""

    @property
    def ndim(self) -> int:
        """Number of axes."""


@dataclass(frozen=True)
class Architecture:
    """Base of the architectures.

    Attributes:
        WHAT: the kind of model, for messages.
    """

    WHAT: ClassVar[str]

    def to_json(self) -> str:
        """Write as JSON, for a safetensors file's metadata under `ARCH_METADATA_KEY`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """The architecture that a file's metadata describe; None where they describe none.

        Raises:
            WeightsMismatchError: the entry is something else.
        """
        text = metadata.get(ARCH_METADATA_KEY)
        if text is None:
            return None
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except (ValidationError, ConfigError) as error:
            why = ": ".join(line.strip() for line in str(error).splitlines()[:3])  # pydantic has two for each fault
            raise WeightsMismatchError(
                f"the file's metadata entry {ARCH_METADATA_KEY} describes no {cls.WHAT} ({why}); write it with "
                f"{cls.__name__}.to_json(), or leave it out for an official architecture"
            ) from error
