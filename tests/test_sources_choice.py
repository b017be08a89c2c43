"""Choosing samples of a source: by files, split, condition, chance, number, and content."""

import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import fixture, image_bytes, put, refused, samples_of, source, texts
from test_planning import config_of, plan_of

from patchmint.config.build import BuildConfig
from patchmint.errors import ConfigError
from patchmint.pipeline.plan import make_plan, reading, record_models
from patchmint.pipeline.sources import base, open_sources
from patchmint.pipeline.sources.files import split_of
from patchmint.samples import Absent, SourceSample, describe_absent
from patchmint.shards.plan import load_plan
from patchmint.shards.plan_parts import read_unit
from patchmint.storage import open_storage


def chosen(kind, uri, **settings):
    """Ids of the samples, and what is absent by reason."""
    ids, absent = [], {}
    for found in source(kind, uri, **settings).samples():
        if isinstance(found, Absent):
            absent[found.reason] = absent.get(found.reason, 0) + 1
        else:
            ids.append(found.id)
    return ids, absent


def rows(*numbers, image=b"x", **columns):
    return [
        {"image": {"bytes": image, "path": f"{n}.jpg"}, "text": f"text {n}"} | {k: v(n) for k, v in columns.items()}
        for n in numbers
    ]


def parquet(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(values), path)


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as writer:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))


def downloaded(path, facts):
    """As img2dataset writes them: an image, its caption and a JSON of facts for each key."""
    members = {}
    for key, fields in facts.items():
        members |= {f"{key}.jpg": b"x", f"{key}.txt": b"a text", f"{key}.json": json.dumps(fields).encode()}
    tar(path, members)
    return path.parent


@pytest.fixture
def hub(tmp_path):
    """As `datasets` pushes three splits."""
    for split, numbers in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4, 5))):
        parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", rows(*numbers))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/train-00000-of-00002-0123456789abcdef.parquet", "train"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("en/validation/0000.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("val2017/1.tar", "validation"),
        ("my_test_file.parquet", "test"),
        ("eval/0.parquet", "test"),
        ("training/0.parquet", "train"),
        ("restrained.parquet", ""),
        ("00000.tar", ""),
    ],
)
def test_splits_are_told_from_names_as_on_the_hub(path, split):
    assert split_of(path) == split


def test_splits_side_by_side_are_refused_with_the_remedies(hub):
    message = str(refused("splits", "parquet", hub))
    for word in ("test, train, validation", "split: train)", "split: train+validation)", "split: all"):
        assert word in message
    with pytest.raises(ConfigError, match="side by side"):
        source("parquet", hub).check()
    assert chosen("parquet", hub, split="validation") == (["3.jpg"], {"not-chosen-files": 2})
    assert chosen("parquet", hub, split="val")[0] == ["3.jpg"]
    assert len(chosen("parquet", hub, split="all")[0]) == 6
    assert chosen("parquet", hub, split="val+test") == (["4.jpg", "5.jpg", "3.jpg"], {"not-chosen-files": 1})
    refused("no file .* is of the split 'dev2'", "parquet", hub, split="train+dev2")
    assert chosen("parquet", hub, files="train-*.parquet") == (["0.jpg", "1.jpg", "2.jpg"], {"not-chosen-files": 2})
    refused("no file .* is of the split 'dev2'.* test, train, validation", "parquet", hub, split="dev2")
    assert chosen("parquet", hub / "data/test-00000-of-00001.parquet")[0] == ["4.jpg", "5.jpg"]


def test_folders_are_splits_and_photographs_may_be_called_anything(tmp_path):
    files = {f"{name}.{end}": "x" for name in ("train station", "test tube") for end in ("jpg", "txt")}
    assert len(chosen("folder", put(tmp_path / "a", files))[0]) == 2
    split = put(tmp_path / "b", {f"{folder}/1.{end}": "x" for folder in ("train", "val") for end in ("jpg", "txt")})
    with pytest.raises(ConfigError, match="splits train, validation side by side"):
        source("folder", split).check()
    refused("side by side", "folder", split)
    assert chosen("folder", split, split="train") == (["train/1.jpg"], {"not-chosen-files": 1})
    with pytest.raises(ConfigError, match="no file"):
        source("folder", split, split="test").check()


