"""Labels on several grids in one build: the models are asked once, and each grid has what a build on it alone has."""

import json
from functools import partial

import builds
import pytest
from shard_data import stored

from patchmint.annotate.models import AnnotationModels
from patchmint.config import DEMO, BuildConfig
from patchmint.demo.dataset import write_dataset
from patchmint.demo.documents import write_documents
from patchmint.images.decode import decode_image
from patchmint.jobs.extend import settings_of
from patchmint.shards.manifest import read_manifest
from patchmint.shards.verify import verify
from patchmint.storage import open_storage

GRIDS = {"llava-1-5-finetune": "llava-1.5-finetune", "qwen3-vl": "qwen3-vl", "internvl3": "internvl3"}
"""Presets by the names that they have in shards; the first is the first everywhere."""

SCENES, DOCUMENTS = 6, 3


def config_of(source, out, **settings):
    return BuildConfig.parse(
        {
            "source": source,
            "output": {"uri": str(out), "samples_per_shard": 4},
            "models": DEMO,
            "runner": {"device": "cpu", "batch_size": 4},
        }
        | settings
    )


def extension_of(base, out, **settings):
    made = settings_of(read_manifest(open_storage(base)), str(base), str(out), settings.keys())
    return BuildConfig.load(made | {"runner": {"device": "cpu", "batch_size": 4}}, settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data sets: `all` and one for each grid, of pictures, `documents` on two grids and `extended`.

    `seen.json` has how many images the models were asked about in each build.
    """
    folder = tmp_path_factory.mktemp("grids")
    write_dataset(folder / "scenes", seed=77, count=SCENES)
    write_documents(folder / "turns", seed=77, count=DOCUMENTS)
    assert builds.exit_code(builds.fork(partial(_build_all, folder))) == 0
    return folder


def _build_all(folder):
    pictures = {"kind": "coco", "uri": str(folder / "scenes")}
    turns = {"kind": "conversations", "uri": str(folder / "turns"), "annotations": "conversations.json"}
    turns |= {"documents": True, "texts": "all"}
    two = list(GRIDS.values())[:2]
    given = {
        "all": partial(config_of, pictures, grids=list(GRIDS.values())),
        **{name: partial(config_of, pictures, grid=preset) for name, preset in GRIDS.items()},
        "documents": partial(config_of, turns, grids=two, tokens=None),
        "document-alone": partial(config_of, turns, grid=two[1], tokens=None),
        "extended": lambda out: extension_of(folder / "llava-1-5-finetune", out, grids=two),
    }
    ask, seen = AnnotationModels.ask, {}
    with builds.warmed(), pytest.MonkeyPatch.context() as patch:
        for name, config in given.items():

            def counted(models, images, texts, inputs=None, name=name):
                seen[name] = seen.get(name, 0) + len(images)
                return ask(models, images, texts, inputs)

            patch.setattr(AnnotationModels, "ask", counted)
            builds.build_here(config(folder / name).model_dump(mode="json"), folder / name)
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
    assert seen["documents"] == seen["document-alone"]


@pytest.mark.parametrize("name", ["all", "documents", "extended"])
def test_they_are_verified(made, name):
    assert list(verify(open_storage(made / name), decode=_size_of)) == []
