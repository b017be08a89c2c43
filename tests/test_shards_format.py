"""The format: what is written, that it is the same every time, what is refused, and that it reads back."""

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_data import LAYOUT, make_dataset, make_reject, make_sample, members_of, renamed, write_shard

from patchmint.errors import NotFoundError, ShardError
from patchmint.geometry import RleMasks
from patchmint.interfaces import Instances
from patchmint.samples import Fault, ImageRef, Reject, SourceText
from patchmint.shards.codec import decode_array, encode_array, tar_member
from patchmint.shards.endings import MAX_KEY_LENGTH, MAX_MEMBER_LENGTH, VALID_KEY, token_member
from patchmint.shards.layout import GridLayout, Layout, TokensLayout
from patchmint.shards.manifest import describe_members, read_manifest
from patchmint.shards.reader import iter_samples, read_sample
from patchmint.shards.rejects import read_rejects, write_rejects
from patchmint.shards.sample import phrases_of
from patchmint.shards.schema import json_schema, read_key_json
from patchmint.shards.sidecar import SCHEMA
from patchmint.shards.writer import ShardWriter
from patchmint.storage import open_storage
from patchmint.types import Instance

CODEBOOKS = TokensLayout(member="titok", grid=(8,), codebook_sizes=(100_000, 20), preprocessing="x")


def test_members_their_order_and_headers():
    tar, _ = write_shard([make_sample(0), make_sample(1)])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = archive.getmembers()
    endings = ("jpg", "json", "txt", "selector.npy", "coverage.npy", "vqgan.npy")
    assert [m.name for m in members] == [f"{key}.{ending}" for key in ("s0000", "s0001") for ending in endings]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }
    assert not any(m.pax_headers for m in members)
    assert len(tar) % tarfile.RECORDSIZE == 0


def test_the_same_samples_give_the_same_bytes():
    """Pinned: a change of these bytes makes finished data sets and resumed builds differ."""
    shards = [write_shard([make_sample(i, phrases=bool(i)) for i in range(3)]) for _ in range(2)]
    assert shards[0] == shards[1]
    assert hashlib.sha256(tar_member("a.txt", b"x")).hexdigest()[:16] == "2b7b565783ef3607"
    assert make_document_bytes().startswith(b'{"schema":"patchmint.sample/2","key":"s0001","id":"Source/1.\xc3\xa9",')


def make_document_bytes():
    return dict(members_of(write_shard([make_sample(1)])[0]))["s0001.json"]


def test_document_says_what_the_sample_is():
    document = read_key_json(make_document_bytes())
    assert document.key == "s0001"
    assert document.id == "Source/1.é"
    assert document.texts == ("eine Straße in Zürich", "second text")
    place = {"text": "ein", "text_index": 0, "start": 0, "end": 3}
    assert document.phrases[0].model_dump() == place | {
        "box": (0.0, 1.5, 20.25, 30.0),
        "score": 0.4375,
        "origin": "model",
    }
    assert [a.spans for a in document.annotators] == [((0, 3),), ((0, 3),)]
    assert document.annotators[0].instances[0].instance == Instance((1, 2, 3, 4), (0, 3))
    assert document.conversation[1].content == "a cat"
    assert document.grid.model_dump() == {"rows": 4, "cols": 6, "patch_px": 14, "fit": "squash", "views": 1}
    assert document.tokens.codebook_sizes == (16384,)
    assert document.source.model_dump() == {"name": "", "path": "images/1.jpeg", "start": -1}


