"""What every reader must see, and the comparison with what it saw. Runs in every reader's environment: numpy only."""

import hashlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


class Expected:
    """The samples that were written, by key.

    Attributes:
        dataset: the data set's folder.
        samples: key -> caption, image (sha256), document, arrays (ending -> dtype and values).
    """

    def __init__(self, dataset: Path, file: Path) -> None:
        self.dataset = dataset
        self.samples: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))

    @classmethod
    def from_command_line(cls) -> "Expected":
        return cls(Path(sys.argv[1]), Path(sys.argv[2]))

    @property
    def tars(self) -> list[str]:
        return sorted(str(path) for path in (self.dataset / "shards").glob("*.tar"))

    def check_members(self, seen: Iterable[tuple[str, dict[str, bytes]]]) -> None:
        """Readers that hand out bytes: (key, bytes by ending)."""
        count = 0
        for key, members in seen:
            count += 1
            want = self.samples[key]
            assert hashlib.sha256(members["jpg"]).hexdigest() == want["image"], key
            assert json.loads(members["json"]) == want["document"], key
            assert members["txt"].decode() == want["caption"], key
            for ending, array in want["arrays"].items():
                read = np.load(io.BytesIO(members[ending]), allow_pickle=False)
                assert read.dtype.name == array["dtype"], (key, ending)
                self.check_array(key, ending, read)
            assert len(members) == 3 + len(want["arrays"]), key
        self.check_count(count)

    def check_array(self, key: str, ending: str, array: Any) -> None:
        assert np.array_equal(np.asarray(array), np.array(self.samples[key]["arrays"][ending]["values"])), (key, ending)

    def check_count(self, count: int) -> None:
        assert count == len(self.samples), f"{count} samples instead of {len(self.samples)}"
