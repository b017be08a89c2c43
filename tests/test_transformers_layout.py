"""Detectors and maskers in Hugging Face's layout: transformers' answers, and those of upstream's file."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from builds import benchmark_modules
from skimage import data

from patchmint import Annotator
from patchmint.annotate.preflight import check_loadable
from patchmint.config import UNTRAINED, AnnotatorConfig, LabelsConfig
from patchmint.config.build import BuildConfig
from patchmint.demo.scenes import make_scene
from patchmint.errors import BuildError, WeightsMismatchError, WeightsMissingError
from patchmint.geometry import RleMasks, grid_preset
from patchmint.labelers.grounded_sam import build_grounded_sam, build_masker
from patchmint.labelers.grounding_dino import arch as dino
from patchmint.labelers.grounding_dino import hugging_face as dino_names
from patchmint.labelers.grounding_dino.model import load_grounding_dino
from patchmint.labelers.grounding_dino.prompts import Vocabulary
from patchmint.labelers.sam import arch as sam
from patchmint.labelers.sam import hugging_face as sam_names
from patchmint.labelers.sam.model import load_sam
from patchmint.pipeline.plan import record_models
from patchmint.pipeline.plan.memory import estimate_memory
from patchmint.pipeline.plan.models import check_models
from patchmint.types import Text
from patchmint.weights.checksums import sha256_of
from patchmint.weights.loading import load_named
from patchmint.weights.store import locate
from patchmint.weights.words import clip_words

families, theirs = benchmark_modules("labeler_families", "gpu_transformers")
IMAGES = (data.astronaut()[60:172], data.coffee()[100:292, :128])


def config_of(**models):
    return AnnotatorConfig.parse({"models": models, "tokens": None, "precision": "float32"})


@pytest.mark.parametrize("name", [*families.DETECTORS, *families.PHRASE_DETECTORS])
def test_boxes_are_those_of_transformers(name, tmp_path):
    found = families.FAMILIES[name](name, IMAGES, tmp_path, tiny=True)
    assert found["spread_of_logits"] > 0.5
    assert found["max_difference"] < 1e-4
    assert found["batch_difference"] < 1e-4


@pytest.mark.parametrize("name", families.MASKERS)
def test_masks_are_those_of_transformers(name, tmp_path):
    found = families.compare_masker(name, IMAGES, tmp_path, tiny=True)
    assert 0.02 < found["covered"][0] < found["covered"][1] < 0.98
    assert found["mask_iou"] > 0.999
    assert found["batch_difference"] == 0


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    """A folder of SAM 2.1 as published: of a model for films, whose other parts are left alone."""
    folder = tmp_path_factory.mktemp("sam2")
    model, processor = families.MASKERS["sam2.1"][True]()
    processor.save_pretrained(families.saved(families.shaken(model), folder))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "sam2_video"
    (folder / "config.json").write_text(json.dumps(config | {"num_maskmem": 7}))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["shared_image_embedding.positional_embedding"]
    tensors |= {"memory_encoder.feature_projection.weight": torch.zeros(4), "no_object_pointer": torch.zeros(1)}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def masker_of(folder, **labels):
    return build_masker(config_of(masker=folder).models, LabelsConfig(**labels), "cpu", "float32")


@pytest.mark.parametrize("grid", ["llava-1.5-pretrain", "llava-1.6"])
def test_coverage_by_sam2_is_that_of_its_masks(sam2, grid):
    """Of few boxes from logits, of many from runs of pixels."""
    image = IMAGES[1]
    size = image.shape[:2]
    boxes = np.concatenate([families.some_boxes(size)] * 14)
    placement = grid_preset(grid).place(size)
    for masks in masker_of(sam2).masks([image, image], [boxes[:3], boxes]):
        made = RleMasks(masks.rles())
        for members in ([0], [1, 2]):
            np.testing.assert_allclose(masks.coverage(members, placement), made.coverage(members, placement), atol=1e-9)
        assert 0.02 < made.coverage([1], placement).mean() < 0.9


def test_a_build_with_sam2_is_checked_and_counted_before_it_starts(sam2, tmp_path):
    config = BuildConfig.parse(
        {
            "models": {"detector": "demo-detector", "masker": sam2},
            "tokens": None,
            "source": {"kind": "folder", "uri": "x"},
            "output": {"uri": "y"},
        }
    )
    check_loadable(config)
    assert estimate_memory(config, [(480, 640)], 100).worker > 1e8
    shutil.copytree(sam2, tmp_path / "other")
    written = tmp_path / "other" / "config.json"
    config = json.loads(written.read_text())
    for part, change, message in (
        ("vision_config", {"backbone_config": {"blocks_per_stage": [10**9] * 4}}, "no SAM 2 that patchmint can build"),
        ("prompt_encoder_config", {"image_size": "big"}, "no SAM 2 that patchmint can build"),
        ("mask_decoder_config", {"hidden_size": 24}, "describes no SAM 2|doesn't fit SAM 2"),
    ):
        written.write_text(json.dumps(config | {part: config[part] | change}))
        with pytest.raises(WeightsMismatchError, match=message):
            masker_of(str(tmp_path / "other"))


def test_an_edgetam_with_another_backbone_is_refused():
    """timm would fetch it, or open a file that it names."""
    backbone = {"architecture": "repvit_m1.dist_in1k", "model_args": {"in_chans": 3}}

    def told(**change):
        config = {"model_type": "edgetam_video", "vision_config": {"backbone_config": backbone | change}}
        return sam.infer_arch({}, {"config.json": json.dumps(config)})

    assert told().kind == "edgetam"
    for change in ({"architecture": "hf-hub:some/repvit"}, {"model_args": {"checkpoint_path": "x.pth"}}):
        with pytest.raises(WeightsMismatchError, match="no EdgeTAM that patchmint can build"):
            told(**change)


def test_a_build_with_owlv2_finds_its_words_and_is_counted(tmp_path):
    """In the files of its repository, which has no tokenizer.json. A phrase that two texts have is found in both."""
    torch.manual_seed(3)
    families.saved(families.shaken(families.PHRASE_DETECTORS["owlv2"][True]()[0]), tmp_path)
    words = json.loads(families.letters().backend_tokenizer.to_str())["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    told = clip_words(tmp_path / "vocab.json", tokens=16, known=514)
    assert told.encode("A red flag").ids == families.letters()("A red flag").input_ids
    models = {"detector": str(tmp_path), "masker": None}
    config = AnnotatorConfig.parse({"models": models, "tokens": None, "labels": {"box_threshold": 0.3, "nms": 0.5}})
    check_loadable(config)
    assert record_models(config)["vocabulary"].sha256 == sha256_of(tmp_path / "vocab.json")
    found = Annotator(config).annotate(IMAGES[0], [Text.from_phrases(["cup", "flag"]), "flag"]).phrases
    by_text = [[each.box for each in found if (each.text_index, each.text) == (n, "flag")] for n in (0, 1)]
    assert by_text[0] == by_text[1] != []
    places = {"source": {"kind": "folder", "uri": "x"}, "output": {"uri": "y"}}
    build = BuildConfig.parse({"models": models, "tokens": None, **places})
    assert estimate_memory(build, [(480, 640)], 100).unknown == ()
    written = tmp_path / "config.json"
    sizes = json.loads(written.read_text())
    for change, message in (({"image_size": 0}, "no OWLv2 that patchmint can build"), ({"patch_size": 8}, "fit OWLv2")):
        written.write_text(json.dumps(sizes | {"vision_config": sizes["vision_config"] | change}))
        with pytest.raises(WeightsMismatchError, match=message):
            build_grounded_sam(config.models, LabelsConfig(), "cpu")


def converted(folder, state, by_upstreams_names):
    """Fill a saved model with weights that have upstream's names. Where each number goes is seen from where the reader
    takes it; that it takes it from the right place, the tests above show."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    places = torch.arange(sum(tensor.numel() for tensor in tensors.values()))
    numbered = dict(zip(tensors, places.split([tensor.numel() for tensor in tensors.values()]), strict=True))
    numbered = {name: numbered[name].view(tensor.shape) for name, tensor in tensors.items()}
    values = torch.zeros(len(places))
    for name, taken in by_upstreams_names(numbered).items():
        values[taken] = state[name].float()
    written = {name: values[taken] for name, taken in numbered.items()}
    safetensors.torch.save_file(written, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's detector and masker as folders of transformers."""
    detector, masker = load_named("demo-detector"), load_named("demo-masker")
    arch = dino.infer_arch(detector.tensors, detector.metadata)
    vit = sam.infer_arch(masker.tensors, masker.metadata)
    folders = {role: tmp_path_factory.mktemp(role) for role in ("detector", "masker")}
    families.saved(theirs.detector_of(arch, 0), folders["detector"], arch)
    families.saved(theirs.sam_of(vit), folders["masker"])
    converted(folders["detector"], detector.tensors, partial(dino_names.by_upstreams_names, arch=arch))
    converted(folders["masker"], masker.tensors, sam_names.by_upstreams_names)
    shutil.copy(locate("demo-vocabulary"), folders["detector"] / "vocab.txt")
    return {role: str(folder) for role, folder in folders.items()}


@pytest.mark.filterwarnings("ignore::patchmint.errors.DemoWarning")
def test_the_demo_labels_alike_through_the_layout(demo):
    scenes = [make_scene(23, number) for number in range(3)]
    texts = [[text.content for text in scene.texts] for scene in scenes]
    found = []
    for models in ({"detector": "demo-detector", "masker": "demo-masker"}, demo):
        annotator = Annotator(config_of(**models), "cpu")
        found.append(annotator.annotate_batch([scene.image for scene in scenes], texts))
    for one, other in zip(*found, strict=True):
        assert one.selector.any()
        np.testing.assert_array_equal(one.selector, other.selector)
        np.testing.assert_allclose(one.coverage, other.coverage, atol=1e-3)


def test_transformers_finds_the_demos_boxes_in_the_folder(demo):
    """So the folder is the demo's detector, and not only what our reader takes for it."""
    model = theirs.GroundingDinoForObjectDetection.from_pretrained(demo["detector"]).eval()
    detector = build_grounded_sam(config_of(**demo).models, LabelsConfig(), "cpu", "float32").detector
    scene = make_scene(23, 0)
    pixels, prompts = [detector.preprocess(scene.image)], detector.prompts(Text(scene.texts[0].content))
    expected = families.their_detections(model, detector, pixels, prompts)
    ours = families.our_detections(detector, pixels, prompts, expected)
    assert expected[0].logits.sigmoid().max() > 0.5
    assert ours[0].differ(expected[0]) < 1e-3


def test_a_build_records_the_weights_and_finds_the_vocabulary(demo, tmp_path):
    config = config_of(**demo)
    check_loadable(config)
    records = record_models(config)
    assert config.models.vocabulary == records["vocabulary"].name == demo["detector"]
    for role, file in {"detector": "model.safetensors", "masker": "model.safetensors"}.items():
        assert records[role].sha256 == sha256_of(Path(demo[role], file))
    assert records["vocabulary"].sha256 == sha256_of(locate("demo-vocabulary"))
    shutil.copytree(demo["detector"], tmp_path / "detector")
    other = config_of(detector=str(tmp_path / "detector"), masker=demo["masker"])
    check_models(other, records)
    (tmp_path / "detector" / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 96}}')
    with pytest.raises(BuildError, match="detector-config"):
        check_models(other, records)


