"""Keys: lawful names for samples, and the samples whose key another one had first.

Why keys can't collide. An unmarked key never ends with "__" and nine or more digits: an id that does isn't lawful, and
a key made from an unlawful id ends with "-" and ten hexadecimal digits. So a marked key differs from every unmarked
one, and from every other marked one by the ordinal in its mark. Equal unmarked keys have equal hashes, so all but the
first are marked; where unlike keys had equal hashes, one would be marked needlessly, and still be unique.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

MAX_KEY = 64
"""Characters of a key, with its mark if it has one: a USTAR header has room for 100, members' names included."""

_LAWFUL = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MARKED = re.compile(r".*__[0-9]{9,}")
_OTHERS = re.compile(r"[^a-z0-9]+")
_HASH_DIGITS = 10
_AT_ONCE = 1 << 18


def key_of(sample_id: str) -> str:
    """A key for a sample, from its id alone.

    Args:
        sample_id: any string that has a UTF-8 form.

    Returns:
        `[a-z0-9_-]+`, at most `MAX_KEY` characters. A lawful id as it is; of another what is lawful in it, and a hash.
    """
    if len(sample_id) <= MAX_KEY and _LAWFUL.fullmatch(sample_id) and not _MARKED.fullmatch(sample_id):
        return sample_id
    slug = _OTHERS.sub("_", sample_id[: 4 * MAX_KEY].lower())[: MAX_KEY - _HASH_DIGITS - 1].strip("_")
    digest = hashlib.blake2b(sample_id.encode(), digest_size=_HASH_DIGITS // 2).hexdigest()
    return f"{slug or 'sample'}-{digest}"


def marked(key: str, ordinal: int) -> str:
    """The key of a sample whose own key an earlier one has."""
    mark = f"__{ordinal:09d}"
    return key[: MAX_KEY - len(mark)] + mark


class Repeats:
    """Finds the samples whose key an earlier one has, in memory that hardly grows with their number.

    Eight bytes a sample go to a temporary file without a name, so that nothing is left of it whatever happens.
    """

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="patchmint-keys-")  # noqa: SIM115 (closed by __exit__)
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, keys: list[str]) -> None:
        """Take the next samples' keys, in the order of their ordinals."""
        self._file.write(b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys))
        self._count += len(keys)

    def find(self) -> npt.NDArray[np.uint8]:
        """Which samples repeat a key.

        Returns:
            A bit a sample, in `np.packbits` order: set where an earlier sample has the key.
        """
        bits = np.zeros(-(-self._count // 8), np.uint8)
        rounds = -(-self._count // _AT_ONCE)
        for number in range(rounds):
            hashes, ordinals = self._share(number, rounds)
            order = np.argsort(hashes, kind="stable")  # stable: among equals the first ordinal stays the first
            repeats = ordinals[order[1:]][hashes[order[1:]] == hashes[order[:-1]]]
            np.bitwise_or.at(bits, repeats // 8, (128 >> (repeats % 8)).astype(np.uint8))
        return bits

    def _share(self, number: int, rounds: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The hashes of one remainder, so that equal ones meet, and whose they are."""
        hashes, ordinals = [], []
        self._file.seek(0)
        for start in range(0, self._count, _AT_ONCE):
            block = np.frombuffer(self._file.read(8 * _AT_ONCE), "<u8")
            chosen = np.flatnonzero(block % np.uint64(rounds) == number)
            hashes.append(block[chosen])
            ordinals.append(chosen + start)
        return np.concatenate(hashes), np.concatenate(ordinals)
