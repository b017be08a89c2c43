"""A corpus of documents: built, counted, killed, and compared with a reading of its records by plain loops.

    python benchmarks/documents.py --json                       # about two minutes on 2 cores
    python benchmarks/documents.py --out out/documents          # keeps the data set,
    python tests/conformance/run.py --data out/documents        # and other readers read it

Half are conversations, half interleaved texts, of 1 to 6 images, some shown twice. Some images are damaged or missing,
some records have a mark too many. What a document should be is read from its record here, without patchmint. The models
are the tests' stand-in, which cost nothing. Ends with 1 if something is `wrong`: what it is, and how often.

- `documents`, `images`: what became of them, against what should become of those in the records.
- `asked`: images that the tokenizer was asked about; `distinct`: pairs of an image and its texts, by unit, as written.
- `compared`: documents whose parts in order, images, and `SequenceBuilder.document`'s ids and labels were compared.
- `kills`: a second build is killed, driver and workers, or stopped, at random moments; signal, and units committed by
  then. It must end with the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchmint.samples import Part
from patchmint.shards.reader import iter_samples
from patchmint.shards.verify import verify
from patchmint.storage import open_storage
from patchmint.training import Codebook, SequenceBuilder, StageDataset, extend_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import builds
import warm
from shard_data import stored
from text_tokenizers import gpt2_like

sys.path.insert(0, str(builds.STAND_IN))
import stand_in_models

IMAGES, UNIT = 400, 200
DAMAGED, MISSING = range(7, IMAGES, 40), range(IMAGES, IMAGES + 5)
REASONS = {f"{place:03d}.jpg": "image-damaged" for place in DAMAGED}
REASONS |= {f"{place:03d}.jpg": "image-missing" for place in MISSING}

LEVELS = 256
"""Codes of the stand-in's tokenizer: levels of green on a grid of 16 x 16."""

