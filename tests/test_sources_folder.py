"""Folders of images: sidecars and tables."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import faults, image_bytes, put, source, texts

from patchmint.errors import ConfigError, ImageMissingError
from patchmint.pipeline.sources import base


def test_sidecars(tmp_path):
    put(
        tmp_path,
        {
            "b.jpg": image_bytes(),
            "b.txt": "\ufeffa woman\nin orange \n",
            "B.JPEG": b"x",
            "B.json": '"just a string"',
            "a-1.png": b"x",
            "a-1.json": '{"url": "https://h/x", "caption": "with a caption", "text": "not this"}',
            "a.png": b"x",
            "a.json": '{"caption": null, "texts": ["one", "two"]}',
            "sub/deep/a.webp": b"x",
            "sub/deep/a.json": '{"text": "deep"}',
            "sub/deep/a.txt": "the .txt goes first",
            "x.y/1.gif": b"x",
            "x.y/1.txt": "in a folder with a dot",
            "x.jpg": b"x",
            "x.z/2.bmp": b"x",
            "x.z/2.txt": "two",
            "x.txt": "behind a folder",
            "x.v1.jpg": b"x",
            "x.v1.txt": "dotted",
            "._b.jpg": b"resource fork",
            ".cache/c.jpg": b"x",
            "notes.md": "no image",
            "jpg": "no image",
        },
    )
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
    samples = list(source("folder", tmp_path).samples())
    assert faults(samples) == {
        "1.jpg": "text-empty",
        "2.jpg": "record-malformed",
        "3.jpg": "record-malformed",
        "4.jpg#fault-0": "record-malformed",
        "4.jpg#fault-1": "text-empty",
        "5.jpg": "text-not-unicode",
        "6.jpg": "text-not-unicode",
        "7.jpg": "text-too-long",
        "8.jpg": "record-malformed",
        "9.jpg": "record-malformed",
        "10.jpg": "text-missing",
    }
    assert [texts(sample) for sample in samples if sample.fault is None] == [["good"]]


def test_many_sidecars_stay_with_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_WINDOW", 3)
    put(tmp_path, {f"{n:03}.jpg": b"x" for n in range(60)})
    put(tmp_path, {f"{n:03}.txt": f"text {n}" for n in range(60) if n % 7})
    samples = list(source("folder", tmp_path).samples())
    assert [texts(sample) for sample in samples] == [[f"text {n}"] if n % 7 else [] for n in range(60)]


def test_names_that_are_no_unicode(tmp_path):
    (tmp_path / "caf\udce9.jpg").write_bytes(b"x")
    (sample,) = source("folder", tmp_path).samples()
    assert (sample.id, sample.fault.reason) == ("caf\\udce9.jpg", "path-not-unicode")


def table(folder, ending, rows):
    names = ("file_name", "text")
    match ending:
        case "parquet":
            pq.write_table(
                pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "t.parquet"
            )
        case "jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
            put(folder, {"t.jsonl": "\n".join(lines) + "\n\n"})
        case _:
            mark = "\t" if ending == "tsv" else ","
            lines = [mark.join(f'"{value}"' for value in row) for row in [names, *rows]]
            put(folder, {f"t.{ending}": "\ufeff" + "\r\n".join(lines) + "\r\n"})


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, ending):
    put(
        tmp_path, {"a.jpg": b"a", "b/c.png": b"c", "d.jpg": b"d", "raw": b"image with another name", "d.txt": "ignored"}
    )
    rows = [("b/c.png", "one, with a comma"), ("a.jpg", "two\nlines"), ("./b//c.png", "three"), ("raw", "four")]
    table(tmp_path, ending, [*rows, ("gone.jpg", "five"), ("../x.jpg", "six")])
    opened = source("folder", tmp_path, table=f"t.{ending}")
    samples = list(opened.samples())
    assert [(sample.id, texts(sample)) for sample in samples[1:]] == [
        ("a.jpg", ["two\nlines"]),
        ("b/c.png", ["one, with a comma", "three"]),
        ("d.jpg", []),
        ("raw", ["four"]),
        ("gone.jpg", ["five"]),
    ]
    assert faults(samples) == {f"t.{ending}:6": "path-outside-source", "d.jpg": "text-missing"}
    assert opened.read_image(samples[4].image) == b"image with another name"
    with pytest.raises(ImageMissingError):
        opened.read_image(samples[5].image)


def test_tables_with_columns_of_another_name(tmp_path):
    put(tmp_path, {"a.jpg": b"a", "t.csv": "image,caption,score\na.jpg,hello,1\na.jpg,,2\n"})
    samples = list(source("folder", tmp_path, table="t.csv", file_column="image", text_column="caption").samples())
    assert texts(samples[0]) == ["hello"]
    assert faults(samples) == {"a.jpg#fault-0": "text-empty"}
    with pytest.raises(ConfigError, match=r"no column 'file_name'; its columns: 'image', 'caption', 'score'"):
        list(source("folder", tmp_path, table="t.csv").samples())


def test_lists_of_texts_in_a_table(tmp_path):
    put(tmp_path, {"a.jpg": b"a"})
    table(tmp_path, "parquet", [("a.jpg", ["one", "two"])])
    assert [texts(sample) for sample in source("folder", tmp_path, table="t.parquet").samples()] == [["one", "two"]]


def test_bad_rows(tmp_path):
    put(
        tmp_path,
        {
            "a.jpg": b"a",
            "t.csv": b"file_name,text\na.jpg,good\na.jpg\na.jpg,caf\xe9\n\na.jpg,too,many\n",
            "t.jsonl": b'{"file_name": "a.jpg", "text": "good"}\n{\n5\n{"file_name": "a.jpg"}\n{"text": "x"}\n',
        },
    )
    samples = list(source("folder", tmp_path, table="t.csv").samples())
    assert [texts(sample) for sample in samples if sample.fault is None] == [["good"]]
    assert faults(samples) == {
        "t.csv:2": "record-malformed",
        "t.csv:5": "record-malformed",
        "a.jpg#fault-0": "text-not-unicode",
    }
    samples = list(source("folder", tmp_path, table="t.jsonl").samples())
    assert [texts(sample) for sample in samples if sample.fault is None] == [["good"]]
    assert faults(samples) == {
        "t.jsonl:2": "record-malformed",
        "t.jsonl:3": "record-malformed",
        "t.jsonl:5": "record-malformed",
        "a.jpg#fault-0": "record-malformed",
    }


def test_parquet_strings_in_another_encoding(tmp_path):
    put(tmp_path, {"a.jpg": b"a"})
    wrong = pa.array([b"caf\xe9", b"good"]).cast(pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2], wrong)
    for column in (wrong, lists):
        pq.write_table(pa.table({"file_name": ["a.jpg", "a.jpg"], "text": column}), tmp_path / "t.parquet")
        samples = list(source("folder", tmp_path, table="t.parquet").samples())
        assert texts(samples[0]) == ["good"]
        assert faults(samples) == {"a.jpg#fault-0": "text-not-unicode"}


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
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ("t.parquet", b"PAR1 and no more", "isn't a sound Parquet file"),
        ("t.parquet", b"something else", "isn't a sound Parquet file"),
        ("t.parquet", b"", "empty"),
        ("t.xlsx", b"x", "must end with .csv"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, name, content, message):
    put(tmp_path, {name: content})
    with pytest.raises(ConfigError, match=message):
        list(source("folder", tmp_path, table=name).samples())


def test_missing_table(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no 't.csv'.*source.table"):
        list(source("folder", tmp_path, table="t.csv").samples())
    with pytest.raises(ConfigError, match=r"source.table: .* stay within"):
        source("folder", tmp_path, table="../t.csv")
