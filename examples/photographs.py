"""Writes the photographs that come with scikit-image, scikit-learn and matplotlib as a data set of a real format.

    python examples/photographs.py out/photographs --format coco
    python examples/photographs.py out/photographs --format img2dataset

For trying a build without any download. The captions are ours.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import skimage
import sklearn
from PIL import Image

SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
MATPLOTLIB = Path(matplotlib.get_data_path()) / "sample_data"

PHOTOGRAPHS: dict[Path, tuple[str, ...]] = {
    SKIMAGE / "astronaut.png": (
        "a woman in an orange space suit",
        "a flag and a model rocket behind a smiling woman",
    ),
    SKIMAGE / "camera.png": ("a man looks through a camera on a tripod", "grass and towers in black and white"),
    SKIMAGE / "chelsea.png": ("a ginger cat looks at the camera", "the whiskers and green eyes of a cat"),
    SKIMAGE / "coffee.png": ("a cup of coffee on a wooden table", "a spoon lies on a saucer"),
    SKIMAGE / "coins.png": ("rows of old coins",),
    SKIMAGE / "grass.png": ("blades of grass",),
    SKIMAGE / "gravel.png": ("small stones",),
    SKIMAGE / "hubble_deep_field.jpg": ("galaxies in a dark sky", "a bright star"),
    SKIMAGE / "motorcycle_left.png": ("a motorcycle in a garage", "a red toolbox on the floor"),
    SKIMAGE / "motorcycle_right.png": ("a motorcycle seen from the right", "wheels and a black seat"),
    SKIMAGE / "retina.jpg": ("the retina of an eye",),
    SKIMAGE / "rocket.jpg": ("a rocket on a launch pad", "clouds of smoke under a rocket"),
    SKLEARN / "china.jpg": ("a Chinese temple among trees", "a roof with curved eaves"),
    SKLEARN / "flower.jpg": ("a dahlia in full bloom", "yellow petals"),
    MATPLOTLIB / "grace_hopper.jpg": ("a woman in a navy uniform", "a flag behind a woman with glasses"),
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--format", choices=("coco", "img2dataset"), default="coco")
    arguments = parser.parse_args()
    write = write_coco if arguments.format == "coco" else write_img2dataset
    write(arguments.folder)
    print(f"wrote {len(PHOTOGRAPHS)} photographs to {arguments.folder}")


def write_coco(folder: Path) -> None:
    """COCO captions as they are downloaded: annotations/captions_train2017.json and train2017/."""
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, path, data, captions in _jpegs():
        name = f"{number:012d}.jpg"
        (folder / "train2017" / name).write_bytes(data)
        with Image.open(io.BytesIO(data)) as image:
            size = {"width": image.width, "height": image.height}
        images.append({"id": number, "file_name": name, "license": 1, "coco_url": "", "flickr_url": path.name} | size)
        for caption in captions:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": caption})
    licences = [{"id": 1, "name": "as in the packages that they come with", "url": ""}]
    document = {"info": {"description": "bundled photographs"}, "licenses": licences}
    document |= {"images": images, "annotations": annotations}
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(document))


def write_img2dataset(folder: Path, shard_size: int = 6) -> None:
    """Tars as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json, and a _stats.json beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = list(_jpegs())
    for shard in range(0, len(photographs), shard_size):
        name = f"{shard // shard_size:05d}"
        chosen = photographs[shard : shard + shard_size]
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for place, (_, path, data, captions) in enumerate(chosen):
                key = f"{name}{place:04d}"
                facts = {"caption": captions[0], "url": path.name, "key": key, "status": "success"}
                _add(tar, f"{key}.jpg", data)
                _add(tar, f"{key}.json", json.dumps(facts).encode())
                _add(tar, f"{key}.txt", captions[0].encode())
        stats = {"count": len(chosen), "successes": len(chosen), "failed_to_download": 0, "failed_to_resize": 0}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))


def _jpegs() -> Iterator[tuple[int, Path, bytes, tuple[str, ...]]]:
    for number, (path, captions) in enumerate(PHOTOGRAPHS.items(), 1):
        data = path.read_bytes()
        if path.suffix == ".png":
            buffer = io.BytesIO()
            with Image.open(path) as image:
                image.convert("RGB").save(buffer, "JPEG", quality=92)
            data = buffer.getvalue()
        yield number, path, data, captions


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