def columns(value, path=""):
    """Type of every leaf, as a reader that infers columns from samples sees it."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in columns(item, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {f"{path}[]": type(value[0]).__name__ if value else "null"}
    return {path: type(value).__name__}


def test_every_sample_has_the_same_fields_of_the_same_types():
    """Hugging Face `datasets` takes the types from the first samples, and an empty list for a list of nulls."""
    tar, _ = write_shard([make_sample(0, phrases=False), make_sample(1)])
    kinds = [columns(json.loads(data)) for name, data in members_of(tar) if name.endswith(".json")]
    assert kinds[0] == kinds[1]
    assert "null" not in kinds[0].values()
    assert "NoneType" not in kinds[0].values()


def test_sidecar_rows():
    samples = [make_sample(i, phrases=bool(i)) for i in range(3)]
    tar, sidecar = write_shard(samples)
    table = pq.read_table(io.BytesIO(sidecar))
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata == {b"patchmint.schema": b"patchmint.sidecar/2"}
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == ["s0000", "s0001", "s0002"]
    assert rows[0]["offset"] == 0
    assert rows[1]["offset"] == rows[0]["size"]
    assert rows[1]["label_shares"] == pytest.approx(samples[1].selector.mean(axis=(1, 2)).tolist())
    assert (rows[0]["phrases"], rows[1]["phrases"], rows[1]["phrase_texts"]) == ([], ["ein"], [0])
    assert rows[1]["scores"] == [0.4375]
    distinct, counts = np.unique(samples[1].codes, return_counts=True)
    assert rows[1]["codes"] == distinct.tolist()
    assert rows[1]["code_counts"] == counts.tolist()
    assert pq.ParquetFile(io.BytesIO(sidecar)).metadata.row_group(0).column(0).compression == "ZSTD"
    assert tar[rows[2]["offset"] :].startswith(b"s0002.jpg\0")


def test_rows_beyond_one_row_group():
    samples = [replace(renamed(make_sample(0), f"k{i}"), data=b"x") for i in range(1001)]
    _, sidecar = write_shard(samples)
    file = pq.ParquetFile(io.BytesIO(sidecar))
    assert file.num_row_groups == 2
    assert file.read(["key"])["key"].to_pylist() == [f"k{i}" for i in range(1001)]


@pytest.mark.parametrize(
    ("changes", "arrays"),
    [
        ({"min_coverage": None}, ("vqgan.npy",)),
        ({"tokens": None}, ("selector.npy", "coverage.npy")),
        ({"tokens": CODEBOOKS}, ("selector.npy", "coverage.npy", "titok.npy")),
    ],
)
def test_layouts(tmp_path, changes, arrays):
    layout, endings = LAYOUT.model_copy(update=changes), ("jpg", "json", "txt", *arrays)
    sample = make_sample(1, layout=layout)
    tar, _ = write_shard([sample], layout)
    (tmp_path / "a.tar").write_bytes(tar)
    (read,) = iter_samples(open_storage(tmp_path), "a.tar")
    assert tuple(read.members) == endings == layout.members
    assert [member.ending for member in describe_members(layout)] == list(endings)
    if layout.tokens is None:
        assert read.codes is None
    else:
        assert read.codes.dtype == layout.tokens.dtype
        assert read.codes.shape == layout.tokens.shape
        assert np.array_equal(read.codes.ravel(), sample.codes.ravel())
    assert (read.selector is None) == (layout.min_coverage is None)


def test_several_codebooks_are_counted_apart():
    layout = LAYOUT.model_copy(update={"tokens": CODEBOOKS})
    codes = np.zeros((8, 2), np.int32)
    codes[0] = (99_999, 19)
    _, sidecar = write_shard([replace(make_sample(0, layout=layout), codes=codes)], layout)
    row = pq.read_table(io.BytesIO(sidecar)).to_pylist()[0]
    assert row["codes"] == [0, 99_999, 100_000, 100_019]
    assert row["code_counts"] == [7, 1, 7, 1]


def test_views_of_anyres_are_stacked():
    layout = LAYOUT.model_copy(update={"grid": GridLayout(rows=2, cols=6, patch_px=14, fit="anyres")})
    sample = replace(make_sample(0), views=2)
    tar, _ = write_shard([sample], layout)
    assert tar
    with pytest.raises(ShardError, match="shape"):
        write_shard([replace(sample, views=3)], layout)


def found(**changes):
    return (make_sample(1).phrases[0].model_copy(update=changes),)


GRID = (2, 4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selector": None}, "has arrays"),
        ({"codes": None}, "has arrays"),
        ({"coverage": np.zeros(GRID, np.float32), "selector": np.zeros(GRID, np.uint8)}, "float32"),
        ({"coverage": np.zeros((1, 4, 6), np.uint8)}, "shape"),
        ({"selector": np.ones(GRID, np.uint8), "coverage": np.zeros(GRID, np.uint8)}, "coverage > 26"),
        ({"selector": np.full(GRID, 2, np.uint8), "coverage": np.full(GRID, 255, np.uint8)}, "0 or 1"),
        ({"codes": np.full((4, 4, 1), 16384, np.int32)}, "16384"),
        ({"codes": np.full((4, 4, 1), 65536, np.int32)}, "codebook sizes"),
        ({"codes": np.full((4, 4, 1), -1, np.int32)}, "codebook sizes"),
        ({"codes": np.zeros((4, 4, 1), np.float32)}, "codebook sizes"),
        ({"codes": np.zeros((4, 5, 1), np.int32)}, "shape"),
        ({"phrases": found(box=(0.0, 0.0, 41.0, 30.0))}, "inside the image"),
        ({"phrases": found(box=(5.0, 0.0, 4.0, 30.0))}, "inside the image"),
        ({"phrases": found(end=99)}, "span"),
        ({"phrases": found(text="dog")}, "other words"),
        ({"phrases": found(text_index=2)}, "2 texts"),
        ({"phrases": found(score=-0.5)}, "score"),
    ],
)
def test_refuses_what_the_format_does_not_allow(changes, message):
    with pytest.raises(ShardError, match=message):
        write_shard([replace(make_sample(1), **changes)])


def test_refuses_unlawful_keys_and_a_key_twice():
    for key in ("", "a.b", "A", "a/b", "../a", "é", "a b", "a\n", "x" * (MAX_KEY_LENGTH + 1)):
        with pytest.raises(ShardError, match="valid"):
            write_shard([renamed(make_sample(0), key)])
    with pytest.raises(ShardError, match="already"):
        write_shard([make_sample(0), make_sample(0)])
    assert VALID_KEY.fullmatch("a-b_0")
    assert not VALID_KEY.fullmatch("a\n")


def test_refuses_what_is_not_unicode_and_what_is_not_finite():
    sample = make_sample(0)
    source = sample.planned.sample
    for changed in (
        replace(source, images=(ImageRef("a\udcff.jpg"),)),
        replace(source, id="\udcff"),
        replace(source, texts=(SourceText("a", (), (Instance((0.0, 0.0, float("nan"), 1.0)),)),)),
        replace(source, texts=()),
    ):
        with pytest.raises(ShardError, match="reject"):
            write_shard([replace(sample, planned=replace(sample.planned, sample=changed))])


def test_a_refused_sample_leaves_nothing_behind_and_an_exception_the_shard_open():
    good = [make_sample(0), make_sample(2)]
    tar, sidecar = io.BytesIO(), io.BytesIO()
    with ShardWriter(tar, sidecar, LAYOUT) as writer:
        writer.add(good[0])
        with pytest.raises(ShardError):
            writer.add(replace(make_sample(1), codes=None))
        writer.add(good[1])
    assert (tar.getvalue(), sidecar.getvalue()) == write_shard(good)
    open_tar, open_sidecar = io.BytesIO(), io.BytesIO()
    with pytest.raises(KeyError), ShardWriter(open_tar, open_sidecar, LAYOUT):
        raise KeyError
    assert (open_tar.getvalue(), open_sidecar.getvalue()) == (b"", b"")


def test_the_longest_names_fit():
    assert len(token_member("A.Long/Name of tokens")) <= MAX_MEMBER_LENGTH
    tar_member(f"{'k' * MAX_KEY_LENGTH}.{'m' * MAX_MEMBER_LENGTH}.npy", b"")
    with pytest.raises(ShardError, match="shorten"):
        tar_member("k" * 101, b"")
    outside = {"TiTok-L32": "titok-l32", "a.b": "a-b", "selector": "tokens", "...": "tokens"}
    assert {name: token_member(name) for name in outside} == outside


def test_reads_what_was_written(tmp_path):
    samples = [make_sample(i, kind=("jpeg", "png")[i % 2]) for i in range(4)]
    tar, sidecar = write_shard(samples)
    (tmp_path / "a.tar").write_bytes(tar)
    storage = open_storage(tmp_path)
    read = list(iter_samples(storage, "a.tar"))
    assert [one.key for one in read] == [sample.planned.key for sample in samples]
    for one, sample, row in zip(read, samples, pq.read_table(io.BytesIO(sidecar)).to_pylist(), strict=True):
        assert one.image == sample.data
        assert one.caption == sample.planned.sample.texts[0].content
        assert np.array_equal(one.selector, sample.selector)
        assert np.array_equal(one.coverage, sample.coverage)
        assert np.array_equal(one.codes, sample.codes[..., 0])
        assert (one.offset, one.size) == (row["offset"], row["size"])
        placed = read_sample(storage, "a.tar", row["offset"], row["size"])
        assert placed == one


def test_random_access_refuses_another_place(tmp_path):
    tar, _ = write_shard([make_sample(0), make_sample(1)])
    (tmp_path / "a.tar").write_bytes(tar)
    storage = open_storage(tmp_path)
    first, second = iter_samples(storage, "a.tar")
    both, cut = (0, first.size + second.size), (0, first.size - 512)
    for offset, size in ((512, first.size), both, cut, (second.offset, second.size + 512)):
        with pytest.raises(ShardError):
            read_sample(storage, "a.tar", offset, size)


def test_the_reader_names_what_is_missing(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_member("a.txt", b"\xff") + bytes(1024))
    (sample,) = iter_samples(open_storage(tmp_path), "a.tar")
    for name in ("image", "document", "images", "codes", "caption"):
        with pytest.raises(ShardError, match=r"jpg|json|UTF-8"):
            getattr(sample, name)
    assert sample.selector is None


def test_the_reader_refuses_links_repeats_and_other_files(tmp_path):
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for data, message in (
        (link.tobuf(tarfile.USTAR_FORMAT), "symbolic link"),
        (tar_member("a.txt", b"") * 2, "twice"),
        (b"\x89PNG" * 300, "a complete tar"),
    ):
        (tmp_path / "a.tar").write_bytes(data + bytes(1024))
        with pytest.raises(ShardError, match=message):
            list(iter_samples(open_storage(tmp_path), "a.tar"))


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f2", "?", "<i8"])
def test_arrays_go_there_and_back(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    data = encode_array(array)
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    back = decode_array(data, "a")
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    column_major = io.BytesIO()
    np.save(column_major, np.asfortranarray(array))
    assert np.array_equal(decode_array(column_major.getvalue(), "a"), array)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_arrays_are_read_although_pythons_parser_fails(monkeypatch):
    """Python 3.11's does, now and then, while several threads use it."""
    data, tries, real = encode_array(np.zeros((3, 1, 7), np.uint8)), [], np.lib.format.read_array_header_1_0

    def read(file, **options):
        tries.append(file.tell())
        if len(tries) < 3:
            file.read(5)
            raise SystemError("AST constructor recursion depth mismatch (before=60, after=57)")
        return real(file, **options)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", read)
    assert decode_array(data, "a").shape == (3, 1, 7)
    assert tries == [8, 8, 8]