def test_a_tokenizer_json_is_a_vocabulary_too(demo, tmp_path):
    text = Path(demo["detector"], "vocab.txt").read_text()
    pieces = {piece: number for number, piece in enumerate(text.splitlines())}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": pieces}}))
    ours, known = (
        Vocabulary.from_file(locate(str(tmp_path), "vocabulary")),
        Vocabulary.from_file(locate("demo-vocabulary")),
    )
    assert ours.tokenize("a red circle.") == known.tokenize("a red circle.")


def test_other_folders_are_refused_in_words(demo, tmp_path):
    with pytest.raises(WeightsMissingError, match=r"no model\.safetensors or pytorch_model\.bin"):
        locate(str(tmp_path))
    shutil.copytree(demo["detector"], tmp_path / "other")
    written = tmp_path / "other" / "config.json"
    config = json.loads(written.read_text())
    for change, message in (
        ({"max_text_len": 128}, "max_text_len.*128"),
        ({"num_queries": 10**9}, "queries of 1000000000 is out of range"),
        ({"text_config": [1]}, "describes no Grounding DINO"),
        ({"model_type": "deformable_detr"}, "missing or of another model"),
        (None, "missing or of another model"),
        ({"encoder_layers": 3}, r"missing \(transformer\.encoder\.layers\.2"),
    ):
        written.write_text(json.dumps(config | change) if change else "{")
        with pytest.raises(WeightsMismatchError, match=message):
            build_grounded_sam(config_of(detector=str(tmp_path / "other")).models, LabelsConfig(), "cpu")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "other" / "model-00001-of-00002.safetensors")
    (tmp_path / "other" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsMissingError, match="in several files"):
        locate(str(tmp_path / "other"))


