"""Everything that `verify` must find, planted; and that it finds nothing else."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_data import (
    LAYOUT,
    commit_unit,
    finish,
    make_dataset,
    make_reject,
    make_sample,
    members_of,
    tar_of,
    write_plan,
    write_shard,
)
from source_files import put

from patchmint.errors import ImageDecodeError
from patchmint.shards.checks import MAX_PER_SHARD, Findings
from patchmint.shards.codec import encode_array, tar_end, tar_member
from patchmint.shards.reader import iter_samples
from patchmint.shards.verify import verify, verify_tars
from patchmint.storage import open_storage

Members = list[tuple[str, bytes]]


def decode(data):
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.height, image.width
    except OSError as error:
        raise ImageDecodeError(str(error)) from error


def check(folder, **options):
    return list(verify(open_storage(folder), **options))


def codes(findings):
    return {finding.code for finding in findings}


def places(findings):
    return {(finding.code, finding.shard) for finding in findings}


def two_units():
    return [[make_sample(i, phrases=i > 1) for i in range(3)], [make_sample(3), make_sample(4, kind="png")]]


def edit(change):
    """Change the members of a tar by name; those that go missing are left out, new ones come last."""

    def damage(tar):
        members = dict(members_of(tar))
        change(members)
        return tar_of(list(members.items()))

    return damage


def edit_document(**fields):
    def change(members):
        document = json.loads(members["s0003.json"])
        members["s0003.json"] = json.dumps({**document, **fields}).encode()

    return edit(change)


def array(ending, change):
    def damage(members):
        old = np.load(io.BytesIO(members[f"s0003.{ending}.npy"]), allow_pickle=False)
        members[f"s0003.{ending}.npy"] = encode_array(change(old.copy()))

    return edit(damage)


def test_a_sound_data_set(tmp_path):
    folder = make_dataset(tmp_path / "d", [*two_units(), []], {0: [make_reject(8)], 2: [make_reject(9)]})
    told = []
    assert check(folder, decode=decode, progress=lambda done, total: told.append((done, total))) == []
    assert told == [(1, 3), (2, 3), (3, 3)]


def phrase(**changes):
    return json.dumps([make_sample(3).phrases[0].model_copy(update=changes).model_dump()])


OTHER_GRID = {"rows": 4, "cols": 6, "patch_px": 16, "fit": "squash", "views": 1}
OTHER_TOKENS = {"member": "vqgan", "grid": [4, 4], "codebook_sizes": [99], "preprocessing": "x"}


@pytest.mark.parametrize(
    ("damage", "code", "key"),
    [
        (lambda tar: tar[:-512] + b"x" * 512, "tar-damaged", ""),
        (lambda tar: tar.replace(b"s0004.json", b"\xff0004.json", 1), "tar-damaged", ""),
        (lambda tar: tar_of([(n.replace("s0003", "S0003"), d) for n, d in members_of(tar)]), "key-invalid", "S0003"),
        (lambda tar: tar_of(members_of(tar)[1::-1] + members_of(tar)[2:]), "members-order", "s0003"),
        (edit(lambda m: m.pop("s0003.vqgan.npy")), "members-missing", "s0003"),
        (edit(lambda m: m.pop("s0003.json")), "members-missing", "s0003"),
        (edit_document(notice="untrained"), "document-notice", "s0003"),
        (edit_document(key="s0009"), "document-key", "s0003"),
        (edit_document(phrases_json="[null]"), "document-form", "s0003"),
        (edit_document(phrases_json="not json"), "document-form", "s0003"),
        (edit_document(annotators_json="[]"), "document-texts", "s0003"),
        (edit_document(conversation_json="{}"), "document-form", "s0003"),
        (edit_document(texts=["other words", "second text"]), "phrase-span", "s0003"),
        (edit_document(texts=["قطة", "second text"], phrases_json="[]"), "caption", "s0003"),
        (edit_document(phrases_json=phrase(box=(0.0, 0.0, 40.5, 3.0))), "phrase-box", "s0003"),
        (edit_document(phrases_json=phrase(start=2, end=2)), "phrase-span", "s0003"),
        (edit_document(phrases_json=phrase(text_index=7)), "phrase-text", "s0003"),
        (edit_document(grid=OTHER_GRID), "document-grid", "s0003"),
        (edit_document(tokens=OTHER_TOKENS), "document-tokens", "s0003"),
        (edit(lambda m: m.update({"s0003.json": b"{"})), "document-form", "s0003"),
        (edit(lambda m: m.update({"s0003.txt": b"\xff"})), "caption", "s0003"),
        (array("coverage", lambda a: a[:, :3]), "array-shape", "s0003"),
        (array("selector", lambda a: 1 - a), "selector-coverage", "s0003"),
        (array("selector", lambda a: a * 2), "selector-values", "s0003"),
        (array("vqgan", lambda a: a.astype("<u4")), "array-dtype", "s0003"),
        (array("vqgan", lambda a: a | 0x8000), "codes-range", "s0003"),
        (edit(lambda m: m.update({"s0003.vqgan.npy": m["s0003.vqgan.npy"][:-1]})), "array-form", "s0003"),
        (edit(lambda m: m.update({"s0003.jpg": b""})), "image-damaged", "s0003"),
    ],
)
def test_planted_in_a_tar(tmp_path, damage, code, key):
    """The record is of the damaged tar, so that checksums don't give it away; more in test_inspect_verify.py."""
    folder = make_dataset(tmp_path / "d", two_units(), damage={1: damage})
    found = check(folder)
    assert (code, key) in {(finding.code, finding.key) for finding in found}, found
    assert {finding.shard for finding in found} == {"shards/000001.tar"}
    assert "file-sha256" not in codes(found)


