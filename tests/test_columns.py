"""Columns of finished data sets: made, read with their base, chosen, verified, and made into whole shards."""

import json
import os
import shutil
import signal
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import builds
import numpy as np
import pyarrow.parquet as pq
import pytest
import warm
from builds import build_here, check_files, committed, digests, make_config, make_input, patchmint, run
from shard_data import joined, stored
from test_build_kill import _check_same_state, _killed, _state, record_states, recorded_states
from typer.testing import CliRunner

from patchmint.annotate.models import AnnotationModels
from patchmint.cli.inspect import inspect_app
from patchmint.config import AnnotatorConfig
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import SampleReader, SampleRef
from patchmint.datasets.rows import iter_tables, with_extents
from patchmint.datasets.verify import verify_all
from patchmint.errors import BuildError, BusyError, InputError, ShardError
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery.remake import offer_decoded, offer_masks
from patchmint.jobs import extend
from patchmint.jobs.trust import write_trust
from patchmint.judging.evidence import CHEAP
from patchmint.judging.trust import TrustModel
from patchmint.shards.manifest import held_settings, read_manifest
from patchmint.storage import open_storage
from patchmint.training import SampleDecoder, StageDataset

# Ids too long for a key, unlawful as one, and alike: their keys mustn't be made from keys again.
IDS = ["a", "b" * 70, "C", "d.e", "f", "g/a", "a"]
OPTIONS = ("--features.connector", "dci", "--features.pool", 12, "--models.vit", "untrained-tiny")


def told(*arguments, rc=0):
    """All that the command printed."""
    done = patchmint(*arguments, rc=rc)
    return done.stdout + done.stderr


def samples(out, columns=None):
    """All samples by key, as they are read with columns."""
    return {sample.key: sample for sample in joined(out, columns)}


def faults(out):
    return list(verify_all(open_storage(str(out))))


def source_of(folder):
    """LLaVA's layout: conversations must survive too. One image is cut off: a reject of the first build."""
    names = [f"{place:03d}.jpg" for place in range(len(IDS))]
    make_input(folder / "images", [""] * len(names), damaged={3})
    records = []
    for own, image in zip(IDS, names, strict=True):
        said = ("<image>\nWhat is it?", f"thing {image}", "And?", "<img src=x> & \u202e more")
        turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(said)]
        records.append({"id": own, "image": image, "conversations": turns})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished data set of six samples in three shards, and one reject."""
    folder = tmp_path_factory.mktemp("base")
    source = source_of(folder / "source")
    config = make_config(folder / "config.yaml", source, folder / "out", 3, limits={"max_reject_share": 0.5})
    run(config, folder / "out", "--source.kind", "llava")
    assert any(key.startswith("a__") for key in samples(folder / "out"))
    return folder / "out"


@pytest.fixture(scope="module")
def extended(base):
    """The same with features of a tiny vision encoder."""
    before = digests(base)
    said = told("extend", base, *OPTIONS)
    assert "6 planned = 6 written + 0 rejected" in said
    assert "column features of" in said
    assert "untrained" in said
    assert digests(base).items() >= before.items()
    return base


@pytest.fixture(scope="module")
def whole(extended, tmp_path_factory):
    """Whole shards of both."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "6 planned = 6 written + 0 rejected" in told("compact", extended, out)
    return out


def test_features_are_a_column_of_nothing_else(extended):
    before, after = samples(extended, columns=[]), samples(extended)
    assert list(before) == list(after)
    column = read_manifest(open_storage(str(extended / "columns" / "features")))
    form = column.layout.features
    assert (form.connector, form.grid, form.pool) == ("dci", (12, 12), "before")
    assert (column.column.units, column.models["vit"].name) == (3, "untrained-tiny")
    for sample in stored(extended / "columns" / "features"):
        assert list(sample.members) == ["json", "features.npy"]
        assert json.loads(sample.members["json"]).keys() == {"schema", "notice", "features_json", "grid"}
    for key, sample in after.items():
        old = before[key]
        changed = {ending for ending in sample.members if sample.members[ending] != old.members.get(ending)}
        assert changed == {"json", "features.npy"}
        fields, kept = sample.document.model_dump(), old.document.model_dump()
        assert {name for name in fields if fields[name] != kept[name]} == {"features_json", "notice"}
        assert sample.features.shape == (144, form.channels)
        assert sample.document.features == form
    assert before["a"].document.conversation == after["a"].document.conversation != ()
    assert faults(extended) == []