Record = dict[str, Any]
Turns = list[tuple[str, list[tuple[str, str]]]]
"""Who speaks, and (text, "") or ("", image) one after the other. Interleaved texts are one turn of nobody."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="keep the data set in this folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warm.start_server()
    records = make_records(arguments.documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = arguments.out or folder / "out"
        config = write_corpus(folder, records)
        documents, counts = expect(records)
        found, wrong = build(config, out, counts)
        found["compared"], differing = compare(folder / "in", out, documents)
        found["kills"] = kill(config, folder / "killed", arguments.kills, 30 / found["asked"])
        wrong |= differing | {"bytes": builds.digests(folder / "killed") != builds.digests(out)}
    found["wrong"] = {what: int(count) for what, count in wrong.items() if count}
    print(json.dumps(found) if arguments.json else "\n".join(f"{name:10} {value}" for name, value in found.items()))
    sys.exit(bool(found["wrong"]))


def make_records(count: int) -> list[Record]:
    """Conversations, then interleaved texts; half of them of the same few images."""
    dice = random.Random(1)
    names = [f"{place:03d}.jpg" for place in (*range(IMAGES), *MISSING)]
    records: list[Record] = []
    for number in range(count):
        images = dice.sample(dice.choice([names, names[:40]]), dice.randint(1, 6))
        images += dice.choices(images, k=dice.choice([0, 0, 1]))
        if number >= count // 2:
            texts = [f"text {dice.randrange(4)}" for _ in range(dice.randint(1, 5))]
            said = dice.sample([*images, *texts], len(images) + len(texts))
            columns = {
                "images": [each if each in images else None for each in said],
                "texts": [None if each in images else each for each in said],
            }
            records.append({"id": f"i{number}", **columns})
            continue
        ends = sorted(dice.choices(range(len(images) + 1), k=dice.randint(0, 2)))
        turns = []
        for start, end in zip([0, *ends], [*ends, len(images)], strict=True):
            turns.append({"from": "human", "value": "<image>" * (end - start) + f"what of {dice.randrange(3)}?"})
            if not start or dice.random() < 0.7:
                turns.append({"from": "gpt", "value": f"a thing {dice.randrange(3)}"})
        turns[0]["value"] += "<image>" * (number % 97 == 5)
        records.append({"id": f"c{number}", "image": images, "conversations": turns})
    return records


def write_corpus(folder: Path, records: list[Record]) -> Path:
    source = builds.make_input(folder / "in", [""] * IMAGES, DAMAGED)
    sources = []
    for kind, image_texts, field in (("conversations", "own", "image"), ("interleaved", "neighbours", "images")):
        (source / f"{kind}.jsonl").write_text("\n".join(json.dumps(each) for each in records if field in each))
        told = {"name": kind, "kind": kind, "uri": str(source), "annotations": f"{kind}.jsonl", "images": ""}
        sources.append(told | {"image_texts": image_texts})
    sources[0]["documents"] = True
    settings = {
        "sources": sources,
        "output": {"uri": str(folder / "out"), "samples_per_shard": UNIT},
        "models": {"segmenter": "stand-in", "tokenizer": "stand-in"},
        "on_bad_image": "drop",
        "runner": {"kind": "local", "num_cpus": 1, "device": "cpu", "batch_size": 4},
        "limits": {"max_reject_share": 0.5},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))
    return config


def expect(records: list[Record]) -> tuple[dict[str, Turns], dict[str, Counter[str]]]:
    """The documents to be written by id, in order, without bad images; and what becomes of all, and of their images."""
    documents = {}
    fates, images = Counter[str](), Counter[str]()
    for record in records:
        turns = read(record)
        names = list(dict.fromkeys(image for _, said in turns or [] for _, image in said if image))
        good = [name for name in names if name not in REASONS]
        if turns is None or not good:
            fates["mark-repeated" if turns is None else REASONS[names[0]]] += 1
            images["of_rejected"] += len(names)
            continue
        fates["written"] += 1
        images.update(written=len(good), dropped=len(names) - len(good))
        documents[record["id"]] = [(who, [part for part in said if part[1] not in REASONS]) for who, said in turns]
    return documents, {"documents": fates, "images": images}


def read(record: Record) -> Turns | None:
    """A record's turns; None if it has more marks than images."""
    if "texts" in record:
        pairs = zip(record["texts"], record["images"], strict=True)
        return [("", [(text or "", image or "") for text, image in pairs])]
    left, turns = [*record["image"]], []
    for turn in record["conversations"]:
        *before, last = turn["value"].split("<image>")
        if len(before) > len(left):
            return None
        said = [part for text in before for part in ((text, ""), ("", left.pop(0)))] + [(last, "")]
        turns.append((turn["from"], [part for part in said if any(part)]))
    return turns


