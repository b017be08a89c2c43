"""The card of a data set that goes to the Hugging Face Hub: README.md, and pictures of some samples.

The same data set gives the same bytes: no date, nothing of the machine.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from PIL import Image

from patchmint.datasets.dataset import Dataset, spread
from patchmint.datasets.reader import sample_at
from patchmint.images.decode import decode_image
from patchmint.inspection.show.overlays import image_overlay
from patchmint.samples import describe_absent
from patchmint.shards.codec import Array
from patchmint.shards.endings import CAPTION, COVERAGE, DOCUMENT, FEATURES, IMAGE, INSTANCES, SELECTOR
from patchmint.shards.manifest import Manifest, held_settings
from patchmint.shards.paths import unit_name
from patchmint.shards.reader import StoredImage
from patchmint.shards.readme import MARK, README, describe, front_matter, metadata
from patchmint.shards.records import describe_images
from patchmint.storage.hub import is_on_hub

PICTURES = "card"

_LOOKED_AT = 24
_SHOWN = 2
_MEANINGS = {
    IMAGE: "the image file as it was in the source, whatever its format",
    DOCUMENT: "texts, phrases with boxes and scores, image size, grid, source",
    CAPTION: "the first text",
    SELECTOR: "for each text, 1 = the patch shows what the text names",
    COVERAGE: "for each text, the share of the patch under its masks, 0..255",
    INSTANCES: "what was found: boxes, scores, and masks as COCO run-length encoding",
    FEATURES: "patch features of the vision encoder",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def make_card(dataset: Dataset, manifest: Manifest, repo: str, licence: str) -> dict[str, bytes]:
    """README.md and its pictures, by path.

    Args:
        dataset: finished, with at least one sample.
        manifest: its own.
        repo: ORG/NAME.
        licence: as the Hub names it, "cc-by-4.0" say; "" where it isn't known.

    Raises:
        ShardError, ImageError: a sample is damaged.
        StorageError: it can't be read.
    """
    pictures = {f"{PICTURES}/{number}.jpg": data for number, data in enumerate(_pictures(dataset), start=1)}
    parts = [
        front_matter(_metadata(manifest, repo, licence)),
        MARK,
        *_body(dataset, manifest, repo, licence, pictures),
    ]
    return {README: ("\n\n".join(parts) + "\n").encode(), **pictures}


def licence_of(card: bytes) -> str:
    """The licence that a card's metadata name; "" where there is none."""
    parts = card.decode(errors="replace").split("---\n", 2)
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return ""
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return licence if isinstance(licence, str) else ""


def _metadata(manifest: Manifest, repo: str, licence: str) -> dict[str, Any]:
    layout, written = manifest.layout, manifest.totals.written
    made = {"patch-labels": layout.min_coverage, "visual-tokens": layout.tokens, "patch-features": layout.features}
    tags = ["patchmint", "webdataset", *(tag for tag, part in made.items() if part is not None)]
    tasks = ["image-text-to-text", *(["image-segmentation"] if layout.min_coverage is not None else [])]
    return ({"license": licence} if licence else {}) | {
        "pretty_name": repo.partition("/")[2],
        "tags": tags,
        "task_categories": tasks,
        "size_categories": [next((name for most, name in _SIZES if written < most), "n>10M")],
        **metadata(manifest),
    }


def _body(dataset: Dataset, manifest: Manifest, repo: str, licence: str, pictures: Iterable[str]) -> Iterator[str]:
    totals = manifest.totals
    yield f"# {repo.partition('/')[2]}"
    yield (
        f"{describe(totals)} and what patchmint made of them: WebDataset shards, each with a Parquet table of its "
        "samples."
    )
    if manifest.notice:
        yield f"> **{_plain(manifest.notice)}**"
    yield from (f"![A sample]({path})" for path in pictures)
    yield "## Samples"
    yield _table(
        ("member", "type", "shape", "meaning"),
        [
            (_member(manifest, entry.ending), entry.dtype, " x ".join(entry.shape), _meaning(entry.ending))
            for entry in manifest.members
        ],
    )
    if manifest.layout.min_coverage is not None:
        share = f" On average, {totals.label_share:.1%} of a text's patches are 1." if totals.label_share else ""
        texts = "texts that label the image" if manifest.layout.documents else "texts"
        yield f"T is the number of {texts}.{share}"
    if manifest.layout.documents:
        yield (
            "A sample is a document: `sequence` in its KEY.json has its texts and images in their order, and "
            "`image_texts_json` the texts that label each image. IMAGE counts its images from 0."
        )
    yield "## Counts"
    rejected = [(f"rejected: {reason}", f"{count:,}") for reason, count in sorted(totals.rejected.items())]
    yield _table(("samples", ""), [("planned", f"{totals.planned:,}"), ("written", f"{totals.written:,}"), *rejected])
    if totals.images is not None:
        yield f"Images: {describe_images(totals.images)}."
    if absent := describe_absent(totals.absent):
        yield f"Not among them: {absent}."
    yield "Rejected samples are in no shard; `rejects/` names each with its reason."
    yield "## Models and settings"
    models = sorted(manifest.models.items())
    yield _table(
        ("role", "model", "licence", "sha256"),
        [(role, entry.name, entry.licence or "not known", entry.sha256[:12]) for role, entry in models],
    )
    settings = yaml.safe_dump(_settings(manifest), sort_keys=False, allow_unicode=True)
    yield f"```yaml\n{settings.replace('```', '')}```"
    yield "## Licence"
    given = f"{_plain(licence)}. " if licence else "None is given here. "
    yield f"{given}Images and texts are the source's, and its terms hold for them. The models have the licences above."
    yield "## Loading"
    yield from _loading(dataset, manifest, repo)


