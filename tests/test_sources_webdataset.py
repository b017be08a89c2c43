"""WebDataset tars: as img2dataset writes them, cut, damaged, hostile."""

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import webdataset
from source_files import absent, faults, good, image_bytes, put, read, refused, samples_of, source, texts

from patchmint.errors import ConfigError, StorageError
from patchmint.pipeline.sources.webdataset import expand, split_uri
from patchmint.samples import ImageRef


def img2dataset(folder, shard, count):
    """What img2dataset's writer makes: webdataset's TarWriter, a .json of metadata, and two files beside the tar."""
    path = folder / f"{shard:05}.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(count):
            key = f"{shard:05}{number:04}"
            caption = f"photo {number} of {shard}"
            metadata = {"caption": caption, "url": "https://host/x.jpg", "key": key, "status": "success", "sha256": "0"}
            writer.write({"__key__": key, "jpg": image_bytes(), "json": json.dumps(metadata), "txt": caption})
    put(folder, {f"{shard:05}_stats.json": "{}", f"{shard:05}.parquet": b"PAR1"})
    return path


def tar(path, members, style=tarfile.DEFAULT_FORMAT):
    with tarfile.open(path, "w", format=style) as file:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def linked(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_as_img2dataset_writes_them(tmp_path):
    for shard in (1, 0):
        img2dataset(tmp_path, shard, 3)
    opened = source("webdataset", tmp_path)
    samples = list(opened.samples())
    assert [(sample.id, texts(sample)) for sample in samples] == [
        (f"{shard:05}{number:04}", [f"photo {number} of {shard}"]) for shard in (0, 1) for number in range(3)
    ]
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(opened.read_image, [sample.image for sample in samples])) == {image_bytes()}
    assert samples == list(opened.samples())


def test_ranges(tmp_path):
    for shard in range(3):
        img2dataset(tmp_path, shard, 1)
    for name, tars in (("{00001..00002}.tar", ["00001.tar", "00002.tar"]), ("00001.tar", ["00001.tar"])):
        assert [sample.image.path for sample in read("webdataset", tmp_path / name)] == tars
    refused(r"2 of 5 tars aren't .*00003.tar, 00004.tar", "webdataset", tmp_path / "{00000..00004}.tar")


def test_patterns():
    assert expand("{08..11}.tar") == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert expand("{0..1}/x-{8..10}.tar")[:4] == ["0/x-8.tar", "0/x-9.tar", "0/x-10.tar", "1/x-8.tar"]
    for pattern in ("{1..0}.tar", "{a,b}.tar", "{1..2.tar", "{1..99999999}.tar"):
        with pytest.raises(ConfigError, match=r"source.uri"):
            expand(pattern)
    assert split_uri("s3://b/p/{0..1}/x.tar") == ("s3://b/p/", "{0..1}/x.tar")
    assert split_uri("x.tar") == (".", "x.tar")
    assert split_uri("data/tars") == ("data/tars", "")