@pytest.mark.parametrize(
    ("kind", "shown"), [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.DIRTYPE, "folder")]
)
def test_members_that_are_no_files(tmp_path, kind, shown):
    info = tarfile.TarInfo("s0004.link")
    info.type, info.linkname = kind, "../../etc/passwd"
    header = info.tobuf(tarfile.USTAR_FORMAT)

    def damage(tar):
        data = b"".join(tar_member(*member) for member in members_of(tar)) + header
        return data + tar_end(len(data))

    found = check(make_dataset(tmp_path / "d", two_units(), damage={1: damage}))
    assert any(finding.code == "member-kind" and shown in finding.message for finding in found)


def test_images_are_decoded_only_when_asked(tmp_path):
    cut, sound = make_sample(0), make_sample(1)
    wider = replace(sound, image=sound.image.model_copy(update={"width": 50}))
    folder = make_dataset(tmp_path / "d", [[replace(cut, data=cut.data[:-200]), wider]])
    assert check(folder) == []
    found = check(folder, decode=decode)
    assert {(finding.code, finding.key) for finding in found} == {("image-damaged", "s0000"), ("image-size", "s0001")}


def test_files_that_are_changed_cut_or_gone(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units(), {0: [make_reject(8)]})
    for name in ("shards/000001.tar", "sidecars/000001.parquet", "rejects/000000.parquet"):
        whole = (folder / name).read_bytes()
        flipped = whole[:700] + bytes([whole[700] ^ 1]) + whole[701:]
        for data, code in ((flipped, "file-sha256"), (whole[:-600], "file-size")):
            (folder / name).write_bytes(data)
            assert (code, name) in places(check(folder))
        (folder / name).unlink()
        assert "file-missing" in codes(check(folder))
        (folder / name).write_bytes(whole)


def test_sidecars_that_tell_something_else(tmp_path):
    """Sound files with sound sums, but the pair doesn't go together."""
    units = two_units()
    folder = make_dataset(tmp_path / "d", units)
    other_codes = replace(make_sample(4, kind="png"), codes=np.zeros((4, 4), int))
    for samples, expected in (
        ([make_sample(3), other_codes], "codes"),
        ([make_sample(3)], "sidecar-rows"),
        ([*units[1], make_sample(5)], "sidecar-rows"),
        (units[1][::-1], "offset"),
    ):
        commit_with_sidecar(folder, write_shard(samples)[1])
        found = check(folder)
        assert any(expected in finding.code + finding.message for finding in found), found
        assert codes(found) <= {"sidecar-row", "sidecar-rows", "counts"}


def commit_with_sidecar(folder, sidecar):
    (folder / "sidecars" / "000001.parquet").write_bytes(sidecar)
    path = folder / "commits" / "000001.json"
    record = json.loads(path.read_bytes())
    record["files"]["sidecars/000001.parquet"] |= {"size": len(sidecar), "sha256": hashlib.sha256(sidecar).hexdigest()}
    path.write_text(json.dumps(record))