def test_whole_shards_are_those_of_one_build(base, whole, tmp_path):
    source = base.parent / "source"
    config = make_config(tmp_path / "config.yaml", source, tmp_path / "once", 3, limits={"max_reject_share": 0.5})
    run(config, tmp_path / "once", "--source.kind", "llava", *OPTIONS)
    once, made = digests(tmp_path / "once"), digests(whole)
    assert [made[f"shards/{unit:06d}.tar"] for unit in range(3)] == [
        once[f"shards/{unit:06d}.tar"] for unit in range(3)
    ]
    assert faults(whole) == []


def test_features_are_those_of_the_image(extended):
    """Each sample got its own image's features, however it is read."""
    settings = {"labels": None, "tokens": None, "features": {"connector": "dci", "pool": 12}}
    models = AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny", **settings}), "cpu")
    after = samples(extended)
    read = SampleReader([with_extents(open_dataset(extended))], ["features.npy"]).read(
        SampleRef(0, 0, index) for index in range(len(after))
    )
    for key, (_, found) in zip(after, read, strict=True):
        pixels = decode_image(after[key].image).pixels
        expected = models.annotate([pixels], [[]])[0].features
        np.testing.assert_allclose(after[key].features.astype(np.float32), expected.astype(np.float32), atol=2e-2)
        others = [float(np.abs(after[other].features - after[key].features).mean()) for other in after if other != key]
        own = float(np.abs(after[key].features - expected).mean())
        assert own < min(others) / 5
        assert found.members == {"features.npy": after[key].members["features.npy"]}
    loaded = StageDataset(extended, 3)[1]
    assert (loaded.features.numpy().reshape(144, -1) == after[loaded.key].features).all()


