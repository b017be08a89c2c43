"""How many damaged JPEG files are taken for whole: by Pillow, and by `decode_image`; and how long each takes.

    python benchmarks/damaged_jpeg.py             # a minute on a core
    python benchmarks/damaged_jpeg.py --json

scikit-image's photographs, at most 640 pixels a side, are encoded at several qualities and samplings, baseline,
progressive and with restart markers. Damage of three kinds, from a seed: one bit flipped, anywhere in the file; a
stretch of the scans cut out; the end cut off, and the file closed again. An image counts as visibly damaged if over
1 % of its pixels are off by over 16 of 255. Of the whole files, with what cameras write behind the end of the image,
none may be refused.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import skimage.data
from PIL import Image

from patchmint.errors import ImageDecodeError
from patchmint.images.decode import decode_image

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
END = b"\xff\xd9"
Outcome = Counter[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="with a bit flipped; a tenth with each other damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    files = list(encoded())
    found = {
        name: dict(measure(files, harm, count, random.Random(f"{arguments.seed} {name}")))
        for name, harm, count in (
            ("a bit flipped", flip, arguments.files),
            ("a hole in the scans", cut_out, arguments.files // 10),
            ("cut off and closed", cut_off, arguments.files // 10),
        )
    }
    found |= {"whole": whole(files), "milliseconds": cost(files)}
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(f"{name}: {row}" for name, row in found.items()))


def encoded() -> Iterator[bytes]:
    """Every photograph in every way."""
    for name, quality, subsampling in product(PHOTOS, (50, 75, 85, 95), (0, 2)):
        photo = Image.fromarray(getattr(skimage.data, name)())
        photo.thumbnail((640, 640))
        for options in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 4}):
            file = io.BytesIO()
            photo.save(file, "jpeg", quality=quality, subsampling=subsampling, **options)
            yield file.getvalue()


def flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def cut_out(data: bytes, chance: random.Random) -> bytes:
    start = data.index(b"\xff\xda") + 16
    at = chance.randrange(start, len(data) - 200)
    return data[:at] + data[at + chance.randrange(20, 200) :]


def cut_off(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(data.index(b"\xff\xda") + 16, len(data) - 20)] + END


def measure(
    files: list[bytes], harm: Callable[[bytes, random.Random], bytes], count: int, chance: random.Random
) -> Outcome:
    """How many of the damaged files are refused, look right, or are let through looking wrong."""
    outcome = Outcome()
    for _ in range(count):
        data = chance.choice(files)
        harmed = harm(data, chance)
        before = pixels(harmed)
        visible = before is None or differ(before, pixels(data))
        refused = is_refused(harmed)
        outcome["files"] += 1
        outcome["visibly damaged"] += int(visible)
        outcome["let through by Pillow"] += int(visible and before is not None)
        outcome["let through by decode_image"] += int(visible and not refused)
        outcome["refused though it looks right"] += int(refused and not visible)
    return outcome


def pixels(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except Exception:
        return None


def differ(found: np.ndarray, right: np.ndarray) -> bool:
    return found.shape != right.shape or (np.abs(found.astype(np.int16) - right).max(axis=2) > 16).mean() > 0.01


def is_refused(data: bytes) -> bool:
    try:
        decode_image(data)
    except ImageDecodeError:
        return True
    return False


def whole(files: list[bytes]) -> dict[str, int]:
    """Undamaged files, also with what some cameras leave around the end of the image: how many are refused?"""
    kinds = [*files, *(data + bytes(3000) + files[0] for data in files), *(data[:-2] + b"\0\0" + END for data in files)]
    return {"files": len(kinds), "refused": sum(map(is_refused, kinds))}


def cost(files: list[bytes]) -> dict[str, float]:
    """CPU time of an image, the least of three rounds."""
    times = {}
    for name, decode in (("Pillow", pixels), ("decode_image", decode_image)):
        rounds = []
        for _ in range(3):
            start = time.process_time()
            for data in files:
                decode(data)
            rounds.append((time.process_time() - start) / len(files) * 1e3)
        times[name] = round(min(rounds), 2)
    return times


if __name__ == "__main__":
    main()