def test_files_are_chosen_by_globs_lists_and_ranges(tmp_path):
    for number in range(5):
        downloaded(tmp_path / f"a/{number:05}.tar", {str(number): {}})
    for files, left in (
        ("{00001..00003}.tar", "123"),
        ("0000[02].tar", "02"),
        ("0000[!02].tar", "134"),
        (["00000.tar", "a/0000?.tar"], "01234"),
        ("**/*4.tar", "4"),
        ("a/*", "01234"),
    ):
        assert chosen("webdataset", tmp_path, files=files)[0] == list(left), files
    assert chosen("webdataset", tmp_path, files="00004.tar")[1] == {"not-chosen-files": 4}
    refused("1 of those named aren't in .*'00005.tar'.*did you", "webdataset", tmp_path, files="{00004..00005}.tar")
    refused("those named aren't in .*'b/\\*'", "webdataset", tmp_path, files="b/*")
    refused("source.files: .* isn't a range", "webdataset", tmp_path, files="{a..b}.tar")
    refused("isn't a pattern", "webdataset", tmp_path, files="[z-a].tar")


def test_files_of_annotated_images(tmp_path):
    """Where samples come from one annotation file, their images' files are meant."""
    root = fixture("coco", tmp_path)
    everything, _ = chosen("coco", root)
    first = samples_of(source("coco", root))[0]
    assert chosen("coco", root, files=first.image.path.rpartition("/")[2])[0][0] == first.id
    assert len(everything) > 1


def test_a_condition_over_json_fields(tmp_path):
    facts = {
        "a": {"status": "success", "similarity": 0.3, "exif": {"make": "x"}},
        "b": {"status": "success", "similarity": 0.2, "width": 9},
        "c": {"status": "failed", "similarity": 0.9},
        "d": {"similarity": 0.9},
    }
    root = downloaded(tmp_path / "0.tar", facts)
    for where, left in (
        ("status = 'success' and similarity > 0.28", "a"),
        ("STATUS = 'success' -- a comment", "ab"),
        ("width IS NULL", "acd"),
        ("exif->>'make' = 'x'", "a"),
        ("len(texts) = 1 and id <> 'a' and path like '%.tar'", "bcd"),
        ("len(list_filter(texts, lambda t: contains(t, 'text'))) = 1", "abcd"),
    ):
        assert chosen("webdataset", root, where=where)[0] == list(left), where
    assert chosen("webdataset", root, where="width > 5") == (["b"], {"not-chosen-where": 3})


def test_fields_of_mixed_kinds_are_text(tmp_path):
    values = {"a": 1, "b": "x", "c": {"d": [1]}, "d": "\ud800", "e": None, "f": 10**30, "g": [1, "x"]}
    root = downloaded(tmp_path / "0.tar", {key: {"n": value} for key, value in values.items()})
    for where, left in (
        ("n = 'x'", "b"),
        ("n = '1'", "a"),
        ("n is null", "e"),
        ("n like '{%'", "c"),
        ("n = n", "abcdfg"),
    ):
        assert chosen("webdataset", root, where=where)[0] == list(left), where


def test_a_condition_that_cannot_be_used_is_refused_before_the_source_is_read(tmp_path):
    root = downloaded(tmp_path / "0.tar", {str(n): {"similarity": 0.5, "word": "x"} for n in range(300)})
    for where, why in (
        ("similarty > 1", "has 'similarty'; did you mean 'similarity'. .they have 'id', 'path', "),
        ("similarity >", "can't be used"),
        ("similarity > 0) or (true", "can't be used"),
        ("1; select 2", "can't be used"),
        ("(select 1) = 1", "a subquery"),
        ("max(similarity) > 1", "an aggregate"),
        ("random() < 0.5", "'random' gives another answer each time"),
        ("* = 1", "can't be used|must name its columns"),
        ("word::int > 1", "can't be computed"),
    ):
        with pytest.raises(ConfigError, match=f"source.where: .*{why}"):
            source("webdataset", root, where=where).check()
    secret = put(tmp_path / "secret", {"s.csv": "a\n1"}) / "s.csv"
    for where in (f"read_text('{secret}') = 'a'", f"'{secret}' in (select * from '{secret}')", "getenv('HOME') <> ''"):
        with pytest.raises(ConfigError, match=r"source\.where"):
            source("webdataset", root, where=where).check()