def test_sidecars_that_are_no_tables_or_have_other_columns(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units())
    file = io.BytesIO()
    pq.write_table(pq.read_table(folder / "sidecars" / "000001.parquet").drop_columns(["id"]), file)
    for data in (b"no parquet", write_shard([])[1][:-20], file.getvalue()):
        commit_with_sidecar(folder, data)
        assert "table-form" in codes(check(folder))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def test_records(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units(), {0: [make_reject(8)]})
    record = folder / "commits" / "000001.json"
    whole = record.read_bytes()
    edit_json(record, plan_digest="0" * 64)
    assert codes(check(folder)) == {"plan-digest"}
    record.write_bytes(whole)
    edit_json(record, planned=3, written=3)
    found = check(folder)
    assert codes(found) == {"counts"}
    assert {finding.shard for finding in found} >= {"commits/000001.json", "shards/000001.tar", "dataset.json"}
    record.write_bytes(whole[:50])
    assert {"record-form"} <= codes(check(folder))
    record.unlink()
    found = places(check(folder))
    assert ("record-missing", "commits/000001.json") in found
    assert {shard for code, shard in found if code == "file-stray"} == {"shards/000001.tar", "sidecars/000001.parquet"}
    record.write_bytes(whole)
    assert check(folder) == []
    files = json.loads(whole)["files"]
    edit_json(record, files={"shards/000001.tar": files["shards/000001.tar"]})
    assert "record-form" in codes(check(folder))
    record.write_bytes(whole)
    edit_json(folder / "commits" / "000000.json", rejects={"image-damaged": 1})
    assert codes(check(folder)) == {"counts"}


def test_strays(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units())
    strays = ("shards/000009.tar", "commits/000009.json", "attempts/a1/shards-000000.tar", "README.md", "runs/x.json")
    put(folder, dict.fromkeys(strays, b""))
    assert places(check(folder)) == {
        ("file-stray", "shards/000009.tar"),
        ("file-stray", "commits/000009.json"),
        ("attempt-stray", "attempts/a1"),
    }


def test_manifest_and_plan(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units())
    manifest = folder / "dataset.json"
    whole = manifest.read_bytes()
    for change in ({"planned": 6}, {"written": 4}, {"rejected": {"x": 1}}, {"units": 3}, {"shards": 1}, {"bytes": 1}):
        edit_json(manifest, totals={**json.loads(whole)["totals"], **change})
        assert [(f.code, f.shard) for f in check(folder)] == [("counts", "dataset.json")]
    manifest.write_bytes(whole)
    edit_json(manifest, plan_digest="0" * 64)
    assert codes(check(folder)) == {"plan-digest"}
    manifest.write_text("{}")
    assert codes(check(folder)) == {"manifest-form"}
    manifest.unlink()
    assert codes(check(folder)) == {"manifest-missing"}
    manifest.write_bytes(whole)
    write_plan(folder, {0: 3, 1: 3})
    assert codes(check(folder)) == {"counts", "plan-digest"}
    (folder / "plan.parquet").write_bytes(b"x")
    assert codes(check(folder)) == {"plan-form"}
    (folder / "plan.parquet").unlink()
    assert codes(check(folder)) == {"plan-missing"}


def test_the_list_of_shards(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units())
    path = folder / "shards.json"
    whole = path.read_text()
    changes = {'"samples": 3': '"samples": 2', '"table_sha256": "': '"table_sha256": "0', '"plans": 1': '"plans": 2'}
    for old, new in changes.items():
        path.write_text(whole.replace(old, new, 1))
        assert [(f.code, f.shard) for f in check(folder)] == [("counts", "shards.json")]
    document = json.loads(whole)
    path.write_text(json.dumps(document | {"units": document["units"][:1]}))
    assert codes(check(folder)) == {"counts"}
    path.write_text("{}")
    assert [(f.code, f.shard) for f in check(folder)] == [("list-form", "shards.json")]
    path.unlink()
    assert [(f.code, f.shard) for f in check(folder)] == [("list-missing", "shards.json")]