def build(config: Path, out: Path, counts: dict[str, Counter[str]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Build in this process and count; what was found, and what of it is wrong."""
    asked, tokenize = 0, stand_in_models.Levels.tokenize

    def counted(model, images):
        nonlocal asked
        asked += len(images)
        return tokenize(model, images)

    stand_in_models.Levels.tokenize = counted
    report = builds.build_here(config, out)
    told = report.images
    rejected = told.planned - told.written - told.dropped
    found = {
        "documents": {"planned": report.planned, "written": report.written, **report.rejects},
        "images": {"planned": told.planned, "written": told.written, "dropped": told.dropped, "of_rejected": rejected},
        "asked": asked,
    }
    shown = [shown_in(out, path.name) for path in sorted((out / "shards").glob("*.tar"))]
    found["distinct"] = sum(map(len, shown))
    wrong = {name: found[name] != {"planned": each.total(), **each} for name, each in counts.items()}
    wrong["asked"] = found["asked"] != found["distinct"]
    wrong["findings"] = len(list(verify(open_storage(out))))
    return found, wrong


def shown_in(out: Path, shard: str) -> set[tuple[str, tuple[str, ...]]]:
    """The pairs of an image and its texts in a shard."""
    samples = iter_samples(open_storage(out), f"shards/{shard}")
    return {
        (image.source.path, tuple(sample.key_json.texts[text] for text in image.texts))
        for sample in samples
        for image in sample.images
    }


def compare(source: Path, out: Path, documents: dict[str, Turns]) -> tuple[int, dict[str, int]]:
    """Hold what is stored, and what is trained on, against the records; how many documents, and what is wrong."""
    tokenizer, samples = gpt2_like(), stored(out)
    first = len(tokenizer)
    vocabulary = extend_tokenizer(tokenizer, Codebook.of(out))
    builder = SequenceBuilder(tokenizer, vocabulary)
    wrong = Counter(lost=[*documents] != [sample.key_json.id for sample in samples])

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def image_ids(name: str) -> list[int]:
        pixels = np.asarray(Image.open(source / name))
        rows, cols = (np.linspace(0, side - 1, 16).astype(int) for side in pixels.shape[:2])
        codes = first + pixels[rows][:, cols, 1].astype(int)
        return [first + LEVELS, *codes.reshape(-1).tolist(), first + LEVELS + 1]

    for sample, trained in zip(samples, StageDataset(str(out), include=["codes"], shuffle=False), strict=True):
        turns = documents[sample.key_json.id]
        names = [image.source.path for image in sample.images]
        wrong["files"] += any(image.data != (source / image.source.path).read_bytes() for image in sample.images)
        wrong["parts"] += stored_turns(sample.parts, names) != turns
        made = builder.document(trained.parts, [image.codes for image in trained.images])
        ids, labels = tokens(turns, encode, image_ids, vocabulary.eos_id)
        wrong["tokens"] += (made.input_ids.tolist(), made.labels.tolist()) != (ids, labels)
    return len(samples), wrong


def stored_turns(parts: Sequence[Part], names: list[str]) -> Turns:
    turns = []
    for part in parts:
        if part.role or not turns:
            turns.append((part.role, []))
        if part.image >= 0 or part.text:  # a turn whose first image was dropped begins with an empty text
            turns[-1][1].append((part.text, names[part.image] if part.image >= 0 else ""))
    return turns


def tokens(turns: Turns, encode: Callable, image_ids: Callable, eos: int) -> tuple[list[int], list[int]]:
    """Ids and labels as docs/training.md describes them."""
    ids, labels = [], []

    def put(more: list[int], learnt: bool) -> None:
        ids.extend(more)
        labels.extend(more if learnt else [-100] * len(more))

    for who, said in turns:
        learnt = who != "human"
        if who == "gpt":
            put(encode("ASSISTANT:\n"), False)
        text = "" if learnt else "USER:\n"
        for words, image in said:
            if image:
                put(encode(text), learnt)
                put(image_ids(image), False)
                text = ""
            else:
                text += "\n" * (not who and text != "") + words
        put(encode(text if learnt else text + "\n"), learnt)
        if learnt:
            put([eos], True)
    return ids, labels


def kill(config: Path, out: Path, count: int, sleep: float) -> list[tuple[str, int]]:
    """Kill or stop a build at random moments after it has begun a shard, then let it end; signals, and units done."""
    dice, kills = random.Random(5), []
    for _ in range(count):
        before = set(out.glob("attempts/*"))
        process = builds.start(config, out, STAND_IN_SLEEP=str(sleep))
        builds.wait_until(lambda before=before: set(out.glob("attempts/*")) - before)
        time.sleep(dice.uniform(0, 4))
        sent = dice.choice([signal.SIGKILL, signal.SIGTERM])
        (os.killpg if sent == signal.SIGKILL else os.kill)(process.pid, sent)
        builds.ended(process, -sent if sent == signal.SIGKILL else 128 + sent)
        kills.append((sent.name, len(builds.committed(out))))
    builds.run(config, out)
    return kills


if __name__ == "__main__":
    main()