def test_which_member_is_what(tmp_path):
    members = [
        *[("folder.v1/1.JPG", b"one"), ("folder.v1/1.txt", b" a text \n")],
        *[("2.seg.png", b"no image of a sample"), ("2.json", b'{"caption": "from json"}'), ("2.png", b"two")],
        *[("3.jpg", b"three"), ("3.pyd", pickle.dumps(print)), ("3.txt", b"three")],
        ("3.json", b'{"caption": "the .txt goes first"}'),
        *[("4.jpg", b"x"), ("4.png", b"x")],
        *[("5.txt", b"no image"), ("6.jpg", b"no text")],
        *[(linked("7.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), ("7.txt", b"x")],
        *[(linked("8.jpg", tarfile.LNKTYPE, "1.JPG"), b""), ("8.txt", b"x")],
        (".hidden", b"x"),
        *[("9.jpg", b"x"), ("9.json", b'{"caption": null}')],
        *[("10.jpg", b"x"), ("10.txt", b"caf\xe9")],
        *[("11.jpg", b"x"), ("11.json", b"{")],
        *[("12.jpg", b"last"), ("12.txt", b"last")],
    ]
    tar(tmp_path / "a.tar", members)
    opened = source("webdataset", tmp_path)
    samples = list(opened.samples())
    good = {sample.id: (texts(sample)[0], opened.read_image(sample.image)) for sample in samples if not sample.fault}
    assert good == {
        "folder.v1/1": ("a text", b"one"),
        "2": ("from json", b"two"),
        "3": ("three", b"three"),
        "12": ("last", b"last"),
    }
    assert faults(samples) == {
        "record-malformed": {"a.tar/4", "11"},
        "no-image": {"a.tar/5", "a.tar/7", "a.tar/8"},
        "text-missing": {"6", "9"},
        "text-not-unicode": {"10"},
    }


def test_members_of_a_key_need_not_lie_side_by_side(tmp_path):
    keys = ("a", "b", "c", "d")
    members = [(f"{key}.jpg", key.encode()) for key in keys] + [(f"{key}.txt", key.encode()) for key in ("c", "b", "a")]
    members += [
        ("e.jpg", b"e"),
        ("e.txt", b"e"),
        ("d.json", b"{}"),
        ("e.jpg", b"again"),
        ("e.txt", b"again"),
        ("f.txt", b"f"),
    ]
    tar(tmp_path / "a.tar", members)
    opened = source("webdataset", tmp_path)
    samples = list(opened.samples())
    found = [(*texts(sample), opened.read_image(sample.image)) for sample in samples if not sample.fault]
    assert found == [("c", b"c"), ("b", b"b"), ("a", b"a"), ("e", b"e"), ("again", b"again")]
    assert faults(samples) == {"text-missing": {"d"}, "no-image": {"a.tar/f"}}
    tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.txt", b"x")])  # two, not one of two
    samples = read("webdataset", tmp_path)
    assert (good(samples), faults(samples)) == ([["x"]], {"text-missing": {"a", "b"}})


def test_a_cut_tar_of_scattered_members(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.jpg", b"a"), ("b.jpg", b"b"), ("a.txt", b"a"), ("b.txt", b"b" * 9000)])
    path.write_bytes(path.read_bytes()[:6000])
    samples = read("webdataset", tmp_path)
    assert (good(samples), faults(samples)) == ([["a"]], {"text-missing": {"b"}, "tar-cut": {"a.tar#rest"}})


def test_keys_with_dots(tmp_path):
    members = [
        ("img.v2.jpg", b"2"),
        ("img.v2.txt", b"two"),
        ("img.v3.jpg", b"3"),
        ("img.v3.json", b'{"caption": "three"}'),
    ]
    members += [
        ("a.seg.png", b"mask"),
        ("a.txt", b"of which image?"),
        ("0.25_b.jpg", b"b"),
        ("0.25_b.txt", b"b"),
        ("0.9.jpg", b"x"),
    ]
    tar(tmp_path / "a.tar", members)
    opened = source("webdataset", tmp_path)
    samples = list(opened.samples())
    found = [(sample.id, *texts(sample), opened.read_image(sample.image)) for sample in samples if not sample.fault]
    assert found == [("img.v2", "two", b"2"), ("img.v3", "three", b"3"), ("0.25_b", "b", b"b")]
    assert faults(samples) == {"no-image": {"a.tar/a"}, "text-missing": {"0.9"}}
    fault = next(sample.fault for sample in samples if sample.id == "a.tar/a")
    assert "no image among its members ('seg.png', 'txt')" in fault.message
    assert "source.image_member" in fault.message


def test_members_that_are_named(tmp_path):
    record = {"title": "three", "more": ["four", None, "five"], "meta": {"alt": "six"}, "n": 7}
    members = [
        ("1.input.png", b"in"),
        ("1.output.png", b"out"),
        ("1.edit.txt", b"one"),
        ("1.json", json.dumps(record).encode()),
    ]
    members += [("2.input.jpg", b"in2"), ("2.edit.txt", b"two"), ("2.json", b"{")]
    members += [("3.input.jpg", b"in3"), ("3.json", b"{}"), ("4.jpg", b"no input"), ("4.edit.txt", b"x")]
    tar(tmp_path / "a.tar", members)
    settings = {"image_member": "input", "texts": ["edit.txt", "json:title", "json:more", "json:meta.alt"]}
    opened = source("webdataset", tmp_path, **settings)
    samples = samples_of(opened)
    assert texts(samples[0]) == ["one", "three", "four", "five", "six"]
    assert (opened.read_image(samples[0].image), samples[0].record) == (b"in", record)
    assert faults(samples) == {
        "record-malformed": {"1#fault-0", "2#fault-0", "2#fault-1", "2#fault-2"},
        "text-missing": {"3"},
        "no-image": {"a.tar/4"},
    }
    assert good(read("webdataset", tmp_path, image_member="output.png", texts="json:n")) == []
    assert good(read("webdataset", tmp_path, texts=[".txt", "Edit.TXT"])) == [["x"]]
    assert absent("webdataset", tmp_path, texts=["txt", "edit.txt"]) == {"text-null": 1}


def test_what_img2dataset_could_not_get_is_absent(tmp_path):
    failed = {"status": "failed_to_download", "caption": "x", "url": "https://host/x.jpg"}
    members = [("1.json", json.dumps(failed).encode()), ("1.txt", b"x"), ("2.jpg", b"2"), ("2.txt", b"two")]
    tar(tmp_path / "a.tar", members)
    assert good(read("webdataset", tmp_path)) == [["two"]]
    assert absent("webdataset", tmp_path) == {"download-failed": 1}


def test_long_names_and_pax_headers(tmp_path):
    name = "é" * 200
    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tar(tmp_path / "a.tar", [(f"{name}.jpg", b"image"), (f"{name}.txt", b"text")], style)
        opened = source("webdataset", tmp_path)
        (sample,) = opened.samples()
        assert (sample.id, opened.read_image(sample.image)) == (name, b"image")


def test_every_cut_is_noticed_and_whole_samples_stay(tmp_path):
    path = img2dataset(tmp_path, 0, 3)
    raw = path.read_bytes()
    opened = source("webdataset", tmp_path)
    whole = list(opened.samples())
    ends = [whole[n].image.start - 512 for n in range(3)]
    content_end = len(raw.rstrip(b"\0")) // 512 * 512 + 512
    cuts = {*range(whole[0].image.start, content_end + 1, 256), *(end + 1 for end in ends[1:])}
    for cut in sorted(cuts | {content_end - 1, content_end}):
        path.write_bytes(raw[:cut])
        samples = list(opened.samples())
        assert faults(samples) == {"tar-cut": {"00000.tar#rest"}}, cut
        kept = [sample for sample in samples if sample.fault is None]
        assert kept == whole[: len(kept)]
        assert len(kept) >= sum(end <= cut for end in ends[1:])
        for sample in kept:
            assert opened.read_image(sample.image) == image_bytes()
    path.write_bytes(raw[: content_end + 512])
    assert list(opened.samples()) == whole


def test_damage_in_the_middle(tmp_path):
    path = img2dataset(tmp_path, 0, 3)
    img2dataset(tmp_path, 1, 1)
    raw = bytearray(path.read_bytes())
    second = read("webdataset", tmp_path)[1].image.start - 512
    raw[second : second + 512] = b"\xaa" * 512
    path.write_bytes(raw)
    samples = read("webdataset", tmp_path)
    assert [sample.id for sample in samples] == ["000000000", "00000.tar#rest", "000010000"]
    assert "after 1 whole samples" in samples[1].fault.message


def test_forged_sizes(tmp_path):
    header = bytearray(tarfile.TarInfo("b.jpg").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # base-256: -512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tar(tmp_path / "a.tar", [("a.jpg", b"a"), ("a.txt", b"a")])
    path.write_bytes(path.read_bytes()[:2048] + header + bytes(1024))
    assert faults(read("webdataset", tmp_path)) == {"tar-cut": {"a.tar#rest"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<html>no such file</html>", "web page"),
        (b"\x1f\x8b\x08 and so on", "gzip; unpack"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"nothing like a tar" * 100, "isn't a tar"),
        (b"short", "isn't a tar"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path, content, message):
    put(tmp_path, {"00000.tar": content})
    assert "00000.tar" in str(refused(message, "webdataset", tmp_path))


def test_no_tars(tmp_path):
    put(tmp_path, {"a.tar.gz": b"x"})
    refused(r"no \.tar", "webdataset", tmp_path)


def test_a_tar_that_has_gone_or_was_cut_is_trouble_with_the_storage(tmp_path):
    put(tmp_path, {"a.tar": b"x" * 100})
    opened = source("webdataset", tmp_path)
    for ref in (ImageRef("a.tar", 90, 20), ImageRef("b.tar", 0, 20)):
        with pytest.raises(StorageError):
            opened.read_image(ref)


def test_long_texts_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("patchmint.pipeline.sources.webdataset.MAX_TEXT_BYTES", 10)
    tar(tmp_path / "a.tar", [("a.jpg", b"a"), ("a.txt", b"a" * 11)])
    assert faults(read("webdataset", tmp_path)) == {"text-too-long": {"a"}}