def test_arrays_that_are_not_read():
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb()], dtype=object), allow_pickle=True)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    structured = io.BytesIO()
    np.save(structured, np.zeros(2, dtype=[("a", "u1")]))
    whole = encode_array(np.zeros(4, np.uint8))
    cut = (whole[:-1], whole + b"x", whole[:20], b"", b"\x93NUMPY\x09\x00", pickle.dumps(1))
    for data in (objects.getvalue(), huge.getvalue(), structured.getvalue(), *cut):
        with pytest.raises(ShardError):
            decode_array(data, "a.npy")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: [document],
        lambda document: {**document, "notice": None},
        lambda document: {name: value for name, value in document.items() if name != "grid"},
        lambda document: {**document, "more": 1},
        lambda document: {**document, "image": {**document["image"], "width": "40"}},
        lambda document: {**document, "schema": "patchmint.sample/3"},
        lambda document: {**document, "texts": []},
    ],
)
def test_documents_of_another_form_are_refused(change):
    document = json.loads(make_document_bytes())
    read_key_json(json.dumps(document).encode())
    with pytest.raises(ShardError, match=r"patchmint\.sample/2"):
        read_key_json(json.dumps(change(document)).encode())


def test_the_kept_json_schema_is_current(request):
    kept = request.config.rootpath / "docs" / "schemas" / "sample.schema.json"
    assert kept.read_text() == json_schema()


