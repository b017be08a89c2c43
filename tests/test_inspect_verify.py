"""`patchmint inspect verify`: what it prints, and what it ends with."""

import io
import json
import pickle
import re
import subprocess
import tarfile
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import webdataset
from inspect_data import answer, edit_json, inspect
from PIL import Image
from shard_data import LAYOUT, configure, make_dataset, make_reject, make_sample, renamed
from test_shards_verify import array, edit, edit_document, members_of, tar_of, two_units

from patchmint.shards.codec import tar_end, tar_member

run = partial(inspect, "verify")


def findings(*arguments):
    return json.loads(run(*arguments, "--json").stdout)["findings"]


def is_well(target, *options):
    assert run(target, *options, rc=0).stdout == f"{target}: no faults found\n"


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "d", [[make_sample(0), make_sample(1, kind="png")]], {0: [make_reject(2)]})


def test_all_is_well(dataset):
    for target in (dataset, dataset / "shards" / "000000.tar", dataset / "shards"):
        is_well(target, "--deep")
    assert answer("verify", dataset) == {"dataset": str(dataset), "findings": []}


def test_findings(dataset):
    (dataset / "sidecars" / "000000.parquet").unlink()
    (dataset / "shards" / "[red]\x1b[2J.tar").write_bytes(b"")
    done = run(dataset, rc=1)
    for words in ("commits/000000.json", "file-missing", "[red]\N{REPLACEMENT CHARACTER}[2J.tar"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    assert "2 findings" in done.stderr
    found = findings(dataset)
    assert {finding["code"] for finding in found} == {"file-missing", "file-stray"}
    assert set(found[0]) == {"shard", "key", "code", "message"}


def test_images_over_the_builds_limit_are_not_decoded(dataset):
    configure(dataset, limits={"max_image_megapixels": 0.001})
    assert {f["code"] for f in findings(dataset, "--deep")} == {"image-damaged"}


class Creates:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def header(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info.tobuf(tarfile.USTAR_FORMAT)


def interleaved(tar):
    members = members_of(tar)
    half = len(members) // 2
    return tar_of([one for pair in zip(members[:half], members[half:], strict=True) for one in pair])


def flipped(name, place, bit=1):
    """One bit of a member's data; the tar stays a tar."""

    def flip(members):
        data = bytearray(members[name])
        data[place] ^= bit
        members[name] = bytes(data)

    return edit(flip)


def added(member):
    """With one more member at the end of a tar."""

    def add(tar):
        data = b"".join([*(tar_member(*each) for each in members_of(tar)), member])
        return data + tar_end(len(data))

    return add


FAULTS = {
    # what is done to the shard of s0003 and s0004: code and key that a data set's check names, and a lone tar's
    "a flipped bit of a label": (flipped("s0003.selector.npy", -3), "selector-coverage", "s0003"),
    "a flipped bit of a code": (flipped("s0003.vqgan.npy", -1, 0x80), "codes-range", "s0003"),
    "a flipped bit of a header": (lambda tar: tar.replace(b"s0004.json", b"s0005.json", 1), "tar-damaged", ""),
    "a duplicate key": (lambda tar: tar_of([*members_of(tar), *members_of(tar)[:6]]), "key-duplicate", "s0003"),
    "interleaved members": (interleaved, "sample-split", "s0003"),
    "a dotted key": (
        lambda tar: tar_of([(name.replace("s0003.", "s0003.v1."), data) for name, data in members_of(tar)]),
        "members-unknown",
        "s0003",
    ),
    "a null field": (edit_document(notice=None), "document-form", "s0003"),
    "a wrong dtype": (array("selector", lambda a: a.astype(np.int64)), "array-dtype", "s0003"),
    "a parent folder": (added(tar_member("../escape.jpg", b"x")), "member-path", "../escape"),
    "an absolute path": (added(tar_member("/escape.jpg", b"x")), "member-path", "/escape"),
    "a symbolic link": (added(header("s0005.jpg", tarfile.SYMTYPE, "../../etc/passwd")), "member-kind", "s0005"),
    "a hard link": (added(header("s0005.jpg", tarfile.LNKTYPE, "s0004.jpg")), "member-kind", "s0005"),
    "a device": (added(header("s0005.jpg", tarfile.CHRTYPE)), "member-kind", "s0005"),
}


def check_names(target, shard, code, key, *options):
    """As a table and as JSON: names shard, key and fault, and ends with 1."""
    found = answer("verify", target, *options, rc=1)["findings"]
    assert (shard, key, code) in {(f["shard"], f["key"], f["code"]) for f in found}, found
    assert {f["shard"] for f in found} == {shard}
    printed = run(target, *options, rc=1).stdout
    assert any(all(word in line for word in (shard, key, code)) for line in printed.splitlines())
    assert not Path("/escape.jpg").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path, fault):
    damage, code, key = FAULTS[fault]
    sums_agree = make_dataset(tmp_path / "d", two_units(), damage={1: damage})
    check_names(sums_agree, "shards/000001.tar", code, key)
    afterwards = make_dataset(tmp_path / "e", two_units())
    shard = afterwards / "shards" / "000001.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    check_names(afterwards, "shards/000001.tar", code, key)
    assert {"file-size", "file-sha256"} & {f["code"] for f in findings(afterwards)}
    (tmp_path / "alone.tar").write_bytes(shard.read_bytes())
    check_names(tmp_path / "alone.tar", "alone.tar", "key-dotted" if fault == "a dotted key" else code, key)


@pytest.mark.parametrize(("size", "code"), [(3000, "tar-damaged"), (10_000, "tar-cut"), (-9000, "tar-cut")])
def test_a_cut_tar_is_named_with_its_last_member(tmp_path, size, code):
    folder = make_dataset(tmp_path / "d", two_units())
    shard = folder / "shards" / "000001.tar"
    members = members_of(shard.read_bytes())
    shard.write_bytes(shard.read_bytes()[:size])
    check_names(folder, "shards/000001.tar", code, "")
    check_names(shard, "shards/000001.tar", code, "")
    (message,) = (f["message"] for f in findings(shard) if f["code"] == code)
    starts = accumulate((len(tar_member(*member)) for member in members), initial=0)
    whole = [
        name
        for (name, data), start in zip(members, starts, strict=False)
        if start + 512 + len(data) <= shard.stat().st_size
    ]
    assert f"the last member that can be read is {whole[-1]!r}" in message


def test_a_key_of_two_shards_is_named(tmp_path):
    units = [[make_sample(0)], [make_sample(1), renamed(make_sample(2), "s0000")]]
    folder = make_dataset(tmp_path / "d", units)
    check_names(folder, "shards/000001.tar", "key-duplicate", "s0000")
    (found,) = findings(folder)
    assert "shards/000000.tar" in found["message"]
    check_names(folder / "shards", "000001.tar", "key-duplicate", "s0000")


def test_a_stale_record_is_named(tmp_path):
    """The record of an earlier build of the unit, beside the files of a later one."""
    folder = make_dataset(tmp_path / "d", two_units())
    earlier = make_dataset(tmp_path / "e", [two_units()[0], [make_sample(3), make_sample(5)]])
    record = folder / "commits" / "000001.json"
    record.write_bytes((earlier / "commits" / "000001.json").read_bytes())
    found = findings(folder)
    for file in ("shards/000001.tar", "sidecars/000001.parquet"):
        assert {f["code"] for f in found if f["shard"] == file} & {"file-size", "file-sha256"}, found
    run(folder, rc=1)
    record.write_bytes(re.sub(rb'"plan_digest": "\w+"', b'"plan_digest": "0"', record.read_bytes()))
    assert "plan-digest" in run(folder).stdout


@pytest.mark.parametrize(("key", "kind"), [("s0003", "jpeg"), ("s0004", "png")])
def test_corrupt_images_are_named_deep(tmp_path, key, kind):
    def blank(members):
        data = members[f"{key}.jpg"]
        members[f"{key}.jpg"] = data[:20] + bytes(len(data) - 40) + data[-20:]

    units = [[make_sample(0)], [make_sample(3), make_sample(4, kind="png")]]
    folder = make_dataset(tmp_path / kind, units, damage={1: edit(blank)})
    run(folder, rc=0)
    check_names(folder, "shards/000001.tar", "image-damaged", key, "--deep")
    check_names(folder / "shards" / "000001.tar", "shards/000001.tar", "image-damaged", key, "--deep")


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pyd", "pth", "pt", "x.pkl", "PKL", "selector.npy", "npy"])
def test_pickles_are_never_loaded(tmp_path, ending):
    made, is_array, file = tmp_path / "made", ending.endswith("npy"), io.BytesIO()
    np.save(file, np.array([Creates(made)], dtype=object), allow_pickle=True)
    pickled = file.getvalue() if is_array else pickle.dumps(Creates(made))
    pickle.loads(pickle.dumps(Creates(made)))  # it would
    made.unlink()
    damage = edit(lambda members: members.update({f"s0004.{ending}": pickled}))
    folder = make_dataset(tmp_path / "d", two_units(), damage={1: damage})
    code = "array-form" if is_array else "member-pickle"
    check_names(folder, "shards/000001.tar", code, "s0004", "--deep")
    check_names(folder / "shards" / "000001.tar", "shards/000001.tar", code, "s0004", "--deep")
    (tmp_path / "foreign.tar").write_bytes(tar_of([("a.jpg", make_sample(0).data), (f"a.{ending}", pickled)]))
    check_names(tmp_path / "foreign.tar", "foreign.tar", code, "a", "--deep")
    assert not made.exists()


def test_tars_of_webdataset_are_fine_when_they_are_fine(tmp_path):
    path = tmp_path / "foreign.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            image = Image.fromarray(np.full((8, 9, 3), number, np.uint8))
            document = {"caption": None, "n": number}
            sample = {"jpg": image, "json": document, "txt": "été", "cls": number, "npy": np.arange(4.0)}
            writer.write({"__key__": f"Folder/Sample {number:03}", **sample, "seg.png": image})
    is_well(path)
    is_well(path, "--deep")
    path.write_bytes(path.read_bytes()[:9000])
    check_names(path, "foreign.tar", "tar-cut", "")


def test_tars_of_tar_are_fine_with_their_folders(tmp_path):
    images = tmp_path / "in" / "a"
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(make_sample(number).data)
        (images / f"{number}.txt").write_text("words")
    subprocess.run(["tar", "-C", tmp_path / "in", "--sort=name", "-cf", tmp_path / "x.tar", "."], check=True)
    is_well(tmp_path / "x.tar", "--deep")
    data = header("../out/", tarfile.DIRTYPE)
    (tmp_path / "y.tar").write_bytes(data + tar_end(len(data)))
    check_names(tmp_path / "y.tar", "y.tar", "member-path", "../out")


def test_texts_and_label_shares_of_records_and_manifest(tmp_path):
    folder = make_dataset(tmp_path / "d", [*two_units(), []], {2: [make_reject(9)]})
    manifest, record, empty = (folder / name for name in ("dataset.json", "commits/000001.json", "commits/000002.json"))
    totals = json.loads(manifest.read_bytes())["totals"]
    share = json.loads(record.read_bytes())["label_share"]
    assert 0 < totals["label_share"] < 1
    lists = {"dataset.json", "shards.json"}
    for path, fields, places in (
        (record, {"texts": 4}, {"sidecars/000001.parquet", *lists}),
        (record, {"label_share": round(share + 0.001, 6)}, {"sidecars/000001.parquet", *lists}),
        (record, {"label_share": None}, {"sidecars/000001.parquet", *lists}),
        (empty, {"texts": 1}, {"commits/000002.json", *lists}),
        (manifest, {"totals": totals | {"texts": 9}}, {"dataset.json"}),
        (manifest, {"totals": totals | {"label_share": round(totals["label_share"] + 0.00001, 6)}}, {"dataset.json"}),
        (manifest, {"totals": totals | {"label_share": None}}, {"dataset.json"}),
    ):
        whole = path.read_bytes()
        edit_json(path, lambda document, fields=fields: document.update(fields))
        assert {(f["shard"], f["code"]) for f in findings(folder)} == {(place, "counts") for place in places}, fields
        path.write_bytes(whole)
    run(folder, rc=0)


def test_data_sets_without_labels_have_no_label_share(tmp_path):
    layout = LAYOUT.model_copy(update={"min_coverage": None})
    folder = make_dataset(tmp_path / "d", [[make_sample(0, layout=layout)]], layout=layout)
    manifest = folder / "dataset.json"
    assert json.loads(manifest.read_bytes())["totals"]["label_share"] is None
    run(folder, rc=0)
    manifest.write_bytes(manifest.read_bytes().replace(b'"label_share": null', b'"label_share": 0.0'))
    assert "the manifest says label_share 0.0, it is None" in run(folder).stdout