@pytest.mark.parametrize("prefix", ["sam.", "_orig_mod.model.detector."])
def test_weights_that_lie_in_another_model_are_found(prefix, tmp_path):
    for role, load in (("masker", load_sam), ("detector", lambda state: load_grounding_dino(state)[0])):
        state = load_named(f"demo-{role}")
        other = {f"{prefix}{name}": tensor for name, tensor in state.tensors.items()}
        other |= {f"average_ema.{name}": tensor + 1 for name, tensor in state.tensors.items()}
        path = tmp_path / f"{role}.safetensors"
        safetensors.torch.save_file(other | {"head.weight": torch.zeros(3)}, path, state.metadata)
        for name, added in ((str(path), 0), (f"{path}#average_ema", 1)):
            found = load(load_named(name)).state_dict()
            assert all(
                torch.equal(found[key], (state.tensors[key] + added).to(found[key].dtype)) for key in state.tensors
            )


def test_a_file_of_another_model_is_recognised(demo, sam2):
    """By what it holds, in any role."""
    sam_like = r"looks like SAM in transformers' layout: set it as models\.masker"
    for role, file, message in (
        ("masker", demo["detector"], r"looks like Grounding DINO in transformers' layout"),
        ("detector", demo["masker"], sam_like),
        ("detector", sam2, r"looks like SAM 2 in transformers' layout"),
        ("tokenizer", demo["masker"], sam_like),
        ("vit", demo["masker"], sam_like),
    ):
        models = {"detector": UNTRAINED, "vocabulary": UNTRAINED, "masker": None, role: file}
        settings = {"models": models, "labels": {} if role in ("detector", "masker") else None}
        settings |= {"tokens": {} if role == "tokenizer" else None, "features": {} if role == "vit" else None}
        with pytest.raises(WeightsMismatchError, match=message):
            check_loadable(AnnotatorConfig.parse(settings))
