"""Grids against the processors and models of transformers; benchmarks/consumers.py does it with 300 sizes.

And the same grids from the files that consumers publish.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from builds import benchmark_modules

from patchmint.annotate.preflight import check_loadable
from patchmint.api import Annotator
from patchmint.api.document import AnnotationDocument
from patchmint.config import UNTRAINED, AnnotatorConfig, BuildConfig
from patchmint.config.grids import resolve_grid
from patchmint.errors import ConfigError, InputError
from patchmint.geometry import GRID_PRESETS, Fit, PatchGrid, grid_preset
from patchmint.geometry.presets import merged
from patchmint.geometry.tiles import NearestAspect

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="the processors have other names before transformers 5"
)
(consumers,) = benchmark_modules("consumers")


@pytest.mark.parametrize("name", consumers.CONSUMERS)
def test_a_mark_is_found_in_the_token_of_its_cell(name):
    sizes = [(1, 9), (241, 483), (64, 901)]
    tally = consumers.check(consumers.CONSUMERS[name], GRID_PRESETS[name], sizes)
    assert (tally.misses, tally.examples, tally.refused) == (0, [], 0)
    assert tally.checks >= 3 * len(sizes)


@pytest.mark.parametrize("name", ["qwen2-vl", "glm-4.6v", "paddleocr-vl"])
def test_what_a_processor_refuses_the_grid_refuses(name):
    tally = consumers.check(consumers.CONSUMERS[name], GRID_PRESETS[name], [(1, 250), (250, 1), (1, 199)])
    assert (tally.misses, tally.refused) == (0, 2)


def test_a_turned_image_is_seen_upright_by_both():
    name = "siglip2-naflex"
    tally = consumers.check(consumers.CONSUMERS[name], GRID_PRESETS[name], [(61, 147)] * 20)  # two of them turned
    assert tally.misses == 0


def test_patches_that_are_not_merged_come_in_the_encoders_order():
    for name, seen in (("qwen3-vl", consumers.flattened(1)), ("internvl3", consumers.blocks(14))):
        grid = merged(GRID_PRESETS[name], 1)
        assert consumers.check(replace(consumers.CONSUMERS[name], seen=seen), grid, [(241, 483)]).misses == 0
        assert grid.place((241, 483)).tokens == 4 * GRID_PRESETS[name].place((241, 483)).tokens


def test_a_wrong_grid_is_found_out():
    wrong = {
        "qwen3-vl": replace(GRID_PRESETS["qwen3-vl"], least=3136),
        "llava-next-hf": GRID_PRESETS["llava-1.6-original"],
        "internvl3": replace(GRID_PRESETS["internvl3"], overview="first"),
        "llava-1.5-hf": GRID_PRESETS["llava-1.5-finetune"],
    }
    for name, grid in wrong.items():
        assert consumers.check(consumers.CONSUMERS[name], grid, [(201, 297), (90, 150)]).misses > 0, name


@pytest.mark.parametrize("name", ["llava-next-hf", "qwen2-vl"])
def test_a_model_makes_as_many_tokens(name):
    found = consumers.end_to_end(name, [(333, 222), (64, 1000)])
    assert found["tokens"] > 0
    assert found["differ"] == 0


def test_llavas_tokens_are_those_of_the_canvas_without_its_padding():
    """The order itself, by the model's own packing of the numbers of the cells."""
    placement = grid_preset("llava-next-hf").place((200, 700))
    cells = torch.arange(1.0, np.prod(placement.shape) + 1).reshape(len(placement.views), -1, 1)
    vision = SimpleNamespace(image_size=336, patch_size=14)
    owner = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=consumers._NEXT))
    pack = transformers.LlavaNextModel.pack_image_features
    packed, _ = pack(owner, [cells], [[200, 700]], "default", image_newline=torch.zeros(1))
    assert (packed[0][:, 0].int().numpy() - 1).tolist() == placement.token_order().tolist()
    order = placement.token_order()
    assert (order == -1).sum() == 20  # a newline for each row
    dropped = np.setdiff1d(np.arange(np.prod(placement.shape)), order)
    assert len(dropped) == 4 * 72
    assert 0 < placement.inside.reshape(-1)[dropped].max() < 0.5  # LLaVA drops a row that shows a little of the image


