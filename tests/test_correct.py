"""Corrections: what somebody changed by hand is what is stored, and nothing else is."""

import base64
import io
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from builds import patchmint
from drawn_data import blob, drawn_dataset

from patchmint.datasets.corrections import correct, write_corrections
from patchmint.datasets.dataset import open_dataset
from patchmint.datasets.edits import Addition, Change, Edit, edited, read_edits
from patchmint.datasets.reader import iter_stored
from patchmint.datasets.rows import iter_tables
from patchmint.datasets.verify import verify_all
from patchmint.errors import InputError
from patchmint.geometry.rle import decode_mask, encode_masks, to_coco
from patchmint.images.decode import decode_image
from patchmint.inspection.export.back import edits_of, read_back
from patchmint.inspection.export.formats import brush_rle
from patchmint.inspection.export.run import export
from patchmint.inspection.find.search import Search, find_samples
from patchmint.jobs.trust import write_trust
from patchmint.shards.codec import encode_array
from patchmint.shards.commit import Attempt
from patchmint.shards.schema import FoundDocument, MaskDocument
from patchmint.storage import open_storage
from patchmint.training import StageDataset

TEXTS = ("a Black  cat on a sofa", "the dog")


def rectangle(left, top, right, bottom, size=(20, 30)):
    mask = np.zeros((1, *size), np.uint8)
    mask[0, top:bottom, left:right] = 1
    return MaskDocument.of(encode_masks(mask)[0])


def instance(text, box, span=(0, 3)):
    return FoundDocument(
        text_index=text, start=span[0], end=span[1], box=box, score=0.5, origin="model", mask=rectangle(*map(int, box))
    )


FOUND = (instance(0, (0.0, 0.0, 4.0, 5.0)), instance(0, (5.0, 5.0, 9.0, 9.0)), instance(1, (1.0, 1.0, 3.0, 3.0)))


def after(own=(0, 1), **edit):
    (line,) = read_edits(io.BytesIO(b"\n" + json.dumps({"key": "k", **edit}).encode()), "f")
    assert line.number == 2
    assert Edit.model_validate_json(line.edit.to_line()) == line.edit
    return edited(FOUND, line.edit, TEXTS, own, (20, 30))


def test_an_edit_changes_what_it_names():
    moved, new = [2, 3, 12.4, 9], to_coco(rectangle(7, 8, 10, 20).rle)
    left = after(
        delete=[1],
        change=[{"instance": 0, "box": moved}, {"instance": 2, "phrase": "black CAT"}],
        add=[{"mask": new, "phrase": "sofa"}],
        at="2026-11-30T20:00:00Z",
    )
    assert [(each.text_index, each.start, each.end) for each in left] == [(0, 0, 3), (0, 2, 12), (0, 18, 22)]
    assert {(each.origin, each.score) for each in left} == {("corrected", -1.0)}
    first, relabelled, added = left
    assert first.box == tuple(moved)
    assert first.mask == rectangle(2, 3, 12, 9)
    assert (relabelled.box, relabelled.mask) == (FOUND[2].box, FOUND[2].mask)
    assert added.box == (7, 8, 10, 20)
    assert decode_mask(added.mask.rle).sum() == 36
    assert after(wrong=True) == FOUND
    # the whole text, and texts stay in order
    assert [(each.text_index, each.end) for each in after(add=[{"box": [0, 0, 1, 1], "text": 0}])][2] == (0, 22)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"delete": [3]}, "no instance 3"),
        ({"change": [{"instance": 0, "mask": to_coco(rectangle(0, 0, 1, 1, (30, 20)).rle)}]}, "size"),
        ({"change": [{"instance": 0, "mask": to_coco(rectangle(0, 0, 0, 0).rle)}]}, "empty"),
        ({"change": [{"instance": 0, "mask": {"size": [20, 30], "counts": "9"}}]}, "damaged"),
        ({"change": [{"instance": 0, "box": [40, 0, 50, 9]}]}, "nothing lies in the image"),
        ({"change": [{"instance": 0, "phrase": "horse"}]}, "no text of the image has the words 'horse'"),
        ({"change": [{"instance": 0, "text": 1, "phrase": "cat"}]}, "text 1 hasn't"),
        ({"change": [{"instance": 0, "span": [3, 99]}]}, "characters 3 to 99"),
        ({"add": [{"text": 2, "box": [0, 0, 1, 1]}]}, "no text 2"),
        ({"add": [{"phrase": "cat"}]}, "needs a box or a mask"),
        ({"delete": [0], "change": [{"instance": 0}]}, "twice"),
        ({"at": "2026-11-30T20:00:00"}, "line 2 .*timezone"),
        ({"colour": 1}, "line 2"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, told):
    with pytest.raises(InputError, match=told):
        after(**edit)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return drawn_dataset(tmp_path_factory.mktemp("drawn") / "base", 60)


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made, tmp_path / "base")


