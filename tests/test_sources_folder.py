"""Folders of images: sidecars and tables."""

import errno
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import absent, faults, good, image_bytes, put, read, refused, samples_of, source, texts

from patchmint.errors import ConfigError, ImageMissingError, ImageUnreadableError
from patchmint.pipeline.sources import base
from patchmint.samples import ImageRef
from patchmint.storage.failures import explain
from patchmint.storage.local import LocalStorage


def test_sidecars(tmp_path):
    images = ("B.JPEG", "a-1.png", "a.png", "sub/deep/a.webp", "x.jpg", "x.v1.jpg", "x.y/1.gif", "x.z/2.bmp")
    others = ("._b.jpg", ".cache/c.jpg", "notes.md", "jpg")
    put(tmp_path, {"b.jpg": image_bytes()} | dict.fromkeys((*images, *others), b"x"))
    sidecars = {
        "b.txt": "\ufeffa woman\nin orange \n",
        "B.json": '"just a string"',
        "a-1.json": '{"url": "https://h/x", "caption": "with a caption", "text": "not this"}',
        "a.json": '{"caption": null, "texts": ["one", "two"]}',
        "sub/deep/a.json": '{"text": "deep"}',
        "sub/deep/a.txt": "the .txt goes first",
        "x.y/1.txt": "in a folder with a dot",
        "x.z/2.txt": "two",
        "x.txt": "behind a folder",
        "x.v1.txt": "dotted",
    }
    put(tmp_path, sidecars)
    opened = source("folder", tmp_path)
    samples = list(opened.samples())
    assert [(sample.id, texts(sample)) for sample in samples] == [
        ("B.JPEG", ["just a string"]),
        ("a-1.png", ["with a caption"]),
        ("a.png", ["one", "two"]),
        ("b.jpg", ["a woman\nin orange"]),
        ("sub/deep/a.webp", ["the .txt goes first"]),
        ("x.jpg", ["behind a folder"]),
        ("x.v1.jpg", ["dotted"]),
        ("x.y/1.gif", ["in a folder with a dot"]),
        ("x.z/2.bmp", ["two"]),
    ]
    assert opened.read_image(samples[3].image) == image_bytes()


def test_every_ending_is_read_or_rejected(tmp_path):
    images = ("a.JPG", "b.jfif", "c.jpe", "d.tif", "e.TIFF", "f.avif")
    others = ("g.heic", "h.svg", "i.jpg.bak")
    beside = ("a.npy", "a.json.bak", "notes.md", "alone.txt")
    put(tmp_path, dict.fromkeys((*images, *others, *beside), b"x"))
    put(tmp_path, {f"{name.rpartition('.')[0]}.txt": name for name in (*images, *others)})
    samples = read("folder", tmp_path)
    assert good(samples) == [[name] for name in images]
    assert faults(samples) == {"image-format": set(others)}
    (heic,) = (sample for sample in samples if sample.id == "g.heic")
    assert "convert it, or rename it" in heic.fault.message


def test_bad_sidecars(tmp_path, monkeypatch):
    monkeypatch.setattr("patchmint.pipeline.sources.folder.MAX_TEXT_BYTES", 100)
    sidecars = {
        "1.txt": " \n",
        "2.json": "{",
        "3.json": "{}",
        "4.json": '{"texts": ["good", 5, ""]}',
        "5.txt": b"caf\xe9",
        "6.json": '{"caption": "\\ud800"}',
        "7.txt": "x" * 101,
        "8.json": "[" * 60,
        "9.json": "3",
    }
    put(tmp_path, {**sidecars, **{f"{n}.jpg": b"x" for n in range(1, 11)}})
    samples = read("folder", tmp_path)
    assert faults(samples) == {
        "text-empty": {"1.jpg", "4.jpg#fault-1"},
        "record-malformed": {"2.jpg", "3.jpg", "4.jpg#fault-0", "8.jpg", "9.jpg"},
        "text-not-unicode": {"5.jpg", "6.jpg"},
        "text-too-long": {"7.jpg"},
        "text-missing": {"10.jpg"},
    }
    assert good(samples) == [["good"]]


