"""Do the readers that people use accept our shards, unchanged? `make conformance`.

Writes two small data sets through the real writer, one of pictures and one of documents, and reads them with each
reader in an environment of its own. Then the other way round: data sets in layouts of the Hub, written by Hugging Face
`datasets`, are recognised and built. Then 1,000 of the demo's scenes with their true masks are exported to each tool's
files: what the tools show is equal to the pixel, and what they write again is no correction. Ends with 1 if a reader, a
build or a tool sees something else than what was written.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from masks import digest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from shard_data import DOCUMENTS, LAYOUT, make_document, make_sample  # noqa: E402
from training_data import cut, finished  # noqa: E402

from patchmint.config import BuildConfig  # noqa: E402
from patchmint.datasets.dataset import open_dataset  # noqa: E402
from patchmint.datasets.reader import iter_stored  # noqa: E402
from patchmint.demo.dataset import write_dataset  # noqa: E402
from patchmint.geometry.rle import decode_mask  # noqa: E402
from patchmint.inspection.export.formats import FORMATS, category_of  # noqa: E402
from patchmint.inspection.export.run import export  # noqa: E402
from patchmint.pipeline.sources import open_source  # noqa: E402
from patchmint.samples import SourceSample  # noqa: E402
from patchmint.shards.layout import TokensLayout  # noqa: E402
from patchmint.shards.manifest import ColumnEntry, read_manifest, write_manifest  # noqa: E402
from patchmint.shards.reader import iter_samples  # noqa: E402
from patchmint.shards.readme import write_readme  # noqa: E402
from patchmint.storage import open_storage  # noqa: E402

SAMPLES = 40
BARE = 10
IMAGES = (2, 2, 2, 2, 2, 1, 3, 9, 40, 2)
"""Images of each document. The first five have as many: readers that take columns from them must not be misled."""
COLUMN = LAYOUT.model_copy(
    update={
        "min_coverage": None,
        "tokens": TokensLayout(member="other", grid=(2, 2), codebook_sizes=(9,), preprocessing="pad-64-bicubic"),
        "column": True,
    }
)
PATCHMINT = (sys.executable, "-c", "from patchmint.cli import main; main()")
"""The first samples have no phrases and no conversation: readers that take types from them must not be misled."""


SCENES = 1000
TOOLS = {
    "pycocotools": {},
    "supervision": {},
    "datumaro": {"coco": "coco_instances/annotations/instances_default.json", "cvat": "cvat"},
    "label_studio": {"label-studio": "label-studio.json"},
    "fiftyone": {"fiftyone": "samples.json"},
}
"""What each writes again, by the kind of the export."""


@dataclass(frozen=True)
class Reader:
    """A reader, named as its script; in the main environment, or in an `own` one as its requirements say."""

    name: str
    own: bool = False
    on_main: bool = False  # also sees the main one's packages: torch and Ray are too big to install twice


READERS = (
    Reader("webdataset"),
    Reader("ray", own=True, on_main=True),
    Reader("datasets", own=True, on_main=True),
    Reader("wids", own=True, on_main=True),
    Reader("energon", own=True, on_main=True),
)
OF_EXPORTS = Reader("tools", own=True)


def main():
    """Read the shards with every reader, or with those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [reader.name for reader in (*READERS, OF_EXPORTS)]
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(names))
    parser.add_argument("--data", type=Path, help="read this data set instead, which stays as it is")
    parser.add_argument("--environments", type=Path, default=HERE.parent.parent / ".venv-conformance")
    options = parser.parse_args()
    if unknown := set(options.readers) - set(names):
        parser.error(f"no reader {', '.join(sorted(unknown))}")
    told = options.data or f"{SAMPLES} pictures, and {len(IMAGES)} documents of 1 to 40 images"
    table = Table("reader", "verdict", title=str(told))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        made = {"pictures": write_pictures, "documents": write_documents}
        if options.data:
            made = {"data": partial(shutil.copytree, options.data)}
        datasets = {kind: write(Path(folder) / kind) for kind, write in made.items()}
        # before any reader leaves files of its own beside the tars
        expected = {kind: write_expected(dataset, Path(folder) / f"{kind}.json") for kind, dataset in datasets.items()}
        for reader in READERS:
            if options.readers and reader.name not in options.readers:
                continue
            python = environment(reader, options.environments)
            for kind, dataset in datasets.items():
                trouble = run([python, HERE / f"read_{reader.name}.py", dataset, expected[kind]], Path(folder))
                failed |= bool(trouble)
                table.add_row(f"{reader.name}, {kind}", trouble or "reads them all")
            if reader.name == "datasets" and not options.data:
                trouble = build_from(python, Path(folder) / "hub")
                failed |= bool(trouble)
                table.add_row("from datasets", trouble or "each split of each layout, and nothing else")
        if not options.data and (not options.readers or OF_EXPORTS.name in options.readers):
            python = environment(OF_EXPORTS, options.environments)
            for tool, what, trouble in check_exports(python, Path(folder) / "exported"):
                failed |= bool(trouble)
                table.add_row(tool, trouble or f"{what} of {SCENES} scenes")
    Console().print(table)
    return int(failed)


