"""Remapped codes: a short list of used codes, and codes written as positions in it (upstream's `remap` setting)."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from patchmint.errors import ConfigError


class Remap:
    """Codes as positions in a list of used codes (taming-transformers, `VectorQuantizer2.remap_to_used`).

    A code that isn't in the list gets one more position, after the last (upstream's "extra"). Upstream's default there,
    a random position, is not offered: the same image must give the same codes.

    Args:
        used: integers (U,), the codes in use, each once.
        n_embed: size of the model's codebook.

    Raises:
        ConfigError: `used` isn't a list of distinct codes of that codebook.
    """

    def __init__(self, used: npt.NDArray[np.integer], n_embed: int) -> None:
        if used.ndim != 1 or used.dtype.kind not in "iu" or not used.size:
            raise ConfigError(
                f"a list of used codes must be a 1-D array of integers with at least one entry, "
                f"not {used.dtype} of shape {used.shape}"
            )
        if used.size > n_embed or used.min() < 0 or used.max() >= n_embed or len(np.unique(used)) != used.size:
            raise ConfigError(
                f"a list of used codes must name each code once, from 0 to {n_embed - 1}; this one has {used.size} "
                f"entries from {used.min()} to {used.max()}. Is it for another model?"
            )
        self.n_embed = n_embed
        self.used: npt.NDArray[np.int64] = used.astype(np.int64)
        self.size: int = used.size + 1
        """Number of codes after remapping."""
        self._positions = np.full(n_embed, used.size, np.int64)
        self._positions[self.used] = np.arange(used.size)
        # Upstream decodes the extra position as the first code of the list (`unmap_to_all`).
        self._codes = np.append(self.used, self.used[0])

    @classmethod
    def load(cls, path: Path, n_embed: int) -> Remap:
        """Read the list of used codes from an .npy file. Nothing is unpickled.

        Raises:
            ConfigError: the file can't be read, or its content is no such list (see `Remap`).
        """
        try:
            # A map reads the header only, so a header that lies about the size can't take memory.
            used = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, OverflowError, MemoryError, RecursionError, TokenError) as error:
            raise ConfigError(
                f"{path} can't be read as a list of used codes ({error}); "
                "it must be an .npy file of integers, as numpy.save writes it"
            ) from error
        try:
            return cls(used, n_embed)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_used(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Codes of the model, any shape -> positions in the list, 0..size-1."""
        return self._positions[codes]

    def to_all(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions in the list, any shape -> codes of the model; the extra position becomes the list's first code."""
        return self._codes[positions]