def test_many_sidecars_stay_with_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_WINDOW", 3)
    put(tmp_path, {f"{n:03}.jpg": b"x" for n in range(60)})
    put(tmp_path, {f"{n:03}.txt": f"text {n}" for n in range(60) if n % 7})
    samples = read("folder", tmp_path)
    assert [texts(sample) for sample in samples] == [[f"text {n}"] if n % 7 else [] for n in range(60)]


def test_names_that_are_no_unicode(tmp_path):
    (tmp_path / "caf\udce9.jpg").write_bytes(b"x")
    (sample,) = source("folder", tmp_path).samples()
    assert (sample.id, sample.fault.reason) == ("caf\\udce9.jpg", "path-not-unicode")


def table(folder, ending, rows):
    names = ("file_name", "text")
    records = [dict(zip(names, row, strict=True)) for row in rows]
    match ending:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / "t.parquet")
        case "jsonl":
            put(folder, {"t.jsonl": "\n".join(map(json.dumps, records)) + "\n\n"})
        case _:
            mark = "\t" if ending == "tsv" else ","
            lines = [mark.join(f'"{value}"' for value in row) for row in [names, *rows]]
            put(folder, {f"t.{ending}": "\ufeff" + "\r\n".join(lines) + "\r\n"})


def test_columns_parted_by_other_characters(tmp_path):
    """As open_clip, spreadsheets and Flickr30k's results.csv have it."""
    put(tmp_path, {"a.jpg": b"a"})
    for table in ("file_name\ttext\na.jpg\tone, two\n", "file_name;text\na.jpg;one, two\n"):
        put(tmp_path, {"t.csv": table})
        assert good(read("folder", tmp_path, table="t.csv")) == [["one, two"]]
    put(tmp_path, {"t.csv": 'file_name| number| text\na.jpg| 0| "One" man\na.jpg| 1| two\n'})
    assert good(read("folder", tmp_path, table="t.csv")) == [['"One" man', "two"]]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, ending):
    put(tmp_path, {"a.jpg": b"a", "b/c.png": b"c", "d.jpg": b"d", "d.txt": "ignored", "raw": b"image of another name"})
    rows = [("b/c.png", "one, with a comma"), ("a.jpg", "two\nlines"), ("./b//c.png", "three"), ("raw", "four")]
    table(tmp_path, ending, [*rows, ("gone.jpg", "five"), ("../x.jpg", "six")])
    opened = source("folder", tmp_path, table=f"t.{ending}")
    samples = samples_of(opened)
    assert [(sample.id, texts(sample)) for sample in samples[1:]] == [
        ("a.jpg", ["two\nlines"]),
        ("b/c.png", ["one, with a comma", "three"]),
        ("raw", ["four"]),
        ("gone.jpg", ["five"]),
    ]
    assert faults(samples) == {"path-outside-source": {f"t.{ending}:6"}}
    assert absent("folder", tmp_path, table=f"t.{ending}") == {"not-annotated": 1}
    assert opened.read_image(samples[3].image) == b"image of another name"
    with pytest.raises(ImageMissingError):
        opened.read_image(samples[4].image)


def test_tables_with_columns_of_another_name(tmp_path):
    put(tmp_path, {"a.jpg": b"a", "t.csv": "image,caption,score\na.jpg,hello,1\na.jpg,,2\n"})
    samples = read("folder", tmp_path, table="t.csv", file_column="image", text_column="caption")
    assert texts(samples[0]) == ["hello"]
    assert faults(samples) == {"text-empty": {"a.jpg#fault-0"}}
    refused(r"no column 'file_name'; its columns: 'image', 'caption', 'score'", "folder", tmp_path, table="t.csv")
    table(tmp_path, "parquet", [("a.jpg", ["one", "two"])])
    assert good(read("folder", tmp_path, table="t.parquet")) == [["one", "two"]]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "t.csv",
            b"file_name,text\na.jpg,good\na.jpg\na.jpg,caf\xe9\n\na.jpg,too,many\n",
            {"record-malformed": {"t.csv:2", "t.csv:5"}, "text-not-unicode": {"a.jpg#fault-0"}},
        ),
        (
            "t.jsonl",
            b'{"file_name": "a.jpg", "text": "good"}\n{\n5\n{"file_name": "a.jpg"}\n{"text": "x"}\n',
            {"record-malformed": {"t.jsonl:2", "t.jsonl:3", "t.jsonl:5", "a.jpg#fault-0"}},
        ),
    ],
)
def test_bad_rows(tmp_path, name, content, expected):
    put(tmp_path, {"a.jpg": b"a", name: content})
    samples = read("folder", tmp_path, table=name)
    assert good(samples) == [["good"]]
    assert faults(samples) == expected


