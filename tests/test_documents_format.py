"""Documents on disk: what is written and read back, what the writer refuses, and what `verify` finds of them."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_data import (
    DOCUMENTS,
    LAYOUT,
    commit_unit,
    image_bytes,
    make_dataset,
    make_document,
    make_sample,
    members_of,
    stored,
    tar_of,
    write_plan,
    write_shard,
)
from test_shards_verify import check, codes, decode

from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.reader import SampleReader
from patchmint.datasets.rows import read_table
from patchmint.errors import ShardError
from patchmint.samples import Part
from patchmint.shards.codec import encode_array
from patchmint.shards.endings import MAX_DOCUMENT_KEY, MAX_MEMBER_LENGTH, VQGAN
from patchmint.shards.layout import Layout
from patchmint.shards.sidecar import DOCUMENTS as COLUMNS
from patchmint.shards.sidecar import scan_tar
from patchmint.shards.verify import verify_tars
from patchmint.storage import open_storage

MANY = 40


@pytest.fixture(scope="module")
def made():
    return [make_document(number, count) for number, count in enumerate((1, 2, 6, MANY))]


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents") / "d"
    return make_dataset(folder, [made[:3], made[3:], [make_document(4, 3, turns=False)]], layout=DOCUMENTS)


def test_documents_read_back_to_the_last_byte(folder, made):
    assert check(folder, decode=decode) == []
    for sample, read in zip(made, stored(folder), strict=False):
        source = sample.planned.sample
        assert read.parts == source.parts
        assert read.key_json.texts == tuple(text.content for text in source.texts)
        assert [image.texts for image in read.images] == list(source.image_texts)
        assert [image.source.path for image in read.images] == [ref.path for ref in source.images]
        assert tuple(phrase.image for phrase in read.phrases) == tuple(range(len(sample.images)))
        for number, (given, found) in enumerate(zip(sample.images, read.images, strict=True)):
            assert (found.number, found.data, found.info.width) == (number, given.data, 40)
            assert [phrase.score for phrase in found.phrases] == [phrase.score for phrase in given.phrases]
            np.testing.assert_array_equal(found.selector, given.selector)
            np.testing.assert_array_equal(found.coverage, given.coverage)
            np.testing.assert_array_equal(found.codes, given.codes[..., 0])
        with pytest.raises(ShardError, match="a document of images and texts, not a picture"):
            _ = read.codes
        with pytest.raises(ShardError, match="not a picture"):
            _ = read.selector


def test_members_stand_in_the_order_of_the_format(folder):
    read = stored(folder)[1]
    expected = (
        "0.jpg 1.jpg json txt 0.selector.npy 1.selector.npy 0.coverage.npy 1.coverage.npy 0.vqgan.npy 1.vqgan.npy"
    )
    assert list(read.members) == expected.split() == list(DOCUMENTS.members_of(2))
    told = json.loads(read.members["json"])
    assert told["sequence"][0] == {"text": "", "image": 0, "role": "human"}
    assert told["image_texts_json"] == "[[0,1],[1]]"
    assert LAYOUT.members_of(1) == LAYOUT.members
    assert Layout.model_validate_json(LAYOUT.model_dump_json()) == LAYOUT
    assert "documents" not in LAYOUT.model_dump()  # bytes of picture data sets stay


def test_sidecars_have_every_image_and_are_what_a_scan_makes(folder, made):
    storage = open_storage(folder)
    tar, sidecar = write_shard(made, DOCUMENTS)
    storage.write("lone.tar", tar)
    table = pq.read_table(io.BytesIO(sidecar))
    assert table.schema.remove_metadata().equals(COLUMNS.remove_metadata())
    assert table.equals(scan_tar(storage, "lone.tar"))
    for sample, row in zip(made, table.to_pylist(), strict=True):
        images = len(sample.images)
        assert row["images"] == len(row["widths"]) == len(row["formats"]) == len(row["views"]) == images
        assert row["source_paths"] == [ref.path for ref in sample.planned.sample.images]
        labelled = list(zip(row["share_images"], row["share_texts"], strict=True))
        assert labelled == [(i, t) for i, texts in enumerate(sample.planned.sample.image_texts) for t in texts]
        shares = [text.mean() for image in sample.images for text in image.selector]
        np.testing.assert_allclose(row["label_shares"], shares, rtol=1e-6)
        assert row["phrase_images"] == list(range(images))
        assert sum(row["code_counts"]) == images * np.prod(DOCUMENTS.tokens.shape)


def test_data_sets_of_documents_are_opened(folder, made):
    dataset = open_dataset(folder)
    assert dataset.has_documents
    tables = [read_table(dataset, shard, ["key", "images"]) for shard in dataset.shards]
    assert [row["images"] for table in tables for row in table.to_pylist()] == [1, 2, 6, MANY, 3]
    reader = SampleReader([dataset], {"json", "selector.npy"})
    for number, sample in enumerate(made):
        read = reader.sample(number)
        assert len(read.members) == 1 + len(sample.images)
        np.testing.assert_array_equal(read.images[-1].selector, sample.images[-1].selector)
    lone = open_dataset(folder / "shards" / "000001.tar")
    assert lone.has_documents
    assert read_table(lone, lone.shards[0], ["images"]).to_pylist() == [{"images": MANY}]


def test_an_image_that_no_text_labels(tmp_path):
    sample = make_document(0, 2)
    blind = replace(sample.images[1], selector=np.zeros((0, 4, 6), np.uint8), coverage=np.zeros((0, 4, 6), np.uint8))
    source = replace(sample.planned.sample, image_texts=((0, 1), ()))
    changed = replace(
        sample,
        planned=replace(sample.planned, sample=source),
        images=(sample.images[0], replace(blind, phrases=())),
    )
    assert check(make_dataset(tmp_path / "d", [[changed]], layout=DOCUMENTS), decode=decode) == []
    (read,) = stored(tmp_path / "d")
    assert (read.images[1].texts, read.images[1].selector.shape) == ((), (0, 4, 6))


def changed_source(**changes):
    sample = make_document(1)
    return replace(sample, planned=replace(sample.planned, sample=replace(sample.planned.sample, **changes)))


def test_the_longest_names_fit():
    tokens = DOCUMENTS.tokens.model_copy(update={"member": "m" * MAX_MEMBER_LENGTH})
    sample, layout = make_document(1), DOCUMENTS.model_copy(update={"tokens": tokens})
    longest = replace(sample, planned=replace(sample.planned, key="k" * MAX_DOCUMENT_KEY))
    tar, _ = write_shard([longest], layout)
    longest_name = max(len(name) for name, _ in members_of(tar))
    assert longest_name + len("999") - len("0") <= 100
    with pytest.raises(ShardError, match="1 to 76"):
        write_shard([replace(longest, planned=replace(sample.planned, key="k" * (MAX_DOCUMENT_KEY + 1)))], layout)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (make_sample(0), "the data set is of documents"),
        (replace(make_document(1), images=make_document(1).images[:1]), "1 of its source's 2 images"),
        (changed_source(parts=(Part("only text"),)), "doesn't show"),
        (changed_source(parts=(Part("x"), Part(image=0), Part(image=1), Part(image=2))), "shows beyond"),
        (changed_source(parts=(Part("x", 0), Part(image=1))), "a text and an image"),
        (changed_source(parts=(Part(image=0), Part(image=1, role="human"))), "first part"),
        (changed_source(parts=(Part(image=0, role="user"), Part(image=1))), "roles"),
        (changed_source(image_texts=((0, 1), (2,))), "beyond 2"),
        (changed_source(image_texts=((1, 0), (1,))), "not ascending"),
        (changed_source(image_texts=((0, 1), (0,))), "doesn't label its image 1"),
        (changed_source(image_texts=((0, 1),)), "1 entries for 2 images"),
        (changed_source(image_texts=((1,), (1,))), "shape"),
    ],
)
def test_the_writer_refuses(sample, message):
    with pytest.raises(ShardError, match=message):
        write_shard([sample], DOCUMENTS)


def test_a_document_is_no_picture():
    with pytest.raises(ShardError, match="the data set is of pictures"):
        write_shard([make_document(1)], LAYOUT)


def edit(change):
    def damage(tar):
        members = dict(members_of(tar))
        change(members)
        return tar_of(list(members.items()))

    return damage


def telling(change):
    def damage(members):
        told = json.loads(members["d0001.json"])
        change(told)
        members["d0001.json"] = json.dumps(told).encode()

    return edit(damage)


def swapped(members):
    """The first two members change places."""
    names = list(members)
    for name in (names[1], names[0], *names[2:]):
        members[name] = members.pop(name)


def sequence(*parts):
    return lambda told: told.update(sequence=[{"text": "", "image": -1, "role": ""} | part for part in parts])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (edit(lambda members: members.pop("d0001.1.jpg")), "members-missing"),
        (edit(lambda members: members.update({"d0001.2.jpg": image_bytes(3, "jpeg")})), "members-unknown"),
        (edit(swapped), "members-order"),
        (edit(lambda members: members.pop(f"d0001.0.{VQGAN}.npy")), "members-missing"),
        (edit(lambda m: m.update({"d0001.1.selector.npy": encode_array(np.zeros((2, 4, 6), "u1"))})), "array-shape"),
        (edit(lambda members: members.update({"d0001.1.jpg": b""})), "image-damaged"),
        (edit(lambda members: members.update({"d0001.1.jpg": image_bytes(1, "jpeg", (50, 30))})), "image-size"),
        (telling(sequence({"image": 0}, {"text": "x"})), "sequence-images"),
        (telling(sequence({"image": 0}, {"image": 1}, {"image": 2})), "sequence-images"),
        (telling(sequence({"image": 0, "text": "x"}, {"image": 1})), "sequence-part"),
        (telling(sequence({"image": 0}, {"image": 1, "role": "gpt"})), "sequence-role"),
        (telling(sequence({"image": 0, "role": "me"}, {"image": 1})), "sequence-role"),
        (telling(lambda told: told.update(image_texts_json="[[0,1],[5]]")), "image-texts"),
        (telling(lambda told: told.update(image_texts_json="[[0,1]]")), "document-form"),
        (telling(lambda told: told["images"].pop()), "sequence-images"),
        (telling(lambda told: told["images"][1].update(width=41)), "image-size"),
        (telling(lambda told: told["images"][1]["grid"].update(patch_px=16)), "document-grid"),
        (
            telling(lambda told: told.update(phrases_json=told["phrases_json"].replace('"image":1', '"image":2'))),
            "phrase-image",
        ),
        (telling(lambda told: told["images"][1]["source"].update(path="other")), "sidecar-row"),
    ],
)
def test_verify_finds_it(tmp_path, damage, code):
    folder = make_dataset(tmp_path / "d", [[make_document(1)]], layout=DOCUMENTS, damage={0: damage})
    assert code in codes(check(folder, decode=decode))


def test_a_picture_among_documents_is_found(tmp_path):
    picture, _ = write_shard([make_sample(1)])
    folder = make_dataset(tmp_path / "d", [[make_document(1)]], layout=DOCUMENTS, damage={0: lambda tar: picture})
    assert "document-kind" in codes(check(folder))


@pytest.mark.parametrize("images", [None, {"written": 3}, {"most": 1}])
def test_a_record_that_counts_other_images_is_found(tmp_path, images):
    folder = make_dataset(tmp_path / "d", [[make_document(1)]], layout=DOCUMENTS)
    path = folder / "commits" / "000000.json"
    record = json.loads(path.read_bytes())
    assert record["images"] == {"planned": 2, "written": 2, "dropped": 0, "most": 2}
    record["images"] = images and {**record["images"], "planned": 3, **images}
    path.write_text(json.dumps(record))
    assert ("counts", "sidecars/000000.parquet") in {(one.code, one.shard) for one in check(folder)}


def test_an_unfinished_data_set_and_lone_tars(tmp_path, made):
    write_plan(tmp_path / "d", {0: 1})
    commit_unit(tmp_path / "d", 0, [make_document(0)], [], layout=DOCUMENTS)
    assert codes(check(tmp_path / "d")) == {"manifest-missing"}
    storage = open_storage(tmp_path)
    storage.write("own.tar", write_shard(made, DOCUMENTS)[0])
    assert list(verify_tars(storage, ["own.tar"], decode=decode)) == []
    foreign = {"a.0.jpg": image_bytes(0, "jpeg"), "a.1.jpg": b"", "a.json": b'{"caption": "x"}', "a.note.jpg": b"no"}
    storage.write("foreign.tar", tar_of(list(foreign.items())))
    found = list(verify_tars(storage, ["foreign.tar"], decode=decode))
    assert [finding.message.split()[0] for finding in found] == ["1.jpg"]


def test_a_key_of_another_program_with_several_images_is_a_document(tmp_path):
    images = {number: image_bytes(number, "png", (40, 10 * (number + 1))) for number in (0, 2, 10)}
    members = [(f"a.{number}.png", images[number]) for number in (10, 0, 2)] + [("a.txt", b"three pictures")]
    members += [("b.jpg", b"no image"), ("b.json", b'{"caption": "one"}'), ("b.mask.png", b""), ("b.png", b"")]
    (tmp_path / "foreign.tar").write_bytes(tar_of(members))
    dataset = open_dataset(tmp_path / "foreign.tar")
    assert dataset.has_documents
    columns = ["images", "heights", "formats", "texts", "source_paths"]
    assert read_table(dataset, dataset.shards[0], columns).to_pylist() == [
        dict(zip(columns, (3, [10, 30, 110], ["png"] * 3, ["three pictures"], [""] * 3), strict=True)),
        dict(zip(columns, (1, [0], ["unreadable"], ["one"], [""]), strict=True)),
    ]
    first, second = (SampleReader([dataset]).sample(number) for number in (0, 1))
    assert [image.data for image in first.images] == [images[0], images[2], images[10]]
    assert [part.image for part in first.parts] == [0, 1, 2, -1]
    assert [image.texts for image in first.images] == [(0,)] * 3
    with pytest.raises(ShardError, match="the jpg of sample 'b' can't be read"):
        _ = second.images