def inspected(*arguments, code=0):
    done = CliRunner().invoke(inspect_app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_inspection_speaks_of_what_is_read(extended, whole):
    """Not of the last command's settings, in which all that was there before is null."""
    before = json.loads(inspected("info", extended, "--columns", "none", "--json"))
    after = json.loads(inspected("info", extended, "--json"))
    assert [column["read"] for column in (*before["columns"], *after["columns"])] == [False, True]
    assert json.loads(inspected("info", whole, "--json"))["held"] == after["held"]
    before, after = before["held"], after["held"]
    for name in ("labels", "tokens", "source", "grid"):
        assert after[name] == before[name] is not None
    assert (before["features"], after["features"]["connector"]) == (None, "dci")
    assert after["models"] == before["models"] | {"vit": "untrained-tiny"}
    found = json.loads(inspected("diff", extended, extended, "--columns-a", "none", "--json", code=1))["settings"]
    changed = {change["field"] for change in found if change["field"].startswith("config.")}
    assert {field.split(".")[1] for field in changed} == {"features", "models"}
    assert {field for field in changed if field.startswith("config.models")} == {"config.models.vit"}
    for offer in (offer_masks, offer_decoded):
        assert offer(open_dataset(extended), True) == offer(open_dataset(extended, columns=[]), True)


def test_labels_and_codes_can_be_made_anew_and_are_chosen(extended, whole, tmp_path):
    """Settings that aren't named are those of the first build: the same segmenter gives the same coverage."""
    told("extend", whole, "--labels.min-coverage", 0.5, "--models.tokenizer", "untrained-tiny")
    name = "labels-codes"
    before, after = samples(whole), samples(whole, [name])
    assert open_dataset(whole).columns == ()  # the base has both itself
    manifest = open_dataset(whole, columns=[name]).manifest
    assert manifest.layout.min_coverage == 0.5
    used = {role: entry.name.split()[0] for role, entry in manifest.models.items() if role != "extended"}
    assert used == {"segmenter": "stand-in", "tokenizer": "untrained-tiny", "vit": "untrained-tiny"}
    assert manifest.notice.count("untrained") == 1
    for key, sample in after.items():
        assert sample.members["features.npy"] == before[key].members["features.npy"]
        assert sample.members["coverage.npy"] == before[key].members["coverage.npy"]
        assert sample.selector.sum() < before[key].selector.sum()
        assert sample.codes.shape != before[key].codes.shape
        assert "stand-in.npy" not in sample.members
    assert faults(whole) == []
    held, last = held_settings(manifest), held_settings(read_manifest(open_storage(str(whole))))
    assert held["labels"] == last["labels"] | {"min_coverage": 0.5}
    assert held["features"] == last["features"] != manifest.config["features"]
    assert held["models"] == last["models"] | {"tokenizer": "untrained-tiny"}
    least = {key: each.selector.mean((1, 2)).min() for key, each in after.items()}
    most = sorted(least.values())[2] + 1e-4
    found = inspected("find", whole, "--columns", name, "--max-share", most, "--keys").split()
    assert found == [key for key, share in least.items() if share <= most]
    assert inspected("show", whole, "a") != inspected("show", whole, "a", "--columns", name)
    # the same again is another column, and then nobody knows which is meant
    told("extend", whole, "--models.tokenizer", "untrained-tiny", "--name", "other")
    with pytest.raises(InputError, match="labels-codes and other both hold codes"):
        open_dataset(whole, columns=["labels-codes", "other"])
    with pytest.raises(InputError, match="no finished column 'more'"):
        open_dataset(whole, columns=["more"])
    # trust is of the labels that it was computed with
    each = (0.0,) * len(CHEAP)
    trusting = TrustModel(names=CHEAP, means=each, scales=(1.0,) * len(CHEAP), weights=(*each, 0.0))
    write_trust(open_dataset(whole), model=trusting)
    write_trust(open_dataset(whole, columns=[name]), "trust-half", model=trusting)
    assert open_dataset(whole, columns=["trust"]).has_trust
    assert open_dataset(whole, columns=[name, "trust-half"]).has_trust
    with pytest.raises(InputError, match=f"trust is of the labels of the build, not of those of {name}"):
        open_dataset(whole, columns=[name, "trust"])
    with pytest.raises(InputError, match=f"trust-half is of the labels of {name}, not of those of the build"):
        open_dataset(whole, columns=["trust-half"])


def test_two_that_add_the_same_are_never_chosen_between_in_silence(extended):
    said = told("extend", extended, "--features.pool", 8, "--models.vit", "untrained-tiny")
    assert "column features-2" in said
    try:
        with pytest.raises(InputError, match="features and features-2 both hold features"):
            open_dataset(extended)
        forms = [samples(extended, [name])["a"].features.shape[0] for name in ("features", "features-2")]
        assert forms == [144, 64]
        assert open_dataset(extended, columns=[]).manifest.layout.features is None
        assert "columns" in told("inspect", "show", extended, "a", rc=2)
    finally:
        shutil.rmtree(extended / "columns" / "features-2")  # to remove one is to delete its folder
    assert open_dataset(extended).manifest.layout.features.pool == "before"


def test_the_same_command_goes_on_and_ends_with_the_same_bytes(extended):
    column = extended / "columns" / "features"
    expected = digests(column)
    for path in ("commits/000001.json", "shards/000001.tar", "sidecars/000001.parquet", "dataset.json"):
        (column / path).unlink()
    assert "features.npy" not in samples(extended)["a"].members  # it isn't finished
    assert "6 planned = 6 written" in told("extend", extended, *OPTIONS)
    check_files(column, expected)
    assert len(committed(column)) == 3


def test_a_sample_that_a_column_lacks_is_not_read(extended, tmp_path):
    """Its place in the base still holds a sample, but not what it said; and a retry finds it again."""
    base = shutil.copytree(extended, tmp_path / "base", ignore=shutil.ignore_patterns("columns"))
    tar = base / "shards" / "000000.tar"
    whole = tar.read_bytes()
    assert whole.count(b'"annotators_json":"[') > 1
    tar.write_bytes(whole.replace(b'"annotators_json":"[', b'"annotators_json":"{', 1))
    options = ("--features", "{}", "--models.vit", "untrained-tiny")
    said = told("extend", base, *options)
    assert "6 planned = 5 written + 1 rejected (1 sample-damaged)" in said
    table = pq.read_table(base / "columns/features/rejects/000000.parquet").to_pylist()
    lost, every = table[0]["key"], list(samples(extended, []))
    assert "inspect verify" in table[0]["message"]
    tar.write_bytes(whole)
    assert list(samples(base)) == [key for key in every if key != lost]
    opened = open_dataset(base)
    assert (opened.shards[0].samples, opened.shards[0].lacking, len(with_extents(opened).extents[0])) == (2, 1, 5)
    assert "1 not-in-a-column" in inspected("info", base)
    told("extend", base, *options, "--retry-failed")
    assert list(samples(base)) == every
    assert samples(base)[lost].features is not None
    assert faults(base) == []
    assert "5 written" not in inspected("info", base)


def test_a_base_that_has_changed_is_another_one(extended, tmp_path):
    base = shutil.copytree(extended, tmp_path / "base")
    manifest = base / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"plan_digest": "', '"plan_digest": "0', 1))
    with pytest.raises(InputError, match="another data set, or of another state"):
        open_dataset(base)
    assert [finding.code for finding in faults(base) if finding.shard.startswith("columns")] == ["column-base"]
    said = " ".join(told("extend", base, *OPTIONS, "--name", "features", rc=2).split())
    assert "other settings" in said
    assert "models.extended" in said


def test_verify_finds_damage_in_columns(extended, tmp_path):
    base = shutil.copytree(extended, tmp_path / "base")
    column = base / "columns" / "features"
    shutil.copy(column / "shards/000000.tar", column / "shards/000001.tar")
    found = {(finding.shard, finding.code) for finding in faults(base)}
    assert {("columns/features/shards/000001.tar", code) for code in ("file-size", "column-base")} <= found
    done = CliRunner().invoke(inspect_app, ["verify", str(column), "--json"])
    assert {finding["code"] for finding in json.loads(done.stdout)["findings"]} == {code for _, code in found}
    with pytest.raises(ShardError):
        samples(base)


def settings_after(*configs, made):
    """What the command takes over from data sets that were built one from the other, the first one first."""
    config = None
    for each in configs:
        config = BASE | each | ({"extended": config} if config else {})
    manifest = SimpleNamespace(config=config)
    return extend.settings_of(manifest, "in", "out", made)


def test_held_settings_of_manifests_that_others_wrote(base):
    manifest = read_manifest(open_storage(str(base)))
    for config in ({}, {"labels": 5, "models": None, "extended": 7}, {"labels": {}, "models": {"other": "x"}}):
        held = held_settings(manifest.model_copy(update={"config": config}))
        assert (held["labels"], held["tokens"], held["features"], held["models"]) == ({}, {}, None, {})


BASE = {"output": {"samples_per_shard": 7}, "grid": "seed-224", "limits": {"max_image_megapixels": 400}, "models": {}}
BASE |= dict.fromkeys(("labels", "tokens", "features"))
LABELLED = {"labels": {"min_coverage": 0.1}, "models": {"segmenter": "plugged"}}
AGAIN = {"labels": {"min_coverage": 0.2}, "models": {"detector": "d", "vocabulary": "v", "masker": "m"}}
CODED = {"tokens": {"size": 64}, "models": {"tokenizer": "t"}}


def test_settings_are_those_that_made_it_last():
    settings = settings_after(LABELLED, AGAIN, CODED, made={"labels"})
    assert settings["models"] == {"detector": "d", "vocabulary": "v", "masker": "m", "tokenizer": "t"}
    assert settings["labels"] == {"min_coverage": 0.2}
    assert settings["tokens"] is settings["features"] is None
    assert (settings["limits"], settings["grid"]) == (BASE["limits"], "seed-224")
    assert settings["output"] == {"uri": "out", "samples_per_shard": 7}
    # what was never made gets default settings
    assert settings_after(CODED, made={"features"})["features"] == {}
    tiny = {"tokens": {"size": 64}, "models": {"tokenizer": "untrained-tiny"}}
    assert settings_after(tiny, made={"features"})["models"]["vit"] == "untrained-tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to make"),
        (("--features.connector", "none", "--grid", "seed-224", "--name", "x"), "labels in"),
        (("--features.connector", "ddci"), "features.connector"),
        (("--tokens.size", 64, "--name", "../out"), "columns/NAME"),
    ],
)
def test_what_makes_no_sense_is_refused(base, options, message):
    before = {path.name for path in (base / "columns").glob("*")}
    said = " ".join(told("extend", base, *options, rc=2).split())
    assert message in said
    assert {path.name for path in (base / "columns").glob("*")} == before