def write_pictures(folder):
    """40 samples in three shards; one unit wrote nothing. A column has other codes, of which readers needn't know."""
    samples = [
        make_sample(ordinal, phrases=ordinal >= BARE, kind="png" if ordinal % 3 == 1 else "jpeg")
        for ordinal in range(SAMPLES)
    ]
    finished(folder, cut(samples, 14, 14, 0, 12))
    column = folder / "columns" / "codes"
    finished(
        column, cut([make_sample(ordinal, layout=COLUMN) for ordinal in range(SAMPLES)], 14, 14, 0, 12), layout=COLUMN
    )
    storage, base = open_storage(column), read_manifest(open_storage(folder)).plan_digest
    entry = ColumnEntry(base=base, units=4)
    write_manifest(storage, read_manifest(storage).model_copy(update={"column": entry}))
    return with_readme(folder)


def write_documents(folder):
    """Documents of 1 to 40 images in three shards."""
    samples = [make_document(ordinal, images, turns=ordinal % 3 > 0) for ordinal, images in enumerate(IMAGES)]
    finished(folder, [samples[:5], samples[5:8], samples[8:]], layout=DOCUMENTS)
    return with_readme(folder)


def with_readme(folder):
    storage = open_storage(folder)
    write_readme(storage, read_manifest(storage))
    return folder


def write_expected(dataset, file):
    """What was written, in a form that every environment can read."""
    storage = open_storage(dataset)
    samples = {
        sample.key: {
            "caption": sample.caption,
            "images": {image.ending_of("jpg"): hashlib.sha256(image.data).hexdigest() for image in sample.images},
            "sizes": {image.ending_of("jpg"): (image.info.width, image.info.height) for image in sample.images},
            "document": json.loads(sample.members["json"]),
            "arrays": {
                ending: {"dtype": array.dtype.name, "values": array.tolist()}
                for ending in sample.members
                if ending.endswith(".npy") and (array := sample.array(ending)) is not None
            },
        }
        for entry in storage.list("shards")
        for sample in iter_samples(storage, entry.path)
    }
    file.write_text(json.dumps(samples), encoding="utf-8")
    return file


def environment(reader, folder):
    """The Python that runs a reader's script; its environment is made if its lock has changed."""
    if not reader.own:
        return Path(sys.executable)
    lock = HERE / f"requirements-{reader.name}.lock"
    home = folder / reader.name
    python, stamp = home / "bin" / "python", home / ".lock"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return python
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--require-hashes", "-r", lock], check=True
    )
    if reader.on_main:
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = home / "lib" / name / "site-packages"
        (packages / "main.pth").write_text(sysconfig.get_path("purelib") + "\n")
    stamp.write_bytes(lock.read_bytes())
    return python