# ---- from the consumer's files ----


def written(folder, consumer, nested=False):
    folder.mkdir(exist_ok=True)
    settings = consumer.file()
    model = settings.pop("model")
    vision = {key: value for key, value in model.items() if key in ("patch_size", "hidden_stride")}
    top = {key: value for key, value in model.items() if key not in vision}
    if nested:
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "x", "image_processor": settings}))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(top | {"vision_config": vision}))
    return folder


def parsed(grid):
    return AnnotatorConfig.parse({"models": UNTRAINED, "grid": grid}).grid


@pytest.mark.parametrize("name", consumers.CONSUMERS)
def test_a_processors_file_gives_the_grid_of_its_preset(name, tmp_path):
    for nested in (False, True):
        folder = written(tmp_path / str(nested), consumers.CONSUMERS[name], nested)
        assert resolve_grid(parsed({"processor": str(folder)})) == grid_preset(name)
    file = tmp_path / "False" / "preprocessor_config.json"
    config = parsed({"processor": str(file)})
    assert resolve_grid(config) == grid_preset(name)
    # What is stored says everything, and no path.
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert str(tmp_path) not in json.dumps(stored)
    assert resolve_grid(parsed(stored)) == grid_preset(name)


def test_published_files_of_earlier_years_are_read():
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 336, "size": 336, "do_center_crop": True}
    grid = resolve_grid(parsed({"processor": clip | {"model": {"patch_size": 14}}}))
    assert grid == grid_preset("llava-1.5-hf")
    qwen = {"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 3136, "max_pixels": 12845056}
    assert resolve_grid(parsed({"processor": qwen})) == grid_preset("qwen2-vl")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, r"no grid is known .*SamImageProcessor.*\(known: CLIPImage"),
        ({}, "there is no image_processor_type"),
        ({"image_processor_type": "SiglipImageProcessor", "size": 384}, r"patch_size isn't given.*config\.json"),
        ({"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 1.5}, r"merge_size is 1\.5, not a whole"),
        ({"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 1e300}, r"max_pixels is 1e\+300, not a whole"),
        ({"image_processor_type": "GotOcr2ImageProcessor"}, "model_type"),
        ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 2, "width": 3}}, "aren't square"),
        ({"image_processor_type": "Molmo2ImageProcessor", "pooling_size": 2}, "can't be read"),
        ("/nowhere/at/all", "there is no /nowhere/at/all"),
    ],
)
def test_what_a_grid_cannot_be_read_from_is_refused(processor, message):
    with pytest.raises(ConfigError, match=message):
        parsed({"processor": processor})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"preset": "qwen3-vl", "processor": {}}, "not both"),
        ({"merge": 2}, "give a preset or a processor"),
        ({"preset": "qwen3"}, "did you mean 'qwen3-vl'"),
        ({"preset": "llava-1.5-hf", "merge": 2}, "aren't merged"),
        ({"preset": "internvl3", "max_pixels": 9}, "as Qwen-VL does"),
        ({"preset": "qwen3-vl", "merge": 3}, "no whole cells of 3 x 3"),
        ({"preset": "qwen3-vl", "max_pixel": 3}, "did you mean 'max_pixels'"),
        ({"rows": 3}, "grid.cols: it must be given"),
        (3, r"grid: it must be a mapping \(keys: rows"),
    ],
)
def test_contradictory_grids_are_refused(grid, message):
    with pytest.raises(ConfigError, match=message):
        parsed(grid)


def test_limits_of_pixels_and_grids_spelled_out():
    small = resolve_grid(parsed({"preset": "qwen3-vl", "max_pixels": 100_352}))
    assert small.place((1000, 1000)).shape == (9, 9)
    siglip = {"rows": 27, "cols": 27, "patch_px": 14, "fit": "squash", "input_size": 384}
    assert resolve_grid(parsed(siglip)) == grid_preset("siglip-so400m-384")
    assert parsed(siglip).model_dump(mode="json") == siglip | {"input_size": [384, 384]}
    dino = {"rows": 16, "cols": 16, "patch_px": 14, "fit": "crop", "short_edge": 256}
    assert resolve_grid(parsed(dino)) == grid_preset("dinov2-224")
    anyres = {"rows": 2, "cols": 2, "patch_px": 14, "fit": "anyres", "canvases": [[28, 56], [56, 28]]}
    assert resolve_grid(parsed(anyres)) == PatchGrid(2, 2, 14, Fit.ANYRES, canvases=((28, 56), (56, 28)))
    assert resolve_grid("llava-1.6") == grid_preset("llava-1.6-original")  # data sets of earlier versions name it