def test_phrases_are_rounded():
    instances = Instances(
        image_size=(30, 40),
        masks=RleMasks(({"size": [30, 40], "counts": b"`U1"},)),
        text_index=np.array([1]),
        scores=np.array([0.123456], np.float32),
        boxes=np.array([[-0.001, 1 / 3, 39.999, 30]], np.float32),
        spans=np.array([[2, 5]]),
    )
    (phrase,) = phrases_of(instances, (SourceText("x"), SourceText("a cat")))
    assert phrase.text == "cat"
    assert phrase.box == (0.0, 0.33, 40.0, 30.0)
    assert str(phrase.box[0]) == "0.0"
    assert phrase.score == 0.1235


def test_rejects_go_there_and_back(tmp_path):
    rejects = [make_reject(3), Reject(1, "k", "i\udcff", Fault("decode", "image-damaged", "a\nb"))]
    for name, order in (("r", rejects), ("reversed", rejects[::-1])):
        with (tmp_path / f"{name}.parquet").open("wb") as file:
            write_rejects(file, order)
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "reversed.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    read = read_rejects(open_storage(tmp_path), "r.parquet")
    assert read == [replace(rejects[1], id="i\\udcff"), rejects[0]]
    with pytest.raises(ShardError, match="a patchmint table"):
        read_rejects(open_storage(tmp_path), "x.parquet")


