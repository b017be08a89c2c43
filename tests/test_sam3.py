"""SAM 3 from a folder in transformers' layout: its class's answers, in fewer passes."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from builds import benchmark_modules
from skimage import data

from patchmint import Annotator
from patchmint.annotate.preflight import check_loadable
from patchmint.config import AnnotatorConfig, LabelsConfig, ModelsConfig
from patchmint.config.build import BuildConfig
from patchmint.errors import ConfigError, WeightsMismatchError, WeightsMissingError
from patchmint.geometry import RleMasks, grid_preset
from patchmint.labelers.build import build_segmenter
from patchmint.pipeline.plan import record_models
from patchmint.pipeline.plan.memory import estimate_memory
from patchmint.types import Text
from patchmint.weights.checksums import sha256_of

(families,) = benchmark_modules("labeler_families")
IMAGES = (data.astronaut()[60:172], data.coffee()[100:292, :128])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sam3")


@pytest.fixture(scope="module")
def compared(folder):
    return families.compare_segmenter("sam3", IMAGES, folder, tiny=True)


@pytest.fixture
def sam3(compared, folder):
    return str(folder)


def config_of(sam3, **labels):
    settings = {"models": {"segmenter": sam3}, "labels": labels, "tokens": None, "precision": "float32"}
    return AnnotatorConfig.parse(settings)


def test_instances_are_those_of_transformers(compared):
    assert compared["instances"] > 50
    assert 0.02 < compared["covered"][0] < compared["covered"][1] < 0.98
    assert compared["mask_iou"] > 0.999
    assert compared["max_difference"] < 1e-4
    assert compared["batch_difference"] == 0


@pytest.mark.parametrize("content", ["a table", "a cup. a table. a spoon. a plate"])
def test_coverage_is_that_of_its_masks(sam3, content):
    """Of few instances from logits, of many from runs of pixels; a phrase that is asked twice has the same ones."""
    labels = LabelsConfig(box_threshold=0, prompt="phrases")
    segmenter = build_segmenter(ModelsConfig(segmenter=sam3), labels, "cpu", "float32")
    image = IMAGES[1]
    (found,) = segmenter.segment([image], [[Text(content), Text("a table")]])
    phrases = found.phrases([content, "a table"])
    first, second = (
        [(each.box, each.score) for each in phrases if (each.text, each.text_index) == ("a table", n)] for n in (0, 1)
    )
    assert first == second
    assert len(phrases) == 20 * (content.count(".") + 2)
    placement, made = grid_preset("llava-1.6").place(image.shape[:2]), RleMasks(found.masks.rles())
    for members in ([0], [1, 2]):
        ours, theirs = (masks.coverage(members, placement) for masks in (found.masks, made))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_a_text_without_phrases_has_no_instances(sam3):
    segmenter = build_segmenter(ModelsConfig(segmenter=sam3), LabelsConfig(prompt="phrases"), "cpu", "float32")
    (found,) = segmenter.segment([IMAGES[0]], [[Text(". .")]])
    assert (len(found), found.masks.rles()) == (0, ())


def test_a_build_counts_and_records_all_that_it_is(sam3, folder):
    config = config_of(sam3)
    check_loadable(config)
    records = record_models(config)
    assert records["segmenter"].sha256 == sha256_of(folder / "model.safetensors")
    assert records["segmenter-vocabulary"].sha256 == sha256_of(folder / "tokenizer.json")
    assert "segmenter-config" in records
    places = {"source": {"kind": "folder", "uri": "x"}, "output": {"uri": "y"}}
    build = BuildConfig.parse({"models": {"segmenter": sam3}, "tokens": None, **places})
    assert estimate_memory(build, [(480, 640)], 100).unknown == ()


def test_a_published_file_has_a_tracker_besides(sam3, folder, tmp_path):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    published = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    published["tracker_model.memory_encoder.weight"] = torch.zeros(4)
    safetensors.torch.save_file(published, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    with pytest.raises(WeightsMissingError, match=r"tokenizer\.json"):
        check_loadable(config_of(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    words = [Text("a cup")]
    ours, theirs = (
        Annotator(config_of(name, box_threshold=0.0)).annotate(IMAGES[0], words) for name in (sam3, str(tmp_path))
    )
    assert ours.phrases
    assert ours.phrases == theirs.phrases


def test_what_does_not_fit_is_refused(sam3, folder, tmp_path):
    with pytest.raises(ConfigError, match=r"labels\.nms is for detectors"):
        check_loadable(config_of(sam3, nms=0.5))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsMismatchError, match=r"looks like SAM 3, but the config\.json beside it is missing"):
        check_loadable(config_of(str(tmp_path)))
    config = json.loads((folder / "config.json").read_text())
    config["detr_decoder_config"]["num_queries"] = 21
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_loadable(config_of(str(tmp_path)))
    with pytest.raises(WeightsMismatchError, match=r"query_embed\.weight"):
        Annotator(config_of(str(tmp_path)))
