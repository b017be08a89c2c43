"""Codes of several tokenizers in one build: each has what a build with it alone has, and every reader finds either."""

import json
from functools import partial

import builds
import numpy as np
import pytest
from PIL import Image
from shard_data import stored
from typer.testing import CliRunner

from patchmint.api import Annotator
from patchmint.cli import app
from patchmint.config import DEMO, UNTRAINED, AnnotatorConfig, BuildConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import sample_at
from patchmint.datasets.rows import read_table
from patchmint.demo.dataset import write_dataset
from patchmint.demo.documents import write_documents
from patchmint.errors import ConfigError, InputError
from patchmint.images.decode import decode_image
from patchmint.inspection.diff.compare import compare
from patchmint.inspection.gallery.remake import offer_decoded
from patchmint.inspection.stats.collect import collect_stats
from patchmint.jobs.extend import settings_of
from patchmint.shards.checks import check_document
from patchmint.shards.manifest import held_settings, read_manifest
from patchmint.shards.sidecar import scan_tar, stored_row
from patchmint.shards.verify import verify, verify_tars
from patchmint.storage import open_storage
from patchmint.training import Codebook, SampleDecoder, StageDataset, StageLoader

TOKENIZERS = {
    "fine": {"tokenizer": "demo-tokenizer", "size": 128},
    "coarse": {"tokenizer": UNTRAINED, "size": 64, "fit": "squash"},
    "native": {"tokenizer": "stand-in-native"},
}
"""The grid of the last depends on the image."""

SCENES, DOCUMENTS = 5, 2


def config_of(out, **settings):
    return BuildConfig.parse(
        {
            "output": {"uri": str(out), "samples_per_shard": 3},
            "models": DEMO,
            "labels": None,
            "runner": {"device": "cpu", "batch_size": 4},
        }
        | settings
    )


def alone(name):
    """Settings of a build with one of them alone."""
    tokens = dict(TOKENIZERS[name])
    return {"models": {"tokenizer": tokens.pop("tokenizer")}, "tokens": tokens}