def run(command, home):
    """Run a script; what it ended with if it isn't content.

    Its home is a temporary folder: Ray writes a token there, others their caches.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        env={**variables, "HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode == 0:
        return ""
    print(done.stdout, done.stderr, file=sys.stderr)
    return ((done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def build_from(python, folder):
    """Build the layouts of the Hub that `datasets` writes, as `patchmint init` says; what is wrong, if anything.

    The split that init chooses is built, with untrained models; of the others the source is read.
    """
    folder.mkdir()
    if trouble := run([python, HERE / "write_datasets.py", folder], folder):
        return trouble
    for name, splits in json.loads((folder / "texts.json").read_text()).items():
        config = folder / f"{name}.yaml"
        out = folder / f"{name}-built"
        options = ("--output-config", config, "--models", "untrained-tiny", "--out", out)
        for command in (["init", folder / name, *options], ["build", config]):
            if trouble := run([*PATCHMINT, *command], folder):
                return f"{name}: {trouble}"
        storage = open_storage(out)
        tars = [entry.path for entry in storage.list("shards")]
        built = [sample.caption for tar in tars for sample in iter_samples(storage, tar)]
        if built != splits["train"]:
            return f"{name}: built {built}, and `datasets` reads {splits['train']}"
        settings = BuildConfig.load(config).source
        for split, texts in splits.items():
            source = open_source(settings.model_copy(update=of_split(settings, split)))
            source.check()
            found = [
                text.content for sample in source.samples() if isinstance(sample, SourceSample) for text in sample.texts
            ]
            if found != texts:
                return f"{name}, {split}: {found}, and `datasets` reads {texts}"
    return ""


def check_exports(python, folder):
    """Export the scenes, and have each tool show and write them; yields its name, what it shows, and what is wrong."""
    exports, expected = folder / "exports", folder / "expected.json"
    exports.mkdir(parents=True)
    dataset = open_dataset(build_scenes(folder))
    for kind in FORMATS:
        export(dataset, exports / kind, kind)
    samples = (sample for _, sample in iter_stored(dataset, range(dataset.samples), None))
    told = {
        sample.key: [
            [category_of(phrase.text), digest(decode_mask(found.mask.rle))]
            for phrase, found in zip(sample.images[0].phrases, sample.images[0].instances, strict=True)
        ]
        for sample in samples
    }
    expected.write_text(json.dumps(told))
    for tool, written in TOOLS.items():
        back = folder / tool
        back.mkdir()
        own = sys.executable if tool == "pycocotools" else python
        trouble = run([own, HERE / f"masks_{tool}.py", exports, expected, back], folder)
        for kind, path in {} if trouble else written.items():
            trouble = trouble or run([*PATCHMINT, "correct", dataset.uri, back / path, "--from", kind], folder)
        if not trouble and open_dataset(dataset.uri).columns:
            trouble = "what it wrote again is taken for a correction"
        yield tool, "masks, equal to the pixel,", trouble
    for kind in ("yolo", "odvg"):
        trouble = run([*PATCHMINT, "correct", dataset.uri, exports / kind, "--from", kind], folder)
        yield kind, "boxes", trouble or ("they are taken for corrections" if open_dataset(dataset.uri).columns else "")


def build_scenes(folder):
    """Scenes of the demo with their true masks as annotators', built without a model."""
    write_dataset(folder / "scenes", seed=11, count=SCENES)
    config = {
        "source": {"kind": "coco", "uri": str(folder / "scenes"), "texts": "categories"},
        "output": {"uri": str(folder / "data")},
        "labels": {"boxes": "annotators", "masks": "annotators", "instances": True},
        "models": "untrained-tiny",
        "tokens": None,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    if trouble := run([*PATCHMINT, "build", folder / "config.yaml"], folder):
        raise SystemExit(f"the scenes can't be built: {trouble}")
    return folder / "data"


def of_split(settings, split):
    """The settings of a source that choose another split than train."""
    if settings.kind == "folder":
        return {"table": settings.table.replace("train", split)}
    return {"split": split}


if __name__ == "__main__":
    sys.exit(main())
