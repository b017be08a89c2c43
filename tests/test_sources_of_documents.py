"""Sources of documents: whole data sets as they are published, read to the last field, and their images read back."""

import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builds import build_here, make_config, warmed
from PIL import Image
from pydantic import TypeAdapter
from shard_data import stored as stored_samples
from source_files import absent, image_bytes, put, read, refused, source

from patchmint.config.sources import SourceConfig
from patchmint.errors import ImageDecodeError, ImageMissingError
from patchmint.images.decode import decode_image
from patchmint.images.pages import page_of
from patchmint.pipeline.sources import open_source
from patchmint.pipeline.sources.recognise import recognise
from patchmint.samples import Fault, SourceSample
from patchmint.shards.verify import verify
from patchmint.storage import open_storage

HELD = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])


def talk(*contents, **fields):
    """Turns of human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": content} for n, content in enumerate(contents)]
    return {"conversations": turns, **fields}


def documents(kind, uri, **settings):
    return read(kind, uri, **({} if kind == "interleaved" else {"documents": True}), **settings)


def told(sample):
    """Parts in order (images as their numbers), texts, and texts of each image; or the reason of the reject."""
    if sample.fault is not None:
        return sample.fault.reason
    parts = [part.text if part.image < 0 else part.image for part in sample.parts]
    return parts, [text.content for text in sample.texts], [list(own) for own in sample.image_texts]


def stored(opened, sample):
    """The bytes of each image, or why there are none."""
    found = []
    for image in sample.images:
        if isinstance(image, Fault):
            found.append(image.reason)
            continue
        try:
            found.append(opened.read_image(image))
        except (ImageMissingError, ImageDecodeError) as error:
            found.append(type(error).__name__)
    return found


def photos(folder, *names):
    """Files of those names, each with bytes of its own."""
    return put(folder, {name: name.encode() for name in names})


def table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as writer:
        for name, data in members.items():
            content = data if isinstance(data, bytes) else json.dumps(data).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            writer.addfile(info, io.BytesIO(content))


def m4(folder):
    """M4-Instruct: m4_instruct_annotations.json, images beside it."""
    names = [f"Spot-the-Diff/0001_{n}.jpg" for n in (1, 2)]
    entry = talk("<image>\n<image>\nWhat differs?", "The <image> sign.", sample_id="0001", image=names)
    entry |= {"choice_list": None, "metadata": {"dataset": "Spot-the-Diff", "split": "train", "num_sample": 2}}
    single = talk("<image>\nWhat?", "A cat.", sample_id="0002", image=["one.jpg"])
    text = talk("Hello", "Hi", sample_id="0003")
    put(folder, {"m4_instruct_annotations.json": json.dumps([entry, single, text])})
    return photos(folder, *names, "one.jpg")


def test_m4_instruct(tmp_path):
    opened = source("conversations", m4(tmp_path), documents=True, id_column="sample_id")
    first, second = documents("conversations", tmp_path, id_column="sample_id")
    answer = "The <image> sign."
    assert told(first) == ([0, "\n", 1, "\nWhat differs?", answer], [answer], [[0], [0]])
    assert told(second) == ([0, "\nWhat?", "A cat."], ["A cat."], [[0]])
    assert (first.id, first.record) == ("0001", json.loads((tmp_path / "m4_instruct_annotations.json").read_text())[0])
    assert [part.role for part in first.parts] == ["human", "", "", "", "gpt"]
    assert stored(opened, first) == [b"Spot-the-Diff/0001_1.jpg", b"Spot-the-Diff/0001_2.jpg"]
    assert absent("conversations", tmp_path, documents=True) == {"text-only": 1}
    assert [sample.fault and sample.fault.reason for sample in read("conversations", tmp_path)] == [
        *("several-images", None)  # as pictures
    ]
    assert told(documents("conversations", tmp_path, texts="all")[0])[1:] == (["What differs?", answer], [[0, 1]] * 2)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (talk("<image><image> What?", "No.", image=["a.jpg"]), "mark-repeated"),
        (talk("<image> What?", "No.", image=["a.jpg", "b.jpg"]), "mark-missing"),
        (talk("What?", "No.", image=["a.jpg", "b.jpg"]), "mark-missing"),
        (talk("<image> What?", "No.", image=[]), "no-image"),
        (talk("<image> What?", "An <image>.", image=["a.jpg"]), ([0, " What?", "An <image>."], ["An <image>."], [[0]])),
        (talk("<image> What?", "  ", image=["a.jpg"]), "text-missing"),
    ],
)
def test_marks_against_images(tmp_path, entry, expected):
    put(tmp_path, {"chat.json": json.dumps([entry]), "a.jpg": b"a"})
    (sample,) = documents("conversations", tmp_path)
    assert told(sample) == expected


def test_a_bad_image_is_one_of_the_document(tmp_path):
    entry = talk("<image> and <image>", "No.", image=["../a.jpg", "b.jpg"])
    put(tmp_path, {"chat.json": json.dumps([entry]), "b.jpg": b"b"})
    (sample,) = documents("conversations", tmp_path)
    assert sample.fault is None
    assert stored(source("conversations", tmp_path, documents=True), sample) == ["path-outside-source", b"b"]
    named = documents("conversations", tmp_path, name="talks", where="path = 'b.jpg' and len(paths) = 1")
    assert [image.source for image in named[0].images[1:]] == ["talks"]


@pytest.mark.parametrize("form", ["held", "paths", "bytes"])
def test_mantis_instruct(tmp_path, form):
    """Parquet: images in it, or beside it under the paths in it."""
    said = [("<image> beside <image>?", "Yes."), ("What?", "No.")]
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in said]
    names = [["a.jpg", "b.jpg"], []]
    images = [[{"bytes": None if form == "paths" else name.encode(), "path": name} for name in row] for row in names]
    kind = pa.list_(HELD)
    if form == "bytes":
        images, kind = [[image["bytes"] for image in row] for row in images], pa.list_(pa.binary())
    columns = {"id": ["nlvr2_0", "nlvr2_1"], "images": pa.array(images, kind)}
    table(tmp_path / "train-00000-of-00001.parquet", columns | {"conversation": pa.array(turns, pa.list_(TURN))})
    photos(tmp_path, *(("a.jpg", "b.jpg") if form == "paths" else ()))
    (sample,) = documents("conversations", tmp_path, texts="all")
    assert told(sample) == ([0, " beside ", 1, "?", "Yes."], ["beside ?", "Yes."], [[0, 1]] * 2)
    assert stored(source("conversations", tmp_path, documents=True), sample) == [b"a.jpg", b"b.jpg"]
    assert (sample.id, sample.record) == ("nlvr2_0", {"id": "nlvr2_0", "conversation": turns[0]})


def test_frames_of_a_video(tmp_path):
    frames = ["v/0.jpg", "v/1.jpg"]
    put(tmp_path, {"chat.json": json.dumps([talk("<video>\nWhat?", "It falls.", video=frames)])})
    photos(tmp_path, *frames)
    (sample,) = documents("conversations", tmp_path)
    assert told(sample) == ([0, "\n", 1, "\nWhat?", "It falls."], ["It falls."], [[0], [0]])
    assert stored(source("conversations", tmp_path, documents=True), sample) == [name.encode() for name in frames]


def mmc4(folder):
    """Two files of documents, images beside them; one image is lacking."""
    info = [{"image_name": "f1.jpg", "raw_url": "http://e.com/1", "matched_text_index": 1, "matched_sim": 0.3}]
    info += [{"image_name": "f2.png", "raw_url": "http://e.com/2", "matched_text_index": 0, "matched_sim": 0.2}]
    record = {"url": "http://e.com", "text_list": ["We left <image>.", "Then home."], "image_info": info}
    record |= {"similarity_matrix": [[0.1, 0.3], [0.2, 0.1]], "could_have_url_duplicate": 0}
    bare = record | {"image_info": []}
    put(folder, {"docs_shard_0_v2.jsonl": f"{json.dumps(record)}\n{json.dumps(bare)}\n"})
    put(folder, {"docs_shard_1_v2.jsonl": f"{json.dumps(record)}\n"})
    return photos(folder, "images/f1.jpg", "images/f2.png")


def test_mmc4(tmp_path):
    opened = source("interleaved", mmc4(tmp_path), images="images")
    first, second = documents("interleaved", tmp_path, images="images")
    assert told(first) == ([0, "We left <image>.", 1, "Then home."], ["We left <image>.", "Then home."], [[0], [0, 1]])
    assert told(documents("interleaved", tmp_path, image_texts="own")[0])[2] == [[0], [1]]
    assert told(documents("interleaved", tmp_path, image_texts="all")[0])[2] == [[0, 1]] * 2
    assert stored(opened, first) == [b"images/f2.png", b"images/f1.jpg"]
    assert (first.id, second.id) == ("docs_shard_0_v2.jsonl:0", "docs_shard_1_v2.jsonl:0")
    assert first.record == json.loads((tmp_path / "docs_shard_0_v2.jsonl").read_text().splitlines()[0])
    assert absent("interleaved", tmp_path) == {"text-only": 1}
    assert [each.id for each in documents("interleaved", tmp_path, files="*_1_v2.jsonl")] == [second.id]
    assert len(list(opened.sections())) == 1


def obelics(folder, held):
    """Parallel lists, images as addresses or in the file."""
    addresses = ["https://c.com/img/1.jpg", None, "https://c.com/img/2.jpg", None]
    images = [held and url and {"bytes": url.encode(), "path": None} for url in addresses] if held else addresses
    column = pa.array([images, [None]], pa.list_(HELD) if held else pa.list_(pa.string()))
    texts = [[None, "Two.", None, "The end."], ["no image"]]
    facts = ['[{"src": "x"}, null, {"src": "y"}, null]', "[null]"]
    table(folder / "train-00000-of-00001.parquet", {"images": column, "texts": texts, "metadata": facts})
    return folder


def test_obelics_with_images_in_the_file(tmp_path):
    opened = source("interleaved", obelics(tmp_path, held=True))
    opened.check()
    (sample,) = documents("interleaved", tmp_path)
    assert told(sample) == ([0, "Two.", 1, "The end."], ["Two.", "The end."], [[0], [0, 1]])
    assert stored(opened, sample) == [b"https://c.com/img/1.jpg", b"https://c.com/img/2.jpg"]
    assert [image.number for image in sample.images] == [0, 2]
    assert sample.record == {"metadata": '[{"src": "x"}, null, {"src": "y"}, null]'}
    assert absent("interleaved", tmp_path) == {"text-only": 1}


def test_addresses_are_never_fetched_but_may_be_paths(tmp_path):
    (sample,) = documents("interleaved", obelics(tmp_path, held=False))
    assert {image.reason for image in sample.images} == {"path-outside-source"}
    photos(tmp_path, "got/c.com/img/1.jpg")  # as wget -x stores them
    settings = {"images": "got", "strip_prefix": ["https://", "http://"]}
    (sample,) = documents("interleaved", tmp_path, **settings)
    found = stored(source("interleaved", tmp_path, **settings), sample)
    assert found == [b"got/c.com/img/1.jpg", "ImageMissingError"]


def pages():
    """A TIFF of three pages, and the pixels of each."""
    dice = np.random.default_rng(0)
    images = [Image.fromarray(dice.integers(0, 255, (40, 30 + n, 3), dtype=np.uint8)) for n in range(3)]
    images[1] = images[1].convert("L")
    file = io.BytesIO()
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:], compression="tiff_lzw")
    return file.getvalue(), [np.asarray(image.convert("RGB")) for image in images]


def test_mint_1t_of_pdfs(tmp_path):
    """A key has one TIFF, a page of which is an image."""
    data, pixels = pages()
    names = ["page_0_image_85", None, "page_1_image_3", None, "page_1_image_4", "page_9_image_1"]
    record = {"images": names, "texts": [None, "Figure 1", None, "and 2", None, None], "url": "http://e.com/a.pdf"}
    text = {"images": [None], "texts": ["words"], "url": "http://e.com/b.pdf"}
    tar(tmp_path / "0.tar", {"ef8e.tiff": data, "ef8e.json": record, "ab01.json": text})
    opened = source("webdataset", tmp_path, documents=True)
    (sample,) = documents("webdataset", tmp_path)
    assert told(sample)[:2] == ([0, "Figure 1", 1, "and 2", 2, 3], ["Figure 1", "and 2"])
    *found, missing = stored(opened, sample)
    assert missing == "ImageMissingError"
    for page, expected in zip(found, pixels, strict=True):
        assert np.array_equal(decode_image(page).pixels, expected)
    assert absent("webdataset", tmp_path, documents=True) == {"text-only": 1}


def test_pages_that_are_none():
    data, _ = pages()
    assert page_of(data, 3) is None
    for broken in (b"", b"\xff\xd8\xff", data[:60], b"II*\0\xff\xff\xff\x7f", data[:4] + b"\x08\0\0\0" + b"\xff" * 50):
        with pytest.raises(ImageDecodeError):
            page_of(broken, 0)
    # a thousand strips that all lie in one place would come to a thousand times as much
    tags = struct.pack("<HHHLLHHLLL", 2, 273, 4, 1000, 38, 279, 4, 1000, 4038, 0)
    strips = struct.pack("<2000L", *[0] * 1000, *[8000] * 1000)
    with pytest.raises(ImageDecodeError, match="over each other"):
        page_of(b"II*\0" + struct.pack("<L", 8) + tags + strips, 0)


def test_several_images_a_key(tmp_path):
    """As img2dataset and webdataset have them, with a text, with marks or without, and with a record."""
    members = {f"000.{n}.jpg": b"%d" % n for n in (10, 0, 2)} | {"000.txt": b"Three cats"}
    members |= {"001.0.png": b"p", "001.1.png": b"q", "001.txt": b"<image> before, <image> behind"}
    said = talk("<image><image> Alike?", "No.", image=["002.b.jpg", "002.a.jpg"])
    members |= {"002.a.jpg": b"a", "002.b.jpg": b"b", "002.json": said, "002.seg.npy": b"no image"}
    members |= {"003.jpg": b"one", "003.json": {"caption": "A cat", "status": "success"}}
    members |= {"004.json": {"status": "failed_to_download"}, "005.0.jpg": b"x", "005.txt": b"\xff"}
    members |= {"006.jpg": b"y", "006.txt": b"<image> <image>"}
    tar(tmp_path / "0.tar", members)
    opened = source("webdataset", tmp_path, documents=True)
    found = documents("webdataset", tmp_path)
    assert [told(sample) for sample in found] == [
        ([0, "\n", 1, "\n", 2, "\nThree cats"], ["Three cats"], [[0]] * 3),
        ([0, " before, ", 1, " behind"], ["before,", "behind"], [[0], [0, 1]]),
        ([0, 1, " Alike?", "No."], ["Alike?", "No."], [[0, 1]] * 2),
        ([0, "\nA cat"], ["A cat"], [[0]]),
        *("text-not-unicode", "mark-repeated"),
    ]
    data = [stored(opened, sample) for sample in found[:4]]
    assert data == [[b"0", b"2", b"10"], [b"p", b"q"], [b"b", b"a"], [b"one"]]
    assert absent("webdataset", tmp_path, documents=True) == {"download-failed": 1}
    chosen = documents("webdataset", tmp_path, image_member="b", texts="json:conversations")[0]
    assert chosen.fault is not None  # objects are no texts


@pytest.mark.parametrize("kind", [pa.list_(HELD), pa.list_(pa.binary()), HELD])
def test_parquet_with_lists_of_images(tmp_path, kind):
    lists = pa.types.is_list(kind)
    struct = kind == HELD or kind.value_type == HELD
    rows = [[b"a", None, b"c"], []]
    values = [[item if item is None or not struct else {"bytes": item, "path": None} for item in row] for row in rows]
    column = values if lists else [row[0] if row else None for row in values]
    captions = [["One.", None, "Two."], ["None."]]
    table(tmp_path / "0.parquet", {"image": pa.array(column, kind), "caption": captions, "score": [0.5, 0.1]})
    (sample,) = documents("parquet", tmp_path, where="score > 0")
    assert told(sample)[1:] == (["One.", "Two."], [[0, 1]] * (2 if lists else 1))
    opened = source("parquet", tmp_path, documents=True)
    assert stored(opened, sample) == ([b"a", b"c"] if lists else [b"a"])
    assert [image.number for image in sample.images] == ([0, 2] if lists else [-1])
    assert absent("parquet", tmp_path, documents=True) == {"text-null": 1, "text-only": 1}
    if lists:
        refused("documents: true", "parquet", tmp_path)


def mantis(folder):
    images = [[{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}]]
    said = [[{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "Yes."}]]
    columns = {"images": pa.array(images, pa.list_(HELD)), "conversation": pa.array(said, pa.list_(TURN))}
    table(folder / "train.parquet", columns)
    return folder


def pdfs(folder):
    folder.mkdir()
    record = {"images": ["page_0_image_1", None, "page_1_image_2"], "texts": [None, "Figure 1", None]}
    tar(folder / "0.tar", {"a.json": record, "a.tiff": pages()[0]})
    return folder


def lists(folder):
    columns = {"image": pa.array([[b"a", b"b"]], pa.list_(pa.binary())), "caption": ["Two."]}
    table(folder / "0.parquet", columns)
    return folder


def addressed(folder):
    return photos(obelics(folder, held=False), "got/c.com/img/1.jpg")


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (
            m4,
            {
                "kind": "conversations",
                "annotations": "m4_instruct_annotations.json",
                "documents": True,
                "id_column": "sample_id",
                "images": "",
                "texts": "answers",
            },
        ),
        (mantis, {"kind": "conversations", "documents": True, "texts": "answers"}),
        (mmc4, {"kind": "interleaved", "images": "images"}),
        (lambda folder: obelics(folder, held=True), {"kind": "interleaved"}),
        (addressed, {"kind": "interleaved", "images": "got", "strip_prefix": "https://"}),
        (pdfs, {"kind": "webdataset", "documents": True}),
        (lists, {"kind": "parquet", "documents": True, "image_column": "image", "text_columns": ["caption"]}),
    ],
    ids=["m4-instruct", "mantis", "mmc4", "obelics", "addresses", "mint-1t", "lists"],
)
def test_they_are_recognised(tmp_path, make, settings):
    uri = str(make(tmp_path / "in"))
    found = recognise(uri).source
    assert found == settings | {"uri": uri}
    opened = source(**found)
    opened.check()
    first = next(each for each in opened.samples() if isinstance(each, SourceSample))
    assert first.fault is None
    assert len(first.images) == 2


def test_one_file_of_several_is_recognised(tmp_path):
    found = recognise(str(mmc4(tmp_path) / "docs_shard_1_v2.jsonl")).source
    assert (found["kind"], found["annotations"], found["images"]) == ("interleaved", "docs_shard_1_v2.jsonl", "images")
    assert recognise(str(pdfs(tmp_path / "pdfs") / "0.tar")).source["documents"]
    assert "documents" not in recognise(str(tmp_path / "none.tar")).source  # the source says that it isn't there


def test_limits_and_files_of_other_kinds(tmp_path):
    config = TypeAdapter(SourceConfig).validate_python(
        {"kind": "interleaved", "uri": str(obelics(tmp_path / "a", held=True))}
    )
    (sample,) = [each for each in open_source(config, max_images=1).samples() if isinstance(each, SourceSample)]
    assert (sample.fault.reason, sample.id) == ("too-many-images", "train-00000-of-00001.parquet:1")
    assert "has 2 images, and limits.max_images is 1" in sample.fault.message
    refused("no column of texts", "interleaved", mantis(tmp_path / "b"))
    refused("neither JSON nor Parquet", "interleaved", photos(tmp_path / "c", "a.jpg"))
    put(tmp_path / "d", {"a.jsonl": "1\n" + json.dumps({"text_list": ["a"], "image_info": []})})
    (faulty,) = documents("interleaved", tmp_path / "d")
    assert faulty.fault.reason == "record-malformed"


def test_a_build_from_every_kind(tmp_path):
    """Planned, read by a worker, and written: the bytes are those of the sources, pages those of the TIFF."""
    data, pixels = pages()
    jpegs = [image_bytes(name) for name in ("astronaut", "coffee", "cat")]
    entry = talk("<image> and <image>", "Two.", image=["a.jpg", "../b.jpg"])
    put(tmp_path / "talks", {"chat.json": json.dumps([entry]), "a.jpg": jpegs[0]})
    images = pa.array([[{"bytes": jpegs[1], "path": None}, None, {"bytes": jpegs[2], "path": None}]], pa.list_(HELD))
    table(tmp_path / "web" / "0.parquet", {"images": images, "texts": [[None, "Between.", None]]})
    (tmp_path / "pdfs").mkdir()
    record = {"images": ["page_0", None, "page_1", "page_2"], "texts": [None, "Figure 1", None, None]}
    tar(tmp_path / "pdfs" / "0.tar", {"a.tiff": data, "a.json": record})
    captions = ["One.", "Both."]
    table(tmp_path / "lists" / "0.parquet", {"image": pa.array([jpegs[:2]], pa.list_(pa.binary())), "text": [captions]})
    kinds = {"talks": "conversations", "web": "interleaved", "pdfs": "webdataset", "lists": "parquet"}
    sources = [
        {"name": name, "kind": kind, "uri": str(tmp_path / name)} | ({} if name == "web" else {"documents": True})
        for name, kind in kinds.items()
    ]
    out = tmp_path / "out"
    config = json.loads(make_config(tmp_path / "c.json", "", out).read_text())
    del config["source"]
    (tmp_path / "c.json").write_text(json.dumps(config | {"sources": sources, "on_bad_image": "drop"}))
    with warmed():
        report = build_here(tmp_path / "c.json", out)
    assert (report.written, report.missing, report.planned) == (4, 0, 4)
    talks, web, pdfs, lists = stored_samples(out)
    assert [[image.data for image in each.images] for each in (talks, web, lists)] == [jpegs[:1], jpegs[1:], jpegs[:2]]
    for image, expected in zip(pdfs.images, pixels, strict=True):
        assert np.array_equal(decode_image(image.data).pixels, expected)
    assert [part.text for part in talks.parts] == ["", " and ", "Two."]
    assert [image.texts for image in web.images] == [(0,), (0,)]
    assert [[image.source.name for image in each.images] for each in (talks, lists)] == [["talks"], ["lists"] * 2]
    assert list(verify(open_storage(out))) == []