def test_a_condition_over_columns_reads_only_those(tmp_path):
    values = rows(*range(4), score=lambda n: n / 10, other=lambda n: "y" * n)
    parquet(tmp_path / "p/0.parquet", values)
    assert chosen("parquet", tmp_path / "p", where="Score >= 0.2")[0] == ["2.jpg", "3.jpg"]
    (*_, last) = source("parquet", tmp_path / "p", where="score >= 0.2").samples()
    assert dict(last.record) == {"score": 0.3}
    table = {f"{n}.jpg": b"x" for n in range(3)} | {"t.csv": "file_name,text,score\n0.jpg,a,5\n1.jpg,b,7\n2.jpg,c,\n"}
    root = put(tmp_path / "t", table)
    settings = {"table": "t.csv", "where": "try_cast(score as int) > 6"}
    assert chosen("folder", root, **settings) == (["1.jpg"], {"not-chosen-where": 2})
    refused("has 'points'", "folder", root, table="t.csv", where="points > 1")


TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


def test_a_condition_sees_what_the_texts_are_made_of(tmp_path):
    """Lists of objects are JSON, whatever the file: one batch may have other types than the next."""
    talks = [{"id": name, "image": "a.jpg", "conversations": TURNS * n} for n, name in ((1, "a"), (2, "b"))]
    stored = [talk | {"image": {"bytes": b"x", "path": None}} for talk in talks]
    files = {"json/talks.json": json.dumps(talks), "json/a.jpg": "x", "odvg/a.jpg": "x", "photos/a.jpg": "x"}
    images = [{"imgid": n, "filename": "a.jpg", "sentences": [{"raw": "a cat"}] * n} for n in (1, 2)]
    files["karpathy/dataset_x.json"] = json.dumps({"images": images})
    grounded = [{"filename": f"{name}.jpg", "grounding": {"caption": name, "regions": []}} for name in "ab"]
    files["odvg/a.jsonl"] = "\n".join(map(json.dumps, grounded))
    files |= {f"photos/{name}.{end}": text for name in "bc" for end, text in (("jpg", "x"), ("txt", name))}
    put(tmp_path, files | {"photos/c.json": '{"score": 2}', "photos/b.json": '{"score": 1}', "photos/a.txt": "a"})
    parquet(tmp_path / "hub/0.parquet", stored)
    long = {"where": "json_array_length(conversations) > 2"}
    for folder, kind, settings, left in (
        ("json", "conversations", long | {"missing_mark": "prepend"}, "b"),
        ("hub", "conversations", long, "b"),
        ("karpathy", "karpathy", {"where": "json_array_length(sentences) > 1"}, "2"),
        ("odvg", "grounding", {"where": "grounding->>'caption' = 'b'", "annotations": "a.jsonl"}, "b.jpg"),
        ("photos", "folder", {"where": "score > 1"}, "c.jpg"),
    ):
        assert chosen(kind, tmp_path / folder, **settings)[0] == [left], folder
    assert [texts(sample) for sample in samples_of(source("folder", tmp_path / "photos", where="score = 1"))] == [["b"]]


def test_a_fault_of_no_sample_stays_whatever_is_chosen(tmp_path):
    root = downloaded(tmp_path / "0.tar", {"a": {"n": 1}, "b": {"n": 2}})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:3000])
    ids, _ = chosen("webdataset", root, where="n > 5")
    assert ids == ["0.tar#rest"]


def test_a_sample_of_a_sample_is_a_part_of_it(tmp_path):
    parquet(tmp_path / "0.parquet", rows(*range(2000)))
    small, large = (set(chosen("parquet", tmp_path, sample=share)[0]) for share in (0.05, 0.3))
    assert small < large
    assert 60 < len(small) < 140
    assert 500 < len(large) < 700
    assert chosen("parquet", tmp_path, sample=0.05)[1] == {"not-chosen-sample": 2000 - len(small)}


