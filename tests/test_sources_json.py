"""JSON in pieces: the same as json.loads for every cut, and clear words about what is broken."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import put

from patchmint.errors import ConfigError
from patchmint.pipeline.sources import json_stream
from patchmint.pipeline.sources.json_stream import stream_list, stream_members
from patchmint.storage import open_storage

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def streamed(folder, content):
    return list(stream_list(open_storage(put(folder, {"a.json": content})), "a.json"))


def test_any_list_in_any_pieces(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 3)
    folder = tmp_path_factory.mktemp("json")

    @given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1]))
    def check(value, ascii_only, indent):
        assert streamed(folder, json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == value

    check()


def test_members_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 3)
    document = {
        "info": {"a": 1.5e10},
        "images": [{"id": 1}, {"id": 2}],
        "none": [],
        "version": 12.25,
        "last": [-1.5, 2],
    }
    put(tmp_path, {"a.json": "\ufeff " + json.dumps(document) + "\n"})
    assert list(stream_members(open_storage(tmp_path), "a.json")) == [
        ("info", {"a": 1.5e10}),
        ("images", {"id": 1}),
        ("images", {"id": 2}),
        ("version", 12.25),
        ("last", -1.5),
        ("last", 2),
    ]
    put(tmp_path, {"b.json": "{ }"})
    assert list(stream_members(open_storage(tmp_path), "b.json")) == []


def test_memory_stays_flat(tmp_path):

    record = json.dumps({"id": 1, "text": "x" * 1000})
    put(tmp_path, {"a.json": "[" + ",".join([record] * 20_000) + "]"})
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream_list(open_storage(tmp_path), "a.json")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_lines_whatever_they_are_called(tmp_path):
    good = json.dumps({"a": 1})
    assert streamed(tmp_path, f"{good}\n\n{good}\r\n") == [{"a": 1}, {"a": 1}]
    assert streamed(tmp_path, f'{good}\n{{"a": \n5') == [{"a": 1}, '{"a": \n', 5]
    for name, content, found in (
        ("a.jsonl", "[1,\n 2]", [1, 2]),
        ("b.JSONL", "cut}\n5", ["cut}\n", 5]),
        ("c.ndjson", "{}", [{}]),
    ):
        assert list(stream_list(open_storage(put(tmp_path, {name: content})), name)) == found


def test_a_list_in_the_place_of_an_object(tmp_path):
    with pytest.raises(ConfigError, match=r"is a list, and should be .*kind: conversations.*kind: folder"):
        list(stream_members(open_storage(put(tmp_path, {"a.json": "[{}]"})), "a.json"))


def test_other_encodings_come_out_marked(tmp_path):
    assert streamed(tmp_path, b'["caf\xe9", "good"]') == ["caf\udce9", "good"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (gzip.compress(b"[]", mtime=0), "gzip; unpack it"),
        (b"PK\x03\x04rest", "zip archive; unpack it"),
        ("[]".encode("utf-16"), "UTF-16"),
        (b"PAR1....", "Parquet"),
        (b"\x80\x02]q\x00.", "pickle"),
        *[(content, "list of records at the top level") for content in (b"{}", b"hello", b"   ")],
        *[(content, "ends in the middle") for content in (b"[1, 2", b"[1, ", b'[{"a": "unfinished', b'[{"a": tru')],
        (b"[1 2]", "',' or ']' is missing"),
        (b"[1, ]", "isn't sound JSON at character 4"),
        (b"[]\n[]", "something follows"),
        (b'[{"a" 1}]' + b" " * 100, "isn't sound JSON at character 6"),
        (b"[" * 100_000, "isn't sound JSON"),
        (b"[" + b"1" * 5000 + b"]", "isn't sound JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as error:
        streamed(tmp_path, content)
    assert "a.json" in str(error.value)


def test_an_error_early_in_a_big_file_is_found_early(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_MAX_RECORD", 1 << 20)
    with pytest.raises(ConfigError, match="Unterminated string"):
        streamed(tmp_path, b'[{"a": "' + b"x" * (4 << 20) + b'"}]')
