"""Documents of several images: each form as it is published, and marks against images."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchmint.pipeline.sources.documents import in_order, is_document, read_document, read_key, read_texts, texts_of
from patchmint.pipeline.sources.records import inner_path
from patchmint.samples import Absent, Document, Fault, ImageRef, Part, SourceSample, Turn

ALL = ("human", "gpt", "system")


def locate(given, number):
    """Images by their paths; what has none by its number, as in a row."""
    if isinstance(given, dict):
        return ImageRef("train.parquet", 0, number)
    path = inner_path(given)
    return path if isinstance(path, Fault) else ImageRef(path)


def read(record, **settings):
    return read_document(record, "doc", "entry 0 of x.json", locate, **settings)


def shown(document):
    """Texts, and numbers of images, in order; roles with a colon before them."""
    found = []
    for part in document.parts:
        found += [f"{part.role}:"] if part.role else []
        found.append(part.text if part.image < 0 else part.image)
    return found


def paths(document):
    return [image.reason if isinstance(image, Fault) else image.path for image in document.images]


def talk(*contents, **fields):
    """Turns of human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": content} for n, content in enumerate(contents)]
    return {"conversations": turns, **fields}


# M4-Instruct: m4_instruct_annotations.json
M4 = {
    "sample_id": 17,
    "conversations": [
        {"from": "human", "value": "<image>\n<image>\nWhat's the difference between 2 images?"},
        {"from": "gpt", "value": "The person in the blue shirt is gone."},
        {"from": "human", "value": "Anything else?"},
        {"from": "gpt", "value": "No."},
    ],
    "image": ["Spot-the-Diff/0001_1.jpg", "Spot-the-Diff/0001_2.jpg"],
    "choice_list": None,
    "metadata": {"dataset": "Spot-the-Diff", "split": "train", "num_sample": 8007, "task_instruction": ""},
}


def test_m4_instruct():
    document = read(M4)
    assert paths(document) == M4["image"]
    question = "\nWhat's the difference between 2 images?"
    assert shown(document) == [
        *["human:", 0, "\n", 1, question, "gpt:", M4["conversations"][1]["value"]],
        *["human:", "Anything else?", "gpt:", "No."],
    ]


