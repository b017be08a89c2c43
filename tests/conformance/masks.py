"""What each environment compares: masks by image and label. Imports nothing that isn't everywhere."""

import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def digest(mask):
    """Of a mask's size and pixels; (H, W), anything but 0 is mask."""
    binary = np.asarray(mask) != 0
    return hashlib.sha256(repr(binary.shape).encode() + np.packbits(binary).tobytes()).hexdigest()


class Check:
    """The masks that a tool shows, against those that are stored.

    `python SCRIPT.py EXPORTS EXPECTED BACK`: exports by kind, a file of `{key: [[label, digest], ...]}`,
    and a folder for what the tool writes itself, which `patchmint correct` is to find unchanged.
    """

    def __init__(self):
        exports, expected, back = map(Path, sys.argv[1:])
        self.exports, self.back = exports, back
        self.expected = json.loads(expected.read_text())
        self.found = defaultdict(list)

    def add(self, file, label, mask):
        """A thing in an image, whose name begins with its sample's key."""
        self.found[Path(file).name.partition(".")[0]].append([label, digest(mask)])

    def end(self):
        """Compare; fails with what differs first."""
        for key, expected in self.expected.items():
            found = sorted(self.found.pop(key, []))
            assert found == sorted(expected), f"{key}: {len(found)} things, {len(expected)} were exported, not the same"
        assert not self.found, f"images that weren't exported: {sorted(self.found)[:3]}"
        self.found = defaultdict(list)
