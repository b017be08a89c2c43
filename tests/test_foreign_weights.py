"""Weights that fit no role as they are: the error says what they look like, and what to do."""

import json
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from patchmint.annotate.preflight import check_loadable
from patchmint.config import UNTRAINED, AnnotatorConfig
from patchmint.errors import ConfigError, WeightsCorruptError, WeightsMismatchError, WeightsMissingError
from patchmint.weights.loading import load_into, load_state

OWLV2 = "class_head.logit_shift.weight"
SAM = "vision_encoder.patch_embed.projection.weight"
SAM2 = "mask_decoder.conv_s0.weight"
SAM3 = "dot_product_scoring.query_proj.weight"
DINO = "model.query_position_embeddings.weight"


def write(folder, *names, config=None, file="model.safetensors"):
    """A file with tensors of these names, and a config.json beside it."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({name: torch.ones(4, 4) for name in names}, folder / file, {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(config if config.startswith("{") else json.dumps({"model_type": config}))
    return folder


def check(role, path):
    models = {"detector": UNTRAINED, "vocabulary": UNTRAINED, "masker": None, "segmenter": None, role: str(path)}
    if role == "detector":
        del models["vocabulary"]
    settings = {"models": models, "labels": {} if role in ("detector", "masker", "segmenter") else None}
    settings |= {"tokens": {} if role == "tokenizer" else None, "features": {} if role == "vit" else None}
    check_loadable(AnnotatorConfig.parse(settings))


@pytest.mark.parametrize(
    ("role", "names", "config", "message"),
    [
        ("detector", [OWLV2], None, r"like OWLv2, but the config\.json beside it is missing: .*model_type owlv2\)"),
        ("detector", [OWLV2], '{"model_type": "owl', r"like OWLv2, but the config\.json beside it has no model_type"),
        ("detector", [OWLV2], "clip", r"like OWLv2, but the config\.json beside it says clip"),
        ("detector", [DINO], None, r"like Grounding DINO in transformers' layout, but the config\.json .* is missing"),
        ("detector", [DINO], "sam", r"like Grounding DINO .* says sam: .*grounding-dino or mm-grounding-dino"),
        ("detector", [SAM], "sam", r"like SAM in transformers' layout: set it as models\.masker"),
        ("detector", ["model.embed_tokens.weight"], "llama", "like a language model"),
        ("masker", [SAM], None, r"like SAM in transformers' layout, but .* is missing: .*model_type sam\)"),
        ("masker", [SAM2], None, r"like SAM 2 in transformers' layout, but .* is missing: .*sam2 or sam2_video"),
        ("masker", ["embeddings.patch_embedding.weight"], None, r"like CLIP or SigLIP: set it as models\.vit"),
        ("segmenter", [SAM3], None, r"like SAM 3, but .* is missing"),
        ("segmenter", [SAM3], "sam2", r"like SAM 3, but .* says sam2: .*sam3 or sam3_video"),
        ("segmenter", ["detector.backbone.vision_backbone.trunk.patch_embed.proj.weight"], None, "hub:facebook/sam3"),
        ("vit", ["embeddings.patch_embeddings.weight"], None, r"like DINOv3, but .* is missing: .*dinov3_vit"),
        ("vit", ["embeddings.patch_embeddings.projection.weight"], "dinov2", "like ViT or DINOv2: give CLIP"),
        (
            "vit",
            ["visual.trunk.patch_embed.proj.weight"],
            None,
            "in open_clip's layout: give the folder or `hub:` name",
        ),
        ("vit", ["model.visual.patch_embed.proj.weight"], "glm4v", "like Qwen-VL, or .* must have model_type qwen2_vl"),
        ("tokenizer", ["encoder.down_blocks.0.resnets.0.conv1.weight"], None, "like an autoencoder of diffusers"),
        ("vit", ["model.layers.0.q_proj.lora_A.weight"], None, r"like a LoRA adapter: merge it .*merge_and_unload"),
        ("vit", ["blocks.0.weight", "blocks.0.weight_scale_inv"], None, "looks quantised: give the model in float32"),
    ],
)
def test_a_file_says_what_it_looks_like(role, names, config, message, tmp_path):
    with pytest.raises(WeightsMismatchError, match=message):
        check(role, write(tmp_path / "model", *names, config=config))


def in_parts(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def an_adapter(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def several(folder):
    (folder / "model.safetensors").rename(folder / "epoch1.safetensors")
    (folder / "epoch2.pth").touch()


def checkpoints(folder):
    for name in ("checkpoint-100", "checkpoint-200"):
        write(folder / name, OWLV2)
    (folder / "model.safetensors").unlink()


def gguf(folder):
    (folder / "model.safetensors").rename(folder / "model-q4_0.gguf")


def nothing(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_parts, r"in several files \(model\.safetensors\.index\.json\), .*save it as one file .*max_shard_size"),
        (an_adapter, r"adapter_config\.json, so it is a LoRA adapter; merge it"),
        (several, r"it has no model\.safetensors or .*, but epoch1\.safetensors, epoch2\.pth; give the path of one"),
        (checkpoints, r"a level deeper; give one of its folders: checkpoint-100, checkpoint-200$"),
        (gguf, r"only model-q4_0\.gguf, which patchmint doesn't read; give the model's safetensors"),
        (nothing, r"it has no model\.safetensors or pytorch_model\.bin; give the file itself, or another folder$"),
    ],
)
def test_a_folder_without_a_file_of_weights_says_what_it_has(change, message, tmp_path):
    folder = write(tmp_path / "model", OWLV2, config="owlv2")
    change(folder)
    with pytest.raises(WeightsMissingError, match=message):
        check("detector", folder)


def test_a_folder_without_words_is_known_by_its_weights_first(tmp_path):
    with pytest.raises(WeightsMismatchError, match=r"set its folder as models\.masker"):
        check("detector", write(tmp_path / "sam2", SAM2, config="sam2"))
    with pytest.raises(WeightsMissingError, match=r"no vocab\.txt or .* put the one there .* or name it as models"):
        check("detector", write(tmp_path / "owlv2", OWLV2, config="owlv2"))
    with pytest.raises(WeightsMissingError, match=r"no tokenizer\.json; put the one there"):
        check("segmenter", write(tmp_path / "sam3", SAM3, config="sam3"))


def test_owlv2_does_not_read_the_words_of_bert(tmp_path):
    """They are the default where a file is named, and not its folder."""
    file = write(tmp_path / "owlv2", OWLV2, config="owlv2") / "model.safetensors"
    with pytest.raises(ConfigError, match=r"not bert-base-uncased-vocab; give its folder as models\.detector"):
        check("detector", file)


@pytest.mark.parametrize(
    ("names", "config", "file", "message"),
    [
        ([SAM2], "sam", "model.safetensors", r"like SAM 2 in transformers' layout, but .* says sam"),
        ([OWLV2, "box.weight_scale"], "owlv2", "model.safetensors", "looks quantised"),
        ([OWLV2], "owlv2", "model-00001-of-00002.safetensors", "only part 1 of 2 of a model, .*max_shard_size"),
        ([OWLV2], "owlv2", "model-00001-of-00001.safetensors", "doesn't fit a toy"),
        ([OWLV2], "owlv2", "model.safetensors", "doesn't fit a toy"),
    ],
)
def test_tensors_that_do_not_fit_a_model(names, config, file, message, tmp_path):
    state = load_state(write(tmp_path / "model", *names, config=config, file=file) / file)
    with pytest.raises(WeightsMismatchError, match=message):
        load_into(nn.Linear(3, 2), state, what="a toy")


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(500))
    with pytest.raises(WeightsCorruptError, match=r"a GGUF file, made for llama\.cpp"):
        load_state(tmp_path / "model.gguf")
    with zipfile.ZipFile(tmp_path / "model.jit", "w") as archive:
        for name in ("model/data.pkl", "model/constants.pkl"):
            archive.writestr(name, b"\x80\x02c__torch__\nModel\n.")
    with pytest.raises(WeightsCorruptError, match="a TorchScript program, not a checkpoint"):
        load_state(tmp_path / "model.jit")
    whole = write(tmp_path / "model", OWLV2) / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(WeightsCorruptError, match="a cut or damaged safetensors file"):
        check("detector", whole.parent)


def test_a_path_gets_no_names_of_plugins(tmp_path):
    for name, offered in ((str(tmp_path / "model.pth"), False), ("hub:nobody", False), ("my-masker", True)):
        with pytest.raises(WeightsMissingError) as caught:
            check("masker", name)
        assert ("plug-ins:" in str(caught.value)) == offered