def test_mantis_as_parquet(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    stored = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": "b.jpg"}, {"bytes": b"3", "path": "c.jpg"}]
    said = [
        {"content": "<image> is beside <image>. Does <image> fit?", "role": "user"},
        {"content": "Yes, to <image> 2.", "role": "assistant"},
    ]
    columns = {"id": ["nlvr2_0"], "images": pa.array([stored], pa.list_(struct)), "conversation": [said]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    (row,) = pq.read_table(tmp_path / "train.parquet").to_pylist()
    document = read(row)
    assert document.images == tuple(ImageRef("train.parquet", 0, number) for number in range(3))
    assert shown(document) == ["human:", 0, " is beside ", 1, ". Does ", 2, " fit?", "gpt:", "Yes, to <image> 2."]


def test_messages_with_parts():
    parts = [
        *[{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "and"}],
        *[{"type": "image_url", "image_url": {"url": "b.jpg"}}, {"type": "text", "text": "Alike?"}],
    ]
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]
    document = read({"messages": [*said, {"role": "assistant", "content": "No."}], "images": ["b.jpg", "a.jpg"]})
    assert paths(document) == ["a.jpg", "b.jpg"]  # parts say which stands where
    assert shown(document) == ["system:", "Be kind.", "human:", 0, "\nand\n", 1, "\nAlike?", "gpt:", "No."]


def test_the_cauldron_has_no_marks():
    record = {
        "images": [{"bytes": b"1"}, {"bytes": b"2"}],
        "texts": [{"user": "Same?", "assistant": "No.", "source": "s"}],
    }
    assert shown(read(record)) == ["human:", 0, "\n", 1, "\nSame?", "gpt:", "No."]
    assert read(record | {"images": [None]}) == Absent("text-only")


def test_frames_stand_for_one_video():
    record = talk("<video>\nWhat happens?", "It falls. <video>", video=["v/0.jpg", "v/1.jpg"])
    assert shown(read(record)) == ["human:", 0, "\n", 1, "\nWhat happens?", "gpt:", "It falls. <video>"]
    assert read(talk("<video>\nWhat?", "It falls.", video="v.mp4")).reason == "no-image"


# docs_no_face_shard_0_v2.jsonl
MMC4 = {
    "url": "http://example.com/trip",
    "text_list": ["We left <image> early.", "The lake was frozen.", "Then home."],
    "image_info": [
        *[{"image_name": "f1.jpg", "raw_url": "http://e.com/1.jpg", "matched_text_index": 1, "matched_sim": 0.31}],
        *[{"image_name": "f2.png", "raw_url": "http://e.com/2.png", "matched_text_index": 0, "matched_sim": 0.27}],
        *[{"image_name": "f3.jpg", "raw_url": "http://e.com/3.jpg", "matched_text_index": 1, "matched_sim": 0.25}],
    ],
    "similarity_matrix": [[0.1, 0.31, 0.1], [0.27, 0.1, 0.1], [0.1, 0.25, 0.1]],
    "could_have_url_duplicate": 0,
}


def test_mmc4():
    document = read(MMC4)
    assert paths(document) == ["f2.png", "f1.jpg", "f3.jpg"]
    assert shown(document) == [0, "We left <image> early.", 1, 2, "The lake was frozen.", "Then home."]
    for index in (3, -1, None, True, "1"):
        info = [MMC4["image_info"][0], MMC4["image_info"][1] | {"matched_text_index": index}]
        fault = read(MMC4 | {"image_info": info})
        assert (fault.reason, "image 1" in fault.message) == ("record-malformed", True)
    assert read(MMC4 | {"image_info": []}) == Absent("text-only")
    assert read(MMC4 | {"text_list": ["a", None, "c"]}).reason == "record-malformed"


def test_obelics_and_mint_1t():
    obelics = {
        "images": ["https://c.com/img/1.jpg", None, "https://c.com/img/2.jpg", None, None],
        "metadata": json.dumps(
            [{"src": "https://c.com/img/1.jpg"}, None, {"src": "https://c.com/img/2.jpg"}, None, None]
        ),
        "general_metadata": json.dumps({"url": "https://c.com", "warc_filename": "x.warc.gz"}),
        "texts": [None, "Two of them.", None, "Below, more.\n\nThe end.", None],
    }
    document = read(obelics)
    assert paths(document) == ["path-outside-source"] * 2  # nothing is fetched
    assert shown(document) == [0, "Two of them.", 1, "Below, more.\n\nThe end."]
    stored = read(obelics | {"images": [{"bytes": b"1"}, None, {"bytes": b"2"}, None, None]})
    assert [image.length for image in stored.images] == [0, 1]
    assert read({"images": [None], "texts": ["a"]}) == Absent("text-only")
    surrogate = read({"images": ["a.jpg", None], "texts": [None, "\ud800"]})
    assert surrogate.reason == "text-not-unicode"
    both = read({"images": ["a.jpg"], "texts": ["a cat"]})
    assert both.reason == "record-malformed"  # which comes first isn't known
    assert "one of which is null at each place" in both.message


def test_an_image_that_is_shown_twice_is_one():
    document = read(talk("<image> or <image> or <image>?", "Yes.", image=["a.jpg", "b.jpg", "a.jpg"]))
    assert paths(document) == ["a.jpg", "b.jpg"]
    assert shown(document)[:6] == ["human:", 0, " or ", 1, " or ", 0]


@pytest.mark.parametrize(
    ("asked", "images", "expected"),
    [
        ("<image><image> What?", ["a.jpg"], "mark-repeated"),
        ("<image> What?", ["a.jpg", "b.jpg"], "mark-missing"),
        ("What?", ["a.jpg", "b.jpg"], "mark-missing"),
        ("<image> What?", [], "no-image"),
        ("What?", [], "text-only"),
    ],
)
def test_marks_against_images(asked, images, expected):
    assert read(talk(asked, "An <image> tag.", image=images)).reason == expected


def test_missing_marks_are_put_before_the_first_question_on_demand():
    record = talk("What?", "Cats.", image=["a.jpg", "b.jpg"], system="Be kind.")
    assert shown(read(record, prepend=True)) == [
        *["system:", "Be kind.", "human:", 0, "\n", 1, "\nWhat?", "gpt:", "Cats."],
    ]
    some = talk("<image> What?", "Cats.", image=["a.jpg", "b.jpg"])
    assert read(some, prepend=True).reason == "mark-missing"  # where the other belongs isn't known


def test_a_bad_image_leaves_with_its_marks():
    document = read(talk("<image>", "A.", "<image>, <image>, <image>?", "B.", image=["../a", "b.jpg", "../a", "c.jpg"]))
    assert paths(document) == ["path-outside-source", "b.jpg", "c.jpg"]
    sample = SourceSample("x", document.images, (), parts=document.parts, image_texts=((0, 1), (0,), (1,)))
    left = sample.without({0})
    assert (paths(left), left.image_texts) == (["b.jpg", "c.jpg"], ((0,), (1,)))
    assert shown(left) == ["human:", "", "gpt:", "A.", "human:", 0, ", ", ", ", 1, "?", "gpt:", "B."]
    assert sample.without({0, 1, 2}).images == ()


def test_keys_of_tars():
    images = {f"{number}.jpg": ImageRef("0.tar", 512 * number, 9) for number in (10, 2, 0)}

    def key(record=None, text=None):
        if record is not None:
            return read_key("000017", images, record, "'000017' in 0.tar")
        return read_texts("000017", in_order(images), [text], "'000017' in 0.tar")

    document = key(text="Before <image>, <image> and <image>")
    assert [image.start for image in document.images] == [0, 1024, 5120]  # 2 before 10
    assert shown(document) == ["Before ", 0, ", ", 1, " and ", 2]
    assert shown(key(text="Three cats"))[-1] == "\nThree cats"
    assert key(text="One <image>").reason == "mark-missing"
    assert not is_document({"status": "success", "caption": "a"})
    named = key(record={"images": ["000017.10.jpg", None, "2.JPG"], "texts": [None, "and", None]})
    assert [image.start for image in named.images] == [5120, 1024]

    def addressed(count):
        addresses = [f"https://e.com/{n}" for n in range(count)]
        found = key(record={"images": [*addresses, None], "texts": [None] * count + ["end"]}).images
        return [image.reason if isinstance(image, Fault) else image.start for image in found]

    assert addressed(3) == [0, 1024, 5120]
    assert addressed(4) == [0, "image-missing", 1024, "image-missing"]  # 0.jpg and 2.jpg are there
    said = key(record=talk("<image><image><image> Alike?", "No."))
    assert [image.start for image in said.images] == [0, 1024, 5120]


def test_mint_1t_pdf_has_its_images_in_one_file():
    record = {
        "images": ["page_0_image_85", None, "page_1_image_3", None],
        "texts": [None, "Figure 1", None, "and 2"],
        "image_metadata": [{"height": 1234, "page": 0, "sha256": "03", "width": 3111, "xref": 85}] * 2,
        "language_id_whole_page_fasttext": {"en": 0.9},
        "url": "http://example.com/a.pdf",
    }
    document = read_key("ef8e", {"tiff": ImageRef("0.tar", 512, 9)}, record, "'ef8e' in 0.tar")
    assert shown(document) == [0, "Figure 1", 1, "and 2"]
    assert document.images == (ImageRef("0.tar", 512, 9, number=0), ImageRef("0.tar", 512, 9, number=1))


def test_texts_of_an_image_in_a_conversation():
    document = read(talk("<image>\nIs it <image> ?", "No.", "And <image>?", "Yes.", image=["a.jpg", "b.jpg", "a.jpg"]))
    said = ["Is it ?", "No.", "And ?", "Yes."]
    assert texts_of(document, ALL, "all") == (said, [[0, 1, 2, 3]] * 2)
    for spread in ("neighbours", "own"):
        assert texts_of(document, ALL, spread) == (said, [[0, 1, 2, 3], [0, 1]])
    assert texts_of(document, ("gpt",), "neighbours") == (["No.", "Yes."], [[0, 1], [0]])
    assert texts_of(document, ("human",), "all") == (["Is it ?", "And ?"], [[0, 1]] * 2)


def test_texts_of_an_image_in_a_document():
    document = read(MMC4)
    texts = MMC4["text_list"]
    assert texts_of(document, (), "own") == (texts, [[0], [1], [1]])
    assert texts_of(document, (), "neighbours") == (texts, [[0], [0, 1], [0, 1]])
    assert texts_of(document, (), "all") == (texts, [[0, 1, 2]] * 3)
    plain = Document("x", (ImageRef("a"),), (Part("one"), Part(" \n"), Part(image=0), Part("two")))
    assert texts_of(plain, (), "own") == (["one", "two"], [[0, 1]])
    longer = Document("x", (ImageRef("a"),), (Part("zero"), *plain.parts, Part("three")))
    assert texts_of(longer, (), "neighbours") == (["zero", "one", "two", "three"], [[1, 2]])


def test_no_turn_is_lost():
    record = talk("", "<image> is text here", "<image>", "", image="a.jpg")
    turns, content = [], ""
    for part in reversed(read(record).parts):
        content = (part.text if part.image < 0 else "<image>") + content
        if part.role:
            turns.insert(0, Turn(part.role, content))
            content = ""
    assert [turn.content for turn in turns] == [turn["value"] for turn in record["conversations"]]
    assert [turn.role for turn in turns] == ["human", "gpt"] * 2
