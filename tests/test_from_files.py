"""Every model from a local file, by path, as a user with weights of his own has them."""

import shutil

import numpy as np
import pytest
from safetensors.torch import save_file
from skimage import data

from patchmint import Annotator, UntrainedWarning
from patchmint.errors import WeightsCorruptError, WeightsMismatchError
from patchmint.labelers.grounding_dino import arch as dino_arch
from patchmint.labelers.grounding_dino import model as dino_model
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam_arch
from patchmint.labelers.sam import model as sam_model
from patchmint.tokenizers.vqgan.arch import TINY
from patchmint.tokenizers.vqgan.model import untrained_vqgan
from patchmint.weights.architecture import ARCH_METADATA_KEY
from patchmint.weights.registry import CHECKPOINTS

PHOTO = data.coffee()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The untrained models of the preset, saved as a user would save models of his own."""
    folder = tmp_path_factory.mktemp("weights")
    pieces = Vocabulary.of_characters(dino_arch.TINY.text_vocabulary)._tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.__getitem__)))
    models = {
        "detector": (dino_model.untrained(dino_arch.TINY), dino_arch.TINY),
        "masker": (sam_model.untrained(sam_arch.TINY, seed=0), sam_arch.TINY),
        "tokenizer": (untrained_vqgan(TINY, seed=0), TINY),
    }
    for name, (model, arch) in models.items():
        tensors = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors", {ARCH_METADATA_KEY: arch.to_json()})
    return {name: str(folder / f"{name}.safetensors") for name in models} | {"vocabulary": str(folder / "vocab.txt")}


def test_files_give_what_the_models_give(files):
    annotation = Annotator.from_config({"models": files}, device="cpu").annotate(PHOTO, "a cup on a table")
    with pytest.warns(UntrainedWarning):
        preset = Annotator.from_preset("untrained-tiny", device="cpu").annotate(PHOTO, "a cup on a table")
    assert annotation.notice == ""
    assert annotation.phrases == preset.phrases
    assert annotation.phrases
    np.testing.assert_array_equal(annotation.coverage, preset.coverage)
    np.testing.assert_array_equal(annotation.codes, preset.codes)


def test_another_file_under_an_official_name_is_refused(files, monkeypatch, tmp_path):
    """A small SAM copied over the large one's name would give labels that say they are the large one's."""
    monkeypatch.setenv("PATCHMINT_WEIGHTS", str(tmp_path))
    shutil.copy(files["masker"], tmp_path / CHECKPOINTS["sam-vit-h"].filename)
    with pytest.raises(WeightsCorruptError, match="2564550879"):
        Annotator.from_config({"models": files | {"masker": "sam-vit-h"}}, device="cpu")


@pytest.mark.parametrize(
    ("role", "other"), [("detector", "masker"), ("masker", "tokenizer"), ("tokenizer", "detector")]
)
def test_a_file_of_another_kind_is_named(files, role, other):
    with pytest.raises(WeightsMismatchError):
        Annotator.from_config({"models": files | {role: files[other]}}, device="cpu")
