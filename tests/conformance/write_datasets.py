"""Layouts of the Hub, written by Hugging Face `datasets`, and the texts that it reads in each of their splits.

Parquet files named as `push_to_hub` names them, an image folder with metadata (which it reads only: files and table are
made here), and conversations in Parquet. Run as `write_datasets.py FOLDER`; FOLDER/texts.json says what is in each.
"""

import json
import sys
from pathlib import Path

import datasets
from PIL import Image

SPLITS = {"train": 5, "validation": 2, "test": 3}
TURNS = datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")})


def picture(split, number):
    return Image.new("RGB", (64, 48), (40 * number, len(split) * 20, 90))


def image_folder(folder):
    for split, count in SPLITS.items():
        (folder / split / "pictures").mkdir(parents=True)
        rows = [{"file_name": f"pictures/{n}.png", "text": f"{split} picture {n}", "n": n} for n in range(count)]
        for row in rows:
            picture(split, row["n"]).save(folder / split / row["file_name"])
        (folder / split / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def parquet(folder, of):
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        of(split).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def captions(split):
    count = SPLITS[split]
    return datasets.Dataset.from_dict(
        {
            "image": [picture(split, n) for n in range(count)],
            "text": [f"{split} picture {n}" for n in range(count)],
        },
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )


def conversations(split):
    count = SPLITS[split]
    turns = [
        [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"{split} picture {n}"}]
        for n in range(count)
    ]
    return datasets.Dataset.from_dict(
        {
            "id": [f"{n}" for n in range(count)],
            "image": [picture(split, n) for n in range(count)],
            "conversations": turns,
        },
        features=datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "conversations": TURNS}),
    )


def read(folder):
    """The texts of each split as `datasets` sees the folder."""
    found = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))
    return {
        split: [row["text"] if "text" in row else row["conversations"][-1]["value"] for row in rows]
        for split, rows in found.items()
    }


def main(folder):
    datasets.disable_progress_bars()
    image_folder(folder / "image-folder")
    parquet(folder / "parquet", captions)
    parquet(folder / "conversations", conversations)
    texts = {name: read(folder / name) for name in ("image-folder", "parquet", "conversations")}
    (folder / "texts.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