def test_only_finished_data_sets_can_be_extended(base, tmp_path):
    half = shutil.copytree(base, tmp_path / "half")
    (half / "dataset.json").unlink()
    assert "only a finished data set" in told("extend", half, "--tokens", "{}", rc=2)
    lost = shutil.copytree(base, tmp_path / "lost")
    (lost / "sidecars" / "000001.parquet").unlink()
    assert "lacks sidecars/000001.parquet" in told("extend", lost, "--tokens", "{}", rc=2)
    assert "nothing can be added to a data set on the Hub" in told(
        "extend", "hf://datasets/a/b", "--tokens", "{}", rc=2
    )


@pytest.fixture(scope="module")
def stand_in():
    with builds.warmed():
        yield


@pytest.fixture(scope="module")
def relabelling(tmp_path_factory):
    """A data set of eight samples; the config of a column of other labels and codes, and its files in the end."""
    folder = tmp_path_factory.mktemp("relabelling")
    source = make_input(folder / "in", [f"thing {place}" for place in range(9)], damaged={2})
    config = make_config(folder / "config.yaml", source, folder / "out", 3)
    builds.run(config, folder / "out")
    source = {"kind": "patchmint", "uri": str(folder / "out")}
    column = make_config(folder / "column.yaml", "", "", 3, source=source, labels={"min_coverage": 0.3})
    builds.run(column, folder / "out/columns/labels")
    return folder / "out", column, digests(folder / "out/columns/labels")


