"""What every reader must see, and the comparison with what it saw. Runs in every reader's environment."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np


class Expected:
    """Samples that were written, by key: caption, document, and by ending images (sha256), their sizes, arrays (dtype
    and values).
    """

    def __init__(self, dataset, file):
        self.dataset = dataset
        self.samples = json.loads(file.read_text(encoding="utf-8"))

    @classmethod
    def from_command_line(cls):
        return cls(Path(sys.argv[1]), Path(sys.argv[2]))

    @property
    def tars(self):
        return sorted(str(path) for path in (self.dataset / "shards").glob("*.tar"))

    def check_members(self, seen):
        """Readers that hand out bytes: (key, bytes by ending)."""
        count = 0
        for key, members in seen:
            count += 1
            want = self.samples[key]
            for ending, digest in want["images"].items():
                assert hashlib.sha256(members[ending]).hexdigest() == digest, (key, ending)
            assert json.loads(members["json"]) == want["document"], key
            assert members["txt"].decode() == want["caption"], key
            for ending, array in want["arrays"].items():
                read = np.load(io.BytesIO(members[ending]), allow_pickle=False)
                assert read.dtype.name == array["dtype"], (key, ending)
                self.check_array(key, ending, read)
            assert len(members) == 2 + len(want["images"]) + len(want["arrays"]), key
        self.check_count(count)

    @property
    def documents(self):
        """Whether the samples are documents."""
        return "sequence" in next(iter(self.samples.values()))["document"]

    def samples_of(self, reader):
        """What `samples` are in the block of docs/training.md about a reader, with another data set."""
        names = {}
        exec(self.block_of(reader).replace("out/coco", str(self.dataset)), names)
        return names["samples"]

    @property
    def page(self):
        """docs/training.md."""
        return (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")

    def block_of(self, reader):
        """The code of docs/training.md about a reader."""
        return self.page.partition(f"\n**{reader}**")[2].partition("```python\n")[2].partition("```")[0]

    def check_decoded(self, rows):
        """What `SampleDecoder` made of samples, after the reader's own way of handing rows on."""
        count = 0
        for row in rows:
            count += 1
            want = self.samples[row["key"]]
            told = want["document"]
            labels = json.loads(told["image_texts_json"]) if self.documents else [[0]]
            chosen = min(text for own in labels for text in own)
            assert row["text"] == told["texts"][chosen], row["key"]
            images = row["images"] if self.documents else [row]
            for number, (image, own) in enumerate(zip(images, labels, strict=True)):
                start = f"{number}." if self.documents else ""
                grid = (told["images"][number] if self.documents else told)["grid"]
                size = (grid["rows"] * grid["patch_px"], grid["cols"] * grid["patch_px"])
                assert np.asarray(image["pixels"]).shape == (grid["views"], 3, *size), row["key"]
                assert image.get("labelled", True) == (chosen in own), row["key"]
                for name in ("selector", "coverage"):
                    if chosen in own:
                        stored = want["arrays"][f"{start}{name}.npy"]["values"][own.index(chosen)]
                        assert np.asarray(image[name]).tolist() == [stored], (row["key"], name)
                    else:
                        assert not np.asarray(image[name]).any(), (row["key"], name)
                self.check_array(row["key"], f"{start}{told['tokens']['member']}.npy", image["codes"])
        self.check_count(count)

    def check_array(self, key, ending, array):
        assert np.asarray(array).tolist() == self.samples[key]["arrays"][ending]["values"], (key, ending)

    def check_no_strays(self, folder):
        """Whether `verify` puts up with what the reader has written beside the tars."""
        from patchmint.shards.verify import verify
        from patchmint.storage import open_storage

        strays = [finding for finding in verify(open_storage(folder)) if finding.code == "file-stray"]
        assert not strays, strays

    def check_count(self, count):
        assert count == len(self.samples), f"{count} samples instead of {len(self.samples)}"