# ---- what uses grids ----


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
def test_features_refuse_what_they_cannot_lie_on():
    build = {"source": {"kind": "folder", "uri": "in"}, "output": {"uri": "out"}, "models": UNTRAINED}
    for grid in ("internvl3", "molmo2", "llava-onevision-hf"):
        check_loadable(BuildConfig.parse(build | {"grid": grid, "features": None}))
        with pytest.raises(ConfigError, match="features can't have this grid: of grids of tiles only"):
            check_loadable(BuildConfig.parse(build | {"grid": grid, "features": {}}))
    for grid in ("llava-next-hf", "qwen3-vl", {"preset": "siglip2-naflex"}):
        check_loadable(BuildConfig.parse(build | {"grid": grid, "features": {}}))
    with pytest.raises(ConfigError, match="features can't have this grid"):
        Annotator.from_preset(UNTRAINED, grid="internvl3", features={})


@pytest.mark.filterwarnings("ignore::patchmint.UntrainedWarning")
@pytest.mark.parametrize("grid", ["qwen3-vl", "internvl3", "molmo2"])
def test_an_annotator_labels_on_every_kind(grid):
    image = np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8)
    annotator = Annotator.from_preset(UNTRAINED, grid=grid, tokens=None, device="cpu")
    annotation = annotator.annotate(image, ["a cat", "a dog"])
    placement = grid_preset(grid).place((90, 200))
    assert annotation.selector.shape == annotation.coverage.shape == (2, *placement.shape)
    document = AnnotationDocument.model_validate_json(annotation.to_document().model_dump_json(by_alias=True))
    assert document.grid.view_cells == [(view.rows, view.cols) for view in placement.views]
    labels = annotation.selector[0].reshape(-1)[placement.token_order()]
    assert labels.shape == (placement.tokens,)
    assert annotation.overlay().size[0] >= 560


def test_the_documented_table_is_true():
    """A row for each preset, with the cells of a photograph of 640 x 480, and how often a benchmark checks it."""
    lines = (Path(__file__).parent.parent / "docs" / "grids.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 8]
    table = {row[0].strip("`"): row for row in rows if row[0].startswith("`") and row[0] != "`grid`"}
    assert list(table) == list(GRID_PRESETS)
    for name, (_, _, kind, _, cells, tokens, _) in table.items():
        placement = grid_preset(name).place((480, 640))
        sizes = [f"{view.rows} x {view.cols}" for view in placement.views]
        words = [f"{sizes.count(size)} x ({size})" if sizes.count(size) > 1 else size for size in dict.fromkeys(sizes)]
        assert (cells, tokens) == (" + ".join(words), str(placement.tokens)), name
        if name in consumers.CONSUMERS:
            assert kind.split()[0] == consumers.CONSUMERS[name].kind, name


def test_consumers_refusals_are_input_errors():
    for name in ("qwen2-vl", "glm-4.6v", "pixtral"):
        with pytest.raises(InputError, match="too long and narrow"):
            grid_preset(name).place((1, 5000))
    with pytest.raises(ConfigError, match="no pixels"):
        grid_preset("internvl3").place((0, 3))


def test_internvls_tiles():
    """`get_optimal_tiled_canvas`: of one shape the larger canvas, unless it is over twice the image's pixels."""
    counts = {(448, 448): (1, 1), (1000, 1000): (3, 3), (500, 1000): (1, 2), (1500, 3000): (2, 4), (10, 1000): (1, 12)}
    for size, (rows, cols) in counts.items():
        tiling = NearestAspect(1, 12)(size, 448)
        assert (len(tiling.rows), len(tiling.cols)) == (rows, cols), size