def samples(folder):
    dataset = open_dataset(folder)
    return [sample for _, sample in iter_stored(dataset, range(dataset.samples), None)]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def covered(image, text):
    """Coverage of the 4 x 6 cells of 30 x 40 pixels, in fourths and sixths of pixels."""
    masks = [decode_mask(found.mask.rle) for found in image.instances if found.text_index == text]
    union = np.kron(np.any([np.zeros((30, 40)), *masks], axis=0), np.ones((4, 6), int))
    counts = union.reshape(4, 30, 6, 40).sum(axis=(1, 3))
    return -(-255 * counts // 1200)


def test_fifty_masks_are_corrected_without_a_model_and_everything_else_stays(base, tmp_path):
    before, first = samples(base), files(base)
    edits, touched = tmp_path / "edits.jsonl", {}
    lines = []
    for sample in before:
        (image,) = sample.images
        if image.instances and len(touched) < 50:
            number = len(touched) % len(image.instances)
            mask = MaskDocument.of(encode_masks(blob(np.random.default_rng(1000 + len(touched)))[None])[0])
            edit = Edit(key=sample.key, by="ann", change=(Change(instance=number, mask=mask),))
            touched[sample.key] = number, mask
            lines.append(edit.to_line())
    assert len(touched) == 45  # a fourth of the 60 has no instance; of these five get one
    bare = [sample.key for sample in before if sample.key not in touched][:5]
    for key in bare:
        drawn = MaskDocument.of(encode_masks(blob(np.random.default_rng(int(key[1:])))[None])[0])
        touched[key] = 0, drawn
        lines.append(Edit(key=key, add=(Addition(mask=drawn, phrase="cat"),)).to_line())
    edits.write_bytes(b"".join(lines))
    quiet = "import sys; from patchmint.cli import main; main()"
    # in a process of its own, in which no model can have run: there is no torch
    code = f"import sys, atexit; atexit.register(lambda: 'torch' in sys.modules and print('TORCH')); {quiet}"
    done = subprocess.run(
        [sys.executable, "-c", code, "correct", base, edits, "--by", "bob", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TORCH" not in done.stdout
    told = json.loads(done.stdout)
    assert told["column"] == "corrections-0001"
    assert {each["key"] for each in told["samples"]} == touched.keys()
    after = samples(base)
    for old, new in zip(before, after, strict=True):
        if old.key not in touched:
            assert new.members == old.members
            continue
        number, mask = touched[old.key]
        (image,) = new.images
        assert image.instances[number].mask == mask
        assert image.instances[number].origin == "corrected"
        others = [found for at, found in enumerate(image.instances) if at != number]
        assert others == [found for at, found in enumerate(old.images[0].instances) if at != number]
        for text in range(2):
            assert np.array_equal(image.coverage[text], covered(image, text))
        assert np.array_equal(image.selector, image.coverage > 26)
        changed = {ending for ending in old.members if old.members[ending] != new.members[ending]}
        assert changed <= {"json", "instances.json"} | {
            f"{kind}{grid}.npy" for kind in ("selector", "coverage") for grid in ("", ".qwen3-vl")
        }
        assert "coverage.qwen3-vl.npy" in changed
    assert {path: data for path, data in files(base).items() if path.parts[0] != "columns"} == first
    rows = {key: json.loads(told) for key, told in zip(*columns(base, "key", "edits"), strict=True)}
    assert {key: told[0]["by"] for key, told in rows.items() if told} == {
        key: "bob" if key in bare else "ann" for key in touched
    }
    # undone by another correction
    patchmint("correct", base, edits, "--undo")
    assert [sample.members for sample in samples(base)] == [sample.members for sample in before]
    assert not any(columns(base, "corrected")[0])
    assert "nothing to do" in patchmint("correct", base, edits, "--undo").stderr
    assert [path.name for path in sorted((base / "columns").iterdir())] == ["corrections-0001", "corrections-0002"]


def test_what_was_corrected_is_trusted_until_that_is_undone(base):
    write_trust(open_dataset(base))

    def trusts():
        stored = {sample.key: sample.key_json.trust for sample in samples(base)}
        told = [
            row for _, table in iter_tables(open_dataset(base), ["key", "trusts", "trust"]) for row in table.to_pylist()
        ]
        assert {row["key"]: row["trusts"] for row in told} == {key: pytest.approx(own) for key, own in stored.items()}
        assert [row["trust"] for row in told] == pytest.approx([min(own) for own in stored.values()])
        return stored

    def apply(**edit):
        dataset = open_dataset(base)
        write_corrections(dataset, correct(dataset, [("edit", Edit(key=changed.key, **edit))]))

    before = trusts()
    changed = next(sample for sample in samples(base) if len(sample.images[0].instances) == 3)
    text = changed.images[0].instances[0].text_index
    assert max(before[changed.key]) < 1
    apply(delete=(0,))
    own = tuple(1.0 if number == text else trust for number, trust in enumerate(before[changed.key]))
    assert trusts() == before | {changed.key: own}
    apply(wrong=True)  # says nothing of a text
    assert trusts() == before | {changed.key: own}
    apply(undo=True)
    assert trusts() == before
    write_trust(open_dataset(base, columns=("corrections",)), "later")
    with pytest.raises(InputError, match="later is of corrected labels; choose corrections-0001"):
        open_dataset(base, columns=("later",))
    assert open_dataset(base, columns=("later", "corrections")).has_trust


def test_trust_that_was_computed_after_corrections_is_of_what_these_left(base):
    def trusts():
        return {sample.key: sample.key_json.trust for sample in samples(base)}

    def apply(**edit):
        dataset = open_dataset(base)
        write_corrections(dataset, correct(dataset, [("edit", Edit(key=changed.key, **edit))]))

    write_trust(open_dataset(base), "first")
    changed = next(sample for sample in samples(base) if len(sample.images[0].instances) == 3)
    text = changed.images[0].instances[0].text_index
    apply(delete=(0,))
    assert trusts()[changed.key][text] == 1
    write_trust(open_dataset(base, columns=("corrections",)), "later")
    shutil.rmtree(base / "columns" / "first")
    before = trusts()
    assert max(before[changed.key]) < 1  # that somebody had looked is forgotten: it is computed like any other
    apply(undo=True)
    own = tuple(1.0 if number == text else trust for number, trust in enumerate(before[changed.key]))
    assert trusts() == before | {changed.key: own}
    apply(delete=(0,))  # what it was computed of
    assert trusts() == before


def columns(folder, *names):
    tables = [table for _, table in iter_tables(open_dataset(folder), names)]
    return [[value for table in tables for value in table[name].to_pylist()] for name in names]


SQUARE = rectangle(6, 4, 16, 14, (30, 40))
"""What somebody draws: its outline is that of a polygon, too."""


class InCoco:
    """Each of these changes a tool's files as somebody does there: s0003's dog is deleted, and so on."""

    kind, masks = "coco", True

    def __init__(self, folder):
        self.file = folder / "annotations.json"
        self.told = json.loads(self.file.read_text())
        self.ids = {image["key"]: image["id"] for image in self.told["images"]}
        self.names = {each["name"]: each["id"] for each in self.told["categories"]}

    def of(self, key):
        return [each for each in self.told["annotations"] if each["image_id"] == self.ids[key]]

    def delete(self, key, number):
        self.told["annotations"].remove(self.of(key)[number])

    def relabel(self, key, number, words):
        self.of(key)[number]["category_id"] = self.names[words]

    def redraw(self, key, number):
        self.of(key)[number]["segmentation"] = SQUARE.model_dump(mode="json")

    def add(self, key, words):
        shape = {"segmentation": [[6, 4, 16, 4, 16, 14, 6, 14]], "bbox": [6, 4, 10, 10], "iscrowd": 0}
        self.told["annotations"].append(
            shape | {"id": 9999, "image_id": self.ids[key], "category_id": self.names[words]}
        )

    def mark(self, key):
        self.told["images"][self.ids[key] - 1]["wrong"] = True

    def save(self):
        self.file.write_text(json.dumps(self.told))


class InLabelStudio(InCoco):
    """Predictions are submitted as annotations."""

    kind = "label-studio"

    def __init__(self, folder):
        self.file = folder / "tasks.json"
        self.told = json.loads(self.file.read_text())
        person = {"completed_by": {"email": "ann@x.org"}, "updated_at": "2026-11-30T20:00:00.5Z"}
        for task in self.told:
            task["annotations"] = [person | {"result": task.pop("predictions")[0]["result"]}]
        self.tasks = {task["data"]["key"]: task["annotations"][0] for task in self.told}

    def of(self, key):
        return self.tasks[key]["result"]

    def delete(self, key, number):
        del self.of(key)[number]

    def relabel(self, key, number, words):
        self.of(key)[number]["value"]["brushlabels"] = [words]

    def redraw(self, key, number):
        self.of(key)[number]["value"]["rle"] = brush_rle(decode_mask(SQUARE.rle))

    def add(self, key, words):
        points = [[15, 40 / 3], [40, 40 / 3], [40, 140 / 3], [15, 140 / 3]]
        size = {"original_width": 40, "original_height": 30}
        self.of(key).append(size | {"type": "polygonlabels", "value": {"polygonlabels": [words], "points": points}})

    def mark(self, key):
        self.of(key).append({"type": "choices", "value": {"choices": ["wrong"]}})


class InCvat(InCoco):
    kind = "cvat"

    def __init__(self, folder):
        self.file = folder / "annotations.xml"
        self.tree = ElementTree.parse(self.file)
        self.images = {image.get("name").partition(".")[0]: image for image in self.tree.iter("image")}

    def delete(self, key, number):
        self.images[key].remove(self.images[key][number])

    def relabel(self, key, number, words):
        self.images[key][number].set("label", words)

    def redraw(self, key, number):
        told = {"left": "6", "top": "4", "width": "10", "height": "10", "rle": "0, 100"}
        self.images[key][number].attrib.update(told)

    def add(self, key, words):
        points = "6.0,4.0;16.0,4.0;16.0,14.0;6.0,14.0"
        ElementTree.SubElement(self.images[key], "polygon", {"label": words, "points": points})

    def mark(self, key):
        ElementTree.SubElement(self.images[key], "tag", {"label": "wrong"})

    def save(self):
        self.tree.write(self.file)


class InFiftyOne(InCoco):
    kind = "fiftyone"

    def __init__(self, folder):
        self.file = folder / "samples.json"
        self.told = json.loads(self.file.read_text())
        self.samples = {sample["key"]: sample for sample in self.told["samples"]}

    def of(self, key):
        return self.samples[key]["instances"]["detections"]

    def delete(self, key, number):
        del self.of(key)[number]

    def relabel(self, key, number, words):
        self.of(key)[number]["label"] = words

    def redraw(self, key, number):
        # later versions write masks so; FiftyOne stretches them to the box
        mask = base64.b64encode(zlib.compress(encode_array(np.ones((5, 5), bool)))).decode()
        box = [6 / 40, 4 / 30, 10 / 40, 10 / 30]
        self.of(key)[number] |= {"bounding_box": box, "mask": {"$binary": {"base64": mask, "subType": "00"}}}

    def add(self, key, words):
        self.of(key).append({"label": words, "bounding_box": [6 / 40, 4 / 30, 10 / 40, 10 / 30]})

    def mark(self, key):
        self.samples[key]["tags"].append("wrong")


class InYolo(InCoco):
    kind, masks = "yolo", False

    def __init__(self, folder):
        self.folder = folder
        self.names = {name: n for n, name in yaml.safe_load((folder / "data.yaml").read_text())["names"].items()}

    def edit(self, key, change):
        file = self.folder / "labels" / f"{key}.txt"
        lines = file.read_text().splitlines()
        change(lines)
        file.write_text("\n".join(lines) + "\n" * bool(lines))

    def delete(self, key, number):
        self.edit(key, lambda lines: lines.pop(number))

    def relabel(self, key, number, words):
        def change(lines):
            lines[number] = f"{self.names[words]} {lines[number].partition(' ')[2]}"

        self.edit(key, change)

    def redraw(self, key, number):
        def change(lines):
            lines[number] = f"{lines[number].partition(' ')[0]} 0.275 0.3 0.25 0.333333"

        self.edit(key, change)

    def add(self, key, words):
        self.edit(key, lambda lines: lines.append(f"{self.names[words]} 0.275 0.3 0.25 0.333333"))

    def mark(self, key):
        pass

    def save(self):
        pass


class InOdvg(InYolo):
    kind = "odvg"

    def __init__(self, folder):
        self.file = folder / "annotations.jsonl"
        self.lines = [json.loads(line) for line in self.file.read_text().splitlines()]

    def of(self, key):
        first = next(line for line in self.lines if line["filename"].startswith(key))
        return first["grounding"]["regions"]

    def delete(self, key, number):
        del self.of(key)[number]

    def relabel(self, key, number, words):
        self.of(key)[number]["phrase"] = words

    def redraw(self, key, number):
        self.of(key)[number]["bbox"] = [6, 4, 16, 14]

    def add(self, key, words):
        self.of(key).append({"bbox": [6, 4, 16, 14], "phrase": words})

    def save(self):
        self.file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))


@pytest.mark.parametrize("tool", [InCoco, InLabelStudio, InCvat, InFiftyOne, InYolo, InOdvg])
def test_what_a_tool_gives_back_is_edits_of_what_somebody_changed(made, tmp_path, tool):
    dataset = open_dataset(made)
    export(dataset, tmp_path / "out", tool.kind)
    before = {sample.key: sample for sample in samples(made)}
    assert list(edits_of(dataset, read_back(tmp_path / "out", tool.kind))) == []
    files = tool(tmp_path / "out")
    files.save()
    assert list(edits_of(dataset, read_back(tmp_path / "out", tool.kind))) == []
    files.delete("s0002", 1)
    files.relabel("s0006", 1, "cat")
    files.redraw("s0001", 0)
    files.add("s0004", "cat")
    files.mark("s0005")
    files.save()
    named = list(edits_of(dataset, read_back(tmp_path / "out", tool.kind)))
    edits = {edit.key: edit for _, edit in named}
    assert edits.keys() == {"s0001", "s0002", "s0004", "s0006", *(["s0005"] * tool.masks)}
    made_of = {each.sample.key: each for each in correct(dataset, named, "bob")}
    found = {key: each.sample.images[0].instances for key, each in made_of.items()}
    old = {key: sample.images[0].instances for key, sample in before.items()}
    assert found["s0002"] == old["s0002"][:1]
    kept, changed = found["s0006"]
    assert kept == old["s0006"][0]
    assert (changed.start, changed.mask, changed.origin) == (2, old["s0006"][1].mask, "corrected")
    assert found["s0001"][0].mask == SQUARE
    # a new cat is one in each text that names a cat; ODVG says in which
    assert [each.text_index for each in found["s0004"]] == ([0] if tool is InOdvg else [0, 1])
    assert {each.mask.counts for each in found["s0004"]} == {SQUARE.counts}
    if tool.masks:
        assert (made_of["s0005"].wrong, made_of["s0005"].corrected) == (True, False)
    who = {edit.by for each in made_of.values() for edit in each.edits}
    assert who == ({"ann@x.org"} if tool is InLabelStudio else {"bob"})


def test_a_killed_correction_is_gone_on_with_and_wrong_samples_are_left_out(base, tmp_path, monkeypatch, caplog):
    keys = [sample.key for sample in samples(base)]
    edits = [*(Edit(key=key, wrong=True) for key in (keys[3], keys[25])), Edit(key=keys[50], delete=(0,))]
    (tmp_path / "edits.jsonl").write_bytes(b"".join(edit.to_line() for edit in edits))
    whole = shutil.copytree(base, tmp_path / "whole")
    at = datetime(2026, 11, 30, tzinfo=UTC)

    def apply(folder):
        dataset = open_dataset(folder)
        made = correct(dataset, [("edit", edit) for edit in edits], "ann", at)
        return write_corrections(dataset, made) if made else None

    apply(whole)
    commit, calls = Attempt.commit, []

    def killed(attempt, *given, **named):
        calls.append(attempt.unit)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(attempt, *given, **named)

    monkeypatch.setattr(Attempt, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(base)
    assert open_dataset(base).columns == ()
    assert not open_dataset(base).has_edits
    assert apply(base) == "corrections-0001"
    assert apply(base) is None
    assert calls == [0, 1, 1, 2]
    column = "columns/corrections-0001"
    same = [path for path in files(whole / column) if path.parts[0] not in ("commits", "shards.json")]
    assert {path: files(base / column)[path] for path in same} == {path: files(whole / column)[path] for path in same}
    assert list(verify_all(open_storage(base), decode=lambda data: decode_image(data).size)) == []
    # what is wrong is left out, and can be found
    dataset = open_dataset(base)
    assert find_samples(dataset, Search(where="wrong"))[1].tolist() == [3, 25]
    assert find_samples(dataset, Search(where="corrected"))[1].tolist() == [50]
    assert find_samples(dataset, Search())[0] == 58
    assert "2 samples are marked wrong" in patchmint("inspect", "find", base, "--key", "s0003", rc=1).stderr
    shown = patchmint("inspect", "show", base, "s0050").stdout
    assert "2026-11-30 00:00 ann: 1 deleted" in shown
    told = patchmint("inspect", "stats", base, "--json")
    assert json.loads(told.stdout)["samples"] == 58
    assert "2 samples are marked wrong" in told.stderr
    export(dataset, tmp_path / "out", "odvg")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 58
    loaded = StageDataset(base, include=["labels"], shuffle=False)
    assert "2 samples" in caplog.text
    assert [sample.key for sample in loaded] == [key for key in keys if key not in (keys[3], keys[25])]
    # from a data set that was read before, which would undo what is there by now
    before = replace(dataset, columns=())
    with pytest.raises(InputError, match="somebody else"):
        write_corrections(before, correct(before, [("edit", Edit(key=keys[3], wrong=True))]))
    # marked so again: not wrong
    assert len(correct(dataset, [("edit", Edit(key=keys[3], wrong=False)), ("edit", edits[1])])) == 1


@pytest.mark.parametrize(
    ("kind", "told", "error"),
    [
        ("cvat", '<!DOCTYPE a [<!ENTITY b "x">]><annotations><image id="0">&b;', "isn't as cvat"),
        ("cvat", '<mask label="cat" rle="0, 9999800001" left="0" top="0" width="99999" height="99999"/>', "larger"),
        ("cvat", '<mask label="cat" rle="0, 4" left="39" top="0" width="2" height="2"/>', "out of the image"),
        ("cvat", '<ellipse label="cat"/>', "'ellipse' can't be read"),
        ("fiftyone", {"filepath": "x/nobody.jpg"}, "no such sample"),
        ("fiftyone", {"filepath": "x/s0001.jpg", "instances": {"detections": [{"label": "cat"}]}}, "bounding_box"),
        ("fiftyone", {"filepath": "x/s0001.0.jpg", "image": 1}, "no image 1"),
    ],
)
def test_what_no_tool_writes_is_refused(made, tmp_path, kind, told, error):
    if kind == "fiftyone":
        told = json.dumps({"samples": [told]})
    elif "DOCTYPE" not in told:
        told = f'<annotations><image id="0" name="s0001.jpg" width="40" height="30">{told}</image></annotations>'
    (tmp_path / "file").write_text(told)
    with pytest.raises(InputError, match=error):
        list(edits_of(open_dataset(made), read_back(tmp_path / "file", kind)))