def test_retries_close_the_counts(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units(), {0: [make_reject(8), make_reject(9)]})
    write_plan(folder, {2: 2}, generation=1)
    commit_unit(folder, 2, [make_sample(8)], [make_reject(9)])
    finish(folder, [0, 1, 2], planned=7, rejected=1)
    assert check(folder) == []
    write_plan(folder, {3: 1}, generation=2)
    commit_unit(folder, 3, [make_sample(9)], [])
    finish(folder, [0, 1, 2, 3], planned=7, rejected=0)
    assert check(folder) == []
    finish(folder, [0, 1, 2, 3], planned=7, rejected=1)
    assert codes(check(folder)) == {"counts"}
    write_plan(folder, {3: 1}, generation=1)
    assert codes(check(folder)) == {"plan-form"}


def test_retries_of_what_was_not_rejected(tmp_path):
    folder = make_dataset(tmp_path / "d", two_units())
    write_plan(folder, {2: 1}, generation=1)
    commit_unit(folder, 2, [make_sample(8)], [])
    (folder / "dataset.json").unlink()
    assert codes(check(folder)) == {"manifest-missing", "counts"}


def test_a_wholly_broken_shard_is_brief():
    findings = Findings("s")
    for number in range(MAX_PER_SHARD + 5):
        findings.add("x", str(number))
    listed = findings.to_list()
    assert len(listed) == MAX_PER_SHARD + 1
    assert "5 more" in listed[-1].message


def lone(tmp_path, tar, **options):
    (tmp_path / "a.tar").write_bytes(tar)
    return list(verify_tars(open_storage(tmp_path), ["a.tar"], **options))


def test_a_lone_tar_of_ours(tmp_path):
    tar, _ = write_shard([make_sample(i) for i in range(3, 5)])
    assert lone(tmp_path, tar, decode=decode) == []
    assert codes(lone(tmp_path, array("selector", lambda a: 1 - a)(tar))) == {"selector-coverage"}
    assert codes(lone(tmp_path, edit_document(grid=None)(tar))) == {"document-form"}
    assert codes(lone(tmp_path, edit(lambda m: m.pop("s0003.coverage.npy"))(tar))) == {"members-missing"}
    no_labels = LAYOUT.model_copy(update={"min_coverage": None})
    assert lone(tmp_path, write_shard([make_sample(0, layout=no_labels)], no_labels)[0]) == []


def test_tars_of_others(tmp_path):
    image = make_sample(0).data
    sound = [("a/00.jpg", image), ("a/00.json", b'{"caption": null}'), ("a/00.txt", b"x"), ("a/01.jpg", image)]
    assert lone(tmp_path, tar_of(sound), decode=decode) == []
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("é" * 120 + ".jpg")
        info.size = len(image)
        archive.addfile(info, io.BytesIO(image))
    assert lone(tmp_path, file.getvalue(), decode=decode) == []
    assert codes(lone(tmp_path, b"\x1f\x8b" + bytes(2000))) == {"tar-damaged"}
    for members, code in (
        ([*sound, ("a/02.json", b"{")], "document-form"),
        ([*sound, ("a/00.cls", b"1")], "sample-split"),
        ([("x.1.jpg", image), ("x.1.txt", b""), ("x.2.jpg", image)], "key-dotted"),
        ([*sound, ("b.jpg", image[:-200])], "image-damaged"),
        ([*sound, ("b.png", b"")], "image-damaged"),
        ([*sound, ("b.pickle", b"x")], "member-pickle"),
        ([*sound, ("b\x1b[2J.txt", b"x")], "member-path"),
        ([("a.txt", b""), ("a.txt", b"")], "member-duplicate"),
    ):
        assert codes(lone(tmp_path, tar_of(members), decode=decode)) == {code}


def test_tars_of_one_folder_share_their_keys(tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(tar_of([("0.txt", name.encode())]))
    found = list(verify_tars(open_storage(tmp_path), ["a.tar", "b.tar"]))
    assert [(f.shard, f.key, f.code) for f in found] == [("b.tar", "0", "key-duplicate")]


def test_a_tar_cut_anywhere_is_found(tmp_path):
    tar, _ = write_shard([make_sample(0)])
    (tmp_path / "whole.tar").write_bytes(tar)
    (sample,) = iter_samples(open_storage(tmp_path), "whole.tar")
    for size in range(0, sample.size + 1024, 256):
        assert codes(lone(tmp_path, tar[:size])) & {"tar-cut", "tar-damaged"}, size
    assert lone(tmp_path, tar[: sample.size + 1024]) == []


def test_a_tar_that_is_gone_is_a_finding(tmp_path):
    assert codes(list(verify_tars(open_storage(tmp_path), ["no.tar"]))) == {"file-unreadable"}