def test_few_samples_are_taken_without_reading_the_rest(tmp_path):
    root = downloaded(tmp_path / "0.tar", {f"a{n}": {"n": n} for n in range(50)})
    put(root, {"1.tar": b"no tar at all", "2.tar": b"neither"})
    base_bytes = base._SECTION_BYTES
    base._SECTION_BYTES = 1
    try:
        for settings, ids in (({"take": 3}, ["a0", "a1", "a2"]), ({"take": 2, "where": "n > 9"}, ["a10", "a11"])):
            config = configured(tmp_path / str(len(ids)), {"kind": "webdataset", "uri": str(root), **settings})
            assert [each.sample.id for each in planned(config)] == ids
    finally:
        base._SECTION_BYTES = base_bytes
    opened = source("webdataset", root, take=3)
    assert len(list(opened.in_section(next(opened.sections())))) == 3
    with pytest.raises(ConfigError, match="isn't a tar"):
        list(source("webdataset", root, take=51).samples())


def configured(out, *sources):
    """A build of these sources."""
    given = {"source": sources[0]} if len(sources) == 1 else {"sources": list(sources)}
    output = {"uri": str(out), "samples_per_shard": 7}
    return BuildConfig.parse({**given, "output": output, "models": "untrained-tiny"})


def planned(config):
    """Plan as a driver does; the samples."""
    storage = open_storage(config.output.uri)
    settings = [each.deciding() for each in config.all_sources]
    opened = zip(open_sources(config).parts.values(), settings, strict=True)
    with reading(opened, storage, lambda _: None, print) as read:
        plan = make_plan(read, config, record_models(config), storage, absent=read.absent)
    return [each for unit in plan.units for each in read_unit(storage, unit)]


def absent(config):
    return dict(load_plan(open_storage(config.output.uri)).absent)


def test_equal_images_are_planned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_SECTION_BYTES", 1)
    first, second = image_bytes(), image_bytes("coffee")
    parquet(tmp_path / "p/0.parquet", [*rows(0, image=first), *rows(1, image=second), *rows(2, image=first)])
    missing = [{"image": None, "text": text} for text in "ab"]
    parquet(tmp_path / "p/1.parquet", [*rows(3, image=second), *missing])
    given = {"kind": "parquet", "uri": str(tmp_path / "p"), "dedupe": "image"}
    once = configured(tmp_path / "a", given)
    kept = ["0.jpg", "1.jpg", "1.parquet:2", "1.parquet:3"]  # images that can't be read are rejects of the build
    assert [each.sample.id for each in planned(once)] == kept
    assert absent(once) == {"not-chosen-dedupe": 2}
    assert [each.sample.id for each in planned(once)] == kept  # from the sections that were kept
    both = configured(tmp_path / "b", given | {"dedupe": "image+text"})
    assert len(planned(both)) == 6
    taken = configured(tmp_path / "c", given | {"take": 2})
    put(tmp_path / "p", {"0b.parquet": "isn't read"})
    assert [each.sample.id for each in planned(taken)] == ["0.jpg", "1.jpg"]
    (tmp_path / "p/0b.parquet").unlink()
    two = configured(tmp_path / "d", given | {"name": "a"}, given | {"name": "b"})
    assert [(each.sample.id, each.sample.image.source) for each in planned(two)] == [
        *((name, "a") for name in kept),
        *((name, "b") for name in kept[2:]),
    ]


def test_what_is_absent_is_counted_in_the_plan_also_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_SECTION_BYTES", 1)
    for number in range(3):
        downloaded(tmp_path / f"in/{number}.tar", {f"{number}{n}": {"n": n} for n in range(5)})
        stats = {"count": 8, "successes": 5, "failed_to_download": 2, "failed_to_resize": 1, "status_dict": {}}
        put(tmp_path / "in", {f"{number}_stats.json": json.dumps(stats)})
    given = {"kind": "webdataset", "uri": str(tmp_path / "in"), "where": "n >= 2", "files": "{0..1}.tar"}
    config = configured(tmp_path / "out", given)
    assert len(planned(config)) == 6
    counts = {"download-failed": 4, "not-chosen-files": 1, "not-chosen-where": 4, "resize-failed": 2}
    assert absent(config) == counts
    plan = load_plan(open_storage(config.output.uri))
    (tmp_path / "out/plan.parquet").unlink()
    planned(config)
    assert load_plan(open_storage(config.output.uri)) == plan
    assert replace(plan, absent={}).digest != plan.digest
    nothing = configured(tmp_path / "none", given | {"where": "n > 9"})
    with pytest.raises(ConfigError, match=r"left in .*absent: .*4 download-failed.*; not chosen: .*10 where"):
        planned(nothing)


