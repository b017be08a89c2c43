"""`inspect` on the tars of other programs: as img2dataset writes them, with its own Parquet of the same name."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from inspect_data import answer, inspect, refusal
from shard_data import image_bytes, tar_of

from patchmint.errors import ShardError

CAPTIONS = ("a cat on a sofa", "two dogs", "eine Straße")


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """Three samples in img2dataset's form: PAX headers, a JSON with nulls, a table and statistics beside."""
    folder = tmp_path_factory.mktemp("img2dataset")
    same = {"status": "success", "error_message": None, "width": 40}
    records = [{"caption": caption, "key": f"00000000{n}", **same} for n, caption in enumerate(CAPTIONS)]
    with webdataset.TarWriter(str(folder / "00000.tar")) as writer:
        for n, record in enumerate(records):
            kind = "webp" if n == 2 else "jpeg"
            image = {kind if n == 2 else "jpg": image_bytes(n, kind)}
            writer.write({"__key__": record["key"], **image, "json": record, "txt": record["caption"]})
    failed = {"caption": "gone", "key": "000000003", "status": "failed_to_download", "error_message": "404"}
    pq.write_table(pa.Table.from_pylist([*records, failed]), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return str(folder / "00000.tar")


def test_listed_and_summarised(tar):
    listed = answer("ls", tar)
    assert [sample["key"] for sample in listed["samples"]] == ["000000000", "000000001", "000000002"]
    told = answer("info", tar)
    assert (told["totals"]["written"], told["totals"]["texts"], told["totals"]["label_share"]) == (3, 3, None)
    assert [member["ending"] for member in told["members"]] == ["jpg", "json", "txt"]
    assert told["layout"] == {}


def test_counted(tar):
    stats = answer("stats", tar)
    assert (stats["samples"], stats["texts"], stats["formats"]) == (3, 3, {"jpeg": 2, "webp": 1})
    assert (stats["width"]["minimum"], stats["height"]["maximum"]) == (40, 30)
    assert (stats["labels"], stats["codes"], stats["positions"]) == (None, [], None)


@pytest.mark.parametrize("name", ["000000002", "#2"])
def test_shown(tar, name):
    shown = answer("show", tar, name)
    assert shown["document"]["texts"] == ["eine Straße"]
    assert shown["document"]["image"] | {"mode": ""} == {
        "width": 40,
        "height": 30,
        "format": "webp",
        "mode": "",
        "orientation": 1,
    }
    printed = inspect("show", tar, name, rc=0).stdout
    assert "eine Straße" in printed
    assert "40 x 30 webp" in printed
    assert "grid" not in printed


def test_without_text_or_with_an_image_that_cant_be_read(tmp_path):
    whole = [("a.jpg", image_bytes(0, "jpeg")), ("a.json", b'{"texts": ["one", "two"]}')]
    (tmp_path / "t.tar").write_bytes(tar_of([*whole, ("b.jpg", b"<html>"), ("b.txt", b"b")]))
    stats = answer("stats", tmp_path / "t.tar")
    assert (stats["samples"], stats["texts"], stats["formats"]) == (2, 3, {"jpeg": 1, "unreadable": 1})
    assert answer("show", tmp_path / "t.tar", "a")["document"]["texts"] == ["one", "two"]
    assert "can't be read" in refusal("show", tmp_path / "t.tar", "b", kind=ShardError)
