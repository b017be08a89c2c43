"""Labels on several grids in one build: the models are asked once, and each grid has what a build on it alone has."""

import json
from functools import partial

import builds
import pytest
from shard_data import joined, stored

from patchmint.annotate.models import AnnotationModels
from patchmint.api import Annotator
from patchmint.config import DEMO, UNTRAINED, AnnotatorConfig, BuildConfig
from patchmint.config.grids import named_grids
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.extension import check_extension
from patchmint.datasets.verify import verify_all
from patchmint.demo.dataset import read_truth, write_dataset
from patchmint.demo.documents import write_documents
from patchmint.demo.score import ShardFigures
from patchmint.errors import ConfigError, InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.stats.collect import collect_stats
from patchmint.jobs.extend import settings_of
from patchmint.shards.manifest import read_manifest
from patchmint.shards.verify import verify_tars
from patchmint.storage import open_storage
from patchmint.training import StageDataset, StageLoader

GRIDS = {"llava-1-5-finetune": "llava-1.5-finetune", "qwen3-vl": "qwen3-vl"}
"""Presets by the names that they have in shards; the first is the first everywhere."""

TWO = list(GRIDS.values())
SCENES, DOCUMENTS = 4, 2


def config_of(out, **settings):
    return BuildConfig.parse(
        {
            "output": {"uri": str(out), "samples_per_shard": 4},
            "models": DEMO,
            "runner": {"device": "cpu", "batch_size": 4},
        }
        | settings
    )