def test_a_download_that_failed_is_no_reject(tmp_path):
    facts = {"a": {"status": "success"}, "b": {"status": "failed_to_download", "caption": "x"}}
    downloaded(tmp_path / "0.tar", facts)
    tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.txt": b"a", "b.json": json.dumps(facts["b"]).encode(), "c.txt": b"c"})
    found = list(source("webdataset", tmp_path).samples())
    assert [each for each in found if isinstance(each, Absent)] == [Absent("download-failed")]
    assert [each.id for each in found if isinstance(each, SourceSample)] == ["a", "0.tar/c"]


def test_a_null_among_texts_is_absent_and_nothing_but_nulls_a_reject(tmp_path):
    values = [{"image": b"x", "a": a, "b": b} for a, b in (("1", None), (None, ["2", None]), (None, None), ("", ["3"]))]
    parquet(tmp_path / "0.parquet", values)
    found = list(source("parquet", tmp_path, text_columns=["a", "b"]).samples())
    assert sum(each == Absent("text-null") for each in found) == 3
    samples = [each for each in found if isinstance(each, SourceSample)]
    assert [texts(each) for each in samples] == [["1"], ["2"], [], ["3"], []]
    reasons = [each.fault.reason if each.fault else "" for each in samples]
    assert reasons == ["", "", "text-missing", "", "part-text-empty"]


def test_a_plan_of_all_is_that_of_no_choice(tmp_path):
    root = downloaded(tmp_path / "in/0.tar", {str(n): {"n": n} for n in range(9)})
    plain = plan_of(config_of(root, tmp_path / "a"))
    everything = planned(configured(tmp_path / "b", {"kind": "webdataset", "uri": str(root), "where": "n >= 0"}))
    assert [each.key for each in everything] == [
        each.key for unit in plain.units for each in read_unit(open_storage(tmp_path / "a"), unit)
    ]


def test_names_of_sources(tmp_path):
    put(tmp_path, {"a/1.jpg": "x", "a/1.txt": "a", "b/1.jpg": "y", "b/1.txt": "b"})
    one, other = ({"kind": "folder", "uri": str(tmp_path / name), "name": name} for name in "ab")
    config = configured(tmp_path / "out", one, other)
    opened = open_sources(config)
    first, second = planned(config)
    assert second.key == f"{first.key}__000000001"
    assert [opened.read_image(each.sample.image) for each in (first, second)] == [b"x", b"y"]
    for given, why in (
        ({"sources": [one, one]}, "each needs a name of its own"),
        ({"sources": [one, {"kind": "folder", "uri": "b"}]}, "each needs a name of its own"),
        ({"sources": [one, other], "source": one}, "not both"),
        ({"sources": [one, {**other, "kind": "patchmint"}]}, "extended by itself"),
        ({"sources": [one, {**other, "kind": "foldr"}]}, r"sources\.1\.kind: there is no kind 'foldr'; did you"),
        ({"sources": [one, {**other, "uril": "x"}]}, r"sources\.1\.uril: there is no such setting"),
        ({}, "source: it must be given"),
    ):
        with pytest.raises(ConfigError, match=why):
            BuildConfig.parse({**given, "output": {"uri": "out"}})
    both = {"sources": [one, other], "output": {"uri": "out"}}
    assert [each.take for each in BuildConfig.load(both, {"source.take": 3}).all_sources] == [3, 3]


def test_counts_are_shown_by_reason():
    counts = {"download-failed": 12, "text-null": 3, "not-chosen-where": 4}
    assert describe_absent(counts) == "absent: 12 download-failed, 3 text-null; not chosen: 4 where"
    assert describe_absent({}) == ""
