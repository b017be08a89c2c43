"""What patchmint promises to programs: its public names, and types that a type checker sees in the built wheel."""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from patchmint.version import __version__

ROOT = Path(__file__).parent.parent

NAMES = {
    "patchmint": """Annotation Annotator BuildReport DemoWarning DocumentAnnotation Instance PatchGrid PatchmintError
        Phrase Reporter Text UntrainedWarning __version__ build grid_preset""",
    "patchmint.errors": """BucketMissingError BuildError BusyError ConfigError DemoWarning DiskFullError
        ImageDecodeError ImageError ImageMissingError ImageTooLargeError ImageUnreadableError InputError NotFoundError
        PatchmintError PlaceError PluginError ShardError StorageError TextError UntrainedWarning WeightsCorruptError
        WeightsError WeightsMismatchError WeightsMissingError WeightsUnsafeError""",
    "patchmint.geometry": """Fit GRID_PRESETS Grid NativeGrid OverlapGrid PatchGrid Placement Resize RleMasks TileGrid
        adaptive_bins coverage_from_logits coverage_share coverage_to_uint8 fit_image grid_of_processor grid_preset
        pool_coverage""",
    "patchmint.training": """Codebook ConversationTemplate ImageTokens Kept Part PatchSelector Projector
        SampleDecoder SequenceBatch SequenceBuilder StageBatch StageDataset StageImage StageLoader StageSample
        TokenSequence Turn VisualVocabulary auc collate extend_tokenizer fill_slots gather_kept grid_tokens
        keep_patches kept_count recall_at_keep resize_embeddings selector_loss shard_urls train_new_rows""",
    "patchmint.interfaces": """Detections Detector FeatureEncoder FeatureSpec Instances Masker PhraseBoxes
        PhraseDetector PrefersLikeSizes PreparesImages Segmenter Tokenizer TokenizerSpec Tokens""",
}

SCRIPT = """
from pathlib import Path

from patchmint import Annotation, Annotator, BuildReport, Phrase, Reporter, Text, UntrainedWarning, build
from patchmint.errors import ConfigError, WeightsMissingError
from patchmint.training import ImageTokens, SequenceBuilder, StageDataset, StageLoader, StageSample, TokenSequence, Turn


class Heard(Reporter):
    def warn(self, line: str) -> None:
        raise UntrainedWarning(line)


try:
    annotator = Annotator.from_preset("demo", device="cpu")
except WeightsMissingError as error:
    names: tuple[str, ...] = error.names
annotation: Annotation = annotator.annotate(Path("photo.png"), ["a cat", Text.from_phrases(["a sofa"])])
many: list[Annotation] = annotator.annotate_batch(["a.png", b"..."], ["a cat", ["a sofa", "a dog"]], batch_size=8)
document: list[Annotation] = [*annotator.annotate_document([Path("a.png"), b"...", "which has a cat?"]).images]
kept: int = int(annotation.selector.sum()) + int(annotation.coverage[0, 0, 0]) + int(annotation.codes.max())
phrases: list[Phrase] = [phrase for phrase in annotation.phrases if phrase.score > 0.5]
text: str = annotation.to_document().model_dump_json()
report: BuildReport = build("config.yaml", retry_failed=True, reporter=Heard())
rejected: int = report.rejected
for batch in StageLoader(StageDataset("out", stage=1), batch_size=2):
    keys: tuple[str, ...] = batch.keys
    assert batch.pixels is not None
    shape: tuple[int, ...] = tuple(batch.pixels.shape)
builder: SequenceBuilder


def talk(sample: StageSample) -> dict[str, TokenSequence]:
    images = [ImageTokens(image.codes, slots=9) for image in sample.images]
    return {"talk": builder.document(sample.parts, images), "prompt": builder.prompt([Turn("human", "why?")])}


for batch in StageLoader(StageDataset("out", include=["codes"], group=2, sequences=talk), batch_size=2):
    length: int = batch.sequences["talk"].input_ids.shape[1] + batch.image_positions.shape[1]
"""


MYPY = """
[mypy]
follow_imports = skip
[mypy-patchmint.*,numpy.*,PIL.*,pydantic.*]
follow_imports = normal
"""


@pytest.mark.parametrize("module", NAMES)
def test_public_names(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module].split())
    assert all(getattr(found, name) is not None for name in found.__all__)
    assert set(found.__all__) <= set(dir(found))


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


@pytest.fixture(scope="module")
def installed(request, tmp_path_factory):
    """A folder with what the wheel holds. Always the same one, so that mypy's cache, beside it, is good next time."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "patchmint", source / "patchmint", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = request.config.cache.mkdir("wheel")
    shutil.rmtree(folder / "site", ignore_errors=True)
    with zipfile.ZipFile(source.parent / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(installed):
    there = {path.relative_to(installed / "site") for path in (installed / "site" / "patchmint").rglob("*.*")}
    here = {path.relative_to(ROOT) for path in (ROOT / "patchmint").rglob("*.*") if "__pycache__" not in path.parts}
    assert there == here
    assert Path("patchmint/py.typed") in there
    assert {path.name.partition("-")[0] for path in (installed / "site").iterdir()} == {"patchmint"}


def test_a_strict_type_checker_is_content_with_the_wheel(installed, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # the checkout is installed as well, editable: there mypy would find what the wheel lacks
    hide = f"import sys\nsys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    # what our types don't speak of isn't read: others' packages lead to thousands of modules
    (tmp_path / "mypy.ini").write_text(MYPY)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(installed / "mypy"), "script.py"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{installed / 'site'}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
