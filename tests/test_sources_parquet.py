"""Parquet files with images in them."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import faults, image_bytes, put, refused, source, texts

from patchmint.errors import ImageMissingError, StorageError
from patchmint.pipeline.sources import parquet
from patchmint.samples import ImageRef

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub(folder, name, rows, **columns):
    """As `datasets` writes an Image feature: a struct, in small row groups, below data/."""
    schema = pa.schema([("image", IMAGE), *columns.items()])
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=4)
    return folder


def row(number, **values):
    return {"image": {"bytes": b"image %d" % number, "path": f"{number}.jpg"}, **values}


def test_hub_layout(tmp_path):
    hub(tmp_path, "train-00001-of-00002.parquet", [row(n, text=f"text {n}") for n in range(10, 13)], text=pa.string())
    hub(tmp_path, "train-00000-of-00002.parquet", [row(n, text=f"text {n}") for n in range(10)], text=pa.string())
    opened = source("parquet", tmp_path)
    samples = list(opened.samples())
    assert [(sample.id, texts(sample)) for sample in samples] == [(f"{n}.jpg", [f"text {n}"]) for n in range(13)]
    for order in (samples, samples[::-1]):
        with ThreadPoolExecutor(4) as threads:
            read = list(threads.map(opened.read_image, [sample.image for sample in order]))
        assert read == [b"image " + sample.id.removesuffix(".jpg").encode() for sample in order]
    (only, *_) = source("parquet", tmp_path / "data/train-00001-of-00002.parquet").samples()
    assert only.id == "10.jpg"


def test_a_real_image(tmp_path):
    hub(tmp_path, "a.parquet", [{"image": {"bytes": image_bytes(), "path": None}, "text": "x"}], text=pa.string())
    opened = source("parquet", tmp_path)
    (sample,) = opened.samples()
    assert (sample.id, opened.read_image(sample.image)) == ("data/a.parquet:1", image_bytes())


def test_neighbours_are_not_read_again(tmp_path, monkeypatch):
    hub(tmp_path, "a.parquet", [row(n, text="x") for n in range(12)], text=pa.string())
    read = []
    original = parquet.ParquetSource._read_group

    def counted(self, path, number):
        read.append(number)
        return original(self, path, number)

    monkeypatch.setattr(parquet.ParquetSource, "_read_group", counted)
    opened = source("parquet", tmp_path)
    refs = [sample.image for sample in opened.samples()]
    with ThreadPoolExecutor(3) as threads:
        for first, last in (
            (0, 2),
            (2, 6),
            (6, 8),
            (8, 12),
        ):  # once across a border; all at once, a slow thread may lag
            list(threads.map(opened.read_image, refs[first:last]))
    assert sorted(read) == [0, 1, 2]
    opened.read_image(refs[0])
    assert len(read) == 4
    assert len(opened.source._groups) == 2


def test_plain_bytes_and_lists_of_texts(tmp_path):
    for kind in (pa.binary(), pa.large_binary()):
        columns = {
            "picture": pa.array([b"one", None], kind),
            "short": pa.array(["a", "b"]),
            "long": pa.array([["c", "d"], []], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        opened = source("parquet", tmp_path, image_column="picture", text_columns=["short", "long"])
        samples = list(opened.samples())
        assert [texts(sample) for sample in samples] == [["a", "c", "d"], ["b"]]
        assert opened.read_image(samples[0].image) == b"one"
        with pytest.raises(ImageMissingError, match=r"row 2 of a\.parquet"):
            opened.read_image(samples[1].image)


def test_bad_texts_and_missing_bytes(tmp_path):
    rows = [row(0, text=None), row(1, text=" "), row(2, text="good"), {"image": None, "text": "no image"}]
    rows.append({"image": {"bytes": None, "path": "only/a/path.jpg"}, "text": "no bytes"})
    hub(tmp_path, "a.parquet", rows, text=pa.string())
    opened = source("parquet", tmp_path)
    samples = list(opened.samples())
    assert faults(samples) == {"text-missing": {"0.jpg"}, "text-empty": {"1.jpg"}}
    for sample in samples[3:]:
        with pytest.raises(ImageMissingError, match="holds no image bytes"):
            opened.read_image(sample.image)


def test_columns_that_do_not_fit(tmp_path):
    hub(tmp_path, "a.parquet", [row(0, text="a", caption="b")], text=pa.string(), caption=pa.string())
    refused(r"several columns of texts \(caption, text\)", "parquet", tmp_path)
    refused("no column 'title'", "parquet", tmp_path, text_columns="title")
    refused("is of type string, not bytes", "parquet", tmp_path, image_column="text", text_columns="caption")
    hub(tmp_path, "a.parquet", [row(0, title="a")], title=pa.string())
    refused(r"no column that is clearly one of texts.*'image', 'title'", "parquet", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"<html>", "web page"), (b"PAR1" + b"x" * 50, "isn't a sound Parquet")]
)
def test_what_is_no_parquet_is_named(tmp_path, content, message):
    put(tmp_path, {"a.parquet": content})
    refused(message, "parquet", tmp_path)


def test_no_files(tmp_path):
    put(tmp_path, {"something": "else"})
    refused(r"no \.parquet file", "parquet", tmp_path)
    refused(r"no x\.parquet", "parquet", tmp_path / "x.parquet")


def test_files_that_changed_since_the_plan_are_trouble_with_the_storage(tmp_path):
    hub(tmp_path, "a.parquet", [row(n, text="x") for n in range(2)], text=pa.string())
    with pytest.raises(StorageError, match="has no row 2"):
        source("parquet", tmp_path).read_image(ImageRef("data/a.parquet", 2))
    put(tmp_path, {"data/a.parquet": b"PAR1"})
    with pytest.raises(StorageError, match="can't be read any more"):
        source("parquet", tmp_path).read_image(ImageRef("data/a.parquet", 0))
    (tmp_path / "data/a.parquet").unlink()
    with pytest.raises(StorageError, match="no such file"):
        source("parquet", tmp_path).read_image(ImageRef("data/a.parquet", 0))


def test_damage_within_a_file(tmp_path):
    rows = [row(n, text=f"{n} " + "text " * 50) for n in range(8)]
    path = hub(tmp_path, "a.parquet", rows, text=pa.string()) / "data/a.parquet"
    raw = bytearray(path.read_bytes())
    raw[8 : len(raw) - 1500] = b"\xaa" * (len(raw) - 1508)
    path.write_bytes(raw)
    refused("isn't a sound Parquet", "parquet", tmp_path)
    with pytest.raises(StorageError, match="can't be read any more"):
        source("parquet", tmp_path).read_image(ImageRef("data/a.parquet", 0))