def test_manifest(tmp_path):
    units = [[make_sample(0)], [make_sample(1)]]
    make_dataset(tmp_path / "a", units, {1: [make_reject(2)]})
    make_dataset(tmp_path / "b", units, {1: [make_reject(2)]})
    assert (tmp_path / "a" / "dataset.json").read_bytes() == (tmp_path / "b" / "dataset.json").read_bytes()
    manifest = read_manifest(open_storage(tmp_path / "a"))
    assert manifest.layout == LAYOUT
    shares = [text.mean() for unit in units for sample in unit for text in sample.selector]
    assert manifest.totals.label_share == pytest.approx(np.mean(shares), abs=1e-5)
    assert manifest.totals.model_dump(exclude={"bytes", "label_share"}) == {
        "units": 2,
        "planned": 3,
        "written": 2,
        "texts": 3,
        "rejected": {"image-missing": 1},
        "absent": {},
        "shards": 2,
    }
    assert [m.model_dump() for m in manifest.members][3] == {
        "ending": "selector.npy",
        "dtype": "uint8",
        "shape": ("T", "4", "6"),
    }
    (tmp_path / "a" / "dataset.json").write_text("{}")
    with pytest.raises(ShardError, match="run the build's command"):
        read_manifest(open_storage(tmp_path / "a"))
    with pytest.raises(NotFoundError):
        read_manifest(open_storage(tmp_path))
    assert pickle.loads(pickle.dumps(LAYOUT)) == LAYOUT == Layout.model_validate_json(LAYOUT.model_dump_json())