def test_parquet_strings_in_another_encoding(tmp_path):
    put(tmp_path, {"a.jpg": b"a"})
    wrong = pa.array([b"caf\xe9", b"good"]).cast(pa.binary()).view(pa.string())
    for column in (wrong, pa.ListArray.from_arrays([0, 1, 2], wrong)):
        pq.write_table(pa.table({"file_name": ["a.jpg", "a.jpg"], "text": column}), tmp_path / "t.parquet")
        samples = read("folder", tmp_path, table="t.parquet")
        assert texts(samples[0]) == ["good"]
        assert faults(samples) == {"text-not-unicode": {"a.jpg#fault-0"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "empty"),
        ("t.csv", b"<html>", "web page"),
        ("t.csv", b"\x1f\x8b\x08", "gzip"),
        ("t.csv", b'file_name,text\na.jpg,"unfinished', "unexpected end"),
        ("t.csv", b'file_name,text\na.jpg,"a"b\n', "isn't a sound table"),
        ("t.jsonl", b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ("t.jsonl", b'{"a": 1}\n', "no column 'file_name'"),
        ("t.json", b'{"file_name": "a.jpg", "text": "x"}', "no list of records"),
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ("t.parquet", b"PAR1 and no more", "isn't a sound Parquet file"),
        ("t.parquet", b"something else", "isn't a sound Parquet file"),
        ("t.parquet", b"", "empty"),
        ("t.xlsx", b"x", "must end with .csv"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content, message):
    put(tmp_path, {name: content})
    refused(message, "folder", tmp_path, table=name)


def test_missing_table(tmp_path):
    refused("is empty, and the source .* each machine mounts it", "folder", tmp_path)
    put(tmp_path, {"a.jpg": b"x"})
    refused(r"there is no 't.csv'.*source.table", "folder", tmp_path, table="t.csv")
    with pytest.raises(ConfigError, match=r"source.table: .* stay within"):
        source("folder", tmp_path, table="../t.csv")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize(("failures", "reads"), [(0, 1), (2, 3), (9, 3)])
def test_a_file_that_cannot_be_read_is_tried_again(tmp_path, monkeypatch, number, failures, reads):
    """A mount that hiccups; as root, permissions keep nobody out."""
    put(tmp_path, {"a.jpg": image_bytes()})
    tried, real = [], LocalStorage.read

    def read(storage, path):
        tried.append(path)
        if len(tried) > failures:
            return real(storage, path)
        error = OSError(number, os.strerror(number))
        raise explain("read", path, error) from error

    monkeypatch.setattr(LocalStorage, "read", read)
    monkeypatch.setattr(base, "_RESTS", (0, 0))
    read_image = source("folder", tmp_path).read_image
    if failures > reads:
        with pytest.raises(ImageUnreadableError, match="fix its permissions"):
            read_image(ImageRef("a.jpg"))
    else:
        assert read_image(ImageRef("a.jpg")) == (tmp_path / "a.jpg").read_bytes()
    assert len(tried) == reads


def test_texts_alone_are_counted(tmp_path):
    put(tmp_path, {"a.jpg": b"a", "a.txt": b"one", "b.txt": b"two", "c.json": b"{}", "d.txt": b"four", "d.heic": b"d"})
    assert [sample.id for sample in read("folder", tmp_path)] == ["a.jpg", "d.heic"]
    assert absent("folder", tmp_path) == {"text-without-image": 1}
