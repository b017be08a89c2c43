"""JSON in pieces: the same as json.loads for every cut, and clear words about what is broken."""

import gzip
import json

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


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 3)


@pytest.mark.usefixtures("small_chunks")
def test_any_list_in_any_pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")

    @given(st.lists(VALUES, max_size=6), st.booleans(), st.sampled_from([None, 1]))
    def check(value, ascii_only, indent):
        put(folder, {"a.json": json.dumps(value, ensure_ascii=ascii_only, indent=indent)})
        assert list(stream_list(open_storage(folder), "a.json")) == value

    check()


@pytest.mark.usefixtures("small_chunks")
def test_members_in_pieces(tmp_path):
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
    import tracemalloc

    record = json.dumps({"id": 1, "text": "x" * 1000})
    put(tmp_path, {"a.json": "[" + ",".join([record] * 20_000) + "]"})
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream_list(open_storage(tmp_path), "a.json")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_other_encodings_come_out_marked(tmp_path):
    put(tmp_path, {"a.json": b'["caf\xe9", "good"]'})
    assert list(stream_list(open_storage(tmp_path), "a.json")) == ["caf\udce9", "good"]


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
        (b"{}", "list of records at the top level"),
        (b"hello", "list of records at the top level"),
        (b"   ", "list of records at the top level"),
        (b"[1, 2", "ends in the middle"),
        (b"[1, ", "ends in the middle"),
        (b'[{"a": "unfinished', "ends in the middle"),
        (b'[{"a": tru', "ends in the middle"),
        (b"[1 2]", "',' or ']' is missing"),
        (b"[1, ]", "isn't sound JSON at character 4"),
        (b"[]\n[]", "something follows"),
        (b'[{"a" 1}]' + b" " * 100, "isn't sound JSON at character 6"),
        (b"[" * 100_000, "isn't sound JSON"),
        (b"[" + b"1" * 5000 + b"]", "isn't sound JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    put(tmp_path, {"a.json": content})
    with pytest.raises(ConfigError, match=message) as error:
        list(stream_list(open_storage(tmp_path), "a.json"))
    assert "a.json" in str(error.value)


def test_an_error_early_in_a_big_file_is_found_early(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_MAX_RECORD", 1 << 20)
    put(tmp_path, {"a.json": b'[{"a": "' + b"x" * (4 << 20) + b'"}]'})
    with pytest.raises(ConfigError, match="Unterminated string"):
        list(stream_list(open_storage(tmp_path), "a.json"))