@pytest.fixture(scope="module", params=["column", "compact"])
def job(request, relabelling, stand_in, tmp_path_factory):
    """What is built of a data set: a folder for outputs, the settings, and the files in the end."""
    base, column, expected = relabelling
    if request.param == "column":
        return base / "columns", column, expected
    folder = tmp_path_factory.mktemp("compact")
    patchmint("compact", base, folder / "whole", "--columns", "labels", "--runner.num-cpus", 1)
    manifest = open_dataset(base, columns=["labels"]).manifest
    settings = extend.settings_of(manifest, str(base), str(folder / "whole"), set(), ["labels"])
    return folder, settings, digests(folder / "whole")


def forked(work, *arguments, patience=20):
    """Start it in a child, whose lease beats often, and for which another's is dead after so many seconds. Its pid."""

    def hastily():
        warm._hasten(0.05, patience)
        work(*arguments)

    return builds.fork(hastily)


@pytest.mark.kill
@pytest.mark.parametrize(("job", "every"), [("column", 8), ("compact", 16)], indirect=["job"])
def test_killed_and_gone_on_with_it_ends_with_the_same_bytes(job, relabelling, every):
    """The protocol is that of builds (`test_build_kill`): a few of its states do."""
    folder, config, expected = job
    assert builds.exit_code(builds.fork(partial(record_states, config, folder, "fresh"))) == 0
    states, first_steps = recorded_states(folder, "fresh")
    (folder / "fresh.json").unlink()
    assert len(first_steps) > 40
    for number in first_steps[3::every]:
        out = folder / "killed"
        assert builds.exit_code(builds.fork(partial(_killed, config, out, number))) == -signal.SIGKILL, number
        _check_same_state(_state(out), states[number], f"killed before step {number}")
        # an unfinished column is nobody's business
        assert open_dataset(relabelling[0], columns=["labels"]).samples == 8
        assert builds.exit_code(forked(builds.build_here, config, out)) == 0, number
        check_files(out, expected)
        shutil.rmtree(out)


def _halted(config, out, at, halt):
    """Build; `halt` once at a step of the commit of unit 1, before which a file `halted` is beside the output."""
    halted = out.with_name("halted")

    def on_step(*step):
        if step == at and (out / "commits/000000.json").exists() and not halted.exists():
            halted.touch()
            halt()

    import_module("faults").watch(on_step)
    try:
        builds.build_here(config, out)
    except BuildError as error:
        if "another driver has taken over this output" not in str(error):
            raise