def extension_of(base, name="x", columns=(), **settings):
    manifest = open_dataset(base, columns=columns).manifest
    made = settings_of(manifest, str(base), f"{base}/columns/{name}", settings.keys(), columns)
    return BuildConfig.load(made | {"runner": {"device": "cpu", "batch_size": 4}}, settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data sets: `all` grids and each alone, by the demo's models; and the same of documents, by others.

    `turns-first` has the other grid in a column. `seen.json` says about how many images the models were asked in each.
    """
    folder = tmp_path_factory.mktemp("grids")
    write_dataset(folder / "scenes", seed=77, count=SCENES)
    write_documents(folder / "turns", seed=77, count=DOCUMENTS)
    assert builds.exit_code(builds.fork(partial(_build_all, folder))) == 0
    return folder


def _build_all(folder):
    pictures = {"kind": "coco", "uri": str(folder / "scenes")}
    conversations = {"kind": "conversations", "uri": str(folder / "turns"), "annotations": "conversations.json"}
    turns = {"source": conversations | {"documents": True, "texts": "all"}}
    turns |= {"models": {"segmenter": "stand-in", "tokenizer": "stand-in"}}
    given = {
        "all": partial(config_of, source=pictures, grids=TWO),
        **{name: partial(config_of, source=pictures, grid=preset) for name, preset in GRIDS.items()},
        "turns-all": partial(config_of, **turns, grids=TWO),
        "turns-first": partial(config_of, **turns, grid=TWO[0]),
        "turns-second": partial(config_of, **turns, grid=TWO[1]),
    }
    more = folder / "turns-first/columns/grids"
    ask, seen = AnnotationModels.ask, {}
    with builds.warmed(), pytest.MonkeyPatch.context() as patch:
        for name, config in given.items():

            def counted(models, images, texts, inputs=None, name=name):
                seen[name] = seen.get(name, 0) + len(images)
                return ask(models, images, texts, inputs)

            patch.setattr(AnnotationModels, "ask", counted)
            builds.build_here(config(folder / name).model_dump(mode="json"), folder / name)
        patch.setattr(AnnotationModels, "ask", ask)
        builds.build_here(extension_of(folder / "turns-first", more.name, grids=TWO).model_dump(mode="json"), more)
    (folder / "seen.json").write_text(json.dumps(seen))


def _size_of(data):
    return decode_image(data).size


def arrays(image, ending, grid):
    return image.members[image.ending_of(ending.replace(".npy", f".{grid}.npy") if grid else ending)]


def test_each_grid_has_what_a_build_on_it_alone_has(made):
    first, *further = GRIDS
    for sample, *alone in zip(*(stored(made / name) for name in ("all", *GRIDS)), strict=True):
        assert list(sample.members) == [
            *("jpg", "json", "txt", "selector.npy", "coverage.npy"),
            *(f"{kind}.{grid}.npy" for grid in further for kind in ("selector", "coverage")),
            "vqgan.npy",
        ]
        for name, own in zip(GRIDS, alone, strict=True):
            for ending in ("selector.npy", "coverage.npy"):
                (image,) = sample.images
                assert arrays(image, ending, "" if name == first else name) == own.members[ending]
            seen = sample if name == first else sample.on_grid(name)
            assert seen.document.grid.model_dump(exclude={"name"}) == own.document.grid.model_dump()
        assert sample.document.phrases == alone[0].document.phrases
        told = json.loads(sample.members["json"])
        assert [grid["name"] for grid in told.pop("further_grids")] == further
        assert told == json.loads(alone[0].members["json"])


def test_the_models_are_asked_once(made):
    seen = json.loads((made / "seen.json").read_text())
    assert seen["all"] == seen["qwen3-vl"] == SCENES
    assert seen["turns-all"] == seen["turns-second"]


@pytest.mark.parametrize("name", ["all", "turns-all", "turns-first"])
def test_they_are_verified(made, name):
    assert list(verify_all(open_storage(made / name), decode=_size_of)) == []
    assert list(verify_tars(open_storage(made / name), ["shards/000000.tar"])) == []
    assert open_dataset(made / name).grid_names == tuple(GRIDS)


def test_documents_have_them_for_each_image(made):
    for sample, own in zip(stored(made / "turns-all"), stored(made / "turns-second"), strict=True):
        for image, alone, turned in zip(sample.images, own.images, sample.on_grid("qwen3-vl").images, strict=True):
            assert image.array("selector.qwen3-vl.npy").tolist() == alone.selector.tolist() == turned.selector.tolist()
            assert image.array("coverage.qwen3-vl.npy").tolist() == alone.coverage.tolist()
            assert turned.info.placement.token_order().tolist() == alone.info.placement.token_order().tolist()
            assert image.selector.shape[1:] == (24, 24)
    longest = "k" * read_manifest(open_storage(made / "turns-all")).layout.longest_key
    assert len(f"{longest}.999.coverage.qwen3-vl.npy") == 100


def test_extending_adds_a_grid_and_leaves_the_first_as_it_is(made):
    base = made / "turns-first"
    for sample, before, both in zip(joined(base), stored(base), stored(made / "turns-all"), strict=True):
        assert sample.members == both.members
        assert {ending: data for ending, data in sample.members.items() if ending in before.members} == {
            **before.members,
            "json": sample.members["json"],
        }
    assert open_dataset(base).manifest.layout == read_manifest(open_storage(made / "turns-all")).layout
    features = extension_of(base, columns=["grids"], features={})
    assert (features.labels, features.grids) == (None, ())
    labels = extension_of(base, columns=["grids"], labels={"box_threshold": 0.5})
    assert labels.grids == tuple(TWO)
    assert not labels.keeps_labels
    with pytest.raises(ConfigError, match="or add a grid: --grids"):
        check_extension(extension_of(base, grid="qwen3-vl", tokens={}))
    with pytest.raises(ConfigError, match="has labels already: qwen3-vl"):
        check_extension(extension_of(base, columns=["grids"], grids=[TWO[0], "internvl3"]))
    with pytest.raises(ConfigError, match="give one of them, or the grid"):
        extension_of(base, grids=["qwen3-vl", "internvl3"])


@pytest.mark.parametrize("name", GRIDS)
def test_labels_are_good_on_each(made, name):
    truth, figures = read_truth(made / "scenes"), ShardFigures()
    for sample in stored(made / "all"):
        scene = truth.scenes[sample.document.id]
        figures.add(sample if name == "llava-1-5-finetune" else sample.on_grid(name), scene)
    assert figures.summary()["f1"] > 0.9


@pytest.mark.parametrize("name", GRIDS)
def test_loaders_and_statistics_read_either(made, name):
    given = {"shuffle": False, "images": False}
    several, alone = StageDataset(made / "all", 1, **given, grid=name), StageDataset(made / name, 1, **given)
    batch, expected = (next(iter(StageLoader(each, SCENES))) for each in (several, alone))
    for field in ("selector", "coverage", "patch_mask", "token_order", "codes"):
        assert getattr(batch, field).tolist() == getattr(expected, field).tolist()
    told, own = (open_dataset(made / "all").on_grid(name), open_dataset(made / name))
    for kind in ("positions", "labels"):
        assert getattr(collect_stats(told, 0), kind) == getattr(collect_stats(own, 0), kind)
    with pytest.raises(ConfigError, match="no labels on a grid 'internvl3'"):
        StageDataset(made / "all", 1, grid="internvl3")


def test_annotations_have_them(made):
    image = next((made / "scenes" / "train2017").iterdir())
    with pytest.warns(UserWarning, match="untrained"):
        both = Annotator.from_preset(UNTRAINED, grids=TWO, tokens=None).annotate(image, "a red circle")
    (further,) = both.to_document().further_grids
    assert (further.name, further.selector) == ("qwen3-vl", both.on_grid("qwen3-vl").selector.tolist())
    assert both.on_grid(TWO[0]) is both
    assert both.on_grid("qwen3-vl").selector.shape[1:] == both.on_grid("qwen3-vl").placement.shape
    assert both.on_grid("qwen3-vl").overlay().size
    with pytest.raises(InputError, match="grids: llava-1-5-finetune, qwen3-vl"):
        both.on_grid("pixtral")


def test_names_of_grids():
    squash = {"rows": 48, "cols": 48, "patch_px": 16, "fit": "squash"}
    merged = {"preset": "qwen3-vl", "merge": 1}
    grids = AnnotatorConfig.parse({"grids": ["gemma3-pan-and-scan", squash, "qwen3-vl", merged]}).grids
    assert list(named_grids(grids)) == ["gemma3-pan-and-sca", "squash-48x48", "qwen3-vl", "qwen3-vl-2"]
    one = AnnotatorConfig.parse({"grids": ["qwen3-vl"]})
    assert (one.grid, one.grids) == ("qwen3-vl", ())
    again = AnnotatorConfig.parse(AnnotatorConfig.parse({"grids": [squash, "qwen3-vl"]}).model_dump(mode="json"))
    assert list(again.further_grids) == ["qwen3-vl"]
    for settings, message in (
        ({"grids": ["qwen3-vl", {"preset": "qwen3-vl"}]}, "two of them are the same; leave out number 2"),
        ({"grids": "qwen3-vl"}, "grids: it must be a list"),
        ({"grids": ["qwen3-vl", "qwen3"]}, "there is no grid preset 'qwen3'"),
        ({"grids": TWO, "labels": None}, "labels are null"),
        ({"grids": TWO, "grid": "qwen3-vl"}, "grid and grids: give one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            AnnotatorConfig.parse(settings)
