"""Conversations: whatever the form, turns of human, gpt and system, and one mark for the one image."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import absent, faults, image_bytes, put, read, refused, source, texts

from patchmint.errors import ImageMissingError
from patchmint.pipeline.sources import image_records
from patchmint.pipeline.sources.tables import parquet_rows
from patchmint.samples import Turn

ASKED, SAID = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}
TALK = [ASKED, SAID]


def entries(folder, *records, name="chat.json"):
    return put(folder, {name: json.dumps(records)})


def turns(folder, said, **settings):
    """The turns of a conversation about a.jpg, or the reason of its reject."""
    key = "messages" if "role" in said[0] else "conversations"
    entries(folder, {"image": "a.jpg", key: said})
    (sample,) = read("conversations", folder, **settings)
    return sample.fault.reason if sample.fault else [(turn.role, turn.content) for turn in sample.conversation]


def test_one_mark_for_the_one_image(tmp_path):
    human, gpt = ("human", "<image>\nWhat?"), ("gpt", "A cat.")
    bare = {"from": "human", "value": "What?"}
    assert turns(tmp_path, TALK) == [human, gpt]
    assert turns(tmp_path, [bare, SAID]) == "mark-missing"
    assert turns(tmp_path, [bare, SAID], missing_mark="prepend") == [human, gpt]
    assert turns(tmp_path, [SAID], missing_mark="prepend") == [("human", "<image>"), gpt]
    assert turns(tmp_path, [ASKED, SAID, ASKED, SAID]) == "mark-repeated"
    assert turns(tmp_path, [ASKED, {"from": "gpt", "value": "The <image> tag"}])[1] == ("gpt", "The <image> tag")
    system = {"role": "system", "content": "Be kind."}
    asked = [system, {"role": "USER", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    assert turns(tmp_path, asked, missing_mark="prepend") == [("system", "Be kind."), human, gpt]


def test_parts_of_turns(tmp_path):
    def asked(*parts):
        return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": "A cat."}]

    text = {"type": "text", "text": "What?"}
    assert turns(tmp_path, asked({"type": "image"}, text))[0] == ("human", "<image>\nWhat?")
    assert turns(tmp_path, asked(text, {"type": "image", "image": None}))[0] == ("human", "What?\n<image>")
    url = {"type": "image_url", "image_url": {"url": "https://host/b.jpg"}}
    assert turns(tmp_path, asked(url, text)) == "path-outside-source"
    (sample,) = read("conversations", tmp_path, strip_prefix="https://host/")
    assert sample.image.path == "b.jpg"  # not the a.jpg beside it
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    assert turns(tmp_path, asked(data, text)) == "image-inline"
    (sample,) = read("conversations", tmp_path)
    assert "save it as a file" in sample.fault.message
    assert len(sample.fault.message) < 300
    assert turns(tmp_path, asked(url, url, text)) == "several-images"
    for part in ({"type": "video"}, {"type": "text"}, "text"):
        assert turns(tmp_path, asked(part)) == "record-malformed"


def test_images_of_an_entry(tmp_path):
    for images in ({"image": ["a.jpg"]}, {"images": ["a.jpg"]}, {"image": None, "images": ["a.jpg"]}):
        entries(tmp_path, images | {"conversations": TALK})
        assert [sample.image.path for sample in read("conversations", tmp_path)] == ["a.jpg"]
    entries(tmp_path, {"img": "a.jpg", "conversations": TALK, "uid": 7.0})
    (sample,) = read("conversations", tmp_path, image_column="img", id_column="uid")
    assert (sample.id, sample.image.path, sample.record["uid"]) == ("7", "a.jpg", 7.0)
    bare = [{"from": "human", "value": "Hello"}, SAID]
    for images in ({}, {"image": ""}, {"images": []}, {"image": None}):
        entries(tmp_path, images | {"conversations": bare})
        assert (read("conversations", tmp_path), absent("conversations", tmp_path)) == ([], {"text-only": 1})
        entries(tmp_path, images | {"conversations": TALK})
        assert faults(read("conversations", tmp_path)) == {"no-image": {"entry-0"}}


def test_what_is_about_something_else_is_no_text(tmp_path):
    entries(tmp_path, {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, SAID]})
    assert faults(read("conversations", tmp_path)) == {"no-image": {"entry-0"}}


def test_other_places_of_turns(tmp_path):
    said = {"image": "a.jpg", "conversations": json.dumps(TALK), "system": "Be kind."}
    entries(tmp_path, said, {"image": "a.jpg", "conversations": "[not JSON"}, {"image": "a.jpg", "texts": ["a cat"]})
    samples = read("conversations", tmp_path, texts="all")
    assert (texts(samples[0]), samples[0].conversation[0]) == (["What?", "A cat."], Turn("system", "Be kind."))
    assert faults(samples) == {"record-malformed": {"entry-1", "entry-2"}}


def test_json_lines_with_a_broken_one(tmp_path):
    good = json.dumps({"id": "a", "image": "a.jpg", "conversations": TALK})
    for name in ("chat.jsonl", "chat.json"):
        folder = put(tmp_path / name, {name: f"\ufeff{good}\n{good[:-5]}\n\n{good}\r\n"})
        samples = read("conversations", folder)
        assert [sample.id for sample in samples] == ["a", "entry-1", "a"]
        assert faults(samples) == {"record-malformed": {"entry-1"}}
    assert len(read("conversations", put(tmp_path / "one", {"one.jsonl": good}))) == 1
    refused("isn't JSON Lines", "conversations", put(tmp_path / "two", {"two.json": good}))


def parquet(folder, name="data/train.parquet", **columns):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name, row_group_size=2)
    return folder


STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet(tmp_path):
    photos = [image_bytes(name) for name in ("astronaut", "chelsea", "coffee")]
    images = [{"bytes": photos[0], "path": "x.jpg"}, None, *({"bytes": photo, "path": None} for photo in photos[1:])]
    bare = [{"from": "human", "value": "Hello"}, SAID]
    said = [TALK, bare, TALK, TALK]
    parquet(tmp_path, image=pa.array(images, STORED), conversations=said, id=[1, 2, 3, None], source=list("abcd"))
    opened = source("conversations", tmp_path)
    opened.check()
    samples = read("conversations", tmp_path)
    assert [sample.id for sample in samples] == ["1", "3", "data/train.parquet:4"]
    assert [opened.read_image(sample.image) for sample in samples] == photos
    assert [sample.record["source"] for sample in samples] == ["a", "c", "d"]
    assert absent("conversations", tmp_path) == {"text-only": 1}
    sections = list(opened.sections())
    assert [found for section in sections for found in opened.in_section(section)] == list(opened.samples())


def test_parquet_with_lists_of_images(tmp_path):
    stored = {"bytes": image_bytes(), "path": None}
    cauldron = [[{"user": "What?", "assistant": "A cat.", "source": "x"}]] * 3
    parquet(tmp_path, images=pa.array([[stored], [], [stored, stored]], pa.list_(STORED)), texts=cauldron)
    opened = source("conversations", tmp_path)
    samples = read("conversations", tmp_path)
    assert samples[0].conversation == (Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat."))
    assert opened.read_image(samples[0].image) == image_bytes()
    assert faults(samples) == {"several-images": {"data/train.parquet:3"}}
    assert absent("conversations", tmp_path) == {"text-only": 1}


def test_planning_leaves_the_bytes_of_images_alone(tmp_path, monkeypatch):
    read_columns = []

    def recorded(storage, path, table, columns):
        read_columns.append(columns)
        return parquet_rows(storage, path, table, columns)

    monkeypatch.setattr(image_records, "parquet_rows", recorded)
    stored = {"bytes": image_bytes(), "path": None}
    for name, images in (("image", pa.array([stored], STORED)), ("images", pa.array([[stored]], pa.list_(STORED)))):
        parquet(tmp_path / name, conversations=[TALK], **{name: images})
        assert len(read("conversations", tmp_path / name)) == 1
    assert read_columns == [["conversations", "image.path"], ["conversations", "images.list.element.path"]]


def test_parquet_with_other_images(tmp_path):
    parquet(tmp_path / "bytes", image=pa.array([image_bytes(), None], pa.binary()), conversations=[TALK, TALK])
    opened = source("conversations", tmp_path / "bytes")
    there, gone = read("conversations", tmp_path / "bytes")
    assert opened.read_image(there.image) == image_bytes()
    with pytest.raises(ImageMissingError, match="holds no image bytes"):
        opened.read_image(gone.image)
    folder = put(parquet(tmp_path / "paths", image=["a.jpg"], conversations=[TALK]), {"pictures/a.jpg": b"a"})
    opened = source("conversations", folder, images="pictures")
    opened.check()
    (sample,) = opened.samples()
    assert opened.read_image(sample.image) == b"a"
    refused("no column of turns", "conversations", parquet(tmp_path / "none", image=["a.jpg"], text=["x"]))
    refused("no column 'image'", "conversations", parquet(tmp_path / "blind", messages=[TALK]))


def test_which_file(tmp_path):
    entries(tmp_path, name="a.json")
    assert read("conversations", tmp_path) == []
    entries(tmp_path, name="b.jsonl")
    refused(r"several JSON files \(a.json, b.jsonl\)", "conversations", tmp_path)
    parquet(tmp_path, image=["a.jpg"], conversations=[TALK])
    assert [sample.id for sample in read("conversations", tmp_path)] == ["data/train.parquet:1"]
    for given in ("data", "data/train.parquet"):
        assert len(read("conversations", tmp_path, annotations=given)) == 1


def test_splits_of_parquet(tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path, f"data/{split}-00000-of-00001.parquet", image=["a.jpg"], conversations=[TALK], id=[split])
    refused("the splits train, validation side by side", "conversations", tmp_path)
    assert [sample.id for sample in read("conversations", tmp_path, split="train")] == ["train"]
    assert [sample.id for sample in read("conversations", tmp_path, files="validation-*")] == ["validation"]
    assert len(read("conversations", tmp_path, split="all", where="id <> 'train'")) == 1
    entries(tmp_path / "json", *({"image": f"{name}/a.jpg", "conversations": TALK} for name in ("x", "train", "test")))
    for settings in ({"split": "train"}, {"files": "train/*"}):
        (sample,) = read("conversations", tmp_path / "json", **settings)
        assert sample.image.path == "train/a.jpg"