@pytest.mark.kill
@pytest.mark.parametrize("job", ["column"], indirect=True)
@pytest.mark.parametrize("at", [("before", "link"), ("after", "link"), ("after", "rename")])
def test_two_drivers_end_with_the_same_bytes(job, at):
    """The first sleeps in the middle of a commit, the second takes over, then the first goes on, told so or not."""
    folder, config, expected = job
    out = folder / "two"
    first = forked(_halted, config, out, at, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    assert os.WIFSTOPPED(os.waitpid(first, os.WUNTRACED)[1])
    try:
        assert builds.exit_code(forked(builds.build_here, config, out, patience=0.5)) == 0
        records = committed(out)
    finally:
        os.kill(first, signal.SIGCONT)
    assert builds.exit_code(first) == 0
    assert committed(out) == records
    check_files(out, expected)
    (folder / "halted").unlink()
    shutil.rmtree(out)


def _turned_away(config, out):
    with pytest.raises(BusyError, match=f"is building into {out}"):
        builds.build_here(config, out)


@pytest.mark.kill
def test_a_second_driver_is_turned_away(job):
    folder, config, expected = job
    out, done = folder / "busy", folder / "done"
    first = forked(_halted, config, out, ("before", "link"), lambda: builds.wait_until(done.exists))
    assert builds.wait_until((folder / "halted").exists)
    assert builds.exit_code(forked(_turned_away, config, out)) == 0
    done.touch()
    assert builds.exit_code(first) == 0
    check_files(out, expected)
    for path in (done, folder / "halted"):
        path.unlink()


@pytest.mark.kill
def test_a_column_is_stopped_and_gone_on_with(relabelling):
    base, config, expected = relabelling
    out = base / "columns" / "stopped"
    first = builds.start(config, out, "--runner.batch-size=1", STAND_IN_SLEEP="0.4")
    assert builds.wait_until(lambda: builds.is_mid_shard(out))
    os.kill(first.pid, signal.SIGTERM)
    builds.ended(first, 128 + signal.SIGTERM)
    assert list((out / "saved").iterdir())
    builds.run(config, out, "--runner.batch-size=1")
    check_files(out, expected)


def test_samples_of_other_readers_get_what_columns_have(extended):
    decode, plain = SampleDecoder(extended), SampleDecoder(extended, columns=[])
    for stored_one, want in zip(stored(extended), samples(extended).values(), strict=True):
        sample = {"__key__": stored_one.key, **stored_one.members}
        assert (decode(sample)["features"].reshape(144, -1) == want.features).all()
        assert "features" not in plain(sample)
    with pytest.raises(ShardError, match="isn't in"):
        decode(sample | {"__key__": "other"})


def test_a_sparse_column_applies_where_it_has_the_sample(relabelling, stand_in, tmp_path, monkeypatch):
    """As corrections do: of some samples it has the labels, which come last."""
    base = shutil.copytree(relabelling[0], tmp_path / "base", ignore=shutil.ignore_patterns("columns"))
    given = json.loads(relabelling[1].read_text())
    given["source"] |= {"uri": str(base), "where": "ordinal % 3 = 1"}
    models = import_module("stand_in_models")
    instances = models._instances
    monkeypatch.setattr(models, "_instances", lambda image, texts: instances(255 - image, texts))
    build_here(given | {"labels": {}}, base / "columns" / "part")
    before, part = samples(base, []), samples(base, ["part"])
    assert len(part) == 3  # it isn't sparse yet
    column = base / "columns" / "corrections-0001"
    (base / "columns" / "part").rename(column)
    told = json.loads((column / "dataset.json").read_text())
    told["column"]["sparse"] = True
    (column / "dataset.json").write_text(json.dumps(told))
    opened = with_extents(open_dataset(base))
    kept = open_dataset(base, columns=[]).manifest.layout
    assert opened.manifest.layout == kept.model_copy(update={"edits": True})
    refs = [SampleRef(0, 0, index) for index in range(opened.samples)]
    after = {sample.key: sample for _, sample in SampleReader([opened]).read(refs)}
    assert list(after) == list(before)
    assert {key for key in before if after[key].members != before[key].members} <= part.keys()
    for key, sample in after.items():
        assert (sample.selector == part.get(key, before[key]).selector).all()
    shares = [share[0] for _, table in iter_tables(opened, ["label_shares"]) for share in table[0].to_pylist()]
    assert shares == pytest.approx([sample.selector[0].mean() for sample in after.values()])
    assert any((after[key].selector != before[key].selector).any() for key in part)
    assert samples(base, ["corrections"]).keys() == samples(base, ["corrections-0001"]).keys() == after.keys()
    assert faults(base) == []