def _meaning(ending: str) -> str:
    kind, _, grid = ending.removesuffix(".npy").rpartition(".")
    if kind == "codes":
        return f"visual codes of the tokenizer {grid}"
    if kind in ("selector", "coverage"):
        return f"{_MEANINGS[f'{kind}.npy']}, on the grid {grid}"
    return _MEANINGS.get(ending, "visual codes")


def _settings(manifest: Manifest) -> dict[str, Any]:
    """What made the samples; a source's path on somebody's machine is nobody's business."""
    held = held_settings(manifest)
    sources = held.get("source") or {}
    shown = [_shown(source) for source in sources] if isinstance(sources, list) else _shown(sources)
    kept: dict[str, Any] = {
        key: held[key] for key in ("labels", "grid", "grids", "tokens", "features", "limits") if key in held
    }
    return {"source": shown, **kept}


def _shown(source: Mapping[str, Any]) -> dict[str, Any]:
    public = ("name", "kind", "files", "split", "where", "sample", "dedupe", "take")
    return {key: value for key, value in source.items() if value and (key in public or is_on_hub(str(value)))}


def _loading(dataset: Dataset, manifest: Manifest, repo: str) -> Iterator[str]:
    made = [entry.ending for entry in manifest.members if entry.ending.endswith(".npy")]
    arrays = [manifest.layout.ending_of(0, ending) for ending in made[:1]]
    shards = [shard for shard in dataset.shards if shard.samples]
    names = [shard.tar.removesuffix(".tar").rpartition("/")[2] for shard in shards]
    first, last = (shard.unit for shard in (shards[0], shards[-1]))
    prefix, number = names[0][: -len(unit_name(first))], unit_name(first)
    whole = last - first + 1 == len(names)
    tars = f"{prefix}{{{number}..{unit_name(last)}}}" if whole and len(names) > 1 else names[0]
    yield "With patchmint, typed; a copy (`hf download`) is read faster:"
    yield _code(
        "from patchmint.training import StageDataset, StageLoader",
        "",
        f'dataset = StageDataset("hf://datasets/{repo}", stage=1)',
        "for batch in StageLoader(dataset, batch_size=32):",
        "    print(batch.pixels.shape)",
    )
    yield "With Hugging Face `datasets`:"
    yield _code(
        "from datasets import load_dataset",
        "",
        f'sample = next(iter(load_dataset("{repo}", split="train", streaming=True)))',
        'print(sample["json"]["texts"])',
        *(f'print(sample["{name}"].shape)' for name in arrays),
    )
    yield "With webdataset, without its own decoders, which unpickle:"
    yield _code(
        "import io, json",
        "import numpy as np, webdataset",
        "",
        f'url = "https://huggingface.co/datasets/{repo}/resolve/main/shards/{tars}.tar"',
        "for sample in webdataset.WebDataset(url, shardshuffle=False):",
        '    texts = json.loads(sample["json"])["texts"]',
        *(f'    array = np.load(io.BytesIO(sample["{name}"]), allow_pickle=False)' for name in arrays),
    )


def _member(manifest: Manifest, ending: str) -> str:
    of_image = manifest.layout.documents and ending not in (DOCUMENT, CAPTION)
    return f"KEY.IMAGE.{ending}" if of_image else f"KEY.{ending}"


def _pictures(dataset: Dataset) -> Iterator[bytes]:
    """An image of samples from all over the data set; where there are labels, one with something labelled, if any."""
    chosen: list[StoredImage] = []
    others: list[StoredImage] = []
    for index in spread(dataset.samples, _LOOKED_AT):
        images = sample_at(dataset, int(index)).images
        labelled = [image for image in images if image.selector is None or image.selector.any()]
        (chosen if labelled else others).append((labelled or images)[0])
        if len(chosen) == _SHOWN:
            break
    for image in (chosen + others)[:_SHOWN]:
        if image.selector is not None and image.texts:
            pixels = image_overlay(dataset, image, image.texts[_best_text(image.selector)])
        else:
            pixels = decode_image(image.data, max_megapixels=dataset.max_megapixels).pixels
        picture = Image.fromarray(pixels)
        picture.thumbnail((1280, 1280))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        yield file.getvalue()


def _best_text(selector: Array) -> int:
    """The first text of which a patch is kept."""
    kept = selector.any(axis=(1, 2))
    return int(kept.argmax())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def _plain(text: str) -> str:
    """Text that can't become markup, whatever it came from."""
    line = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in r"\`*_[]|#" else character for character in line)