def extension_of(base, out, **settings):
    made = settings_of(read_manifest(open_storage(base)), str(base), str(out), settings.keys())
    return BuildConfig.load(made | {"runner": {"device": "cpu", "batch_size": 4}}, settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of data sets: `all` tokenizers and each alone.

    Of documents `turns` with all, `turns-fine` with one; its columns `codes` with the others, `again` with another.
    """
    folder = tmp_path_factory.mktemp("tokenizers")
    write_dataset(folder / "scenes", seed=77, count=SCENES)
    for number, path in enumerate(sorted((folder / "scenes" / "train2017").iterdir())):
        Image.open(path).resize((96 + 24 * number, 80)).save(path)
    write_documents(folder / "in", seed=77, count=DOCUMENTS)
    assert builds.exit_code(builds.fork(partial(_build_all, folder))) == 0
    return folder


def _build_all(folder):
    pictures = {"source": {"kind": "coco", "uri": str(folder / "scenes")}}
    conversations = {"kind": "conversations", "uri": str(folder / "in"), "annotations": "conversations.json"}
    turns = {"source": conversations | {"documents": True, "texts": "all"}}
    others = {name: TOKENIZERS[name] for name in ("coarse", "native")}
    given = {
        "all": partial(config_of, **pictures, tokens=TOKENIZERS),
        **{name: partial(config_of, **pictures | alone(name)) for name in TOKENIZERS},
        "turns": partial(config_of, **turns, tokens=TOKENIZERS),
        "turns-fine": partial(config_of, **turns | alone("fine")),
        "turns-fine/columns/codes": partial(extension_of, folder / "turns-fine", tokens=others),
        "turns-fine/columns/again": partial(
            extension_of, folder / "turns-fine", tokens={"coarse": TOKENIZERS["coarse"] | {"size": 32}}
        ),
    }
    with builds.warmed():
        for name, config in given.items():
            builds.build_here(config(folder / name).model_dump(mode="json"), folder / name)


def _size_of(data):
    return decode_image(data).size


def alone_member(name):
    return "stand-in-native" if name == "native" else "vqgan"


def read_rows(dataset):
    return [row for shard in dataset.shards for row in read_table(dataset, shard).to_pylist()]


def test_each_has_the_codes_of_a_build_with_it_alone(made):
    manifest = read_manifest(open_storage(made / "all"))
    for number, (name, tokens) in enumerate(zip(TOKENIZERS, manifest.layout.all_tokens, strict=True)):
        own, member = read_manifest(open_storage(made / name)), alone_member(name)
        assert tokens.model_copy(update={"member": member}) == own.layout.tokens
        if name != "native":  # what a plug-in is called doesn't stand in the manifest
            assert Codebook.of(manifest, name) == Codebook.of(own)
        for sample, single in zip(stored(made / "all"), stored(made / name), strict=True):
            assert sample.members[f"codes.{name}.npy"] == single.members[f"{member}.npy"]
            told = json.loads(sample.members["json"])
            shown = (told["tokens"], *told["further_tokens"])[number]
            assert shown | {"member": member} == json.loads(single.members["json"])["tokens"]
    rules = ["nearest", "nearest", "brightness"]  # a plug-in's is its own affair
    assert [tokens.rule for tokens in manifest.layout.all_tokens] == rules
    column = read_manifest(open_storage(made / "turns-fine" / "columns" / "codes"))
    assert [tokens.rule for tokens in column.layout.all_tokens] == rules[1:]
    assert list(sample.members)[3:] == [f"codes.{name}.npy" for name in TOKENIZERS]
    assert sorted(manifest.models) == [f"tokenizer.{name}" for name in sorted(TOKENIZERS)]
    assert [entry.shape for entry in manifest.members[3:]] == [("8", "8"), ("8", "8"), ("rows", "cols")]
    shapes = {sample.with_codes("native").images[0].codes.shape for sample in stored(made / "all")}
    assert len(shapes) == SCENES


@pytest.mark.parametrize("name", ["all", "native", "turns", "turns-fine"])
def test_they_are_verified(made, name):
    storage, dataset = open_storage(made / name), open_dataset(made / name, columns=())
    assert list(verify(storage, decode=_size_of)) == []
    assert list(verify_tars(storage, ["shards/000000.tar"])) == []
    assert scan_tar(storage, "shards/000000.tar").equals(read_table(dataset, dataset.shards[0]))
    (storage_path := made / name / "dataset.json").rename(hidden := storage_path.with_suffix(".hidden"))
    try:
        assert open_dataset(made / name, columns=()).schema.names == dataset.schema.names
    finally:
        hidden.rename(storage_path)


def test_a_grid_that_depends_on_the_image_stands_in_json_and_sidecar(made):
    for name, at in (("all", "_native"), ("native", "")):
        rows = read_table(open_dataset(made / name), open_dataset(made / name).shards[0]).to_pylist()
        for sample, row in zip(stored(made / name), rows, strict=False):
            (told,) = (each for each in sample.key_json.all_tokens if not all(each.grid))
            assert told.grids == (sample.array(f"{told.member}.npy").shape,)
            assert (row[f"code_rows{at}"], row[f"code_cols{at}"]) == told.grids[0]
            assert sum(row[f"code_counts{at}"]) == np.prod(told.grids[0])
    wrong = told.model_copy(update={"grids": ((1, 1),)})
    document = sample.key_json.model_copy(update={"tokens": wrong})
    layout = read_manifest(open_storage(made / "native")).layout
    assert [code for code, _ in check_document(document, sample.key, layout)] == ["document-tokens"]
    sample, *_ = stored(made / "turns")
    told = sample.key_json.further_tokens[1]
    assert told.grids == tuple(image.array("codes.native.npy").shape for image in sample.images)
    row, *_ = read_table(open_dataset(made / "turns"), open_dataset(made / "turns").shards[0]).to_pylist()
    assert tuple(zip(row["code_rows_native"], row["code_cols_native"], strict=True)) == told.grids


def test_extending_adds_codes_with_names(made):
    base = made / "turns-fine"
    with pytest.raises(InputError, match="codes coarse"):
        open_dataset(base)
    added, again = (open_dataset(base, columns=[name]) for name in ("codes", "again"))
    rows = read_rows(added)
    for index, (before, both) in enumerate(zip(stored(base), stored(made / "turns"), strict=True)):
        sample = sample_at(added, index)
        assert {ending: sample.members[ending] for ending in before.members if ending != "json"} == {
            ending: data for ending, data in before.members.items() if ending != "json"
        }
        assert {ending: data for ending, data in sample.members.items() if "codes" in ending} == {
            ending: data for ending, data in both.members.items() if "codes" in ending and "fine" not in ending
        }
        assert [tokens.member for tokens in sample.key_json.all_tokens] == ["vqgan", "codes.coarse", "codes.native"]
        for name in ("vqgan", "coarse", "native"):
            chosen = added.with_codes(name)
            row = stored_row(sample_at(chosen, index), 0)
            own = read_rows(chosen)[index]
            assert {key: own[key] for key in own if key.startswith("code")} == {
                key: row[key] for key in row if key.startswith("code")
            }
            suffix = "" if name == "vqgan" else f"_{name}"
            assert rows[index][f"codes{suffix}"] == own["codes"] != []
    assert [tokens.name for tokens in added.manifest.layout.all_tokens] == ["vqgan", "coarse", "native"]
    assert [tokens.grid for tokens in again.manifest.layout.all_tokens] == [(8, 8), (4, 4)]
    assert set(added.manifest.models) == {"tokenizer", "tokenizer.coarse", "tokenizer.native"}
    assert held_settings(again.manifest)["tokens"]["coarse"]["size"] == 32
    single = extension_of(base, made / "turns-fine" / "columns" / "x", tokens={"size": 64})
    assert list(single.tokenizers) == [""]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_reader_finds_either(made, name):
    several, single = open_dataset(made / "all").with_codes(name), open_dataset(made / name)
    assert collect_stats(several, 0).codes == collect_stats(single, 0).codes
    assert compare(several, several).is_same
    given = {"shuffle": False, "include": ["codes"]}
    theirs, ours = StageDataset(made / "all", **given, codes=name), StageDataset(made / name, **given)
    batch, expected = (next(iter(StageLoader(each, SCENES))) for each in (theirs, ours))
    assert batch.codes.tolist() == expected.codes.tolist()
    assert batch.code_mask.tolist() == expected.code_mask.tolist()
    if name == "native":
        for codes, mask, sample in zip(batch.codes, batch.code_mask, stored(made / name), strict=True):
            assert codes[mask].tolist() == sample.codes.ravel().tolist()
            assert not codes[~mask].any()
        assert not batch.code_mask.all()
    sample, *_ = stored(made / "all")
    decoded = SampleDecoder(made / "all", codes=name)(sample.members | {"__key__": sample.key})
    assert decoded["codes"].tolist() == sample.array(f"codes.{name}.npy").tolist()
    assert offer_decoded(several, wanted=True).available == (name != "native")  # it isn't installed here


@pytest.mark.parametrize("name", TOKENIZERS)
def test_commands_take_a_name(made, tmp_path, name, monkeypatch):
    monkeypatch.setenv("PATCHMINT_CACHE", str(made / "cache"))
    run = CliRunner().invoke
    sample, *_ = stored(made / "all")
    codes = sample.array(f"codes.{name}.npy")
    code = str(codes[0, 0])
    told = run(app, ["inspect", "codes", str(made / "all"), code, "--codes", name, "--json", "--padding"])
    (first, *_) = [image for image in json.loads(told.stdout)["shown"] if image["key"] == sample.key]
    assert first["cells"] == np.argwhere(codes == codes[0, 0]).tolist()
    assert first["grid"] == list(codes.shape)
    sheet = tmp_path / "sheet.png"
    arguments = ["inspect", "codes", str(made / "all"), code, "--codes", name, "--padding", "--sheet", str(sheet)]
    assert "where it is on average" in run(app, arguments).stdout
    assert sheet.is_file()
    shown = json.loads(run(app, ["inspect", "show", str(made / "all"), sample.key, "--codes", name, "--json"]).stdout)
    assert shown["codes"] == codes.tolist()
    where = f"code_rows_native = {sample.array('codes.native.npy').shape[0]}"
    assert run(app, ["inspect", "find", str(made / "all"), "--where", where, "--keys"]).exit_code == 0


def test_all_are_shown_where_none_is_chosen(made):
    run, (sample, *_) = CliRunner().invoke, stored(made / "all")
    shown = json.loads(run(app, ["inspect", "show", str(made / "all"), sample.key, "--json"]).stdout)
    assert list(shown["further_codes"]) == ["coarse", "native"]
    text = run(app, ["inspect", "show", str(made / "all"), sample.key]).stdout
    assert all(f"codes   {name} " in text for name in TOKENIZERS)
    assert "coarse" in run(app, ["inspect", "info", str(made / "all")]).stdout


def test_annotations_have_them(made):
    image = next((made / "scenes" / "train2017").iterdir())
    tokens = {"fine": {"size": 64}, "coarse": {"size": 32}}
    with pytest.warns(UserWarning, match="untrained"):
        annotation = Annotator.from_preset(UNTRAINED, labels=None, tokens=tokens).annotate(image, "a red circle")
    assert {name: codes.shape for name, codes in annotation.all_codes.items()} == {"fine": (8, 8), "coarse": (4, 4)}
    assert annotation.codes is not None
    assert annotation.to_document().further_codes == {"coarse": annotation.all_codes["coarse"].tolist()}


def test_settings_that_cannot_be(made):
    for tokens, message in (
        ({"Fine": {}}, "tokens.Fine"),
        ({"fine": {"sise": 64}}, "tokens.fine.sise: there is no such setting; did you mean 'size'?"),
        ({"fine": {"size": 64}, "size": 64}, "tokens.fine: there is no such setting"),
        ({"a": {}, "b": {"size": 64}, "c": {"tokenizer": "demo-tokenizer"}}, "a and c are the same"),
    ):
        with pytest.raises(ConfigError, match=message):
            AnnotatorConfig.parse({"tokens": tokens})
    with pytest.raises(InputError, match="its codes: fine, coarse, native"):
        open_dataset(made / "all").with_codes("fina")
    with pytest.raises(ConfigError, match="no codes 'coarse'"):
        StageDataset(made / "fine", 2, codes="coarse")
    orders = [
        config_of("x", source={"kind": "folder", "uri": "x"}, tokens=tokens)
        for tokens in (TOKENIZERS, dict(reversed(TOKENIZERS.items())))
    ]
    assert orders[0].digest({}) != orders[1].digest({}), "the first tokenizer's columns have no name"
